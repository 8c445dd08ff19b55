"""One question per published mistake: paired trainings, same seed and order, one setting flipped (the `ablate` phase).

The effect of a flip is the mean of the differences between each seed's flipped and unflipped training, with a
Student-t interval over seeds; fewer than three pairs carry none. A pair with a training that did not complete is
counted, not used: that a flip makes trainings diverge is an answer of its own. Beside it stands how much of the
prediction's detail is a checkerboard (trainables.metrics.checkerboard), the answer to what upsampling does.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from analysis import intervals, runs
from analysis.plots import BLUE, FAINT, GREY, empty
from analysis.section import Figure, Section, Table, number, plain, records
from analysis.selection import unit_of
from analysis.tables import StudyTables
from study.contract import Judge, Outcome

CHECKERBOARD = "val/checkerboard"
BASE = "base"  # the unflipped arm, shared by all questions of a recipe
UPSAMPLING = "model.upsampling"
MEANING = {  # what a flip means that changes the measurement instead of the training
    "data.validation": "A flip of data.validation changes which frames are held out, and so those trained "
    "on: its effect compares two rulers. What a split by frame gains is a leak between neighbours, not a better model.",
    "mirrored": "A flip of mirrored trains the same network: its effect is that of averaging the answer with the "
    "mirrored picture's, and of the report that is best under it.",
}
Row = dict[str, Any]


def analyse(tables: StudyTables) -> Section:
    """The section: per question the effect on the judged metric, seed by seed."""
    rows = tables.phase("ablate")
    if tables.judge is None or rows.empty:
        return Section(
            "ablation", "What does each published choice do?", ["This study flips no setting (ablate.settings)."]
        )
    patterns = _patterns(tables)
    effects = [_effect(rows, *question, tables.judge, patterns) for question in questions(rows)]
    unit = unit_of(tables.judge.metric)
    answers = [_sentence(e, tables.judge.metric, unit) for e in sorted(effects, key=_clearest)]
    answers += _upsampling(effects) + [
        note for path, note in MEANING.items() if any(path in e["question"] for e in effects)
    ]
    columns = (
        "recipe", "question", "effect", "low", "high", "pairs", "seeds", "unpaired", "outcomes",
        "outcomes_unflipped", "checkerboard", "checkerboard_unflipped",
    )  # fmt: skip
    frame = pd.DataFrame([{c: e[c] for c in columns} for e in effects], columns=list(columns))
    units = dict.fromkeys(("effect", "low", "high"), unit)
    note = (
        f"effect > 0: the flip makes validation {tables.judge.metric} worse. A pair shares seed, order and budget. "
        "checkerboard: share of the gradient's energy of the network's outputs at the finest frequencies, last report."
    )
    parts = [Table("ablation-effects", "Effect of each flip", frame, note, units)]
    return Section("ablation", "What does each published choice do?", answers, [_figure(tables, effects)], parts,
                   plain({"effects": effects, "metric": tables.judge.metric}))  # fmt: skip


def questions(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """(recipe, question) of every flipped arm of the `ablate` phase, in order."""
    asked = [_origin(o) for o in rows["origin"]]
    return list(dict.fromkeys((o["recipe"], o["question"]) for o in asked if o["arm"] != BASE))


def _origin(value: Any) -> Mapping[str, str]:
    origin: Mapping[str, str] = value if isinstance(value, Mapping) else {}
    return {"recipe": "", "question": BASE, "arm": BASE} | dict(origin)


def arm(rows: pd.DataFrame, recipe: str, question: str) -> dict[int, Row]:
    """An arm's trainings: seed -> the last stage's."""
    chosen: dict[int, Row] = {}
    for row in records(rows[["key", "seed", "stage", "outcome", "value", "origin"]]):
        origin = _origin(row["origin"])
        if origin["recipe"] == recipe and origin["question"] == question and row["seed"] is not None:
            known = chosen.get(int(row["seed"]))
            if known is None or (row["stage"] or 0) >= (known["stage"] or 0):
                chosen[int(row["seed"])] = row
    return chosen


def _patterns(tables: StudyTables) -> dict[str, float]:
    """The checkerboard share of each training's last report that has one."""
    if CHECKERBOARD not in tables.reports:
        return {}
    known = tables.reports.dropna(subset=[CHECKERBOARD]).sort_values("images").groupby("key")[CHECKERBOARD].last()
    return {str(key): float(value) for key, value in known.items()}


