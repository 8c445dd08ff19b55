"""Variance: the spread of trainings that differ by seed alone, and of the same seed run twice (hardware).

One seed sets initialisation, data order and augmentation together; they are separated only where the study holds
pairs that fix two of the three: without augmentation (`augment` all zero), or in listed order (`data.order: listed`).
What the study does not hold is said, not guessed.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from analysis import runs, statistics
from analysis.page.section import Figure, Section, Table, counted, number, plain, records
from analysis.page.style import BLUE, FAINT
from analysis.selection import unit_of
from analysis.tables.tidy import StudyTables
from study.contract import Judge, Outcome
from trainables.settings.config import Mark, TrialConfig, mark_of

SOURCES = {
    "hardware": "same settings, same seed, run twice",
    "initialisation": "seeds differ, order listed, no augmentation",
    "initialisation and order": "seeds differ, order shuffled, no augmentation",
    "initialisation and augmentation": "seeds differ, order listed, with augmentation",
    "initialisation, order and augmentation": "seeds differ, order shuffled, with augmentation",
}
Row = dict[str, Any]


def analyse(tables: StudyTables) -> Section:
    """The section: standard deviation of the judged metric by what differed, pooled over settings that have pairs."""
    if tables.judge is None:
        return Section("variance", "How much is luck?", ["No training is judged yet."])
    groups = _groups(tables)
    unit = unit_of(tables.judge.metric)
    split = _split(groups)
    known = {row["source"] for row in split}
    answers = [
        f"{row['source'].capitalize()} ({SOURCES[row['source']]}): standard deviation "
        f"{number(row['deviation'])} {unit}".rstrip()
        + f" (n = {counted(row['trainings'], 'training')} of {counted(row['settings'], 'setting')})."
        for row in split
    ]
    if not split:
        answers.append(
            "No setting was trained twice, so luck and effect cannot be separated: add seeds to confirm or reproduce."
        )
    answers += _seeds_sentences(tables.judge, split)
    missing = [name for name in SOURCES if name not in known]
    if missing and split:
        answers.append(f"Not measured in this study, for lack of such pairs: {'; '.join(missing)}.")
    parts = [
        Table(
            "variance-split",
            "Spread by what differed",
            pd.DataFrame(split),
            "Pooled within settings.",
            {"deviation": unit},
        )
    ]
    frame = pd.DataFrame(groups, columns=["setting", "source", "key", "seed", "value", "centred"])
    figures = [_figure(tables, frame, unit)] if split else []
    return Section("variance", "How much is luck?", answers, figures, parts,
                   plain({"split": split, "not_measured": missing}))  # fmt: skip


def _seeds_sentences(judge: Judge, split: Sequence[Row]) -> list[str]:
    """The seeds that a comparison takes to see a difference as large as the judge's margin, by the largest spread of
    trainings that differ by seed.
    """
    margin, by_seed = judge.margins.get(judge.metric), [row for row in split if row["source"] != "hardware"]
    if margin is None or not by_seed:
        return []
    deviation = max(row["deviation"] for row in by_seed) * math.sqrt(2)  # of a difference of two such trainings
    unit = unit_of(judge.metric)
    needs = (
        statistics.seeds_needed(margin, deviation, "a_better", None),
        statistics.seeds_needed(0.0, deviation, "no_difference", margin),
    )
    told, alike = (f"more than {statistics.MOST_SEEDS:,}" if n is None else f"about {n:,}" for n in needs)
    return [
        f"With this spread a comparison of two settings sees a true difference of {number(margin)} {unit}".rstrip()
        + f" (the judge's margin) in four of five studies with {told} seeds of each, and shows that there is none so "
        f"large with {alike}; pairs that share a seed may need fewer."
    ]


def _groups(tables: StudyTables) -> list[Row]:
    """Trainings of every setting that was completed more than once, with what differed between them."""
    complete = tables.trials[(tables.trials["outcome"] == Outcome.COMPLETE) & tables.trials["value"].notna()]
    settings = [c for c in complete.columns if c.startswith("config.")]
    columns = [c for c in settings if Mark.BOOKKEEPING not in mark_of(TrialConfig, c.removeprefix("config."))]
    by_setting: dict[str, list[Row]] = {}
    for row in records(complete[["key", "seed", "value", *columns]]):
        identity = json.dumps(plain({c: row[c] for c in columns}), sort_keys=True)
        by_setting.setdefault(identity, []).append(row)
    result = []
    for members in by_setting.values():
        by_seed: dict[Any, list[Row]] = {}
        for row in members:
            by_seed.setdefault(row["seed"], []).append(row)
        sets = [("hardware", rows) for rows in by_seed.values()]
        sets.append((_source(members[0]), [rows[0] for rows in by_seed.values()]))
        for source, rows in sets:
            if len(rows) > 1:
                mean = float(np.mean([r["value"] for r in rows]))
                result += [
                    {"setting": rows[0]["key"], "source": source, "key": r["key"], "seed": r["seed"],
                     "value": float(r["value"]), "centred": float(r["value"]) - mean}
                    for r in rows
                ]  # fmt: skip
    return result


def _source(row: Mapping[str, Any]) -> str:
    augmented = any((row.get(f"config.augment.{name}") or 0) > 0 for name in ("flip", "channel_swap"))
    shuffled = row.get("config.data.order") != "listed"
    parts = ["initialisation", *(["order"] if shuffled else []), *(["augmentation"] if augmented else [])]
    return " and ".join(parts) if len(parts) < 3 else "initialisation, order and augmentation"


def _split(groups: Sequence[Row]) -> list[Row]:
    """Per source: the pooled within-setting standard deviation, with its trainings and settings."""
    result = []
    for source in SOURCES:
        rows = [r for r in groups if r["source"] == source]
        settings = len({r["setting"] for r in rows})
        if len(rows) > settings:
            variance = sum(r["centred"] ** 2 for r in rows) / (len(rows) - settings)
            row = {"source": source, "deviation": math.sqrt(variance), "trainings": len(rows), "settings": settings}
            result.append(row | {"what differed": SOURCES[source]})
    return result


def _figure(tables: StudyTables, frame: pd.DataFrame, unit: str) -> Figure:
    metric = tables.judge.metric if tables.judge else ""

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        names = list(dict.fromkeys(data["source"]))[::-1]
        axes.axvline(0, color=FAINT, linewidth=0.8)
        for place, name in enumerate(names):
            rows = data[data["source"] == name]
            axes.plot(rows["centred"], place + np.linspace(-0.15, 0.15, len(rows)), "o", color=BLUE, markersize=4)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set(xlabel=f"validation {metric} minus its setting's mean" + (f" ({unit})" if unit else ""))

    return Figure(
        "variance", "Spread within a setting",
        f"Judged metric of {len(frame)} trainings around the mean of their setting, by what differed.",
        f"One dot per training. Study {tables.name}, validation split.", draw, frame, size_in=(7.0, 2.4),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(runs.command("variance", "Say how much of a difference is luck.", analyse))
