"""Figures of the section on loss spikes; every function draws from the frame that the page offers as CSV."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure as Canvas

from analysis.page import style
from analysis.page.section import Figure

COLOUR = {"data": style.VERMILION, "one sample": style.ORANGE, "optimisation": style.BLUE, "numeric": style.PURPLE}
MARKER = {"data": "o", "one sample": "s", "optimisation": "^", "numeric": "X"}


def figures(
    spikes: pd.DataFrame, suspects: pd.DataFrame, trainings: pd.DataFrame, curves: pd.DataFrame
) -> list[Figure]:
    """The figures that have data."""
    result = []
    if len(curves):
        count = curves["key"].nunique()
        result.append(
            Figure(
                "spike-losses",
                "Training loss of the trainings with the most spikes",
                f"Loss against step of {count} trainings, each spike marked by its cause.",
                f"Loss of every step, thinned so that extremes stay; {count} of {len(trainings)} trainings. "
                "Grey: the median of the steps before.",
                _losses,
                curves,
                size_in=(5.2, 0.5 + 1.5 * count),
            )
        )
    if len(suspects):
        accused = int(suspects["suspect"].sum())
        result.append(
            Figure(
                "spike-suspects",
                "Samples by suspicion",
                f"The {len(suspects)} most suspicious samples in order; {accused} are above the threshold.",
                "Suspicion in scaled median absolute deviations between samples, over all trainings and passes. "
                "Filled: suspect. An arrow: no valid pixel.",
                _suspects,
                suspects,
                size_in=(5.2, 0.8 + 0.19 * len(suspects)),
            )
        )
    known = trainings.dropna(subset=["lr"]) if len(trainings) else trainings
    if len(known) and len(spikes):
        result.append(
            Figure(
                "spike-settings",
                "Spikes that come from settings",
                f"Optimisation and numeric spikes per 1,000 steps against learning rate for {len(known)} trainings.",
                f"Optimisation and numeric spikes only. One mark per training (n = {len(known)}); those without lie on "
                "the axis.",
                _settings,
                known[["key", "lr", "clip_norm", "clipped_share", "from_settings_per_1000_steps"]],
            )
        )
    if len(spikes) and spikes["listed"].any():
        result.append(
            Figure(
                "spike-positions",
                "Spikes of unshuffled lists, by place in the list",
                "Each spike's iteration against its batch's place in the training list.",
                "Spikes of one sample stand in a row: the same place, epoch after epoch.",
                _positions,
                spikes.loc[spikes["listed"], ["key", "step", "list_position", "sample", "cause", "loss"]],
            )
        )
    return result


def _losses(canvas: Canvas, data: pd.DataFrame) -> None:
    keys = list(dict.fromkeys(data["key"]))
    grid = canvas.subplots(len(keys), 1, squeeze=False, sharex=True)[:, 0]
    shown: dict[str, Artist] = {}
    for axes, key in zip(grid, keys, strict=True):
        rows = data[data["key"] == key]
        axes.plot(rows["step"], rows["loss"], color=style.INK, linewidth=0.5)
        axes.plot(rows["step"], rows["usual_loss"], color=style.FAINT, linewidth=1.2)
        for cause, at in rows[rows["spike"] != ""].groupby("spike"):
            shown[str(cause)] = axes.scatter(
                at["step"], at["loss"], color=COLOUR[str(cause)], marker=MARKER[str(cause)], s=18, zorder=3
            )
        axes.set_yscale("log")
        axes.set_title(str(key))
    grid[len(keys) // 2].set_ylabel("training loss (no unit, log)")
    grid[-1].set_xlabel("optimiser step")
    canvas.legend(list(shown.values()), list(shown), loc="outside upper right", ncols=4)


def _suspects(canvas: Canvas, data: pd.DataFrame) -> None:
    axes = canvas.add_subplot()
    place = np.arange(len(data))
    values = data["suspicion"].to_numpy(dtype=float)
    hollow = np.isinf(values)
    limit = float(np.nanmax(np.where(hollow, np.nan, values), initial=1.0))
    shown = np.where(hollow, 1.15 * limit, values)
    accused = data["suspect"].to_numpy(dtype=bool)
    axes.hlines(place, 0, shown, color=style.FAINT, linewidth=0.6)
    axes.scatter(shown[accused & ~hollow], place[accused & ~hollow], color=style.VERMILION, s=22, zorder=3)
    axes.scatter(shown[hollow], place[hollow], color=style.VERMILION, s=34, marker=">", zorder=3)
    axes.scatter(shown[~accused], place[~accused], facecolor="none", edgecolor=style.BLUE, s=20, zorder=3)
    axes.set_yticks(place, [_short(name) for name in data["sample"]], fontsize=7.5)
    axes.invert_yaxis()
    axes.set_xlim(0, None)
    axes.set_xlabel("suspicion (scaled MADs)")


def _settings(canvas: Canvas, data: pd.DataFrame) -> None:
    axes = canvas.add_subplot()
    clips = sorted(data["clip_norm"].dropna().unique())
    for place, clip in enumerate([None, *clips]):
        rows = data[data["clip_norm"].isna()] if clip is None else data[data["clip_norm"] == clip]
        label = f"{'no clipping' if clip is None else f'clip norm {clip:g}'} (n = {len(rows)})"
        colour, marker = style.CYCLE[place % len(style.CYCLE)], "ox^sDPv"[place % 7]
        axes.scatter(
            rows["lr"], rows["from_settings_per_1000_steps"], label=label, color=colour, marker=marker, s=22, alpha=0.8
        )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("learning rate (log)")
    axes.set_ylabel("spikes from settings per 1,000 steps")
    axes.legend()


def _positions(canvas: Canvas, data: pd.DataFrame) -> None:
    axes = canvas.add_subplot()
    for cause, rows in data.groupby("cause"):
        axes.scatter(rows["step"], rows["list_position"], label=f"{cause} (n = {len(rows)})", s=16,
                     color=COLOUR[str(cause)], marker=MARKER[str(cause)])  # fmt: skip
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("place in the training list (sample)")
    axes.legend()


def _short(name: str, most: int = 38) -> str:
    return name if len(name) <= most else f"...{name[-most + 3 :]}"
