"""Verdict on the loss spikes of a study, by cause and in paired trainings, in sentences with their numbers.

Paired trainings show the effect of leaving out quarantined samples, of clipping or of another order. Pairs are those of
the study's claims. `rerun` is the study that asks it of the quarantine list.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import pairs, statistics
from analysis.page.section import counted, number
from analysis.tables.settings import differing, held_settings
from analysis.tables.tidy import StudyTables
from study.contract import masked
from trainables.runtime.errors import UserError
from trainables.settings.config import Mark, TrialConfig, as_dict, flatten, mark_of
from trainables.settings.recipe import load_recipe

QUARANTINE = (
    "The quarantine list below can be pasted into data.exclude; report/quarantine.yaml is a study that trains with and "
    "without them."
)
CAUSES = ("data", "one sample", "optimisation", "numeric")


@dataclass(frozen=True)
class Findings:
    """What the traces say. spikes: one row each. suspects: every suspect, among the most suspicious samples.
    trainings: one row per trace with its settings and counts. curves: thinned losses of the trainings drawn."""

    spikes: pd.DataFrame
    suspects: pd.DataFrame
    trainings: pd.DataFrame
    curves: pd.DataFrame


def judge_cause(found: Findings) -> tuple[str, list[str]]:
    """The study's verdict and the sentences that say it."""
    if found.trainings.empty:
        return "none", ["No training left a step trace, so spikes cannot be looked for (trace: true keeps one)."]
    count, trainings, steps = len(found.spikes), len(found.trainings), int(found.trainings["steps"].sum())
    extent = f"{steps:,} steps of {trainings} trainings"
    suspects = found.suspects[found.suspects["suspect"]] if len(found.suspects) else found.suspects
    sentences, verdict = [], "none"
    if count:
        causes = found.spikes["cause"].value_counts()
        verdict = min(causes.index, key=lambda cause: (-int(causes[cause]), CAUSES.index(str(cause))))
        listed = ", ".join(f"{causes[c]} {c}" for c in CAUSES if c in causes)
        touched = found.spikes["key"].nunique()
        sentences.append(
            f"{count} loss spike{'s' * (count > 1)} in {extent} ({1000 * count / steps:.2g} per 1,000 steps, "
            f"in {touched} training{'s' * (touched > 1)}). "
            f"By cause: {listed}."
        )
    else:
        sentences.append(f"No loss spike in {extent}.")
    if len(suspects):
        verdict = "data" if verdict in ("none", "one sample", "data") else verdict
        sentences += [_accusation(suspects, found), QUARANTINE]
    else:
        samples = int(found.trainings["samples"].max())
        unsuspected = f"no sample of {samples} is suspect: none stands out over all its passes."
        if count:
            sentences.append(f"N{unsuspected[1:]}")
        else:
            sentences = [f"No loss spike in {extent}, and {unsuspected}"]
    return str(verdict), [*sentences, *_settings_sentences(found), *_position_sentences(found)]


def accused(found: Findings) -> bool:
    """Whether any sample is suspect: then the second sentence of `judge_cause` names the first."""
    return bool(len(found.suspects) and found.suspects["suspect"].any())


def _accusation(suspects: pd.DataFrame, found: Findings) -> str:
    first = suspects.iloc[0]
    spiked = 0 if found.spikes.empty else int((found.spikes["cause"] == "data").sum())
    blamed = "no spike is put down to them, so they speak of the data and not of a spike"
    if spiked:
        blamed = f"{spiked} spike{'s are' if spiked > 1 else ' is'} put down to them"
    hollow = int((suspects["empty_passes"] > 0).sum())
    return (
        f"{counted(len(suspects), 'sample')} under suspicion, first {first['sample']} ("
        + ("no valid pixel" if math.isinf(first["suspicion"]) else f"suspicion {number(first['suspicion'])}")
        + f", {first['passes']} passes in {first['trainings']} trainings); "
        + blamed
        + (f"; {hollow} had passes without any valid pixel" if hollow else "")
        + _shown(suspects)
        + "."
    )


def _shown(suspects: pd.DataFrame) -> str:
    """What the doctor found on the frames of the suspects."""
    if "finding" not in suspects or suspects["finding"].isna().all():
        return ""
    counts = suspects["finding"].value_counts()
    named = ", ".join(f"{count} {str(kind).replace('_', ' ')}" for kind, count in counts.items())
    rest = int(suspects["finding"].isna().sum())
    return f". Their frames show: {named}" + (f"; nothing wrong is visible on {rest}" if rest else "")


