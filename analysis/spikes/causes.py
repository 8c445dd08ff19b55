"""Loss spikes of a study: every spike of every training with its cause, and the suspect samples.

A spike is called
    numeric        the loss is not finite, or the training diverged within the spike
    data           one suspect sample (analysis/spikes/suspects.py) holds most of the batch's rise
    one sample     the same, but that sample is not a suspect: hard in one batch, not in its other passes
    optimisation   the rise is shared by the batch, or outlasts it: the weights were moved too far
What the traces say is kept in `StudyTables.extras`, so a released table regenerates the section without the traces.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from analysis import runs
from analysis.page.section import Figure, Headline, Section, Table, plain
from analysis.page.style import thinned
from analysis.selection import unit_of
from analysis.spikes import plots, replays, verdicts
from analysis.spikes.suspects import (
    RULES,
    Passes,
    by_suspicion,
    frame_findings,
    pictures,
    suspicion,
    training_frames,
    with_findings,
)
from analysis.spikes.traces import THRESHOLDS, Spike, Steps, find_spikes, read_steps, trailing
from analysis.spikes.verdicts import CAUSES, Findings, accused, judge_cause
from analysis.tables.tidy import StudyTables
from study.contract import Outcome
from trainables.runtime.errors import UserError

MOST_OF = 0.5  # share of a batch's rise that makes it one sample's
OTHERS_CALM = 3.0  # deviations under which the batch's other samples are as usual
CURVES = 4  # trainings whose loss is drawn
CURVE_POINTS = 1200
LISTED = 200  # spikes that a table holds; samples that are kept beside the suspects
FIRST = (
    "key", "step", "cause", "loss", "usual_loss", "deviations", "term", "term_share", "sample", "sample_share",
    "grad_norm", "usual_grad_norm", "clipped", "lr", "recovery_steps", "damage",
)  # fmt: skip
SHOWN = 24  # suspects in the picture


def collect(tables: StudyTables) -> Findings:
    """Read every trace once; afterwards, and for released tables, what was found then."""
    names = ("spikes", "suspects", "trainings", "curves")
    stored = {name: tables.extras.get(f"spikes.{name}") for name in names}
    if tables.layout is None or all(frame is not None for frame in stored.values()):
        return Findings(**{name: pd.DataFrame() if frame is None else frame for name, frame in stored.items()})
    passes: dict[str, Passes] = {}
    of_data: dict[str, str] = {}  # what a training's data are -> the first training on them
    trainings: list[dict[str, object]] = []
    found: list[dict[str, object]] = []
    records: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in tables.trials.to_dict("records")]
    for trial in records:
        steps = read_steps(tables.folder(str(trial["key"])), tables.notes)
        if steps is None:
            continue
        data_of = of_data.setdefault(_data(trial), str(trial["key"]))
        passes.setdefault(data_of, Passes(RULES)).add(steps)
        spikes = find_spikes(steps, _weights(trial), THRESHOLDS)
        found += [{"data_of": data_of, **_spike_row(trial, spike, steps)} for spike in spikes]
        trainings.append({"data_of": data_of, **_training_row(trial, steps)})
    suspects = _suspects(tables, passes, trainings)
    spikes_frame = _with_causes(pd.DataFrame(found), suspects, tables)
    result = Findings(
        spikes=spikes_frame,
        suspects=suspects[suspects["suspect"] | (suspects.index < LISTED)].reset_index(drop=True),
        trainings=_with_counts(pd.DataFrame(trainings), spikes_frame),
        curves=_curves(tables, spikes_frame),
    )
    tables.extras.update({f"spikes.{name}": getattr(result, name) for name in names})
    return result


def _data(trial: Mapping[str, object]) -> str:
    """What says which frames a training's sample ids mean: the same id is another frame in other data."""
    named = ("source", "root", "depth", "pairing", "crop_border_px", "rooms.")
    held = {path: str(v) for path, v in trial.items() if path.startswith(tuple(f"config.data.{n}" for n in named))}
    return repr(sorted(held.items()))


