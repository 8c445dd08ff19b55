"""Figures of the section on importance: settings alone and in pairs, parallel coordinates, clipping, skips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas

from analysis.dimensions import Dimension, label
from analysis.page.section import Figure
from analysis.page.style import BLUE, FAINT, GREY, OUTCOME_COLOUR, OUTCOME_MARKER, VERMILION, empty
from analysis.selection import with_unit
from analysis.tables.tidy import StudyTables
from study.contract import Judge, Outcome

MOST_PANELS = 12


def figures(
    tables: StudyTables,
    judge: Judge,
    dimensions: Sequence[Dimension],
    search: pd.DataFrame,
    effects: Sequence[dict[str, Any]],
    clipping: pd.DataFrame,
    skips: pd.DataFrame,
) -> list[Figure]:
    """The section's figures, only those that have something to show."""
    metric = f"validation {with_unit(judge.metric)}"
    strongest = [row["setting"] for row in effects] or [d.path for d in dimensions]
    ordered = sorted(dimensions, key=lambda d: strongest.index(d.path) if d.path in strongest else len(strongest))
    where = f"Trials of the search of study {tables.name}, validation split"
    result = [_importance(effects, where)] if effects else []
    result.append(_isolation(ordered[:MOST_PANELS], search, metric, where))
    if len(ordered) > 1:
        result += [
            _pair(ordered[0], ordered[1], search, metric, where),
            _parallel(ordered, search, judge, metric, where),
        ]
    if len(clipping):
        result.append(_clipping(clipping, metric, where))
    if len(skips):
        result.append(_skips(skips, metric, where))
    return result


def _importance(effects: Sequence[dict[str, Any]], where: str) -> Figure:
    frame = pd.DataFrame(effects)[["setting", "ped_anova", "fanova", "p", "distinguishable", "n"]]

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        places = np.arange(len(data))[::-1]
        axes.barh(places + 0.2, data["ped_anova"].fillna(0), 0.36, color=BLUE, label="PED-ANOVA (best tenth)")
        axes.barh(places - 0.2, data["fanova"].fillna(0), 0.36, color=FAINT, label="fANOVA (whole space)")
        axes.set_yticks(
            places, [f"{s}{' *' if d else ''}" for s, d in zip(data["setting"], data["distinguishable"], strict=True)]
        )
        axes.set(xlabel="share of importance (settings sum to 1)")
        axes.legend()

    return Figure(
        "importance", "Importance of each setting",
        f"Importance of {len(frame)} settings by two measures; {int(frame['distinguishable'].sum())} distinguishable.",
        f"n = {int(frame['n'].max())} complete trials. A star: distinguishable by the permutation test. {where}.",
        draw, frame, size_in=(7.0, 1.2 + 0.34 * len(frame)),
    )  # fmt: skip


def _long(dimensions: Sequence[Dimension], search: pd.DataFrame) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {
                "key": search["key"].to_list(),
                "setting": d.path,
                "setting_value": [str(label(v)) if v is not None else "null" for v in d.of(search)],
                "place": d.places(search),
                "value": search["value"].to_list(),
                "outcome": search["outcome"].to_list(),
            }
        )
        for d in dimensions
    ]
    return pd.concat(parts, ignore_index=True)