def _settings_sentences(found: Findings) -> list[str]:
    rows = found.trainings.dropna(subset=["lr"])
    if found.spikes.empty or rows["lr"].nunique() < 4:
        return []
    moved = rows["spikes (optimisation)"] + rows["spikes (numeric)"]
    high = rows["lr"] >= rows["lr"].quantile(0.75)
    rates = [1000 * moved[part].sum() / rows.loc[part, "steps"].sum() for part in (high, ~high)]
    sentence = (
        f"Spikes that come from settings (optimisation, numeric): {number(rates[0])} per 1,000 steps in the quarter "
        f"with the highest learning rates (n = {int(high.sum())} trainings), {number(rates[1])} in the others "
        f"(n = {int((~high).sum())})."
    )
    clipped = rows["clip_norm"].notna()
    if not clipped.any() or clipped.all():
        return [sentence]
    rates = [1000 * moved[part].sum() / rows.loc[part, "steps"].sum() for part in (clipped, ~clipped)]
    return [
        sentence,
        f"With clipping: {number(rates[0])} per 1,000 steps (n = {int(clipped.sum())}); "
        f"without: {number(rates[1])} (n = {int((~clipped).sum())}).",
    ]


def _position_sentences(found: Findings) -> list[str]:
    if found.spikes.empty or not found.spikes["listed"].any():
        return []
    listed = found.spikes[found.spikes["listed"]]
    again = listed[listed.groupby(["key", "sample"])["epoch"].transform("nunique") > 1]
    return [
        f"In unshuffled lists {len(again)} of {len(listed)} spikes come back at the same sample in another epoch "
        f"({again['sample'].nunique()} samples)."
    ]


PAIRED_COLUMNS = ("claim", "a", "b", "pairs", "left_out", "of_a", "of_b", "difference", "low", "high")
RERUN_SEEDS = 3


def by_claim(tables: StudyTables, trainings: pd.DataFrame) -> pd.DataFrame:
    """Spikes per 1,000 steps of both arms of each claim (means), and their paired difference, a minus b.

    Only pairs of complete trainings count: one that stopped in its first steps had no time to spike, and a rate over
    the few steps before a divergence says little. left_out: the other pairs.
    """
    if trainings.empty:
        return pd.DataFrame(columns=list(PAIRED_COLUMNS))
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
            estimate = statistics.paired([first - second for first, second in rates])
            ends = (estimate.value, estimate.low, estimate.high)
            names = (claim.id, claim.a.name, claim.b.name)
            found.append((*names, len(rates), len(both) - len(rates), of_a, of_b, *ends))
    return pd.DataFrame(found, columns=list(PAIRED_COLUMNS))


def paired_sentences(found: pd.DataFrame) -> list[str]:
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
        change = statistics.Estimate(float(row["difference"]), low, high, f"{row['pairs']} paired seeds")
        clear = "" if low is None or change.distinguishable else ", not distinguishable from none"
        said.append(
            f"{arms}, number of spikes, not their damage: {row['of_a']:.3g} per 1,000 steps against "
            f"{row['of_b']:.3g}, a difference of {change.words()}{clear}{lost}."
        )
    return said


def rerun(tables: StudyTables, quarantine: Sequence[str], keys: Iterable[str] | None = None) -> dict[str, Any] | None:
    """A study that trains with and without the quarantined samples; None where there is nothing to ask.

    keys: the trainings that saw these samples, None for all; what they share stands in both arms. What the study's own
    settings left out stays left out in both.
    """
    settings: Mapping[str, Any] = tables.study
    trials = tables.trials.dropna(subset=["recipe"])
    if keys is not None:
        trials = trials[trials["key"].isin(set(keys))]
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
        "both": _shared(trials[names == recipe], recipe, settings),
        "a": {"name": "all frames", "data.exclude": excluded},
        "b": {"name": "without the suspects", "data.exclude": samples},
        "measured": ["spikes_per_1000_steps", *([tables.judge.metric] if tables.judge is not None else [])],
        "expected": "a_more",
    }
    asked = {"recipe": recipe, "test": [claim], "seeds": RERUN_SEEDS}
    return {"name": f"{tables.name}-quarantine"} | kept | {"claims": asked}


def _shared(trainings: pd.DataFrame, recipe: str, study: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that all of these trainings have, and that the recipe under the study's `data` and `trial` has not."""
    try:
        over = flatten({"data": study.get("data") or {}}) | dict(study.get("trial") or {})
        usual = flatten(as_dict(load_recipe(recipe, over)[0]))
    except UserError:  # a study of another version: its own settings are all there is
        return {}
    rows = [held_settings({str(name): v for name, v in row.items()}) for row in trainings.to_dict("records")]
    constant = {path: v for path, v in rows[0].items() if all(row[path] == v for row in rows)}
    told = {path: v for path, v in usual.items() if path in constant}
    return {
        path: value
        for path, value in differing(constant, told).items()
        if path == "data.root"
        or (path != "data.exclude" and not mark_of(TrialConfig, path) & (Mark.DECIDED | Mark.BOOKKEEPING))
    }


def _left_out_by_all(trainings: pd.DataFrame) -> list[str]:
    """data.exclude as far as all of these trainings share it: what a flip adds is not the study's."""
    if "config.data.exclude" not in trainings or trainings.empty:
        return []
    lists = [list(v) if isinstance(v, (list, tuple)) else [] for v in trainings["config.data.exclude"]]
    return [name for name in lists[0] if all(name in others for others in lists)]
