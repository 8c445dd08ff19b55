"""Pruning: whether early reports foretold the end, and what stopping trials saved and may have cost.

Only the trials that the pruner let through show both an early value and an end, and they are alike in being good early:
what they show of the correlation is less than all trials would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from analysis import search_statistics
from analysis.page.section import Figure, Section, Table, counted, number, plain
from analysis.page.style import BLUE
from analysis.search_statistics import MIN_PAIRS
from analysis.selection import unit_of, with_unit
from analysis.statistics import Estimate
from analysis.tables.tidy import StudyTables
from study.contract import Judge, Outcome

TITLE = "Was pruning right?"
SEED = 0
PANELS = 4  # rungs that are drawn, the earliest
Row = dict[str, Any]


def analyse(tables: StudyTables) -> Section:
    """The section; one sentence where nothing was pruned, or too few trials show both an early value and an end."""
    judge, search = tables.judge, tables.phase("search")
    stopped = search[search["outcome"] == Outcome.PRUNED]
    if judge is None or search.empty:
        return Section("pruning", TITLE, ["Nothing was searched, so nothing was pruned."], data={"pruned": 0})
    pairs = _pairs(tables, judge)
    rungs = _rungs(pairs)
    enough = [row for row in rungs if row["n"] >= MIN_PAIRS]
    saved = _saved(tables, stopped)
    data: Row = {"pruned": len(stopped), "rungs": rungs, "saved": saved, "regret": None}
    if not enough:
        most = max((row["n"] for row in rungs), default=0)
        said = (
            f"n = {counted(most, 'trial')} complete with an earlier report: to say how well early values foretell the "
            f"end takes at least {MIN_PAIRS}."
        )
        return Section("pruning", TITLE, [*_saved_sentences(saved), said], data=plain(data))
    cost = _regret(tables, judge, stopped, pairs)
    data["regret"] = vars(cost) if cost is not None else None
    answers = [*_correlation_sentences(enough), *_saved_sentences(saved), *_cost_sentences(cost, saved, judge)]
    note = (
        "tau: Kendall's rank correlation of the value at a report with the judged value at the end, over the complete "
        "trials, which the pruner let through; low, high: its 95% interval."
    )
    listed = Table("pruning-rungs", "Early reports and the end", pd.DataFrame(rungs), note, {})
    figure = _figure(pairs, enough, tables, judge)
    return Section("pruning", TITLE, answers, [figure], [listed], plain(data))


def _pairs(tables: StudyTables, judge: Judge) -> pd.DataFrame:
    """Every earlier report of the complete trials: key, images, value there, final judged value."""
    column = f"val/{judge.metric}"
    rows = tables.phase("search")
    done = rows[(rows["outcome"] == Outcome.COMPLETE) & rows["value"].notna()].set_index("key")
    if column not in tables.reports:
        return pd.DataFrame(columns=["key", "images", "value", "final"])
    reports = tables.reports.loc[tables.reports["key"].isin(done.index), ["key", "images", column]].dropna()
    last = reports.groupby("key")["images"].transform("max")
    early = reports[reports["images"] < last].rename(columns={column: "value"})
    return early.assign(final=early["key"].map(done["value"])).reset_index(drop=True)


def _rungs(pairs: pd.DataFrame) -> list[Row]:
    rows = []
    for images, own in pairs.groupby("images"):
        tau = search_statistics.rank_correlation(own["value"].tolist(), own["final"].tolist())
        rows.append({"images": int(float(str(images))), "n": len(own), "tau": tau.value, "low": tau.low,
                     "high": tau.high})  # fmt: skip
    return rows


def _saved(tables: StudyTables, stopped: pd.DataFrame) -> Row:
    """Images and hours that the pruned trials did not take, at the speed they had."""
    budget = pd.to_numeric(stopped["config.budget_images"]) if "config.budget_images" in stopped else stopped["images"]
    left = (budget - stopped["images"]).clip(lower=0)
    hours = (stopped["seconds"] / stopped["images"] * left / 3600).sum()
    ended = tables.phase("search")
    return {"trials": len(stopped), "images": int(left.sum()), "hours": float(hours),
            "spent_images": int(ended["images"].sum())}  # fmt: skip


def _saved_sentences(saved: Mapping[str, Any]) -> list[str]:
    if not saved["trials"]:
        return ["No trial was pruned."]
    share = saved["images"] / max(1, saved["images"] + saved["spent_images"])
    return [
        f"Pruning stopped {counted(saved['trials'], 'trial')} and saved {saved['images']:,} images, {share:.0%} of "
        f"what the search would have seen, about {number(saved['hours'])} hours of training at the speed they had."
    ]


def _regret(
    tables: StudyTables, judge: Judge, stopped: pd.DataFrame, pairs: pd.DataFrame
) -> search_statistics.Regret | None:
    """What the stopped trials might have become; None for a metric that is no error, whose ratios mean nothing."""
    column = f"val/{judge.metric}"
    if not judge.minimise or stopped.empty or pairs.empty or (pairs[["value", "final"]] <= 0).any(axis=None):
        return None
    reports = tables.reports.loc[tables.reports["key"].isin(stopped["key"]), ["key", "images", column]].dropna()
    last = reports.sort_values("images").groupby("key").tail(1)
    ends = [(float(images), float(value)) for images, value in last[["images", column]].to_numpy(float)]
    return search_statistics.regret(ends, pairs, float(pairs["final"].min()), SEED)


def _correlation_sentences(rungs: Sequence[Row]) -> list[str]:
    first = rungs[0]
    tau = Estimate(first["tau"], first["low"], first["high"], f"{first['n']} complete trials")
    sure = "foretold the order at the end" if tau.distinguishable and tau.value > 0 else (
        "did not foretell the order at the end, as far as these can tell"
    )  # fmt: skip
    later = [f"{number(row['tau'])} at {row['images']:,}" for row in rungs[1:]]
    more = f" Later reports: tau {', '.join(later)} images." if later else ""
    return [
        f"The report at {first['images']:,} images {sure}: Kendall's tau {tau.words()}, among the trials that came to "
        f"the end, which are alike in having been good then; over all trials it would be higher.{more}"
    ]


def _cost_sentences(cost: search_statistics.Regret | None, saved: Mapping[str, Any], judge: Judge) -> list[str]:
    if not saved["trials"]:
        return []
    if cost is None:
        return ["What they would have become cannot be estimated: too few complete trials passed the same reports."]
    loss = f"{number(cost.loss)} {unit_of(judge.metric)}".rstrip()
    return [
        f"If the pruned trials ({cost.pruned} that complete ones can be set beside) had improved as the complete ones "
        "did from the same report on, one "
        f"would have ended better than the best found in {cost.missed:.0%} of resamples, by {loss} on average over "
        "all. Stopped trials may improve otherwise; only training some to their end (search.pruner.kind: none) shows."
    ]


def _figure(pairs: pd.DataFrame, rungs: Sequence[Row], tables: StudyTables, judge: Judge) -> Figure:
    shown = [row["images"] for row in rungs[:PANELS]]
    frame = pairs[pairs["images"].isin(shown)]
    taus = {row["images"]: row for row in rungs}

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        grid = canvas.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for axes, images in zip(grid, shown, strict=True):
            own = data[data["images"] == images]
            axes.scatter(own["value"], own["final"], s=14, color=BLUE)
            axes.set_title(f"at {images:,} images\ntau {number(taus[images]['tau'])} (n = {len(own)})")
            axes.set_xlabel(with_unit(judge.metric))
        grid[0].set_ylabel(f"judged {with_unit(judge.metric)}")

    low, high = np.min([row["n"] for row in rungs]), np.max([row["n"] for row in rungs])
    n = f"{low}" if low == high else f"{low} to {high}"
    return Figure(
        "pruning-rungs", "Early value against the end",
        f"Judged {judge.metric} at the end against its value at {len(shown)} earlier reports.",
        f"One dot per complete trial (n = {n}). Pruned trials have no end, so "
        f"nothing here says what they would have become. Study {tables.name}, validation split.",
        draw, frame, size_in=(min(7.0, 2.2 + 1.9 * len(shown)), 2.9),
    )  # fmt: skip
