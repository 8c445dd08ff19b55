"""Validation of a report: the training's own loss, and frames that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import write_tiny
from trainables.data.dataset import open_training
from trainables.data.frames import BadFrame
from trainables.data.samples import prepare
from trainables.data.target import data_range
from trainables.evaluation.metrics import checkerboard
from trainables.models.depth_model import build_model
from trainables.models.losses import composite
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig
from trainables.training.report import validate

CPU = torch.device("cpu")


def test_one_pass_gives_the_training_loss_and_the_pattern_of_plain_pictures(
    tiny_config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    root = write_tiny(tmp_path, holes=True)
    for names in (root / "data/nyu2_train.csv").read_text().split()[2::4]:  # several stored sizes in a batch
        for name in names.split(","):
            picture = Image.open(root / name)
            picture.resize((80, 60), Image.Resampling.NEAREST).save(root / name)
    changes: dict[str, Any] = {"loss": {"berhu": 1.0, "ssim": 1.0}, "augment.flip": 1.0, "mirrored": True}
    config = tiny_config(**{"data.root": str(root), "data.crop_border_px": 3, **changes})
    frames = open_training(config).validation
    torch.manual_seed(0)
    model = build_model(config.model, config.target.kind)
    found = validate(model, frames, config, CPU, {})
    assert model.training
    model.eval()
    assert len({frames.read(i).depth_m.shape for i in range(len(frames))}) == 2
    losses: list[float] = []
    patterns: list[float] = []
    for first in range(0, len(frames), config.batch_size):
        samples = [prepare(frames.read(i), config) for i in range(first, min(first + config.batch_size, len(frames)))]
        target, valid = torch.stack([s.target for s in samples]), torch.stack([s.valid for s in samples])
        assert not valid.all()
        with torch.no_grad():
            y = model(torch.stack([s.rgb for s in samples]).float() / 255)
        losses += composite(y, target, valid, config.loss, data_range(config.target)).per_sample.tolist()
        patterns += checkerboard(y[:, 0]).tolist()
    assert len(losses) == 6 and np.ptp(losses) > 0.01
    assert found["val/loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["val/checkerboard"] == pytest.approx(np.mean(patterns), rel=1e-5)


def test_a_validation_frame_that_turned_bad_is_left_out_and_named(
    tiny_config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    root = write_tiny(tmp_path)
    config = tiny_config(**{"data.root": str(root), "data.on_bad_frame": "skip"})
    frames = open_training(config).validation
    torch.manual_seed(0)
    model = build_model(config.model, config.target.kind)
    whole = validate(model, frames.subset([0, 2, 3, 4, 5]), config, CPU, {})
    (root / frames.ids[1]).write_bytes(b"")
    skipped: dict[str, str] = {}
    assert validate(model, frames, config, CPU, skipped) == pytest.approx(whole, rel=1e-4)  # batches differ
    assert list(skipped) == [frames.ids[1]] and "is empty" in skipped[frames.ids[1]]
    with pytest.raises(BadFrame, match="is empty"):
        validate(model, frames, tiny_config(**{"data.root": str(root)}), CPU, {})
    for name in frames.ids:
        (root / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"every validation frame is bad, the first because .* is empty"):
        validate(model, frames, config, CPU, {})
