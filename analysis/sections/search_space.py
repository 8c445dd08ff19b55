"""The search explained: what it covered, and what a forest fitted to its trials expects of each setting.

Beside importance (analysis/importance.py), which tests whether a setting matters: here is in which direction, over what
range, together with which other, and which of its changes made the best setting good. The forest is
analysis/surrogate.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from analysis import surrogate
from analysis.dimensions import Dimension, dimensions_of, label
from analysis.importance import MIN_TRIALS, TRIALS_PER_DIMENSION
from analysis.importance_plots import scale
from analysis.page.section import Figure, Section, Table, counted, number, plain
from analysis.page.style import BLUE, FAINT, GREY, INK, VERMILION
from analysis.selection import unit_of, with_unit
from analysis.surrogate import Flip, Surrogate
from analysis.tables.tidy import StudyTables
from study.contract import Judge, Outcome

TITLE = "What does the search show?"
MIN_SCORE = 0.1  # out-of-bag R2 below which the forest knows nothing of trials it has not seen
PANELS = 6
CELLS = 10  # of a range, in the footprint
PAIR_CELLS = 3  # of a range, in counting which pairs of settings were tried together
Row = dict[str, Any]


def analyse(tables: StudyTables) -> Section:
    """The section; sentences alone where there are too few trials, or the forest learned nothing of them."""
    judge, search, dimensions = tables.judge, tables.phase("search"), dimensions_of(tables)
    if judge is None or not dimensions or search.empty:
        return Section("space", TITLE, ["Nothing was searched."], data={"trials": 0})
    complete = search[(search["outcome"] == Outcome.COMPLETE) & search["value"].notna()]
    where = f"Study {tables.name}, validation split"
    if len(search) < MIN_TRIALS:
        said = f"n = {counted(len(search), 'trial')}: to show what of the space a search covered takes {MIN_TRIALS}."
        return Section("space", TITLE, [said], data={"trials": len(search)})
    footprint = _footprint(search, dimensions)
    answers, figures = (
        [_covered(search, dimensions, footprint)],
        [_footprint_figure(footprint, dimensions, search, where)],
    )
    data: Row = {"trials": len(search), "complete": len(complete), "footprint": footprint, "score": None}
    needed = max(MIN_TRIALS, TRIALS_PER_DIMENSION * len(dimensions))
    if len(complete) < needed:
        said = (
            f"n = {counted(len(complete), 'trial')} complete: to show what a model of them expects of "
            f"{counted(len(dimensions), 'setting')} takes at least {needed}."
        )
        return Section("space", TITLE, [*answers, said], figures, data=plain(data))
    found = surrogate.fit(complete, dimensions, complete["value"].to_numpy(float) * (1.0 if judge.minimise else -1.0))
    data["score"] = found.score
    if found.score < MIN_SCORE:
        said = (
            f"A forest fitted to the {len(complete)} complete trials does not predict those that it has not seen (R2 = "
            f"{number(found.score)} out of bag), so what it expects of a setting is not shown."
        )
        return Section("space", TITLE, [*answers, said], figures, data=plain(data))
    curves = _curves(found, judge)
    strongest = _strongest(curves)
    own, best = _ends(complete, judge)
    path = _path(found, complete, own, best, judge) if own is not None else pd.DataFrame()
    answers += [_dependence_sentence(found, curves, strongest, complete, judge), *_path_sentences(path, best, judge)]
    figures.append(_dependence_figure(found, curves, strongest[:PANELS], complete, judge, where))
    if len(strongest) > 1:
        figures.append(_contour_figure(found, strongest[0], strongest[1], complete, judge, where))
    parts = []
    if len(path):
        figures.append(_path_figure(path, complete, judge, where))
        units = dict.fromkeys(("expected", "low", "high"), unit_of(judge.metric))
        note = (
            "expected: by the forest, after this and all flips before; low, high: 95% over forests of resampled trials."
        )
        parts.append(Table("space-ablation", "From the recipe's setting to the best", path, note, units))
    data |= {"dependence": curves, "strongest": strongest, "ablation": path}
    return Section("space", TITLE, answers, figures, parts, plain(data))


def _footprint(search: pd.DataFrame, dimensions: Sequence[Dimension]) -> pd.DataFrame:
    """Trials and complete trials in each tenth of a range, or of each choice: setting, cell, trials, complete."""
    rows: list[Row] = []
    done = (search["outcome"] == Outcome.COMPLETE).to_numpy()
    for dimension in dimensions:
        cells, count = _cells(dimension, search, CELLS)
        for cell in range(count):
            inside = cells == cell
            rows.append({"setting": dimension.path, "cell": cell, "of": count, "trials": int(inside.sum()),
                         "complete": int((inside & done).sum())})  # fmt: skip
    return pd.DataFrame(rows)


def _cells(dimension: Dimension, rows: pd.DataFrame, parts: int) -> tuple[np.ndarray, int]:
    """The cell of each trial, -1 outside the space, and how many there are."""
    places = dimension.places(rows)
    count = len(dimension.choices) if dimension.choices else parts
    inside = np.isfinite(places) & (places >= 0) & (places <= 1)
    scaled = np.where(inside, places, 0) * (max(1, count - 1) if dimension.choices else count)
    cells = np.round(scaled) if dimension.choices else np.minimum(np.floor(scaled), count - 1)
    return np.where(inside, cells, -1).astype(int), count


def _covered(search: pd.DataFrame, dimensions: Sequence[Dimension], footprint: pd.DataFrame) -> str:
    """How much of each setting, and of each pair of settings, has been tried at all."""
    alone = float((footprint["trials"] > 0).mean())
    tried, possible = 0, 0
    for a, b in combinations(dimensions, 2):
        (first, m), (second, n) = (_cells(d, search, PAIR_CELLS) for d in (a, b))
        kept = (first >= 0) & (second >= 0)
        tried, possible = tried + len(set(zip(first[kept], second[kept], strict=True))), possible + m * n
    pairs = (
        f", and of {possible} cells of two settings (thirds of ranges, choices) {tried / possible:.0%}"
        if possible
        else ""
    )
    empty = footprint[footprint["trials"] == 0].groupby("setting", sort=False).size()
    gaps = "" if empty.empty else f" Untried parts: {', '.join(f'{count} of {name}' for name, count in empty.items())}."
    return (
        f"{counted(len(search), 'trial')} tried {alone:.0%} of the tenths of ranges and choices of single settings"
        f"{pairs}.{gaps}"
    )


def _footprint_figure(
    footprint: pd.DataFrame, dimensions: Sequence[Dimension], search: pd.DataFrame, where: str
) -> Figure:
    of = {d.path: d for d in dimensions}

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        names = list(dict.fromkeys(data["setting"]))[::-1]
        most = max(1, int(data["trials"].max()))
        for name, rows in data.groupby("setting", sort=False):
            place, count = names.index(str(name)), len(rows)
            choices = of[str(name)].choices
            for cell, trials, complete in rows[["cell", "trials", "complete"]].to_numpy(int):
                middle, width = (cell + 0.5) / count, 0.94 / count
                axes.bar(middle, 0.8, width, place - 0.4, color=BLUE, alpha=0.75 * trials / most, linewidth=0)
                axes.bar(middle, 0.8, width, place - 0.4, fill=False, edgecolor=FAINT, linewidth=0.5)
                said = f"{complete}/{trials}" if trials else "0"
                named = f"{_choice(choices[cell])}\n{said}" if choices else said
                axes.text(middle, place, named, ha="center", va="center", fontsize=7.5, color=INK)
        labels = [name if of[name].choices else f"{name}\n{of[name].low:.2g} to {of[name].high:.2g}" for name in names]
        axes.set_yticks(range(len(names)), labels)
        axes.set(xlim=(0, 1), ylim=(-0.5, len(names) - 0.5), xticks=[])
        axes.tick_params(axis="y", length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)

    return Figure(
        "space-footprint", "What was covered",
        f"Number of trials in each tenth of the range, or with each choice, of {len(dimensions)} settings.",
        f"Complete trials / all trials (n = {len(search)}) in each tenth of a range on its own scale, or of each "
        "choice, in the space's order. A part without a trial says nothing of its values. The recipe's own trial may "
        f"lie outside the space. {where}.",
        draw, footprint, size_in=(7.0, 0.5 + 0.55 * len(dimensions)),
    )  # fmt: skip


def _choice(value: Any) -> str:
    return "null" if value is None else str(label(value))


def _curves(found: Surrogate, judge: Judge) -> pd.DataFrame:
    """Partial dependence of every setting: setting, place, expected, low, high."""
    sign, parts = (1.0 if judge.minimise else -1.0), []
    for dimension in found.dimensions:
        one = surrogate.dependence(found, dimension.path)
        ends = np.sort(np.stack([sign * one.low, sign * one.high]), axis=0)
        parts.append(pd.DataFrame({"setting": dimension.path, "place": one.places, "expected": sign * one.mean,
                                   "low": ends[0], "high": ends[1]}))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _strongest(curves: pd.DataFrame) -> list[str]:
    """Settings by how far their curve goes up and down, the farthest first."""
    spans = curves.groupby("setting", sort=False)["expected"].agg(np.ptp).sort_values(ascending=False, kind="stable")
    return [str(name) for name in spans.index]


def _dependence_sentence(
    found: Surrogate, curves: pd.DataFrame, strongest: Sequence[str], complete: pd.DataFrame, judge: Judge
) -> str:
    own = curves[curves["setting"] == strongest[0]].sort_values("expected", ascending=judge.minimise)
    dimension = next(d for d in found.dimensions if d.path == strongest[0])
    good, bad = own.iloc[0], own.iloc[-1]
    unit = unit_of(judge.metric)
    return (
        f"A forest fitted to the {len(complete)} complete trials (R2 = {number(found.score)} on trials not seen) "
        f"expects most of {strongest[0]}: {judge.metric} {number(good['expected'])} {unit}".rstrip()
        + f" at {_value_at(dimension, float(good['place']))} against {number(bad['expected'])} {unit}".rstrip()
        + f" at {_value_at(dimension, float(bad['place']))}, averaged over the other settings; what matters for sure "
        "is tested under importance."
    )


def _value_at(dimension: Dimension, place: float) -> str:
    if dimension.choices:
        return _choice(dimension.choices[round(place * max(1, len(dimension.choices) - 1))])
    low, high = (np.log(dimension.low), np.log(dimension.high)) if dimension.log else (dimension.low, dimension.high)
    value = low + place * (high - low)
    return number(float(np.exp(value) if dimension.log else value))


def _dependence_figure(
    found: Surrogate, curves: pd.DataFrame, shown: Sequence[str], complete: pd.DataFrame, judge: Judge, where: str
) -> Figure:
    frame = curves[curves["setting"].isin(shown)]
    of = {d.path: d for d in found.dimensions}
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    tried = {d.path: found.places[:, i] for i, d in enumerate(found.dimensions)}

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        grid = canvas.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for axes, name in zip(grid, shown, strict=False):
            own = data[data["setting"] == name]
            _curve(axes, own, of[name])
            axes.plot(tried[name], np.zeros(len(tried[name])), "|", color=GREY, markersize=5, clip_on=False,
                      transform=axes.get_xaxis_transform())  # fmt: skip
            axes.set_title(name)
            scale(axes, of[name])
        for axes in grid[len(shown) :]:
            axes.set_axis_off()
        for axes in grid[: len(shown) : columns]:
            axes.set_ylabel(f"expected {with_unit(judge.metric)}")

    return Figure(
        "space-dependence", "What a model expects of each setting",
        f"Partial dependence of validation {judge.metric} on {len(shown)} settings, with bands.",
        f"Forest of n = {len(complete)} complete trials, averaged over their other settings; band: 95% over forests of "
        "resampled trials; ticks: trials. Where there are none the forest guesses, and pruned trials, which were "
        f"worse, are not in it: read it as direction and range, not as the effect of setting one value. {where}.",
        draw, frame, size_in=(7.0, 0.6 + 2.0 * rows),
    )  # fmt: skip


def _curve(axes: Axes, own: pd.DataFrame, dimension: Dimension) -> None:
    if dimension.choices:
        axes.vlines(own["place"], own["low"], own["high"], color=BLUE, alpha=0.35, linewidth=5)
        axes.plot(own["place"], own["expected"], "o", color=BLUE)
        return
    axes.fill_between(own["place"], own["low"], own["high"], color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(own["place"], own["expected"], color=BLUE)


def _contour_figure(
    found: Surrogate, first: str, second: str, complete: pd.DataFrame, judge: Judge, where: str
) -> Figure:
    of = {d.path: d for d in found.dimensions}
    sign = 1.0 if judge.minimise else -1.0
    x, y, mean, half = surrogate.contour(found, first, second)
    frame = pd.DataFrame({"x": np.repeat(x, len(y)), "y": np.tile(y, len(x)), "expected": sign * mean.ravel(),
                          "half_band": half.ravel()})  # fmt: skip
    columns = [d.path for d in found.dimensions]
    points = found.places[:, [columns.index(first), columns.index(second)]]

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        left, right = canvas.subplots(1, 2, sharey=True)
        panels = ((left, "expected", f"expected {with_unit(judge.metric)}", "viridis"),
                  (right, "half_band", f"half its 95% band ({unit_of(judge.metric) or judge.metric})",
                   "cividis"))  # fmt: skip
        for axes, column, name, colours in panels:
            table = data.pivot(index="y", columns="x", values=column)
            shown = axes.pcolormesh(table.columns, table.index, table.to_numpy(), cmap=colours, shading="nearest",
                                    rasterized=True)  # fmt: skip
            canvas.colorbar(shown, ax=axes, label=name, location="top")
            axes.plot(points[:, 0], points[:, 1], "o", color="white", markeredgecolor=INK, markersize=3.5,
                      markeredgewidth=0.5)  # fmt: skip
            scale(axes, of[first])
            axes.set_xlabel(first)
        _scale_y(left, of[second])
        left.set_ylabel(second)

    return Figure(
        "space-contour", "The two strongest settings together, as the model expects",
        f"Expected validation {judge.metric} over {first} and {second}, and how uncertain it is.",
        f"Forest of n = {len(complete)} complete trials (dots), averaged over their other settings. Far from dots the "
        f"colour is a guess, and the band of resampled trials does not show how wrong. {where}.",
        draw, frame, size_in=(7.0, 3.6),
    )  # fmt: skip


def _scale_y(axes: Axes, dimension: Dimension) -> None:
    """Ticks of a setting's own values on the y axis."""
    places = (np.arange(len(dimension.choices)) / max(1, len(dimension.choices) - 1) if dimension.choices
              else np.linspace(0, 1, 3))  # fmt: skip
    axes.set_yticks(places, [_value_at(dimension, float(place)) for place in places])


