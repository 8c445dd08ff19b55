"""Replay of a real spike, planted by one frame whose depth is noise."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainables.data.dataset import open_training
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig
from trainables.training import checkpoint
from trainables.training.replay import replay
from trainables.training.trainer import iter_fit

SETTINGS = {
    "budget_images": 180, "validate_every_images": 180, "checkpoint_every_images": 180, "snapshot_every_steps": 35,
    "optim.schedule": "constant",
}  # fmt: skip


def spiked(root: Path, folder: Path, make: Callable[..., TrialConfig], **more: object) -> tuple[Path, str]:
    """A training in which one frame's depth is noise between 4 cm and 10 m; its last snapshot, and that frame."""
    config = make(**SETTINGS | {"data.root": str(root)} | more)
    bad = open_training(config).train.ids[8]
    noise = np.random.default_rng(0).integers(1, 256, (48, 64)).astype(np.uint8)
    Image.fromarray(noise).save((root / bad).with_suffix(".png"))
    list(iter_fit(config, folder))
    snapshots = sorted((folder / "checkpoints" / checkpoint.SPIKES).glob("step-*"), key=lambda p: int(p.name[5:]))
    assert snapshots
    return snapshots[-1], bad


def test_with_the_sample_it_is_the_spike_bit_for_bit_without_it_there_is_none(
    tiny_root: Path, tmp_path: Path, tiny_config: Callable[..., TrialConfig]
) -> None:
    root = Path(shutil.copytree(tiny_root, tmp_path / "set"))
    snapshot, bad = spiked(root, tmp_path / "training", tiny_config)
    found = replay(snapshot, [bad], steps_after=2)
    trace = pq.read_table(tmp_path / "training" / "trace.parquet").to_pydict()
    recorded = trace["loss"][found.first_step : found.spike_step + 3]
    assert list(found.as_it_was) == recorded and found.first_step <= found.spike_step < found.first_step + 35
    place = found.spike_step - found.first_step
    assert list(found.without[:place]) == recorded[:place]
    usual = float(np.median(trace["loss"][30 : found.spike_step]))
    assert found.as_it_was[place] > 2 * usual > 1.5 * found.without[place]
    assert found.left_out == (bad,) and found.target_max == trace["target_max"][found.spike_step]
    assert found.rgb.shape == (48, 64, 3) and found.truth_m.shape == found.prediction_m.shape == (48, 64)
    with pytest.raises(UserError, match="held none of elsewhere"):
        replay(snapshot, ["elsewhere"], steps_after=1)


def test_a_batch_of_one_is_replaced_by_the_one_before(
    tiny_root: Path, tmp_path: Path, tiny_config: Callable[..., TrialConfig]
) -> None:
    root = Path(shutil.copytree(tiny_root, tmp_path / "set"))
    fewer = {"batch_size": 1, "budget_images": 64, "data.order": "listed"}
    snapshot, bad = spiked(root, tmp_path / "training", tiny_config, **fewer)
    found = replay(snapshot, [bad], steps_after=1)
    place = found.spike_step - found.first_step
    if place:
        assert found.as_it_was[place] > 2 * found.without[place]
    else:
        pytest.fail("the snapshot was taken at the spike's own step")
