"""Cost, data and provenance of a study: time, memory, waiting, disk; frames and splits; versions and hashes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from analysis.page import style
from analysis.page.section import Figure, Section, Table, number, plain
from analysis.tables.tidy import StudyTables
from study.contract import PHASES, Outcome, masked
from trainables.settings.config import flatten

GIB = 1 << 30
DEVICES = "Device-hours: training time x devices of one training (resources.gpus_per_trial; auto and a CPU: 1)."
MOST_TRAININGS = 200  # rows of the table of trainings; the released table holds them all


def cost(tables: StudyTables) -> Section:
    """Time and device-hours per phase and training, waiting for data, memory, disk, what pruning saved."""
    trials = tables.trials
    if trials["seconds"].notna().sum() == 0:
        return Section("cost", "Cost", ["No training has run long enough to cost anything."])
    phases = _by_phase(tables)
    hours = float(phases["training_hours"].sum())
    answers = [
        f"All trainings together took {duration(3600 * hours)} of training time over {int(phases['trainings'].sum())} "
        f"trainings ({number(float(phases['images'].sum()))} images): {number(float(phases['device_hours'].sum()))} "
        "device-hours.",
        *_pruning(tables),
    ]
    figure = Figure(
        "training-time",
        "Time of each training",
        f"Seconds of {int(trials['seconds'].notna().sum())} trainings, by phase and outcome.",
        f"One mark per training (n = {int(trials['seconds'].notna().sum())}), by phase.",
        _draw_times,
        trials.loc[trials["seconds"].notna(), ["key", "phase", "outcome", "seconds"]],
        size_in=(5.2, 2.6),
    )
    parts = [Table("cost-phases", "By phase", phases, DEVICES,
                   {"training_hours": "h", "device_hours": "h", "median_seconds": "s",
                    "median_images_per_s": "images/s", "peak_memory": "MiB",
                    "waiting_for_data": "share of training time"})]  # fmt: skip
    parts.append(Table("cost-trainings", "By training", _by_training(tables),
                       f"The first {MOST_TRAININGS} at most; peak memory of the GPU, or of the process on a CPU. "
                       + DEVICES,
                       {"seconds": "s", "device_hours": "h", "images_per_s": "images/s",
                        "peak_memory_mib": "MiB"}))  # fmt: skip
    rows = [{"part": k, "seconds": v} for k, v in _flat(tables.timings).items() if isinstance(v, (int, float))]
    if rows:
        parts.append(Table("timings", "How long each part took", pd.DataFrame(rows), "Wall clock.", {"seconds": "s"}))
    if tables.layout is not None:
        disk = _disk(tables.layout.root)
        answers.append(f"The results folder holds {number(float(disk['gib'].sum()))} GiB.")
        parts.append(Table("disk", "Disk", disk, "", {"gib": "GiB"}))
    return Section("cost", "Cost", answers, [figure] if len(figure.data) > 1 else [], parts, plain({
        "training_hours": hours, "device_hours": float(phases["device_hours"].sum()),
        "phases": phases, "pruning_saved_device_hours": _saved_hours(tables) * devices(tables),
    }))  # fmt: skip


def devices(tables: StudyTables) -> float:
    """Devices of one training: resources.gpus_per_trial; one where that is auto, or 0 (a CPU counts as one)."""
    given = (tables.study.get("resources") or {}).get("gpus_per_trial")
    return float(given) if isinstance(given, (int, float)) and given > 0 else 1.0


def _by_phase(tables: StudyTables) -> pd.DataFrame:
    column = "speed/data_wait_share"
    waits = tables.reports.groupby("key")[column].mean() if column in tables.reports else None
    rows = []
    for phase in PHASES:
        trials = tables.phase(phase)
        if trials.empty:
            continue
        speed, memory = (_numbers(trials, f"summary.{name}") for name in ("images_per_s", "peak_memory_mib"))
        wait = trials["key"].map(waits).dropna() if waits is not None else pd.Series(dtype=float)
        rows.append({
            "phase": phase,
            "trainings": len(trials),
            "training_hours": float(trials["seconds"].sum()) / 3600,
            "device_hours": devices(tables) * float(trials["seconds"].sum()) / 3600,
            "median_seconds": float(trials["seconds"].median()),
            "images": float(trials["images"].sum()),
            "median_images_per_s": float(speed.median()) if len(speed) else math.nan,
            "peak_memory": float(memory.max()) if len(memory) else math.nan,
            "waiting_for_data": float(wait.mean()) if len(wait) else math.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _by_training(tables: StudyTables) -> pd.DataFrame:
    """What each training was and took, in order."""
    named = {"key": "key", "recipe": "recipe", "stage": "stage", "config.input": "input", "images": "images",
             "summary.parameters_total": "parameters", "summary.parameters_trainable": "trainable",
             "seconds": "seconds", "device_hours": "device_hours",
             "summary.images_per_s": "images_per_s", "summary.peak_memory_mib": "peak_memory_mib"}  # fmt: skip
    trials = tables.trials.assign(device_hours=devices(tables) * tables.trials["seconds"] / 3600)
    return trials.reindex(columns=list(named)).rename(columns=named).head(MOST_TRAININGS)


def _numbers(frame: pd.DataFrame, column: str) -> pd.Series[float]:
    if column not in frame:
        return pd.Series(dtype=float)
    return pd.to_numeric(frame[column], errors="coerce").dropna().astype(float)


def _pruning(tables: StudyTables) -> list[str]:
    search = tables.phase("search")
    pruned = int((search["outcome"] == Outcome.PRUNED).sum())
    if not pruned or "config.budget_images" not in search:
        return []
    saved = _saved_hours(tables)
    return [
        f"Pruning {pruned} of {len(search)} search trials saved about {duration(3600 * saved)} of training time "
        f"({number(devices(tables) * saved)} device-hours), had they continued at their own speed to their budget."
    ]


def _saved_hours(tables: StudyTables) -> float:
    """What the pruned trials would have taken more, at their own speed to their budget."""
    search = tables.phase("search")
    pruned = search[search["outcome"] == Outcome.PRUNED]
    if pruned.empty or "config.budget_images" not in search:
        return 0.0
    budget = pd.to_numeric(pruned["config.budget_images"], errors="coerce")
    seen = pruned["images"].clip(lower=1)
    return float((pruned["seconds"] * (budget / seen - 1).clip(lower=0)).sum()) / 3600


def _disk(root: Path) -> pd.DataFrame:
    sizes: dict[str, int] = {}
    for folder, _, files in os.walk(root):
        inside = Path(folder).relative_to(root).parts
        if inside[:1] == ("trials",):
            part = "checkpoints" if "checkpoints" in inside else "traces, reports and pictures of trainings"
        else:
            part = inside[0] if inside else "ledger and settings"
        for name in files:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                sizes[part] = sizes.get(part, 0) + path.stat().st_size
    return pd.DataFrame([{"part": part, "gib": size / GIB} for part, size in sorted(sizes.items())])


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _draw_times(canvas: Canvas, data: pd.DataFrame) -> None:
    axes = canvas.add_subplot()
    phases = [phase for phase in PHASES if phase in set(data["phase"])]
    spread = np.random.default_rng(0)  # only moves marks apart
    for outcome, rows in data.groupby("outcome", sort=False):
        place = np.array([phases.index(p) for p in rows["phase"]]) + spread.uniform(-0.22, 0.22, len(rows))
        axes.scatter(rows["seconds"], place, s=14, alpha=0.8, label=str(outcome).replace("_", " "),
                     color=style.OUTCOME_COLOUR.get(str(outcome), style.GREY),
                     marker=style.OUTCOME_MARKER.get(str(outcome), "."))  # fmt: skip
    axes.set_yticks(range(len(phases)), phases)
    axes.invert_yaxis()
    if (data["seconds"] > 0).all() and data["seconds"].max() > 10 * data["seconds"].min():
        axes.set_xscale("log")
    axes.set_xlabel("time of one training (s)")
    canvas.legend(loc="outside upper right", ncols=4)


def data(tables: StudyTables) -> Section:
    """Section on the data: its frames, their split, and those left out."""
    config = tables.trials[[c for c in tables.trials.columns if c.startswith("config.data.")]]
    first = tables.trials.iloc[0] if len(tables.trials) else pd.Series(dtype=object)
    train, held = (_count(first.get(f"summary.{name}")) for name in ("train_frames", "validation_frames"))
    source = first.get("config.data.source", tables.study.get("data", {}).get("source", "unknown"))
    counts = f"{train} training and {held} validation frames"
    answers = [f"Frames come from {source}: {counts} in the first training; validation split by "
               f"{first.get('config.data.validation.by', 'unknown')}."]  # fmt: skip
    skipped = _skipped(tables)
    if len(skipped):
        worst = int(_numbers(tables.trials, "summary.skipped_frames").max())
        answers.append(
            f"Bad frames were skipped (data.on_bad_frame: skip): {worst} in the training that met most of them, "
            f"{skipped['frame'].iloc[0]} for one ({skipped['reason'].iloc[0]})."
        )
    rows = []
    for column in config.columns:
        values = config[column].dropna().map(lambda v: json.dumps(plain(v), default=str)).unique()
        if len(values):
            text = ", ".join(values[:4]) + (f" and {len(values) - 4} more" if len(values) > 4 else "")
            rows.append({"setting": column.removeprefix("config."), "value": text})
    prints = [{"fact": k, "value": str(v)} for k, v in _flat(tables.data).items()]
    return Section(
        "data",
        "Data",
        answers,
        (),
        [
            Table("fingerprint", "Fingerprint, written before the first training", pd.DataFrame(prints)),
            Table("data-settings", "Settings of the data", pd.DataFrame(rows), "All values that occur in the study."),
            *([Table("skipped-frames", "Bad frames that were skipped", skipped)] if len(skipped) else []),
        ],
        plain(tables.data),
    )


def _skipped(tables: StudyTables) -> pd.DataFrame:
    """The frames that trainings left out, with the reason and the number of trainings that met them."""
    found: dict[tuple[str, str], int] = {}
    column = "summary.skipped"
    for pairs in tables.trials.get(column, ()):
        for frame, reason in pairs if isinstance(pairs, (list, tuple)) else ():
            found[frame, reason] = found.get((frame, reason), 0) + 1
    rows = [{"frame": frame, "reason": reason, "trainings": count} for (frame, reason), count in sorted(found.items())]
    return pd.DataFrame(rows, columns=["frame", "reason", "trainings"])


def _count(value: Any) -> str:
    return f"{value:.0f}" if isinstance(value, Real) and math.isfinite(value) else "an unknown number of"


def provenance(tables: StudyTables, made: Mapping[str, Any]) -> Section:
    """Section on provenance: what it takes to repeat the study. `made`: facts of the report itself."""
    judge = {} if tables.judge is None else {f"judge.{k}": v for k, v in vars(tables.judge).items()}
    facts = {"study": tables.name, "judge's SHA-256, from before the first training": tables.judge_hash, **judge}
    facts |= {f"environment.{k}": v for k, v in _flat(tables.environment).items()} | dict(made)
    known = {k: v if isinstance(v, str) else json.dumps(plain(v)) for k, v in facts.items() if v is not None}
    rows = [{"fact": k, "value": masked(v)} for k, v in known.items()]
    settings = [{"setting": k, "value": masked(json.dumps(plain(v)))} for k, v in _flat(tables.study).items()]
    answers = [_judged(tables)]
    answers += [f"Could not be read: {note}" for note in dict.fromkeys(tables.notes)]
    return Section(
        "provenance",
        "Provenance",
        answers,
        (),
        [
            Table("facts", "Facts", pd.DataFrame(rows)),
            Table("settings", "The study as it was resolved", pd.DataFrame(settings)),
        ],
    )


def _judged(tables: StudyTables) -> str:
    """What is known of the judge's hash."""
    if tables.judge_unchanged:
        return f"Study {tables.name}, judged by settings that were hashed before the first training."
    if tables.judge_hash is None:
        return f"Study {tables.name}; no judge's hash is in its ledger."
    return (
        f"Study {tables.name}: the judge's settings in its ledger are not those hashed before the first training, so "
        "its choice is not valid; restore the ledger."
    )


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    return flatten(dict(facts)) if facts else {}
