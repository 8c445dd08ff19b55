"""Verdict on the spikes of a study by cause, with the sentences that state it and their numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from analysis.section import counted, number

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
