"""Pictures of a training: validation frames with true and predicted depth, small at each report, large at the end.

    previews/IMAGES.jpg   picture, truth and prediction, after so many images seen; of MOST_PICTURES reports at most
    preview.png           the same frames at the end, with scales in metres and errors

The small ones show what validation predicts anyway. None is drawn by matplotlib, which is slow.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from trainables import colors
from trainables.data.frames import FrameList
from trainables.evaluation.evaluate import predictions
from trainables.runtime.durable import write_bytes
from trainables.settings.config import TrialConfig

Watch = Callable[[list[int], Tensor, Tensor], None]  # given places, predicted and true depth in metres (N, H, W)
PREVIEW, PREVIEWS = "preview.png", "previews"
FRAMES = 3
COLUMNS = ("rgb", "truth (m)", "prediction (m)", "error (m)")
MOST_PICTURES = 20  # of a training
TILE_PX = 160  # width of a frame in a report's picture
LARGE_PX = 200  # and in preview.png
LINE_PX, GAP_PX, BAR_PX, NUMBER_PX = 16, 4, 10, 34  # of preview.png: height of words; widths beside a map
QUALITY = 85  # of JPEG


def pictured(frames: FrameList) -> list[int]:
    """The frames that are shown, evenly spread over the list."""
    return sorted({round(i) for i in np.linspace(0, len(frames) - 1, min(FRAMES, len(frames)))})


class ReportPictures:
    """Small pictures of a training's reports, in its folder. Frames are decoded once."""

    def __init__(self, config: TrialConfig, folder: Path) -> None:
        self.config, self.folder = config, folder / PREVIEWS
        reports = math.ceil(config.budget_images / config.validate_every_images)
        self.every = math.ceil(reports / MOST_PICTURES)
        self._depths: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}  # frame -> prediction, truth
        self._rgb: dict[int, NDArray[np.uint8]] = {}

    def due(self, images: int) -> bool:
        """Whether the report after so many images has a picture: every one, every second, ..., and the last."""
        report = images // self.config.validate_every_images
        return report % self.every == 0 or images >= self.config.budget_images

    def watch(self, frames: FrameList, images: int) -> Watch | None:
        """What keeps the predictions to be shown from a validation; None where this report has no picture."""
        if not self.due(images):
            return None
        chosen = set(pictured(frames))

        def keep(indices: list[int], pred: Tensor, truth: Tensor) -> None:
            for place, index in enumerate(indices):
                if index in chosen:
                    self._depths[index] = (_tile(pred[place]), _tile(truth[place]))

        return keep

    def write(self, frames: FrameList, images: int) -> None:
        """Write the picture of what was kept, if anything was."""
        if not self._depths:
            return
        rows = []
        for index, (pred, truth) in sorted(self._depths.items()):
            if index not in self._rgb:
                self._rgb[index] = _tile(torch.from_numpy(frames.read(index).rgb), len(truth))
            low, high = _bounds(truth[truth > 0], self.config)
            maps = [colors.depth_rgb(depth_m, low, high) for depth_m in (truth, pred)]
            rows.append(np.hstack([self._rgb[index], *maps]))
        self._depths = {}
        buffer = io.BytesIO()
        Image.fromarray(np.vstack(rows)).save(buffer, "JPEG", quality=QUALITY)
        self.folder.mkdir(exist_ok=True)
        write_bytes(self.folder / f"{images}.jpg", buffer.getvalue())


def _tile(map_: Tensor, height_px: int | None = None, width_px: int = TILE_PX) -> NDArray[Any]:
    """A map (H, W, ...) at so many columns, by the nearest pixel: means would invent depths at edges and holes.

    height_px: None keeps the shape. Another frame's depth (a control) may have another one than the picture.
    """
    height, width = map_.shape[:2]
    rows = torch.linspace(0, height - 1, height_px or max(1, round(height * width_px / width))).round().long()
    columns = torch.linspace(0, width - 1, width_px).round().long()
    return map_[rows.to(map_.device)][:, columns.to(map_.device)].cpu().numpy()


def _bounds(depths_m: NDArray[np.floating], config: TrialConfig) -> tuple[float, float]:
    """The scale of a row in metres, from the depths of its truth: the data's whole range where it has none."""
    return (float(depths_m.min()), float(depths_m.max())) if depths_m.size else (0.0, config.target.max_depth_m)


def write_preview(path: Path, model: nn.Module, frames: FrameList, config: TrialConfig, device: torch.device) -> None:
    """Write a PNG with a row per frame; truth and prediction of a row share a scale in metres, holes are grey."""
    shown = frames.subset(pictured(frames))
    rows = [
        _row(shown, index, pred_m[0], truth_m[0], config)
        for (index,), pred_m, truth_m in predictions(model, shown, config, device, batch_size=1)
    ]
    page = Image.new("RGB", (len(COLUMNS) * _column_px(), LINE_PX + sum(row.height for row in rows)), "white")
    for column, title in enumerate(COLUMNS):
        ImageDraw.Draw(page).text((column * _column_px(), 0), title, "black")
    top = LINE_PX
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def _row(frames: FrameList, index: int, pred_m: Tensor, truth_m: Tensor, config: TrialConfig) -> Image.Image:
    """A frame's pictures beside each other, each map with its scale, below the frame's name."""
    error_m = (pred_m - truth_m).abs()
    worst = float(torch.where(truth_m > 0, error_m, 0).amax())
    low, high = _bounds(truth_m[truth_m > 0].cpu().numpy(), config)
    pred, truth, error = (_tile(map_m, width_px=LARGE_PX) for map_m in (pred_m, truth_m, error_m))
    ramp = np.linspace(1.0, 0.0, len(truth))[:, None].repeat(BAR_PX, axis=1)
    depth_bar = colors.depth_rgb(low + ramp * (high - low), low, high)
    error_bar = colors.error_rgb(ramp, np.ones_like(ramp, dtype=bool), 1.0)
    row = Image.new("RGB", (len(COLUMNS) * _column_px(), len(truth) + LINE_PX), "white")
    draw = ImageDraw.Draw(row)
    draw.text((0, 0), frames.ids[index], "black")
    rgb = _tile(torch.from_numpy(frames.read(index).rgb), len(truth), LARGE_PX)
    row.paste(Image.fromarray(rgb), (0, LINE_PX))
    for column, picture, bar, ends in (
        (1, colors.depth_rgb(truth, low, high), depth_bar, (low, high)),
        (2, colors.depth_rgb(pred, low, high), depth_bar, (low, high)),
        (3, colors.error_rgb(error, truth > 0, worst), error_bar, (0.0, worst)),
    ):
        left = column * _column_px()
        row.paste(Image.fromarray(picture), (left, LINE_PX))
        row.paste(Image.fromarray(bar), (left + LARGE_PX + GAP_PX, LINE_PX))
        for place, share in enumerate((1.0, 0.5, 0.0)):  # from the top of the scale to its end
            y = LINE_PX + round(place / 2 * (len(truth) - LINE_PX))
            draw.text(
                (left + LARGE_PX + BAR_PX + 2 * GAP_PX, y), f"{ends[0] + share * (ends[1] - ends[0]):.2f}", "black"
            )
    return row


def _column_px() -> int:
    return LARGE_PX + 2 * GAP_PX + BAR_PX + NUMBER_PX
