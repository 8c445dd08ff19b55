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
from trainables.evaluation.evaluate import Answer, predictions
from trainables.models.depth_model import build_model
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
    places, far_m = list(range(len(frames))), torch.full_like(truth, 100.0)  # all farther than any truth
    watch(Answer(places, torch.empty(0), far_m, truth))
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


def test_the_last_picture_shows_maps_on_one_scale_and_errors_on_their_own(
    tiny_config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    config = tiny_config()
    frames = open_training(config).validation
    model, cpu = build_model(config.model, config.target.kind).eval(), torch.device("cpu")
    pictures.write_preview(tmp_path / "preview.png", model, frames, config, cpu)
    with Image.open(tmp_path / "preview.png") as picture:
        pixels = np.asarray(picture)
    first = pictures.pictured(frames)[0]
    _, (pred_m,), (truth_m,) = next(predictions(model, frames.subset([first]), config, cpu, 1))
    pred, truth = (pictures._tile(map_m, width_px=pictures.LARGE_PX) for map_m in (pred_m, truth_m))
    known, error = truth > 0, np.abs(pred - truth)
    low, high, worst = float(truth[known].min()), float(truth.max()), float(error[known].max())
    top = 2 * pictures.LINE_PX  # below the headings and the frame's name
    for column, expected in enumerate(
        (
            pictures._tile(torch.from_numpy(frames.read(first).rgb), len(truth), pictures.LARGE_PX),
            colors.depth_rgb(truth, low, high),
            colors.depth_rgb(pred, low, high),
            colors.error_rgb(error, known, worst),
        )
    ):
        left = column * (pixels.shape[1] // len(pictures.COLUMNS))
        shown = pixels[top : top + len(truth), left : left + pictures.LARGE_PX]
        assert (shown == expected).all(), pictures.COLUMNS[column]
    bar = pixels[top : top + len(truth), pixels.shape[1] // 4 + pictures.LARGE_PX + pictures.GAP_PX]
    assert (bar[0] == colors.depth_rgb(np.array([[high]]), low, high)[0, 0]).all()
    assert (bar[-1] == colors.depth_rgb(np.array([[low]]), low, high)[0, 0]).all()
