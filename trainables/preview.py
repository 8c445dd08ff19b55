"""Preview of a training: rgb, truth, prediction and error of a few validation frames."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import nn

from trainables.config import TrialConfig
from trainables.data.frames import FrameList
from trainables.durable import write_bytes
from trainables.evaluate import predictions

FRAMES = 3
COLUMNS = ("rgb", "truth (m)", "prediction (m)", "error (m)")


def write_preview(path: Path, model: nn.Module, frames: FrameList, config: TrialConfig, device: torch.device) -> None:
    """Write a PNG with a row per frame; truth and prediction of a row share a scale in metres, holes are grey."""
    from matplotlib.figure import Figure  # slow to import, and a pruned training never needs it

    chosen = sorted({round(i) for i in np.linspace(0, len(frames) - 1, min(FRAMES, len(frames)))})
    figure = Figure(figsize=(11, 2.2 * len(chosen) + 0.3))  # fixed margins: a solved layout takes longer than training
    axes = figure.subplots(len(chosen), len(COLUMNS), squeeze=False)
    figure.subplots_adjust(left=0.03, right=0.97, bottom=0.02, top=1 - 0.3 / figure.get_figheight(), hspace=0.05)
    predicted = predictions(model, frames.subset(chosen), config, device, batch_size=1)
    for row, index, (_, (pred,), (depth_m,)) in zip(axes, chosen, predicted, strict=True):
        pred, truth = pred.cpu().numpy(), np.ma.masked_equal(depth_m.cpu().numpy(), 0.0)
        low, high = (float(truth.min()), float(truth.max())) if truth.count() else (0.0, config.target.max_depth_m)
        error = np.ma.abs(pred - truth)
        row[0].imshow(frames.read(index).rgb)
        for axis, picture, colours, bounds in (
            (row[1], truth, "viridis", (low, high)),
            (row[2], pred, "viridis", (low, high)),
            (row[3], error, "magma", (0.0, None)),
        ):
            axis.set_facecolor("0.6")
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
    write_bytes(path, buffer.getvalue())
