"""Pictures of reports: what validation predicted, of a bounded number of reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainables import colors
from trainables.data.dataset import open_training
from trainables.settings.config import TrialConfig
from trainables.training import pictures
from trainables.training.pictures import ReportPictures


def test_a_picture_shows_frame_truth_and_prediction(tiny_config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    config = tiny_config()
    frames = open_training(config).validation
    shown = ReportPictures(config, tmp_path)
    watch = shown.watch(frames, 24)
    assert watch is not None
    truth = torch.from_numpy(np.stack([frames.read(i).depth_m for i in range(len(frames))]))
    watch(list(range(len(frames))), torch.full_like(truth, 100.0), truth)  # all farther than any truth
    shown.write(frames, 24)
    chosen = pictures.pictured(frames)
    with Image.open(tmp_path / "previews" / "24.jpg") as picture:
        pixels = np.asarray(picture).astype(int)
    height = round(truth.shape[1] * pictures.TILE_PX / truth.shape[2])
    assert pixels.shape == (len(chosen) * height, 3 * pictures.TILE_PX, 3)
    rgb, drawn, predicted = np.split(pixels, 3, axis=1)
    far = colors.depth_rgb(np.array([[100.0]]), 1.0, 2.0)[0, 0].astype(int)
    assert np.abs(predicted[:, 16:] - far).max() < 12  # of JPEG; its blocks reach over the edge
    assert np.abs(rgb[:height].mean((0, 1)) - frames.read(chosen[0]).rgb.mean((0, 1))).max() < 6
    depth_m = pictures._tile(truth[chosen[0]])
    expected = colors.depth_rgb(depth_m, float(depth_m[depth_m > 0].min()), float(depth_m.max())).astype(int)
    assert np.abs(drawn[:height] - expected).mean() < 8  # of JPEG
    shown.write(frames, 48)
    assert not (tmp_path / "previews" / "48.jpg").exists()  # a report without a validation of its own repeats none


@pytest.mark.parametrize(("reports", "drawn"), [(5, 5), (20, 20), (21, 11), (400, 20)])
def test_the_number_of_pictures_is_bounded(
    tiny_config: Callable[..., TrialConfig], tmp_path: Path, reports: int, drawn: int
) -> None:
    shown = ReportPictures(tiny_config(budget_images=10 * reports, validate_every_images=10), tmp_path)
    due = [images for images in range(10, 10 * reports + 1, 10) if shown.due(images)]
    assert len(due) == drawn <= pictures.MOST_PICTURES and due[-1] == 10 * reports
