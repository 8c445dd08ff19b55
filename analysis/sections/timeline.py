"""Timeline of a study: when each training ran, beside which others, and what memory they held together."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch

from analysis.page.section import Figure, Section, counted, number, plain
from analysis.page.style import FAINT, GREY, OUTCOME_COLOUR, PHASE_COLOUR
from analysis.tables.tidy import StudyTables
from study.contract import PHASES, Outcome

TITLE = "When did each training run?"
MIN_ENDED = 2
MIB_PER_GIB = 1024


def analyse(tables: StudyTables) -> Section:
    """The section: trainings on lanes of what ran at once, their number and memory over time."""
    frame = _lanes(tables.trials)
    if len(frame) < MIN_ENDED:
        said = f"{counted(len(frame), 'training')} ended, so there is no timeline yet."
        return Section("timeline", TITLE, [said], data={"trainings": len(frame)})
    load = _load(frame)
    busy = float((load["trainings"] * load["seconds"]).sum())
    wall = float(load["seconds"].sum())
    most, idle = int(load["trainings"].max()), float(load.loc[load["trainings"] == 0, "seconds"].sum())
    answers = [
        f"{counted(len(frame), 'training')} took {number(busy / 3600)} hours of training in {number(wall / 3600)} "
        f"hours, at most {most} at once and {number(busy / wall)} on average; for {idle / wall:.0%} of the time none "
        "ran."
    ]
    memory = load["memory_gib"]
    if memory.max() > 0:
        answers.append(
            f"The trainings that ran together held at most {number(float(memory.max()))} GiB, by the sum of each one's "
            "own peak, which they need not have reached at the same moment."
        )
    data = {"trainings": len(frame), "most_at_once": most, "mean_at_once": busy / wall, "idle_share": idle / wall}
    return Section("timeline", TITLE, answers, [_figure(frame, tables)], data=plain(data))


def _lanes(trials: pd.DataFrame) -> pd.DataFrame:
    """Ended trainings with the lane of each: the first that was free when it began."""
    rows = trials[trials["outcome"].isin(list(Outcome)) & trials["started"].notna() & trials["ended"].notna()]
    rows = rows.sort_values(["started", "key"], kind="stable")
    free: list[pd.Timestamp] = []
    lanes = []
    for start, end in zip(rows["started"], rows["ended"], strict=True):
        lane = next((place for place, until in enumerate(free) if until <= start), len(free))
        free[lane : lane + 1] = [end]
        lanes.append(lane)
    peak = rows["summary.peak_memory_mib"] if "summary.peak_memory_mib" in rows else pd.Series(0.0, index=rows.index)
    memory = pd.to_numeric(peak).fillna(0.0) / MIB_PER_GIB
    return rows[["key", "phase", "outcome", "started", "ended"]].assign(lane=lanes, memory_gib=memory)


def _load(frame: pd.DataFrame) -> pd.DataFrame:
    """From each moment to the next: trainings that ran, the sum of their memory, seconds until the next one."""
    begins = pd.DataFrame({"at": frame["started"], "trainings": 1, "memory_gib": frame["memory_gib"]})
    ends = pd.DataFrame({"at": frame["ended"], "trainings": -1, "memory_gib": -frame["memory_gib"]})
    steps = pd.concat([begins, ends]).groupby("at", sort=True)[["trainings", "memory_gib"]].sum().cumsum()
    moments = steps.index.to_series()
    return steps.assign(seconds=(moments.shift(-1) - moments).dt.total_seconds().fillna(0.0)).reset_index()


def _figure(frame: pd.DataFrame, tables: StudyTables) -> Figure:
    lanes = int(frame["lane"].max()) + 1
    phases = [phase for phase in PHASES if (frame["phase"] == phase).any()]

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes, below = canvas.subplots(2, 1, sharex=True, height_ratios=[max(1.4, 0.34 * lanes), 1.0])
        _bars(axes, data)
        load = _load(data)
        below.step(load["at"], load["memory_gib"], where="post", color=GREY)
        below.fill_between(load["at"], load["memory_gib"], step="post", color=FAINT, alpha=0.3, linewidth=0)
        below.set(ylabel="memory (GiB)", ylim=(0, None), xlabel="time (as the ledger's clock had it)")
        locator = AutoDateLocator(minticks=3, maxticks=7)  # type: ignore[no-untyped-call]
        below.xaxis.set_major_locator(locator)
        below.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        colours = [Patch(color=PHASE_COLOUR.get(phase, GREY), label=phase) for phase in phases]
        canvas.legend(handles=colours, loc="outside upper right", ncols=4)

    return Figure(
        "timeline", "When each training ran",
        f"{len(frame)} trainings in time, on {lanes} lanes, with the memory that those running together held.",
        f"n = {len(frame)} ended trainings; a line under a bar: it did not complete, in the colour of how it ended. A "
        "lane is what was free first, not a worker or a device; a bar includes waiting, and the time between a kill "
        f"and its resume. Memory: sum of each training's own peak. Study {tables.name}.",
        draw, frame, size_in=(7.0, 2.2 + 0.22 * min(lanes, 16)),
    )  # fmt: skip


def _bars(axes: Axes, data: pd.DataFrame) -> None:
    for phase, rows in data.groupby("phase", sort=False):
        spans = rows["ended"] - rows["started"]
        axes.barh(rows["lane"], spans, left=rows["started"], height=0.72, color=PHASE_COLOUR.get(str(phase), GREY),
                  edgecolor="white", linewidth=0.4)  # fmt: skip
    bad = data[data["outcome"] != Outcome.COMPLETE]
    colours = [OUTCOME_COLOUR.get(str(name), GREY) for name in bad["outcome"]]
    axes.hlines(bad["lane"] + 0.4, bad["started"], bad["ended"], colors=colours, linewidth=2)
    axes.set_ylim(np.max(data["lane"]) + 0.7, -0.7)
    axes.set(ylabel="at once", yticks=range(int(data["lane"].max()) + 1))
    axes.set_yticklabels([str(lane + 1) for lane in range(int(data["lane"].max()) + 1)])
