"""Pictures of reports: what validation predicted, of a bounded number of reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import write_tiny
from trainables import colors
from trainables.data.dataset import open_training
from trainables.evaluation.evaluate import predictions
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


def test_the_last_picture_shows_maps_on_one_scale_and_errors_on_their_own(
    tiny_config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    config = tiny_config(**{"data.root": str(write_tiny(tmp_path, holes=True))})
    frames = open_training(config).validation
    model, cpu = build_model(config.model, config.target.kind).eval(), torch.device("cpu")
    pictures.write_preview(tmp_path / "preview.png", model, frames, config, cpu)
    with Image.open(tmp_path / "preview.png") as picture:
        pixels = np.asarray(picture)
    shown, top = frames.subset(pictures.pictured(frames)), pictures.LINE_PX
    for (index,), pred_m, truth_m in predictions(model, shown, config, cpu, 1):
        pred, truth = (pictures._tile(map_m[0], width_px=pictures.LARGE_PX) for map_m in (pred_m, truth_m))
        low, high = float(truth_m[truth_m > 0].min()), float(truth_m.max())
        worst = float((pred_m - truth_m).abs()[truth_m > 0].max())
        rgb = pictures._tile(torch.from_numpy(shown.read(index).rgb), len(truth), pictures.LARGE_PX)
        maps = [colors.depth_rgb(depth, low, high) for depth in (truth, pred)]
        maps.append(colors.error_rgb(np.abs(pred - truth), truth > 0, worst))
        grey = (maps[0] == colors.HOLE_RGB).all(-1)
        assert grey.any() and (grey == (maps[2] == colors.HOLE_RGB).all(-1)).all()
        top += pictures.LINE_PX  # the frame's name
        for column, expected in enumerate([rgb, *maps]):
            left = column * (pixels.shape[1] // len(pictures.COLUMNS))
            part = pixels[top : top + len(truth), left : left + pictures.LARGE_PX]
            assert (part == expected).all(), pictures.COLUMNS[column]
            bar = pixels[top : top + len(truth), left + pictures.LARGE_PX + pictures.GAP_PX]
            if column:
                two = np.array([[high], [low]])
                ends = colors.depth_rgb(two, low, high)
                if column == 3:
                    ends = colors.error_rgb(np.array([[1.0], [0.0]]), two > 0, 1.0)
                assert (bar[[0, -1]] == ends[:, 0]).all()
        top += len(truth)
    assert top == len(pixels)


def test_a_pictured_frame_that_turned_bad_is_left_out(tiny_config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    root = write_tiny(tmp_path)
    config = tiny_config(**{"data.root": str(root), "data.on_bad_frame": "skip"})
    frames = open_training(config).validation
    model = build_model(config.model, config.target.kind).eval()
    (root / frames.ids[pictures.pictured(frames)[1]]).write_bytes(b"")
    pictures.write_preview(tmp_path / "preview.png", model, frames, config, torch.device("cpu"))
    with Image.open(tmp_path / "preview.png") as picture:
        assert picture.height == pictures.LINE_PX + 2 * (pictures.LINE_PX + 150)