def _suspects(
    tables: StudyTables, passes: Mapping[str, Passes], trainings: Sequence[Mapping[str, object]]
) -> pd.DataFrame:
    """Samples by suspicion, with the findings on their frames; each data set is judged by its own trainings."""
    pieces = []
    for data_of, sums in passes.items():
        found = suspicion(sums)
        opened = training_frames(tables, [str(row["key"]) for row in trainings if row["data_of"] == data_of])
        shown = frame_findings(opened[0], list(found["sample"])) if opened is not None else pd.DataFrame()
        pieces.append(with_findings(found, shown, RULES.finding, RULES.suspicion).assign(data_of=data_of))
    return by_suspicion(pd.concat(pieces, ignore_index=True)) if pieces else suspicion(Passes(RULES))


def _weights(trial: Mapping[str, object]) -> dict[str, float]:
    prefix = "config.loss."
    named = {str(k).removeprefix(prefix): v for k, v in trial.items() if str(k).startswith(prefix)}
    return {name: float(v) for name, v in named.items() if isinstance(v, (int, float)) and math.isfinite(v)}


def _spike_row(trial: Mapping[str, object], spike: Spike, steps: Steps) -> dict[str, object]:
    listed = trial.get("config.data.order") == "listed"
    place = -1  # of the worst sample in the training list; unshuffled, a first pass is the list
    if listed and spike.sample:
        place = int(np.flatnonzero(steps.sample == steps.names.index(spike.sample))[0])
    diverged = trial["outcome"] == Outcome.DIVERGED and spike.recovery_steps is None
    return {"key": trial["key"], **asdict(spike), "listed": listed, "list_position": place, "diverged": diverged}


def _training_row(trial: Mapping[str, object], steps: Steps) -> dict[str, object]:
    names = {"lr": "config.optim.lr", "clip_norm": "config.optim.clip_norm", "batch_size": "config.batch_size"}
    settings = {name: trial.get(path) for name, path in (names | {"order": "config.data.order"}).items()}
    facts = {name: trial[name] for name in ("key", "phase", "recipe", "outcome")}
    counted = {"steps": len(steps.step), "passes": len(steps.own), "samples": len(steps.names)}
    return {**facts, **settings, **counted, "clipped_share": float(steps.clipped.mean())}


def _with_causes(spikes: pd.DataFrame, suspects: pd.DataFrame, tables: StudyTables) -> pd.DataFrame:
    """Cause and damage of each spike; damage is the judged metric after it minus before it, worse is positive."""
    if spikes.empty:
        return spikes
    named = suspects[suspects["suspect"]]
    accused = set(zip(named["data_of"], named["sample"], strict=True))
    is_accused = np.array([pair in accused for pair in zip(spikes["data_of"], spikes["sample"], strict=True)])
    alone = (spikes["sample_share"] >= MOST_OF) & ~(spikes["others_deviations"] > OTHERS_CALM)
    brief = spikes["recovery_steps"].notna() & (spikes["recovery_steps"] <= 1 + THRESHOLDS.recovered_steps)
    numeric = ~np.isfinite(spikes["loss"]) | spikes["diverged"]
    cause = np.where(alone & brief, "one sample", "optimisation")
    cause = np.where(alone & is_accused, "data", cause)
    spikes["cause"] = np.where(numeric, "numeric", cause)
    before, after = _around(spikes, tables)
    sign = -1.0 if tables.judge is not None and not tables.judge.minimise else 1.0
    spikes["validation_before"], spikes["validation_after"] = before, after
    spikes["damage"] = sign * (spikes["validation_after"] - spikes["validation_before"])
    return spikes


