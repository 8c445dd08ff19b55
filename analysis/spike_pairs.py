"""Spikes of paired trainings: what leaving out the quarantined samples, clipping or another order does to them.

Pairs are the ablation's: same seed and order of draws, one setting flipped. `rerun` is the study that asks it of the
quarantine list.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis import intervals
from analysis.ablation import BASE, arm, questions
from analysis.tables import StudyTables
from study.contract import Outcome, masked

COLUMNS = ("recipe", "question", "pairs", "left_out", "unflipped", "flipped", "difference", "low", "high")
RERUN_SEEDS = 3


def by_question(tables: StudyTables, trainings: pd.DataFrame) -> pd.DataFrame:
    """Spikes per 1,000 steps of both arms of each flipped setting (means), and their paired difference.

    Only pairs of complete trainings count: one that stopped in its first steps had no time to spike, and a rate over
    the few steps before a divergence says little. left_out: the other pairs.
    """
    rows = tables.phase("ablate")
    if rows.empty or trainings.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    rate = dict(zip(trainings["key"], 1000 * trainings["spikes"] / trainings["steps"], strict=True))
    found = []
    for recipe, question in questions(rows):
        flipped = arm(rows, recipe, question)
        arms = [(base, flipped[seed]) for seed, base in arm(rows, recipe, BASE).items() if seed in flipped]
        pairs = [
            [rate[row["key"]] for row in pair]
            for pair in arms
            if all(row["outcome"] == Outcome.COMPLETE and row["key"] in rate for row in pair)
        ]
        if pairs or any(row["key"] in rate for pair in arms for row in pair):
            before, after = (sum(pair[side] for pair in pairs) / len(pairs) if pairs else math.nan for side in (0, 1))
            estimate = intervals.paired([there - here for here, there in pairs])
            ends = (estimate.value, estimate.low, estimate.high)
            found.append((recipe, question, len(pairs), len(arms) - len(pairs), before, after, *ends))
    return pd.DataFrame(found, columns=list(COLUMNS))


def sentences(pairs: pd.DataFrame) -> list[str]:
    """One sentence per question with spikes in either arm, or with pairs that say nothing of spikes."""
    said = []
    for row in pairs.to_dict("records"):
        lost = f"; left out of {row['pairs'] + row['left_out']} pairs, as not complete or without a trace: "
        lost = f"{lost}{row['left_out']}" if row["left_out"] else ""
        if not row["pairs"]:
            said.append(f"{row['recipe']} with {row['question']}: no pair to count spikes in{lost}.")
        if not row["pairs"] or (row["unflipped"] == row["flipped"] == 0 and not lost):
            continue
        low, high = (None if pd.isna(row[end]) else float(row[end]) for end in ("low", "high"))
        change = intervals.Estimate(float(row["difference"]), low, high, f"{row['pairs']} paired seeds")
        clear = "" if low is None or change.distinguishable else ", not distinguishable from no effect"
        said.append(
            f"{row['recipe']} with {row['question']}: {row['flipped']:.3g} spikes per 1,000 steps against "
            f"{row['unflipped']:.3g}, a change of {change.words()}{clear}{lost}."
        )
    return said


def rerun(tables: StudyTables, quarantine: Sequence[str]) -> dict[str, Any] | None:
    """A study that trains with and without the quarantined samples; None where there is nothing to ask.

    What the study's own settings left out stays left out in both arms.
    """
    settings: Mapping[str, Any] = tables.study
    trials = tables.trials.dropna(subset=["recipe"])
    if trials.empty:
        return None
    names = trials["recipe"] + trials["variant"].map(lambda v: f"+{v}" if isinstance(v, str) else "")
    searched = (settings.get("search") or {}).get("recipe") if (trials["phase"] == "search").any() else None
    recipe = str(searched or names.iloc[0])
    excluded = _left_out_by_all(trials[names == recipe])
    if set(quarantine) <= set(excluded):
        return None
    blocks = ("seed", "data", "trial", "judge", "resources", "tracking")
    kept: dict[str, Any] = json.loads(masked(json.dumps({name: settings[name] for name in blocks if name in settings})))
    samples = [*excluded, *(name for name in quarantine if name not in excluded)]
    question = {"recipe": recipe, "settings": [{"data.exclude": samples}]}
    return {"name": f"{tables.name}-quarantine"} | kept | {"ablate": question | {"seeds": RERUN_SEEDS}}


def _left_out_by_all(trainings: pd.DataFrame) -> list[str]:
    """data.exclude as far as all of these trainings share it: what a flip adds is not the study's."""
    if "config.data.exclude" not in trainings or trainings.empty:
        return []
    lists = [list(v) if isinstance(v, (list, tuple)) else [] for v in trainings["config.data.exclude"]]
    return [name for name in lists[0] if all(name in others for others in lists)]
