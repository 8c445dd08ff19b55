"""Rows of rgb | truth | prediction | error, drawn as this house draws depth.

One scale in metres per row with its colour bar, holes in grey, the error beside on a scale that all rows share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from analysis.page import style
from analysis.page.section import Figure
from trainables import colors

WIDTH_IN = 4.6  # so that a phone shows its words
LONGEST_PX = 240  # of a picture on the page: the report stays one file that a phone can load
SCALES = "Depth has a scale for each row, error one for all, cut at its 98th percentile; holes are grey."


@dataclass(frozen=True)
class Row:
    """One frame. rgb uint8 HxWx3; truth_m and each prediction float32 HxW metres, 0 = hole (truth only).

    predictions: (heading, depth) pairs, one or more: ('prediction', ...) or ('with it', ...), ('without it', ...).
    """

    label: str
    rgb: npt.NDArray[np.uint8]
    truth_m: npt.NDArray[np.float32]
    predictions: tuple[tuple[str, npt.NDArray[np.float32]], ...]


def depth_rows(rows: Sequence[Row], *, name: str, title: str, alt: str, caption: str) -> Figure:
    """A figure of one line of pictures per row; its data are each row's numbers (metres, over valid pixels)."""
    small = [_shrunk(row) for row in rows]
    frame = pd.DataFrame([_numbers(row) for row in rows])
    columns = 2 + 2 * max((len(row.predictions) for row in rows), default=1)
    height = 0.82 * WIDTH_IN / columns * (small[0].rgb.shape[0] / small[0].rgb.shape[1] if small else 0.75) + 0.22

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        _draw(canvas, small, columns, list(data["label"]))

    return Figure(name, title, alt, caption, draw, frame, size_in=(WIDTH_IN, max(1.4, height * len(rows) + 0.3)))


def _numbers(row: Row) -> dict[str, object]:
    valid = row.truth_m > 0
    facts: dict[str, object] = {
        "label": row.label,
        "truth_min_m": float(row.truth_m[valid].min()) if valid.any() else None,
        "truth_max_m": float(row.truth_m[valid].max()) if valid.any() else None,
        "hole_share": float(1 - valid.mean()),
    }
    for heading, depth_m in row.predictions:
        error = (depth_m - row.truth_m)[valid]
        facts[f"rmse_m ({heading})"] = float(np.sqrt(np.mean(np.square(error)))) if valid.any() else None
    return facts


def _shrunk(row: Row) -> Row:
    stride = max(1, -(-max(row.rgb.shape[:2]) // LONGEST_PX))
    cut = (slice(None, None, stride), slice(None, None, stride))
    return Row(row.label, row.rgb[cut], row.truth_m[cut], tuple((head, depth[cut]) for head, depth in row.predictions))


def _draw(canvas: Canvas, rows: Sequence[Row], columns: int, labels: Sequence[str]) -> None:
    if not rows:
        style.empty(canvas.add_subplot(), "no frame to show")
        return
    grid = canvas.subplots(len(rows), columns, squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.05})
    depth_map, error_map = (mpl.colormaps[name].with_extremes(bad=colors.HOLE) for name in (colors.DEPTH, colors.ERROR))
    worst = _error_scale(rows)
    error_image = None
    for axes_row, row, label in zip(grid, rows, labels, strict=True):
        low, high = _depth_scale(row)
        _show(axes_row[0], row.rgb)
        axes_row[0].set_title(label if len(label) <= 44 else f"...{label[-41:]}", fontsize=7)
        masked = np.ma.masked_where(row.truth_m <= 0, row.truth_m)
        depth_image = _show(axes_row[1], masked, cmap=depth_map, vmin=low, vmax=high)
        for place, (_, depth_m) in enumerate(row.predictions):
            _show(axes_row[2 + 2 * place], depth_m, cmap=depth_map, vmin=low, vmax=high)
            gap = np.ma.masked_where(row.truth_m <= 0, np.abs(depth_m - row.truth_m))
            error_image = _show(axes_row[3 + 2 * place], gap, cmap=error_map, vmin=0, vmax=worst)
        _bar(canvas, depth_image, axes_row[1 : columns - 1])
    for axes in grid[:, columns - 1]:
        if error_image is not None:
            _bar(canvas, error_image, [axes])
    headings = ["rgb", "truth, m"] + [text for head, _ in rows[0].predictions for text in (f"{head}, m", "|error|, m")]
    for axes, heading in zip(grid[-1], headings, strict=False):
        axes.set_xlabel(heading, fontsize=7)


def _depth_scale(row: Row) -> tuple[float, float]:
    values = np.concatenate([row.truth_m[row.truth_m > 0], *(depth.ravel() for _, depth in row.predictions)])
    if not len(values):
        return 0.0, 1.0
    low, high = np.percentile(values, [1, 99])
    return float(low), float(max(high, low + 0.1))


def _error_scale(rows: Sequence[Row]) -> float:
    gaps = [np.abs(depth - row.truth_m)[row.truth_m > 0] for row in rows for _, depth in row.predictions]
    values = np.concatenate(gaps) if gaps else np.zeros(0)
    return float(max(np.percentile(values, 98), 0.1)) if len(values) else 1.0


def _show(axes: Axes, picture: npt.NDArray[np.generic], **colours: object) -> mpl.image.AxesImage:
    image = axes.imshow(picture, interpolation="none", aspect="equal", **colours)  # type: ignore[arg-type]
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def _bar(canvas: Canvas, image: mpl.image.AxesImage, beside: object) -> None:
    bar = canvas.colorbar(image, ax=beside, fraction=0.03, pad=0.01, aspect=16)  # type: ignore[arg-type]
    bar.ax.tick_params(labelsize=6.5, length=2, pad=1)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    bar.outline.set_visible(False)