def _around(spikes: pd.DataFrame, tables: StudyTables) -> tuple[list[float], list[float]]:
    metric = f"val/{tables.judge.metric}" if tables.judge is not None else "val/loss"
    before, after = [], []
    known = tables.reports[["key", "images", metric]].dropna() if metric in tables.reports else pd.DataFrame()
    histories = {str(k): rows for k, rows in known.groupby("key")} if len(known) else {}
    for key, images in zip(spikes["key"], spikes["images"], strict=True):
        rows = histories.get(str(key))
        earlier = rows.loc[rows["images"] < images, metric] if rows is not None else []
        later = rows.loc[rows["images"] >= images, metric] if rows is not None else []
        before.append(float(earlier.iloc[-1]) if len(earlier) else math.nan)  # type: ignore[union-attr]
        after.append(float(later.iloc[0]) if len(later) else math.nan)  # type: ignore[union-attr]
    return before, after


def _with_counts(trainings: pd.DataFrame, spikes: pd.DataFrame) -> pd.DataFrame:
    if trainings.empty:
        return trainings
    for cause in CAUSES:
        counts = spikes.loc[spikes["cause"] == cause, "key"].value_counts() if len(spikes) else pd.Series(dtype=int)
        trainings[f"spikes ({cause})"] = trainings["key"].map(counts).fillna(0).astype(int)
    trainings["spikes"] = trainings[[f"spikes ({cause})" for cause in CAUSES]].sum(axis=1)
    moved = trainings["spikes (optimisation)"] + trainings["spikes (numeric)"]
    trainings["from_settings_per_1000_steps"] = 1000 * moved / trainings["steps"]
    return trainings


def _curves(tables: StudyTables, spikes: pd.DataFrame) -> pd.DataFrame:
    """Thinned losses of the trainings with the most spikes, each spike's own step kept."""
    pieces = []
    for key, rows in _most_spiked(spikes):
        steps = read_steps(tables.folder(key), tables.notes)
        if steps is None:
            continue
        with np.errstate(divide="ignore"):
            logs = np.log(steps.loss)
        middle, _ = trailing(logs, THRESHOLDS.window_steps, THRESHOLDS.least_steps)
        keep = np.union1d(thinned(steps.loss, CURVE_POINTS), rows["row"].to_numpy(dtype=int))
        causes = dict(zip(rows["row"], rows["cause"], strict=True))
        pieces.append(
            pd.DataFrame({
                "key": key, "step": steps.step[keep], "loss": steps.loss[keep], "usual_loss": np.exp(middle[keep]),
                "spike": [causes.get(int(row), "") for row in keep],
            })
        )  # fmt: skip
    return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame()


