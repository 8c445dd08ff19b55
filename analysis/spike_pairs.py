"""Spikes of paired trainings: the effect of leaving out quarantined samples, of clipping or of another order.

Pairs are those of the study's claims. `rerun` is the study that asks it of the quarantine list.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis import intervals, pairs
from analysis.tables import StudyTables
from study.contract import masked

COLUMNS = ("claim", "a", "b", "pairs", "left_out", "of_a", "of_b", "difference", "low", "high")
RERUN_SEEDS = 3


def by_claim(tables: StudyTables, trainings: pd.DataFrame) -> pd.DataFrame:
    """Spikes per 1,000 steps of both arms of each claim (means), and their paired difference, a minus b.

    Only pairs of complete trainings count: one that stopped in its first steps had no time to spike, and a rate over
    the few steps before a divergence says little. left_out: the other pairs.
    """
    if trainings.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    rate = dict(zip(trainings["key"], 1000 * trainings["spikes"] / trainings["steps"], strict=True))
    found = []
    for claim in tables.claims:
        a, b = pairs.arms(tables, claim)
        both = a.keys() & b.keys()
        rates = [
            (rate[a[seed]["key"]], rate[b[seed]["key"]])
            for seed in pairs.complete(a, b)
            if a[seed]["key"] in rate and b[seed]["key"] in rate
        ]
        if rates or any(side[seed]["key"] in rate for seed in both for side in (a, b)):
            of_a, of_b = (sum(pair[side] for pair in rates) / len(rates) if rates else math.nan for side in (0, 1))
            estimate = intervals.paired([first - second for first, second in rates])
            ends = (estimate.value, estimate.low, estimate.high)
            names = (claim.id, claim.a.name, claim.b.name)
            found.append((*names, len(rates), len(both) - len(rates), of_a, of_b, *ends))
    return pd.DataFrame(found, columns=list(COLUMNS))


def sentences(found: pd.DataFrame) -> list[str]:
    """One sentence per claim with spikes in either arm, or with pairs that say nothing of spikes."""
    said = []
    for row in found.to_dict("records"):
        arms = f"{row['claim']}, {row['a']} against {row['b']}"
        lost = f"; left out of {row['pairs'] + row['left_out']} pairs, as not complete or without a trace: "
        lost = f"{lost}{row['left_out']}" if row["left_out"] else ""
        if not row["pairs"]:
            said.append(f"{arms}: no pair to count spikes in{lost}.")
        if not row["pairs"] or (row["of_a"] == row["of_b"] == 0 and not lost):
            continue
        low, high = (None if pd.isna(row[end]) else float(row[end]) for end in ("low", "high"))
        change = intervals.Estimate(float(row["difference"]), low, high, f"{row['pairs']} paired seeds")
        clear = "" if low is None or change.distinguishable else ", not distinguishable from none"
        said.append(
            f"{arms}: {row['of_a']:.3g} spikes per 1,000 steps against {row['of_b']:.3g}, a difference of "
            f"{change.words()}{clear}{lost}."
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
    claim = {
        "id": "quarantine",
        "statement": "The suspect frames cause the spikes.",
        "a": {"name": "all frames", "data.exclude": excluded},
        "b": {"name": "without the suspects", "data.exclude": samples},
        "measured": ["spikes_per_1000_steps", *([tables.judge.metric] if tables.judge is not None else [])],
        "expected": "a_more",
    }
    asked = {"recipe": recipe, "test": [claim], "seeds": RERUN_SEEDS}
    return {"name": f"{tables.name}-quarantine"} | kept | {"claims": asked}


def _left_out_by_all(trainings: pd.DataFrame) -> list[str]:
    """data.exclude as far as all of these trainings share it: what a flip adds is not the study's."""
    if "config.data.exclude" not in trainings or trainings.empty:
        return []
    lists = [list(v) if isinstance(v, (list, tuple)) else [] for v in trainings["config.data.exclude"]]
    return [name for name in lists[0] if all(name in others for others in lists)]
