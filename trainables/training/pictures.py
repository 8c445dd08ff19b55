"""Pictures of a training: validation frames with true and predicted depth, small at each report, large at the end.

    previews/IMAGES.jpg   picture, truth and prediction, after so many images seen; of MOST_PICTURES reports at most
    preview.png           the same frames at the end, with scales in metres and errors

The small ones show what validation predicts anyway, and are drawn without matplotlib.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from trainables import colors, drawing
from trainables.data.frames import FrameList
from trainables.evaluation.evaluate import Watch, predictions
from trainables.runtime.durable import write_bytes
from trainables.settings.config import TrialConfig

PREVIEW, PREVIEWS = "preview.png", "previews"
FRAMES = 3
COLUMNS = ("rgb", "truth (m)", "prediction (m)", "error (m)")
MOST_PICTURES = 20  # of a training
TILE_PX = 160  # width of a frame in a report's picture
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


def _tile(map_: Tensor, height_px: int | None = None) -> NDArray[Any]:
    """A map (H, W, ...) at TILE_PX columns, by the nearest pixel: means would invent depths at edges and holes.

    height_px: None keeps the shape. Another frame's depth (a control) may have another one than the picture.
    """
    height, width = map_.shape[:2]
    rows = torch.linspace(0, height - 1, height_px or max(1, round(height * TILE_PX / width))).round().long()
    columns = torch.linspace(0, width - 1, TILE_PX).round().long()
    return map_[rows.to(map_.device)][:, columns.to(map_.device)].cpu().numpy()


def _bounds(depths_m: NDArray[np.floating], config: TrialConfig) -> tuple[float, float]:
    """The scale of a row in metres, from the depths of its truth: the data's whole range where it has none."""
    return (float(depths_m.min()), float(depths_m.max())) if depths_m.size else (0.0, config.target.max_depth_m)


def write_preview(path: Path, model: nn.Module, frames: FrameList, config: TrialConfig, device: torch.device) -> None:
    """Write a PNG with a row per frame; truth and prediction of a row share a scale in metres, holes are grey."""
    with drawing.own_settings():
        write_bytes(path, _preview(model, frames, config, device))


def _preview(model: nn.Module, frames: FrameList, config: TrialConfig, device: torch.device) -> bytes:
    from matplotlib.figure import Figure  # slow to import, and a pruned training never needs it

    chosen = pictured(frames)
    figure = Figure(figsize=(11, 2.2 * len(chosen) + 0.3))  # fixed margins: a solved layout takes longer than training
    axes = figure.subplots(len(chosen), len(COLUMNS), squeeze=False)
    figure.subplots_adjust(left=0.03, right=0.97, bottom=0.02, top=1 - 0.3 / figure.get_figheight(), hspace=0.05)
    predicted = predictions(model, frames.subset(chosen), config, device, batch_size=1)
    for row, index, (_, (pred,), (depth_m,)) in zip(axes, chosen, predicted, strict=True):
        pred, truth = pred.cpu().numpy(), np.ma.masked_equal(depth_m.cpu().numpy(), 0.0)
        low, high = _bounds(truth.compressed(), config)
        error = np.ma.abs(pred - truth)
        row[0].imshow(frames.read(index).rgb)
        for axis, picture, colours, bounds in (
            (row[1], truth, colors.DEPTH, (low, high)),
            (row[2], pred, colors.DEPTH, (low, high)),
            (row[3], error, colors.ERROR, (0.0, None)),
        ):
            axis.set_facecolor(colors.HOLE)
            image = axis.imshow(picture, cmap=colours, vmin=bounds[0], vmax=bounds[1])
            figure.colorbar(image, ax=axis, fraction=0.034, pad=0.02)
        row[0].set_ylabel(frames.ids[index].rpartition("/")[2], fontsize=7)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, title in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(title, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()