def _most_spiked(spikes: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    if spikes.empty:
        return []
    counts = spikes["key"].value_counts(sort=True)
    keys = sorted(counts.index, key=lambda key: (-int(counts[key]), str(key)))[:CURVES]
    return [(str(key), spikes[spikes["key"] == key]) for key in keys]


def analyse(tables: StudyTables) -> Section:
    """The section on loss spikes. `data['verdict']` is data, optimisation, numeric, one sample or none."""
    found = collect(tables)
    verdict, sentences = judge_cause(found)
    replayed, steps = replays.read(tables)
    pairs = verdicts.by_claim(tables, found.trainings)
    paired, again = verdicts.paired_sentences(pairs), replays.sentences(replayed)
    headline = Headline([*sentences[: 1 + accused(found)], *again, *paired])
    shown = len(found.spikes) > 0 or accused(found)  # nothing spiked and no sample is suspect: a line says so
    named, seen_by = _quarantine(found)
    return Section(
        "spikes",
        "What spiked, and why?",
        [*sentences, *paired, *again],
        [
            *plots.figures(found.spikes, found.suspects.head(SHOWN), found.trainings, found.curves),
            *replays.figures(tables, replayed, steps),
            *_frames(tables, found),
        ]
        if shown
        else (),
        [*_tables(tables, found), *replays.table(replayed), *_paired(pairs)] if shown else (),
        plain({
            "verdict": verdict,
            "spikes": len(found.spikes),
            "causes": found.spikes["cause"].value_counts().to_dict() if len(found.spikes) else {},
            "quarantine": named,
            "rerun": verdicts.rerun(tables, named, seen_by),
            "suspects": found.suspects,
            "pairs": pairs,
            "replays": replayed,
            "thresholds": asdict(THRESHOLDS) | asdict(RULES),
        }),
        headline,
    )  # fmt: skip


def _quarantine(found: Findings) -> tuple[list[str], list[str]]:
    """The suspects among the data of the first one, and the trainings on these data."""
    suspects = found.suspects[found.suspects["suspect"]] if len(found.suspects) else found.suspects
    if suspects.empty:
        return [], []
    first = suspects["data_of"].iloc[0]
    keys = found.trainings.loc[found.trainings["data_of"] == first, "key"]
    return list(suspects.loc[suspects["data_of"] == first, "sample"]), [str(key) for key in keys]


def _frames(tables: StudyTables, found: Findings) -> list[Figure]:
    """Pictures of suspects, where frames and a checkpoint can still be read."""
    named, seen_by = _quarantine(found)
    opened = training_frames(tables, seen_by) if named else None
    try:
        suspects = found.suspects[found.suspects["sample"].isin(named)] if named else found.suspects
        return pictures(tables, opened[0], suspects) if opened is not None else []
    except UserError as error:  # a damaged checkpoint must not take the report
        tables.notes.append(f"The suspect samples are not pictured: {error}.")
        return []


def _tables(tables: StudyTables, found: Findings) -> Sequence[Table]:
    listed = found.spikes
    if len(listed):
        order = [*FIRST, *(c for c in listed.columns if c not in (*FIRST, "row", "diverged", "listed"))]
        listed = listed.sort_values("deviations", ascending=False)[order].head(LISTED)
    suspects = found.suspects[found.suspects["suspect"]] if len(found.suspects) else found.suspects
    lines = pd.DataFrame({"data.exclude": _quarantine(found)[0]})
    limits = pd.DataFrame([{"setting": k, "value": v} for k, v in (asdict(THRESHOLDS) | asdict(RULES)).items()])
    unit = unit_of(tables.judge.metric) if tables.judge is not None else ""
    units = {"deviations": "scaled MADs", "grad_norm": "before clipping", "recovery_steps": "steps"}
    units |= dict.fromkeys(("damage", "validation_before", "validation_after"), unit)
    first = found.suspects.head(2 * SHOWN)
    note = f"The {min(LISTED, len(listed))} highest of {len(found.spikes)}. damage > 0: the judged metric was worse "
    note += "after the spike than before."
    seen = f"The {len(first)} most suspicious; {len(suspects)} are suspect. Over all trainings and passes."
    rates = {"clipped_share": "share of steps", "from_settings_per_1000_steps": "spikes per 1,000 steps"}
    return (
        Table("spikes", "Spikes", listed, note, units),
        Table("spike-suspects", "Samples by suspicion", first, seen, {"suspicion": "scaled MADs"}),
        Table("quarantine", "Quarantine list", lines, "Sample ids, as data.exclude takes them."),
        Table("spike-trainings", "Spikes by training", found.trainings, "", rates),
        Table("spike-thresholds", "Thresholds", limits),
    )


def _paired(pairs: pd.DataFrame) -> list[Table]:
    units = dict.fromkeys(("of_a", "of_b", "difference", "low", "high"), "spikes per 1,000 steps")
    note = (
        "Means over pairs of complete trainings of the same seed, and the mean difference, a minus b, with its 95% t "
        "interval from three pairs on; left_out: pairs with a training that did not complete, or without a trace."
    )
    return [Table("spike-pairs", "Spikes of paired trainings", pairs, note, units)] if len(pairs) else []


def _replay(tables: StudyTables, args: argparse.Namespace) -> None:
    if args.replay:
        replays.replay_all(tables, collect(tables).spikes, lambda line: print(line, file=sys.stderr, flush=True))


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m analysis.spikes STUDY [--replay]`: this section alone."""
    again = "first train each recorded spike again, with and without its worst sample"
    options = {"--replay": {"action": "store_true", "help": again}}
    purpose = "Why did the loss spike?"
    return runs.command("spikes", purpose, analyse, argv, options=options, before=_replay, keys_at_top=True)