def _ends(complete: pd.DataFrame, judge: Judge) -> tuple[int | None, int]:
    """Positions of the recipe's own trial, where it completed, and of the best one."""
    values = complete["value"].to_numpy(float)
    own = np.flatnonzero(complete["number"].to_numpy() == 0)
    return (int(own[0]) if len(own) else None), int(np.argmin(values) if judge.minimise else np.argmax(values))


def _path(found: Surrogate, complete: pd.DataFrame, own: int, best: int, judge: Judge) -> pd.DataFrame:
    """The ablation path: flipped setting, from, to, expected, low, high; the first row is the recipe's own setting."""
    sign = 1.0 if judge.minimise else -1.0
    start, flips = surrogate.ablation(found, found.places[own], found.places[best])
    if not flips:
        return pd.DataFrame()
    of = {d.path: d for d in found.dimensions}
    values = {d.path: d.of(complete) for d in found.dimensions}

    def row(flip: Flip) -> Row:
        ends = sorted((sign * flip.low, sign * flip.high))
        shown = [_shown(values[flip.setting][place]) for place in (own, best)]
        return {"flip": of[flip.setting].path, "from": shown[0], "to": shown[1], "expected": sign * flip.expected,
                "low": ends[0], "high": ends[1]}  # fmt: skip

    nothing: Row = {"flip": "the recipe's own setting", "from": "", "to": "", "expected": sign * start,
                    "low": np.nan, "high": np.nan}  # fmt: skip
    return pd.DataFrame([nothing, *map(row, flips)])


