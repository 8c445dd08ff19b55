"""Spikes of paired trainings: what leaving out the quarantined samples, clipping or another order does to them.

Pairs are the ablation's: same seed and order of draws, one setting flipped. `rerun` is the study that asks it of the
quarantine list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis import intervals
from analysis.ablation import BASE, arm, questions
from analysis.tables import StudyTables
from study.contract import masked

COLUMNS = ("recipe", "question", "pairs", "unflipped", "flipped", "difference", "low", "high")
RERUN_SEEDS = 3


def by_question(tables: StudyTables, trainings: pd.DataFrame) -> pd.DataFrame:
    """Spikes per 1,000 steps of both arms of each flipped setting (means), and their paired difference."""
    rows = tables.phase("ablate")
    if rows.empty or trainings.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    rate = dict(zip(trainings["key"], 1000 * trainings["spikes"] / trainings["steps"], strict=True))
    found = []
    for recipe, question in questions(rows):
        pairs = [
            (rate[base["key"]], rate[flipped["key"]])
            for seed, base in arm(rows, recipe, BASE).items()
            if (flipped := arm(rows, recipe, question).get(seed)) and {base["key"], flipped["key"]} <= rate.keys()
        ]
        if pairs:
            before, after = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
            estimate = intervals.paired([there - here for here, there in pairs])
            ends = (estimate.value, estimate.low, estimate.high)
            found.append((recipe, question, len(pairs), before, after, *ends))
    return pd.DataFrame(found, columns=list(COLUMNS))


def sentences(pairs: pd.DataFrame) -> list[str]:
    """One sentence per question with spikes in either arm."""
    said = []
    for row in pairs.to_dict("records"):
        if row["unflipped"] == row["flipped"] == 0:
            continue
        low, high = (None if pd.isna(row[end]) else float(row[end]) for end in ("low", "high"))
        change = intervals.Estimate(float(row["difference"]), low, high, f"{row['pairs']} paired seeds")
        clear = "" if low is None or change.distinguishable else ", not distinguishable from no effect"
        said.append(
            f"{row['recipe']} with {row['question']}: {row['flipped']:.3g} spikes per 1,000 steps against "
            f"{row['unflipped']:.3g}, a change of {change.words()}{clear}."
        )
    return said


def rerun(tables: StudyTables, quarantine: Sequence[str]) -> dict[str, Any] | None:
    """A study that trains with and without the quarantined samples; None where there is nothing to ask."""
    settings: Mapping[str, Any] = tables.study
    recipes = tables.trials["recipe"].dropna()
    if not quarantine or recipes.empty:
        return None
    recipe = (settings.get("search") or {}).get("recipe") if (tables.trials["phase"] == "search").any() else None
    names = ("seed", "data", "trial", "judge", "resources", "tracking")
    kept: dict[str, Any] = json.loads(masked(json.dumps({name: settings[name] for name in names if name in settings})))
    question = {"recipe": str(recipe or recipes.iloc[0]), "settings": [{"data.exclude": list(quarantine)}]}
    return {"name": f"{tables.name}-quarantine"} | kept | {"ablate": question | {"seeds": RERUN_SEEDS}}
