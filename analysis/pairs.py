"""The two arms of a claim as trainings, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.page.section import records
from analysis.tables.tidy import StudyTables
from study.contract import Arm, Claim, Outcome

Row = dict[str, Any]
COLUMNS = ["key", "seed", "stage", "group", "outcome"]


def arm(tables: StudyTables, side: Arm) -> dict[int, Row]:
    """An arm's judged trainings: seed -> {key, seed, stage, group, outcome}."""
    rows = records(tables.phase("claims")[COLUMNS])
    return {int(row["seed"]): row for row in rows if (row["group"], int(row["stage"] or 0)) == (side.group, side.stage)}


def arms(tables: StudyTables, claim: Claim) -> tuple[dict[int, Row], dict[int, Row]]:
    """Both arms, as far as their seeds are this claim's: an arm that is shared may have been trained on more."""
    a, b = (arm(tables, side) for side in (claim.a, claim.b))
    return {s: a[s] for s in claim.seeds if s in a}, {s: b[s] for s in claim.seeds if s in b}


def complete(first: Mapping[int, Row], second: Mapping[int, Row]) -> list[int]:
    """The seeds of which both trainings are complete."""
    both = sorted(first.keys() & second.keys())
    return [seed for seed in both if all(side[seed]["outcome"] == Outcome.COMPLETE for side in (first, second))]


def outcomes(side: Mapping[int, Row]) -> str:
    """'2 complete, 1 diverged'."""
    ended = [str(row["outcome"]).replace("_", " ") for row in side.values()]
    return ", ".join(f"{ended.count(name)} {name}" for name in dict.fromkeys(ended)) or "none begun"