def _upsampling(effects: Sequence[Row]) -> list[str]:
    asked = [e for e in effects if UPSAMPLING in e["question"] and e["checkerboard"] is not None]
    return [
        f"{e['recipe']} with {e['question']}: {number(100 * e['checkerboard'])}% of its detail is a checkerboard, "
        f"against {number(100 * e['checkerboard_unflipped'])}% without (mean of {e['pairs']} pairs)."
        for e in asked
        if e["checkerboard_unflipped"] is not None
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _effect(rows: pd.DataFrame, recipe: str, question: str, judge: Judge, patterns: Mapping[str, float]) -> Row:
    sign = 1.0 if judge.minimise else -1.0
    base, flipped = arm(rows, recipe, BASE), arm(rows, recipe, question)
    seeds = sorted(base.keys() & flipped.keys())
    usable = [s for s in seeds if all(_usable(arm[s]) for arm in (base, flipped))]
    differences = [sign * (float(flipped[s]["value"]) - float(base[s]["value"])) for s in usable]
    estimate = intervals.paired(differences)
    return {
        "recipe": recipe, "question": question, "effect": estimate.value, "low": estimate.low, "high": estimate.high,
        "pairs": len(usable), "seeds": len(flipped), "unpaired": len(flipped) - len(usable),
        "outcomes": _outcomes(flipped), "outcomes_unflipped": _outcomes(base),
        "differences": dict(zip(map(str, usable), differences, strict=True)), "words": estimate.n,
        "distinguishable": estimate.distinguishable,
        "checkerboard": _mean([patterns.get(flipped[s]["key"]) for s in usable]),
        "checkerboard_unflipped": _mean([patterns.get(base[s]["key"]) for s in usable]),
    }  # fmt: skip


def _outcomes(arm: Mapping[int, Row]) -> str:
    """'2 complete, 1 diverged'."""
    ended = [str(row["outcome"]).replace("_", " ") for row in arm.values()]
    return ", ".join(f"{ended.count(name)} {name}" for name in dict.fromkeys(ended)) or "none"


def _usable(row: Row) -> bool:
    return row["outcome"] == Outcome.COMPLETE and row["value"] is not None


def _clearest(effect: Row) -> tuple[bool, float]:
    size = 0.0 if np.isnan(effect["effect"]) else abs(effect["effect"])
    return (not effect["distinguishable"], -size)


def _sentence(effect: Row, metric: str, unit: str) -> str:
    name = f"{effect['recipe']} with {effect['question']}"
    ended = f"with the flip {effect['outcomes']}, without it {effect['outcomes_unflipped']}"
    if not effect["pairs"]:
        return f"{name}: no pair of complete trainings ({ended})."
    lost = f"; trainings {ended}" if effect["unpaired"] else ""
    value, low, high = effect["effect"], effect["low"], effect["high"]
    if low is None:
        return (
            f"{name}: {metric} changes by {intervals.Estimate(value, None, None, effect['words']).words(unit)}{lost}."
        )
    if not effect["distinguishable"]:
        words = intervals.Estimate(value, low, high, effect["words"]).words(unit)
        return f"{name}: not distinguishable from no effect, {words}{lost}."
    return f"{name} makes {metric} {intervals.Estimate(value, low, high, effect['words']).versus(unit)}{lost}."


def _figure(tables: StudyTables, effects: Sequence[Row]) -> Figure:
    frame = pd.DataFrame(
        [
            {"question": f"{e['recipe']}: {e['question']}", "seed": seed, "difference": d, "effect": e["effect"],
             "low": e["low"], "high": e["high"]}
            for e in effects for seed, d in e["differences"].items()
        ],
        columns=["question", "seed", "difference", "effect", "low", "high"],
    )  # fmt: skip
    metric = tables.judge.metric if tables.judge else ""
    unit = unit_of(metric)

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        if data.empty:
            empty(axes, "no pair of complete trainings")
            return
        names = list(dict.fromkeys(data["question"]))[::-1]
        for place, name in enumerate(names):
            rows = data[data["question"] == name]
            low, high = pd.to_numeric(rows[["low", "high"]].iloc[0])
            if np.isfinite(low):
                axes.hlines(place, low, high, color=FAINT, linewidth=3)
            axes.plot(rows["difference"], [place] * len(rows), "o", color=BLUE, markersize=4)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set(xlabel=f"validation {metric}: worse by" + (f" ({unit})" if unit else ""))

    return Figure(
        "ablation", "Each flip, seed by seed",
        f"Paired differences of validation {metric} for {len(effects)} flipped settings; right of zero is worse.",
        f"Dot: one pair (same seed); bar: 95% t interval from three pairs on. Study {tables.name}, validation split.",
        draw, frame, size_in=(7.0, 1.0 + 0.36 * max(1, len(effects))),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(runs.command("ablation", "Say what each flipped setting does, from paired trainings.", analyse))