def _shown(value: Any) -> str:
    return number(value) if isinstance(value, float) else _choice(value)


def _path_sentences(path: pd.DataFrame, best: int, judge: Judge) -> list[str]:
    if path.empty:
        return []
    gained = path["expected"].diff().iloc[1:] * (1.0 if judge.minimise else -1.0)
    total = float(gained.sum())
    if total >= 0:
        return [
            "Between the recipe's setting and the best one the forest expects no difference that flips could explain."
        ]
    place = int(np.argmin(gained.to_numpy())) + 1
    row = path.iloc[place]
    return [
        f"Of what the forest expects the best setting to gain over the recipe's own ({number(-total)} "
        f"{unit_of(judge.metric)}".rstrip() + f"), {float(gained.iloc[place - 1]) / total:.0%} comes from "
        f"{row['flip']} ({row['from']} to {row['to']}); no training was run between the two ends."
    ]  # fmt: skip


def _path_figure(path: pd.DataFrame, complete: pd.DataFrame, judge: Judge, where: str) -> Figure:
    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        places = np.arange(len(data))[::-1]
        axes.hlines(places, data["low"], data["high"], color=FAINT, linewidth=3)
        axes.plot(data["expected"], places, "o-", color=BLUE, linewidth=1)
        axes.plot(data["expected"].iloc[-1:], places[-1:], "o", color=VERMILION, label="the best setting")
        named = [
            f"{row['flip']}: {row['from']} to {row['to']}" if row["to"] else row["flip"] for _, row in data.iterrows()
        ]
        axes.set_yticks(places, named)
        axes.set_ylim(-0.6, len(data) - 0.4)
        axes.set_xlabel(f"expected {with_unit(judge.metric)}")
        axes.legend()

    return Figure(
        "space-ablation", "From the recipe's setting to the best, flip by flip",
        f"Expected validation {judge.metric} along {len(path) - 1} flips from the recipe's setting to the best.",
        f"Each flip is the one that a forest of n = {len(complete)} complete trials expects most of; bar: 95% over "
        "forests of resampled trials. None of the settings in between was trained, and the best was picked for its "
        f"value, part of which is luck. {where}.",
        draw, path, size_in=(7.0, 0.9 + 0.36 * len(path)),
    )  # fmt: skip
