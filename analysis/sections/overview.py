"""Learning curves, search history and outcomes of a study, and the front of a search with two objectives.

The front holds the trials that no other one beats in both, the judged metric and what a training takes. It says what
there is to choose from; the judge still ranks by its metric alone (study/contract.py). What a study took is in
analysis/sections/cost.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from analysis.page import style
from analysis.page.section import Figure, Section, Table, counted, number, plain
from analysis.page.style import FAINT, VERMILION, empty
from analysis.selection import unit_of, with_unit
from analysis.tables.tidy import RUNNING, WAITING, StudyTables, configured_phases
from study.contract import DEVICE_SECONDS, PHASES, Outcome

MOST_CURVES = 400  # more lines are a smear; the best and the worst stay, evenly chosen by rank
LISTED_TRIALS = 1200


def metric_of(tables: StudyTables) -> str:
    """The judged metric; rmse where no judge is known."""
    return tables.judge.metric if tables.judge is not None else "rmse"


def curves(tables: StudyTables) -> Section:
    """Validation metric and training loss by images seen."""
    metric = metric_of(tables)
    columns = [c for c in (f"val/{metric}", "train/loss") if c in tables.reports]
    trials = tables.trials[tables.trials["key"].isin(tables.reports["key"])]
    if not columns or trials.empty:
        return Section("curves", "Learning curves", ["No training has reported yet."])
    shown = _some(trials)
    frame = tables.reports.loc[tables.reports["key"].isin(shown["key"]), ["key", "images", *columns]]
    frame = frame.merge(shown[["key", "phase", "outcome", "group"]], on="key")
    falling, asked = _still_falling(tables, metric)
    answers = [f"{counted(len(trials), 'training')} reported {counted(len(tables.reports), 'time')}."]
    if asked:
        answers.append(
            f"In {falling} of {asked} complete ones with at least two reports the last was better than every one "
            "before, so they were still learning when the budget ended."
        )
    left = "" if len(shown) == len(trials) else f" {len(shown)} of {len(trials)} are drawn, evenly chosen by rank."
    curved = int((frame.groupby("key").size() > 1).sum())
    figure = Figure(
        "learning-curves",
        "Learning curves",
        f"Validation {metric} and training loss against images seen for {len(shown)} trainings, coloured by phase.",
        f"One line per training (n = {len(shown)}); validation split. Thick: median of the phase where at least three "
        f"trainings reported.{left}",
        _draw_curves,
        frame,
        size_in=(5.2, 2.9 * len(columns)),
    )
    return Section("curves", "Learning curves", answers, [figure] if curved else [])


def _some(trials: pd.DataFrame) -> pd.DataFrame:
    if len(trials) <= MOST_CURVES:
        return trials
    ranked = trials.sort_values("value", na_position="last")
    return ranked.iloc[np.linspace(0, len(ranked) - 1, MOST_CURVES).astype(int)]


def _still_falling(tables: StudyTables, metric: str) -> tuple[int, int]:
    """(complete trainings whose last report is strictly the best, those with two reports at least)."""
    complete = tables.trials.loc[tables.trials["outcome"] == Outcome.COMPLETE, "key"]
    column = f"val/{metric}"
    if column not in tables.reports:
        return 0, 0
    rows = tables.reports.loc[tables.reports["key"].isin(complete), ["key", "images", column]].dropna()
    sign = 1.0 if tables.judge is None or tables.judge.minimise else -1.0
    rows = rows.assign(signed=sign * rows[column]).sort_values(["key", "images"], kind="stable")
    last = ~rows.duplicated("key", keep="last")
    before = rows[~last].groupby("key")["signed"].min()
    final = rows[last].set_index("key")["signed"].reindex(before.index)
    return int((final < before).sum()), len(before)


def _draw_curves(canvas: Canvas, data: pd.DataFrame) -> None:
    columns = [c for c in data.columns if "/" in c]
    grid = canvas.subplots(len(columns), 1, squeeze=False, sharex=True)[:, 0]
    faint = min(0.75, max(0.1, 12 / data["key"].nunique()))
    for axes, column in zip(grid, columns, strict=True):
        for phase, rows in data.groupby("phase", sort=False):
            colour = style.PHASE_COLOUR.get(str(phase), style.GREY)
            _lines(axes, rows, column, colour, faint)
            axes.plot([], [], color=colour, label=f"{phase} (n = {rows['key'].nunique()})")
            middle = rows.groupby("images")[column].agg(["median", "count"])
            middle = middle[middle["count"] >= 3]
            axes.plot(middle.index, middle["median"], color=colour, linewidth=2.2)
        axes.set_yscale("log")
        name = column.split("/")[1]
        axes.set_ylabel(f"validation {with_unit(name)}" if column.startswith("val/") else "training loss")
    grid[-1].set_xlabel("images seen")
    grid[0].legend(ncols=2)


def _lines(axes: Axes, rows: pd.DataFrame, column: str, colour: str, alpha: float) -> None:
    """All lines of a phase as one artist, joined by gaps: a thousand artists would take seconds."""
    pieces = []
    for _, one in rows.groupby("key", sort=False):
        pieces += [one[["images", column]].to_numpy(dtype=float), np.full((1, 2), np.nan)]
    points = np.concatenate(pieces)
    axes.plot(points[:, 0], points[:, 1], color=colour, alpha=alpha, linewidth=0.9, marker=".", markersize=2.5)


def history(tables: StudyTables) -> Section:
    """The search, trial by trial."""
    rows = tables.phase("search")
    if rows.empty:
        return Section("history", "Search history", ["This study has no search yet."])
    metric = metric_of(tables)
    params = [c for c in rows.columns if c.startswith("param.") and rows[c].notna().any()]
    frame = rows[["key", "number", "value", "outcome", "images", "seconds", *params]].copy()
    complete = frame["value"].where(frame["outcome"] == Outcome.COMPLETE)
    minimise = tables.judge is None or tables.judge.minimise
    frame["best_so_far"] = (complete.cummin() if minimise else complete.cummax()).ffill()
    answers = [_progress(frame, metric, minimise)]
    table = _ranked(frame.rename(columns={c: c.removeprefix("param.") for c in params}), minimise)
    note = f"{len(table)} trials, complete ones first, best first; value: the judged validation {metric} (of the "
    note += "others: by the reports before they ended)."
    if len(table) > LISTED_TRIALS:
        note += f" The first {LISTED_TRIALS} are listed; the released table has them all."
    figure = Figure(
        "search-history",
        "Search history",
        f"Validation {metric} of {len(frame)} search trials against the training time spent, with the best so far.",
        f"One mark per trial (n = {len(frame)}) where its training ended, in hours summed over the search; validation "
        "split. A trial without a value stands at the upper edge.",
        _draw_history,
        _by_time(frame).assign(metric=with_unit(metric)),
    )
    figures = [figure] if frame["value"].notna().sum() > 1 else []
    two = pareto_front(rows, metric, minimise=minimise)
    units = {"seconds": "s", "value": unit_of(metric) or metric}
    return Section(
        "history",
        "Search history",
        answers + [sentence for sentence, _, _ in two],
        [*figures, *(drawn for _, drawn, listed in two if len(listed.frame) > 1)],
        [
            *(listed for _, _, listed in two),
            Table("search-trials", "Search trials", table.drop(columns="best_so_far").head(LISTED_TRIALS), note, units),
        ],
    )


def _ranked(frame: pd.DataFrame, minimise: bool) -> pd.DataFrame:
    """Complete trials before all others, which did not train to their end; each part best first."""
    rest = frame["outcome"] != Outcome.COMPLETE
    order = frame.assign(rest=rest).sort_values(["rest", "value"], ascending=[True, minimise], na_position="last")
    return order.drop(columns="rest")


def _by_time(frame: pd.DataFrame) -> pd.DataFrame:
    hours = frame["seconds"].fillna(0).cumsum() / 3600
    return frame[["number", "value", "outcome", "best_so_far"]].assign(hours=hours)


def _progress(frame: pd.DataFrame, metric: str, minimise: bool) -> str:
    complete = frame[frame["outcome"] == Outcome.COMPLETE].dropna(subset=["value"])
    if complete.empty:
        return f"None of {len(frame)} search trials was completed with a value."
    best = complete.sort_values(["value", "key"], ascending=[minimise, True]).iloc[0]
    unit = unit_of(metric)
    first = frame.iloc[0]
    started = f"; the first trial, the recipe's own setting, had {number(first['value'])}"
    return (
        f"The best of {len(frame)} search trials is {best['key']} with a validation {metric} of "
        f"{number(best['value'])}{' ' + unit if unit else ''}{started if first['number'] == 0 else ''}."
    )


def _draw_history(canvas: Canvas, data: pd.DataFrame) -> None:
    axes = canvas.add_subplot()
    values = data["value"].to_numpy(dtype=float)
    finite = values[np.isfinite(values)]
    if not len(finite):
        style.empty(axes, "no trial has a value")
        return
    low, high = float(finite.min()), float(np.quantile(finite, 0.98))
    top = high + 0.08 * max(high - low, 1e-9)
    shown = np.where(np.isfinite(values), np.minimum(values, top), top)
    for name, rows in data.assign(shown=shown).groupby("outcome", sort=False):
        colour, marker = style.OUTCOME_COLOUR.get(str(name), style.GREY), style.OUTCOME_MARKER.get(str(name), ".")
        label = f"{str(name).replace('_', ' ')} (n = {len(rows)})"
        axes.scatter(rows["hours"], rows["shown"], color=colour, marker=marker, s=18, label=label)
    axes.step(data["hours"], data["best_so_far"], where="post", color=style.INK, linewidth=1.0, label="best so far")
    axes.set_xlabel("training time spent by the search (h)")
    axes.set_ylabel(f"validation {data['metric'].iloc[0]}")
    axes.legend(ncols=2)


def outcomes(tables: StudyTables) -> Section:
    """How every training ended, and why where it did not complete."""
    trials = tables.trials
    if trials.empty:
        return Section("outcomes", "Outcomes", ["No training has begun."])
    order = [*(str(o) for o in Outcome), RUNNING, WAITING]
    counts = pd.crosstab(trials["phase"], trials["outcome"])
    counts = counts.reindex([p for p in PHASES if p in counts.index]).reindex(columns=[o for o in order if o in counts])
    total = trials["outcome"].value_counts()
    said = ", ".join(f"{total[o]} {o.replace('_', ' ')}" for o in order if o in total)
    answers = [f"{len(trials)} trainings: {said}."]
    if (trials["outcome"] != Outcome.COMPLETE).all():
        answers.insert(0, "No training was completed; nothing below can be judged.")
    answers += [f"The study has not ended: {sentence}." for sentence in tables.unfinished()]
    bad = trials[~trials["outcome"].isin([Outcome.COMPLETE, Outcome.PRUNED])]
    columns = ["key", "outcome", "reason", "step", "attempts", "detail"]
    figure = Figure(
        "outcomes",
        "Outcomes by phase",
        f"Counts of outcomes in {len(counts)} phases: {said}.",
        f"All {len(trials)} trainings of the study.",
        _draw_outcomes,
        counts.reset_index(),
        size_in=(5.2, 0.9 + 0.42 * len(counts)),
    )
    return Section(
        "outcomes",
        "Outcomes",
        answers,
        [figure] if len(counts) > 1 or len(counts.columns) > 1 else [],
        [
            Table("outcome-counts", "Outcomes by phase", counts.reset_index(), "Trainings."),
            Table("not-completed", "Trainings that did not complete", bad[columns], "Pruned ones are left out."),
        ],
        plain({"counts": total.to_dict(), "phases": configured_phases(tables.study)}),
    )


def _draw_outcomes(canvas: Canvas, data: pd.DataFrame) -> None:
    axes = canvas.add_subplot()
    left = np.zeros(len(data))
    for outcome in data.columns[1:]:
        width = data[outcome].to_numpy(dtype=float)
        bars = axes.barh(data["phase"], width, left=left, height=0.6, label=outcome.replace("_", " "),
                         color=style.OUTCOME_COLOUR.get(outcome, style.GREY), edgecolor=style.PAPER)  # fmt: skip
        labels = [f"{int(w)}" if w >= 0.04 * data.iloc[:, 1:].to_numpy().sum(axis=1).max() else "" for w in width]
        axes.bar_label(bars, labels=labels, label_type="center", color=style.PAPER, fontsize=8)
        left += width
    axes.invert_yaxis()
    axes.set_xlabel("trainings")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    canvas.legend(loc="outside upper right", ncols=3)


SECONDS = "s"


def pareto_front(search: pd.DataFrame, metric: str, *, minimise: bool) -> list[tuple[str, Figure, Table]]:
    """The front in a sentence, a picture and a table; nothing where the search had one objective."""
    complete = search[
        (search["outcome"] == Outcome.COMPLETE) & search["value"].notna() & search[DEVICE_SECONDS].notna()
    ]
    if complete.empty:
        return []
    params = [c for c in search.columns if c.startswith("param.") and search[c].notna().any()]
    frame = complete[["key", "value", DEVICE_SECONDS, *params]].sort_values([DEVICE_SECONDS, "value", "key"])
    frame = frame.assign(
        front=on_front(frame["value"].to_numpy(float), frame[DEVICE_SECONDS].to_numpy(float), minimise)
    )
    unit = unit_of(metric)
    front = frame[frame["front"]].drop(columns="front").rename(columns={c: c.removeprefix("param.") for c in params})
    note = f"{len(front)} of {len(frame)} complete trials, the cheapest first; value: the judged validation {metric}."
    table = Table("search-pareto", "Pareto front", front, note, {"value": unit or metric, DEVICE_SECONDS: SECONDS})
    return [(_front_sentence(front, len(frame), metric, unit), _front_figure(frame, metric, unit), table)]


def on_front(values: npt.NDArray[np.float64], costs: npt.NDArray[np.float64], minimise: bool) -> npt.NDArray[np.bool_]:
    """Which points no other one beats: as good in both and better in one."""
    points = np.stack([values if minimise else -values, costs], axis=1)
    return np.array([not ((points <= p).all(1) & (points < p).any(1)).any() for p in points], dtype=bool)


def _front_sentence(front: pd.DataFrame, count: int, metric: str, unit: str) -> str:
    def ends(row: pd.Series) -> str:
        value = f"{number(row['value'])} {unit}".strip()
        return f"{row['key']} ({value}, {number(row[DEVICE_SECONDS])} device-seconds)"

    cheapest, best = front.iloc[0], front.iloc[-1]
    spans = f"it is {ends(best)} alone" if len(front) == 1 else f"from {ends(cheapest)} to {ends(best)}"
    return (
        f"{len(front)} of {count} complete trials lie on the Pareto front of validation {metric} and device-seconds, "
        f"where no other trial is better in one and as good in the other: {spans}. The judge ranks by {metric} alone."
    )


def _front_figure(frame: pd.DataFrame, metric: str, unit: str) -> Figure:
    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        if data.empty:
            empty(axes, "no trial is complete")
            return
        front = data[data["front"]]
        others = data[~data["front"]]
        axes.scatter(others[DEVICE_SECONDS], others["value"], s=18, color=FAINT, label=f"beaten (n = {len(others)})")
        axes.step(front[DEVICE_SECONDS], front["value"], where="post", color=VERMILION, linewidth=1.0)
        label = f"Pareto front (n = {len(front)})"
        axes.scatter(front[DEVICE_SECONDS], front["value"], s=26, color=VERMILION, label=label, zorder=3)
        axes.set(
            xlabel="training time times devices (s)", ylabel=f"validation {metric}" + (f" ({unit})" if unit else "")
        )
        axes.legend()

    return Figure(
        "search-pareto", "Pareto front of the search",
        f"Validation {metric} of {len(frame)} complete search trials against each training's cost, with the front.",
        f"One mark per complete trial (n = {len(frame)}); validation split. The cost of a training: its own seconds "
        "times its devices; the time between a kill and its resume is not in it.",
        draw, frame[["key", "value", DEVICE_SECONDS, "front"]],
    )  # fmt: skip
