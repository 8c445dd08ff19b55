"""Comparison of two studies, with the differences that make them incomparable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as Canvas

from analysis.page import style
from analysis.page.section import Figure, Headline, Section, Table, counted, number, plain
from analysis.sections import search_budget
from analysis.sections.overview import metric_of
from analysis.selection import choose, unit_of, with_unit
from analysis.tables.tidy import StudyTables
from study.contract import Outcome, masked
from trainables.settings.config import flatten


def analyse(first: StudyTables, second: StudyTables) -> Section:
    """The section; `data['comparable']` is False where a difference forbids to set the numbers side by side."""
    obstacles = _obstacles(first, second)
    names = (first.name, second.name if second.name != first.name else f"{second.name} (second)")
    sides = pd.DataFrame([_side(name, study) for name, study in zip(names, (first, second), strict=True)])
    settings = _differences(first.study, second.study, names)
    verdict = (
        f"{names[0]} and {names[1]} cannot be compared: {'; '.join(obstacles)}."
        if obstacles
        else f"{names[0]} and {names[1]} are comparable: same data, same judge, same budget."
    )
    short = f"{names[0]} and {names[1]} cannot be compared: {counted(len(obstacles), 'obstacle')}, named below."
    frame = pd.concat([_values(name, study) for name, study in zip(names, (first, second), strict=True)])
    metric = metric_of(first)
    figure = Figure(
        "compare-values",
        "Judged values of both studies",
        f"Validation {metric} of the complete trainings of {names[0]} and {names[1]}.",
        "One mark per complete training; n stands at each line. Validation split of each study.",
        _draw,
        frame.assign(metric=with_unit(metric)),
        size_in=(5.2, 2.4),
    )
    answers = [verdict, f"Their settings differ in {len(settings)} places."]
    answers += [f"{row.study}: {row.said}" for row in sides.itertuples()]
    said, drawn = ([], []) if obstacles else search_budget.versus((names[0], first), (names[1], second))
    answers += said
    return Section(
        "compare",
        "Two studies side by side",
        answers,
        [figure, *drawn],
        [
            Table("compare-studies", "Both studies", sides.drop(columns="said"), "", _units(first, second)),
            Table("compare-settings", "Settings that differ", settings),
        ],
        plain({"comparable": not obstacles, "obstacles": obstacles}),
        Headline([short if obstacles else verdict], warn=bool(obstacles)),
    )


def _units(first: StudyTables, second: StudyTables) -> dict[str, str]:
    """Of the table of both studies; the median has one where both metrics have the same."""
    units = {unit_of(metric_of(study)) for study in (first, second)}
    return {"median": units.pop() if len(units) == 1 else "", "training_hours": "h"}


def _obstacles(first: StudyTables, second: StudyTables) -> list[str]:
    """Differences after which equal numbers do not mean equal quality."""
    found = []
    for name in ("metric", "protocol", "report"):
        mine, other = (getattr(study.judge, name, None) for study in (first, second))
        if mine != other:
            found.append(f"judge.{name} is {mine} and {other}")
    for split in ("train", "test"):
        mine, other = (study.data.get(split) for study in (first, second))
        if mine is None or other is None:
            found.append(f"the fingerprint of the {split} data is not known of both")
        elif mine != other:
            found.append(f"the {split} data differ")
    for column in ("config.data.validation.by", "config.data.validation.share", "config.data.validation.seed"):
        mine, other = (_only(study, column) for study in (first, second))
        if mine != other:
            found.append(f"{column.removeprefix('config.')} is {mine} and {other}, so validation frames differ")
    mine, other = (_only(study, "config.budget_images") for study in (first, second))
    if mine != other:
        found.append(f"budget_images is {mine} and {other}")
    return found


def _only(study: StudyTables, column: str) -> str:
    """All values of a setting in a study, as text."""
    if column not in study.trials:
        return "unknown"
    return ", ".join(sorted({json.dumps(plain(value)) for value in study.trials[column].dropna()})) or "unknown"


def _side(name: str, study: StudyTables) -> dict[str, Any]:
    chosen = choose(study)
    complete = study.trials[study.trials["outcome"] == Outcome.COMPLETE]
    metric = metric_of(study)
    unit = unit_of(metric)
    median = None if chosen is None else chosen.median
    said = "nothing is chosen yet." if chosen is None else (
        f"the judge's choice has a validation {metric} of {number(median)}{' ' + unit if unit else ''} "
        f"(median of {len(chosen.members)} trainings, {chosen.phase})."
    )  # fmt: skip
    return {
        "study": name, "trainings": len(study.trials), "complete": len(complete), "metric": metric, "median": median,
        "champion": None if chosen is None else chosen.champion, "decided_in": None if chosen is None else chosen.phase,
        "training_hours": float(study.trials["seconds"].sum()) / 3600, "unfinished": "; ".join(study.unfinished()),
        "said": said,
    }  # fmt: skip


def _differences(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> pd.DataFrame:
    mine, other = (flatten(dict(study)) if study else {} for study in (first, second))
    rows = [
        {"setting": path}
        | {name: masked(json.dumps(plain(side.get(path)))) for name, side in zip(names, (mine, other), strict=True)}
        for path in sorted(mine.keys() | other.keys())
        if mine.get(path) != other.get(path)
    ]
    return pd.DataFrame(rows, columns=["setting", *names])


def _values(name: str, study: StudyTables) -> pd.DataFrame:
    rows = study.trials[(study.trials["outcome"] == Outcome.COMPLETE) & study.trials["value"].notna()]
    return rows[["key", "phase", "value"]].assign(study=name)


def _draw(canvas: Canvas, data: pd.DataFrame) -> None:
    axes = canvas.add_subplot()
    labels = []
    for place, (study, rows) in enumerate(data.groupby("study", sort=False)):
        axes.plot(rows["value"], [place] * len(rows), "|", color=style.CYCLE[place], markersize=14)
        axes.plot(rows["value"].median(), place, "o", color=style.CYCLE[place], markersize=7)
        labels.append(f"{study} (n = {len(rows)})")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel(f"validation {data['metric'].iloc[0]}; dot: median")
