"""Validation of a report: the training's own loss, and frames that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import write_tiny
from trainables.data.dataset import open_training
from trainables.data.frames import BadFrame
from trainables.data.samples import prepare
from trainables.data.target import data_range
from trainables.models.depth_model import build_model
from trainables.models.losses import composite
from trainables.settings.config import TrialConfig
from trainables.training.report import validate

CPU = torch.device("cpu")


def test_validation_loss_is_the_mean_of_the_frames_own_training_losses(
    tiny_config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    root = write_tiny(tmp_path, holes=True)
    config = tiny_config(**{"data.root": str(root), "data.crop_border_px": 3, "augment.flip": 1.0, "mirrored": True})
    frames = open_training(config).validation
    torch.manual_seed(0)
    model = build_model(config.model, config.target.kind)
    found = validate(model, frames, config, CPU, {})
    assert model.training
    model.eval()
    losses = []
    for i in range(len(frames)):
        sample = prepare(frames.read(i), config)
        assert not sample.valid.all()
        with torch.no_grad():
            y = model(sample.rgb[None].float() / 255)
        target, valid = sample.target[None], sample.valid[None]
        losses.append(float(composite(y, target, valid, config.loss, data_range(config.target)).total))
    assert len(losses) == 6 and np.ptp(losses) > 0.01
    assert found["val/loss"] == pytest.approx(np.mean(losses), rel=1e-5)


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
