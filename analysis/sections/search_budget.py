"""Budget of a search: the score to expect of more or fewer trials, which setting wins at which budget, time to target.

Every ended trial counts: a complete one with its judged value, a pruned one with the value it had reached (the judge
would not take it, and it would have become better), one that diverged or failed with the worst value of all. The
computations are analysis/search_statistics.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from analysis import search_statistics
from analysis.dimensions import dimensions_of
from analysis.page.section import Figure, Section, Table, counted, number, plain
from analysis.page.style import BLUE, CYCLE, FAINT, VERMILION
from analysis.search_statistics import MIN_TRIALS, Curve, Overtaking, Reached
from analysis.selection import unit_of, with_unit
from analysis.statistics import Floats
from analysis.tables.tidy import StudyTables
from study.contract import DEVICE_SECONDS, Judge, Outcome

TITLE = "What did the search's budget buy?"
SEED = 0
Row = dict[str, Any]


def analyse(tables: StudyTables) -> Section:
    """The section; one sentence where too few trials have ended."""
    judge, ended = tables.judge, ended_trials(tables)
    if judge is None or len(ended) < MIN_TRIALS:
        return Section("budget", TITLE, [_too_few(len(ended))], data={"trials": len(ended)})
    sign = 1.0 if judge.minimise else -1.0
    curve = search_statistics.budget_curve((sign * ended["worth"]).tolist(), ended["hours"].tolist(), SEED)
    own = _own_value(tables)
    overtakings, compared = _overtakings(tables, ended, sign)
    target, times = _times(tables, own, judge)
    taken = [float(s) if hit else None for s, hit in zip(times["seconds"], times["reached"], strict=True)]
    reached = search_statistics.time_to_target(taken) if times["reached"].any() else None
    answers = [
        *_curve_sentences(curve, judge, own, ended),
        *_overtaking_sentences(overtakings, compared),
        *_target_sentences(target, times, reached, judge),
    ]
    figures = [_curve_figure(curve, tables, judge, own, ended)]
    figures += [_reached_figure(reached, times, target, tables, judge)] if reached is not None else []
    frame = _curve_frame(curve, judge)
    units = dict.fromkeys(("expected", "low", "high"), unit_of(judge.metric)) | {"hours": "h"}
    note = "expected: of the best of so many trials drawn at random from these; low, high: simultaneous 95% band."
    data = {
        "trials": len(ended), "expected": frame, "own": own, "overtaking": [vars(found) for _, found in overtakings],
        "target": target, "reached": int(times["reached"].sum()),
        "time_to_target_s": reached.half if reached is not None else None,
    }  # fmt: skip
    tables_ = [Table("budget-expected", "Expected best value by number of trials", frame, note, units)]
    return Section("budget", TITLE, answers, figures, tables_, plain(data))


def _too_few(ended: int) -> str:
    return (
        f"n = {counted(ended, 'trial')} of the search ended: to say what more or fewer trials would have found takes "
        f"at least {MIN_TRIALS}."
    )


def ended_trials(tables: StudyTables) -> pd.DataFrame:
    """The ended trials of the search with `worth`, the value that each counts with, and `hours` of training times
    devices.
    """
    rows = tables.phase("search")
    rows = rows[rows["outcome"].isin(list(Outcome))]
    minimise = tables.judge is None or tables.judge.minimise
    scored = rows["value"].where(rows["outcome"].isin([Outcome.COMPLETE, Outcome.PRUNED]))
    worth = scored.fillna(scored.max() if minimise else scored.min())
    seconds = rows[DEVICE_SECONDS].fillna(rows["seconds"]).fillna(0.0)
    return rows.assign(worth=worth, hours=seconds / 3600)[worth.notna()]


def _own_value(tables: StudyTables) -> float | None:
    """The judged value of the recipe's own setting, the search's first trial; None where it did not complete."""
    rows = tables.phase("search")
    own = rows[(rows["number"] == 0) & (rows["outcome"] == Outcome.COMPLETE) & rows["value"].notna()]
    return float(own["value"].iloc[0]) if len(own) else None


def _curve_frame(curve: Curve, judge: Judge) -> pd.DataFrame:
    sign, count = (1.0 if judge.minimise else -1.0), len(curve.expected)
    low, high = (np.full(count, np.nan) for _ in range(2))
    low[: len(curve.low)], high[: len(curve.high)] = sign * curve.low, sign * curve.high
    ends = np.sort(np.stack([low, high]), axis=0)
    return pd.DataFrame(
        {"trials": np.arange(1, count + 1), "hours": curve.hours, "expected": sign * curve.expected,
         "low": ends[0], "high": ends[1]}
    )  # fmt: skip


def _curve_sentences(curve: Curve, judge: Judge, own: float | None, ended: pd.DataFrame) -> list[str]:
    frame, unit = _curve_frame(curve, judge), unit_of(judge.metric)
    count = len(frame)
    half, last = frame["expected"].iloc[count // 2 - 1], frame["expected"].iloc[-1]
    said = (
        f"Of trials like these {count}, one alone is expected to reach {judge.metric} "
        f"{number(frame['expected'].iloc[0])}, the best of {count // 2} {number(half)} and the best of all {count} "
        f"{number(last)} {unit}".rstrip()
        + f"; the second half of the search, {number(ended['hours'].sum() / 2)} device-hours, was worth "
        + f"{number(abs(half - last))} {unit}".rstrip() + "."
    )  # fmt: skip
    if own is None:
        return [said]
    better = frame["expected"] < own if judge.minimise else frame["expected"] > own
    beats = f"is expected to take {counted(int(frame['trials'][better].iloc[0]), 'trial')}" if better.any() else (
        f"is not expected within {counted(count, 'trial')}"
    )  # fmt: skip
    return [said, f"To beat the recipe's own setting ({number(own)} {unit}".rstrip() + f") {beats}."]


def _curve_figure(curve: Curve, tables: StudyTables, judge: Judge, own: float | None, ended: pd.DataFrame) -> Figure:
    frame = _curve_frame(curve, judge).assign(own=own)
    per_trial = number(float(frame["hours"].iloc[0]))
    ticks = [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if n <= len(frame)]

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        band = data.dropna(subset=["low", "high"])
        axes.fill_between(band["trials"], band["low"], band["high"], color=BLUE, alpha=0.18, linewidth=0,
                          label="95% band")  # fmt: skip
        axes.plot(data["trials"], data["expected"], color=BLUE, marker=".", label="expected best")
        if data["own"].notna().any():
            value = float(data["own"].iloc[0])
            axes.axhline(value, color=VERMILION, linewidth=1, linestyle="--", label="the recipe's own setting")
        axes.set(
            xlabel=f"trials, each {per_trial} device-hours on average", ylabel=f"validation {with_unit(judge.metric)}",
            xscale="log",
        )  # fmt: skip
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.set_xticks([], minor=True)
        seen = data[["expected", "own"]].to_numpy(float)
        room = 0.15 * (np.nanmax(seen) - np.nanmin(seen))
        axes.set_ylim(np.nanmin(seen) - room, np.nanmax(seen) + room)
        axes.legend()

    lost = int((~ended["outcome"].isin([Outcome.COMPLETE, Outcome.PRUNED])).sum())
    pruned = int((ended["outcome"] == Outcome.PRUNED).sum())
    return Figure(
        "budget-expected", "Best value to expect of a budget",
        f"Expected validation {judge.metric} of the best of 1 to {len(frame)} trials, against trials and device-hours.",
        f"n = {len(ended)} trials, {pruned} of them pruned (they count with the value they had reached), {lost} "
        "diverged or failed (with the worst value). For trials drawn at random from these: not what this sampler would "
        "find next, and nothing about settings outside the space. The band covers the first fifth; beyond it so few "
        f"trials do not bound the curve. Study {tables.name}, validation split.",
        draw, frame, size_in=(5.2, 3.4),
    )  # fmt: skip


def _overtakings(tables: StudyTables, ended: pd.DataFrame, sign: float) -> tuple[list[tuple[str, Overtaking]], int]:
    """Pairs of choices of one setting of which one overtakes the other, and how many pairs were compared."""
    found, compared = [], 0
    for dimension in dimensions_of(tables):
        if not dimension.choices:
            continue
        bins = dimension.binned(ended)
        sides: dict[str, tuple[Floats, Floats]] = {}
        for name in dict.fromkeys(name for name in bins if name is not None):
            rows = ended[bins == name]
            if len(rows) >= MIN_TRIALS:
                sides[name] = (sign * rows["worth"].to_numpy(float), rows["hours"].to_numpy(float))
        for pair in combinations(sides, 2):
            compared += 1
            crossing = search_statistics.overtaking({name: sides[name] for name in pair}, SEED)
            if crossing is not None:
                found.append((dimension.path, crossing))
    return found, compared


def _overtaking_sentences(found: Sequence[tuple[str, Overtaking]], compared: int) -> list[str]:
    if not compared:
        return []
    if not found:
        return [
            f"None of {counted(compared, 'pair')} of choices with {MIN_TRIALS} trials each overtakes the other within "
            "the budget in 95% of resamples; no correction is made for asking of several."
        ]
    return [
        f"{path}: {one.early} is expected to be ahead up to {number(one.hours)} device-hours, {one.late} beyond (95% "
        f"interval {number(one.low)} to {number(one.high)}; in {one.sure:.0%} of resamples; no correction for "
        f"{counted(compared, 'pair')} asked of)."
        for path, one in found
    ]


def _times(tables: StudyTables, own: float | None, judge: Judge) -> tuple[float | None, pd.DataFrame]:
    """The target, and when each other ended trial reached it, or ended: columns key, seconds, reached."""
    empty = pd.DataFrame({"key": [], "seconds": [], "reached": np.array([], dtype=bool)})
    column, clock = f"val/{judge.metric}", "time/seconds"
    if own is None or not {column, clock} <= set(tables.reports):
        return own, empty
    rows = tables.phase("search")
    keys = rows.loc[(rows["number"] != 0) & rows["outcome"].isin(list(Outcome)), "key"]
    reports = tables.reports.loc[tables.reports["key"].isin(keys), ["key", "images", column, clock]].dropna()
    good = reports[column] <= own if judge.minimise else reports[column] >= own
    ends = reports.groupby("key", sort=False)[clock].max()
    hits = reports[good].groupby("key", sort=False)[clock].min()
    if ends.empty:
        return own, empty
    reached = ends.index.isin(hits.index)
    return own, pd.DataFrame({"key": ends.index, "seconds": hits.reindex(ends.index).fillna(ends).to_numpy(float),
                              "reached": reached})  # fmt: skip


def _target_sentences(target: float | None, times: pd.DataFrame, reached: Reached | None, judge: Judge) -> list[str]:
    if target is None or times.empty:
        return []
    hit, what = int(times["reached"].sum()), f"{judge.metric} {number(target)} {unit_of(judge.metric)}".rstrip()
    said = (
        f"{hit} of the other {counted(len(times), 'trial')} reached what the recipe's own setting ended with ({what})"
    )
    if reached is None:
        return [f"{said}."]
    half = "" if reached.half is None else f", half of all after {number(reached.half)} s of training"
    fastest = times[times["reached"]].sort_values("seconds").iloc[0]
    return [f"{said}{half}; the fastest was {fastest['key']}, after {number(fastest['seconds'])} s."]


def _reached_figure(
    reached: Reached, times: pd.DataFrame, target: float | None, tables: StudyTables, judge: Judge
) -> Figure:
    frame = pd.DataFrame({"seconds": np.append(0.0, reached.seconds), "share": np.append(0.0, reached.share),
                          "low": np.append(0.0, reached.low),
                          "high": np.append(reached.high[0], reached.high)})  # fmt: skip

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        axes.fill_between(data["seconds"], data["low"], data["high"], step="post", color=BLUE, alpha=0.18, linewidth=0,
                          label="95% interval")  # fmt: skip
        axes.step(data["seconds"], data["share"], where="post", color=BLUE, label="have reached it")
        axes.axhline(0.5, color=FAINT, linewidth=0.8)
        axes.set(xlabel="training time of a trial (s)", ylabel="share of trials", ylim=(0, 1))
        axes.legend()

    return Figure(
        "budget-target", "Time to the recipe's own score",
        f"Share of {len(times)} trials that had reached {judge.metric} {number(target)} by each time.",
        f"n = {len(times)} trials, {int(times['reached'].sum())} reached it; one that the pruner stopped has not, and "
        f"may have been slow rather than bad. Times are those of reports. Study {tables.name}, validation split.",
        draw, frame, size_in=(5.2, 3.0),
    )  # fmt: skip


def versus(first: tuple[str, StudyTables], second: tuple[str, StudyTables]) -> tuple[list[str], list[Figure]]:
    """The expected best of two studies' searches against device-hours, and where one overtakes the other; nothing where
    one has too few trials. Both have one judge.
    """
    judge = first[1].judge
    trials: Mapping[str, pd.DataFrame] = {name: ended_trials(tables) for name, tables in (first, second)}
    if judge is None or any(len(rows) < MIN_TRIALS for rows in trials.values()):
        return [], []
    sign = 1.0 if judge.minimise else -1.0
    sides = {name: (sign * r["worth"].to_numpy(float), r["hours"].to_numpy(float)) for name, r in trials.items()}
    frames = [
        _curve_frame(search_statistics.budget_curve(values.tolist(), hours.tolist(), SEED), judge).assign(study=name)
        for name, (values, hours) in sides.items()
    ]
    crossing = search_statistics.overtaking(sides, SEED)
    said = "Neither search overtakes the other within the smaller budget in 95% of resamples." \
        if crossing is None else (
        f"The search of {crossing.early} is expected to be ahead up to {number(crossing.hours)} device-hours, that of "
        f"{crossing.late} beyond (95% interval {number(crossing.low)} to {number(crossing.high)})."
    )  # fmt: skip

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        for colour, (study, rows) in zip(CYCLE, data.groupby("study", sort=False), strict=False):
            band = rows.dropna(subset=["low", "high"])
            axes.fill_between(band["hours"], band["low"], band["high"], color=colour, alpha=0.15, linewidth=0)
            axes.plot(rows["hours"], rows["expected"], color=colour, marker=".", label=f"{study} (n = {len(rows)})")
        axes.set(xlabel="device-hours", ylabel=f"validation {with_unit(judge.metric)}", xscale="log")
        axes.legend()

    figure = Figure(
        "compare-budget", "Best value to expect of a budget, both searches",
        f"Expected best validation {judge.metric} of both searches against device-hours.",
        "Of trials drawn at random from each search; band: simultaneous 95% of the first fifth. Two searches differ in "
        "more than their sampler unless all other settings are equal.",
        draw, pd.concat(frames, ignore_index=True), size_in=(5.2, 3.2),
    )  # fmt: skip
    return [said], [figure]