def _isolation(dimensions: Sequence[Dimension], search: pd.DataFrame, metric: str, where: str) -> Figure:
    columns = min(3, len(dimensions))
    rows = -(-len(dimensions) // columns)

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        grid = canvas.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for axes, dimension in zip(grid, dimensions, strict=False):
            panel = data[data["setting"] == dimension.path]
            for outcome, points in panel.groupby("outcome"):
                colour, marker = OUTCOME_COLOUR.get(str(outcome), GREY), OUTCOME_MARKER.get(str(outcome), ".")
                known = points.dropna(subset=["value"])
                axes.scatter(known["place"], known["value"], s=12, color=colour, marker=marker, label=str(outcome))
                lost = points[points["value"].isna()]["place"].dropna()
                if len(lost):  # an unclipped line without points reaches to the canvas's corner and breaks the layout
                    edge = axes.get_xaxis_transform()
                    axes.plot(lost, np.ones(len(lost)), marker, color=colour, transform=edge, clip_on=False)
            axes.set_title(dimension.path)
            scale(axes, dimension)
        for axes in grid[len(dimensions) :]:
            axes.set_axis_off()
        for axes in grid[::columns]:
            axes.set_ylabel(metric)
        handles, names = grid[0].get_legend_handles_labels()
        canvas.legend(handles, names, loc="outside lower center", ncols=5)

    frame = _long(dimensions, search)
    return Figure(
        "importance-isolation", "Each setting alone",
        f"Judged value of {len(search)} search trials against each of {len(dimensions)} settings, by outcome.",
        f"n = {len(search)}; trials without a finite value stand on the upper edge. {where}.",
        draw, frame, size_in=(7.0, 0.7 + 2.1 * rows),
    )  # fmt: skip


def scale(axes: Axes, dimension: Dimension) -> None:
    """Ticks of a setting's own range on its 0 to 1 places."""
    if dimension.choices:
        places = np.arange(len(dimension.choices)) / max(1, len(dimension.choices) - 1)
        names = [str(label(c)) if c is not None else "null" for c in dimension.choices]
        axes.set_xticks(places, names, rotation=30 if len(names) > 3 else 0)
    else:
        places = np.linspace(0, 1, 3)
        low, high = (
            (np.log(dimension.low), np.log(dimension.high)) if dimension.log else (dimension.low, dimension.high)
        )
        values = low + places * (high - low)
        axes.set_xticks(places, [f"{v:.2g}" for v in (np.exp(values) if dimension.log else values)])
    axes.set_xlim(-0.08, 1.08)


def _pair(first: Dimension, second: Dimension, search: pd.DataFrame, metric: str, where: str) -> Figure:
    frame = pd.DataFrame({"key": search["key"], "x": first.places(search), "y": second.places(search),
                          "value": search["value"], "outcome": search["outcome"]})  # fmt: skip
    jitter = np.random.default_rng(0).uniform(-0.02, 0.02, (2, len(frame)))  # choices lie on top of one another

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        if data["value"].isna().all():
            empty(axes, "no trial has a value")
            return
        done = (data["outcome"] == Outcome.COMPLETE).to_numpy()
        x, y = data["x"].to_numpy() + jitter[0], data["y"].to_numpy() + jitter[1]
        axes.scatter(x[~done], y[~done], s=12, color=GREY, marker="x", label=f"not complete (n = {int((~done).sum())})")
        points = axes.scatter(x[done], y[done], c=data["value"].to_numpy()[done], cmap="viridis", s=22)
        canvas.colorbar(points, label=metric)
        scale(axes, first)
        axes.set(xlabel=first.path, ylabel=f"{second.path} (its place from {_end(second, 0)} to {_end(second, -1)})")
        axes.legend()

    return Figure(
        "importance-interaction", "The two strongest settings together",
        f"Judged value of each trial by {first.path} and {second.path}.",
        f"n = {len(frame)}; points are moved by up to 0.02 so that equal choices can be seen apart. {where}.",
        draw, frame,
    )  # fmt: skip


def _end(dimension: Dimension, place: int) -> str:
    return str(dimension.choices[place]) if dimension.choices else f"{(dimension.low, dimension.high)[place]:.2g}"


def _parallel(dimensions: Sequence[Dimension], search: pd.DataFrame, judge: Judge, metric: str, where: str) -> Figure:
    complete = search[(search["outcome"] == Outcome.COMPLETE) & search["value"].notna()]
    frame = pd.DataFrame(
        {"key": complete["key"], "value": complete["value"]} | {d.path: d.places(complete) for d in dimensions}
    )

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        if data.empty:
            empty(axes, "no complete trial")
            return
        ordered = data.sort_values("value", ascending=not judge.minimise)  # the best are drawn on top
        values = ordered["value"].to_numpy(float)
        paths = [d.path for d in dimensions]
        lines: npt.NDArray[np.float64] = ordered[paths].to_numpy(float)
        across = np.arange(len(paths))
        shade = Normalize(values.min(), np.quantile(values, 0.9) if judge.minimise else values.max())
        colours = colormaps["viridis"](shade(values))
        axes.add_collection(
            LineCollection([np.column_stack([across, line]) for line in lines], colors=list(colours), linewidths=0.9)
        )
        axes.set(xlim=(-0.2, len(paths) - 0.8), ylim=(-0.05, 1.05), ylabel="place in its range (0 to 1)")
        axes.set_xticks(across, paths, rotation=20, ha="right")
        canvas.colorbar(ScalarMappable(shade, "viridis"), ax=axes, label=metric, extend="max")
        best = lines[-1]
        axes.plot(across, best, color=VERMILION, linewidth=2, label=f"best: {ordered['key'].iloc[-1]}")
        axes.legend()

    return Figure(
        "importance-parallel", "Every complete trial across all settings",
        f"Parallel coordinates of {len(frame)} complete trials over {len(dimensions)} settings, coloured by {metric}.",
        f"n = {len(frame)}; dark is low {metric}. {where}.", draw, frame,
    )  # fmt: skip


def _clipping(clipping: pd.DataFrame, metric: str, where: str) -> Figure:
    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        shown = [("clipped_share", "share of clipped steps"), ("median_value", f"median {metric}")]
        if "spikes_per_1000_steps" in data:
            shown.append(("spikes_per_1000_steps", "spikes per 1,000 steps"))
        for axes, (column, name) in zip(canvas.subplots(1, len(shown)), shown, strict=True):
            axes.bar(range(len(data)), data[column], color=BLUE, width=0.6)
            axes.set_xticks(
                range(len(data)), [f"{c}\n(n = {n})" for c, n in zip(data["clip_norm"], data["n"], strict=True)]
            )
            axes.set(xlabel="clip norm", ylabel=name)

    return Figure(
        "importance-clipping", "What a clip norm does",
        "Share of clipped steps and median judged value by clip norm, with spikes per 1,000 steps where traces were "
        "read.",
        "Medians over trials with an outcome; judged value over complete ones; spikes over those that left a trace. "
        f"{where}.",
        draw, clipping, size_in=(7.0, 2.8),
    )  # fmt: skip


def _skips(skips: pd.DataFrame, metric: str, where: str) -> Figure:
    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        scales = list(dict.fromkeys(data["scale"]))
        grid = canvas.subplots(1, len(scales), squeeze=False, sharey=True)[0]
        for axes, scale in zip(grid, scales, strict=True):
            rows = data[data["scale"] == scale].reset_index(drop=True)
            axes.vlines(rows.index, rows["lowest"], rows["highest"], color=FAINT)
            axes.plot(rows.index, rows["median"], "o", color=BLUE)
            axes.set_xticks(rows.index, [f"{s}\n(n = {n})" for s, n in zip(rows["skip"], rows["n"], strict=True)])
            axes.set_title(scale)
            axes.set_xlim(-0.6, len(rows) - 0.4)
        grid[0].set_ylabel(metric)

    return Figure(
        "importance-skips", "Skip placement per scale",
        "Median and range of the judged value by where each scale's skip connection is tapped.",
        f"Dot: median; line: best to worst complete trial. {where}.",
        draw, skips, size_in=(7.0, 2.8),
    )  # fmt: skip
