"""Tidy tables of a study, and the one Parquet file that releases them.

Reading a training's reports lives here too; step traces are read by analysis/spikes/traces.py when a question asks. A
running study is normal: its last line may be half written.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.page.section import counted, plain
from study.contract import (
    DEVICE_SECONDS,
    PHASES,
    Claim,
    Judge,
    Layout,
    Outcome,
    claims_hash,
    judge_hash,
    masked,
)
from trainables.runtime.durable import write_bytes
from trainables.runtime.errors import UserError

RUNNING, WAITING = "running", "waiting"  # states of a training that has no outcome yet
IDENTITY = ("key", "phase", "number", "group", "recipe", "stage", "variant", "seed")
ENDING = ("outcome", "reason", "detail", "step", "attempts", "origin", "value", "ledger_value", DEVICE_SECONDS)
EXTENT = ("images", "steps", "seconds", "started", "ended")
FORMAT = "densedepth-study-table-2"
INFINITE = "infinite"  # key of a cell of `extras` that is inf or -inf, which JSON has no number for


@dataclass(frozen=True)
class StudyTables:
    """Tables and facts of one study.

    trials: one row per training (IDENTITY, ENDING, EXTENT, then `config.<path>`, `param.<path>`, `summary.<path>`);
        value is the judge's, NaN where the training has none; ledger_value is what the search received,
        device_seconds what it received besides, where it has two objectives.
    reports: one row per report: key, step, images, epoch, time_s, then one column per metric (`val/rmse`).
    planned: trainings that each begun phase will hold; None where the ledger does not say.
    spent: the limit of the budget that ended the study early; None where there was none.
    claims: what the study claims, as written down before its trainings; claims_hash: the hash that was recorded then.
    evaluation: the sealed test's stored document (analysis/final_evaluation.py fills it), empty while it is sealed.
    extras: tables of other questions that a released table must carry (spikes), by name.
    notes: what could not be read, in sentences for the report.
    """

    name: str
    layout: Layout | None  # None: read from a released table, no folder at hand
    study: Mapping[str, Any]
    judge: Judge | None
    judge_hash: str | None
    data: Mapping[str, Any]
    environment: Mapping[str, Any]
    timings: Mapping[str, Any]
    planned: Mapping[str, int | None]
    trials: pd.DataFrame
    reports: pd.DataFrame
    evaluation: dict[str, Any]
    spent: str | None = None
    claims: Sequence[Claim] = ()
    claims_hash: str | None = None
    extras: dict[str, pd.DataFrame] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def phase(self, name: str) -> pd.DataFrame:
        """The trainings of one phase, in order."""
        return self.trials[self.trials["phase"] == name]

    def folder(self, key: str) -> Path:
        """The folder of one training. Raises UserError for a study read from a released table."""
        if self.layout is None:
            raise UserError(f"{self.name}: a released table holds no folder of {key}; use the results folder")
        return self.layout.trial(key)

    def unfinished(self) -> list[str]:
        """Why the study has not ended, one sentence per phase; empty when every configured phase has."""
        missing = []
        for phase in configured_phases(self.study):
            rows = self.phase(phase)
            ended = int(rows["outcome"].isin(list(Outcome)).sum())
            planned = self.planned.get(phase)
            if phase not in self.planned:
                missing.append(f"{phase} has not begun")
            elif planned is not None and ended < planned:
                missing.append(f"{phase} has ended {ended} of {planned} trainings")
            elif ended < len(rows):
                missing.append(f"{phase} has {counted(len(rows) - ended, 'training')} without an outcome")
        return [f"its budget is spent ({self.spent}); raise it", *missing] if missing and self.spent else missing

    @property
    def judge_unchanged(self) -> bool:
        """Whether the judge's settings have the hash that was recorded before the first training."""
        return self.judge is not None and judge_hash(self.judge) == self.judge_hash

    @property
    def claims_unchanged(self) -> bool:
        """Whether the claims have the hash that was recorded before the first training."""
        return not self.claims or claims_hash(self.claims) == self.claims_hash


def configured_phases(study: Mapping[str, Any]) -> list[str]:
    """The phases that the settings ask for, in order."""
    asked = {
        "reproduce": bool((study.get("reproduce") or {}).get("recipes")),
        "claims": bool((study.get("claims") or {}).get("test")),
        "search": bool((study.get("search") or {}).get("trials")),
        "confirm": bool((study.get("confirm") or {}).get("top")) and bool((study.get("search") or {}).get("trials")),
    }
    return [phase for phase in PHASES if asked[phase]]


def refuse_ablations(where: Path, phases: Collection[str]) -> None:
    """Refuse paired trainings of the phase that claims have taken the place of: their pairs are written otherwise."""
    if "ablate" in phases:
        raise UserError(
            f"{where} holds trainings of the phase ablate, of a version before claims; report it with that version"
        )


def read_reports(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The reports of one training as flat rows; a resumed training's repeated reports count once, the last wins."""
    path = folder / "reports.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            report = json.loads(line)
            row = {name: report[name] for name in ("step", "images", "epoch", "time_s")} | dict(report["metrics"])
        except (ValueError, KeyError, TypeError):
            if number < len(lines) - 1:  # the last line may be in the middle of being written
                notes.append(f"{folder.name}: line {number + 1} of reports.jsonl is damaged and left out.")
            continue
        rows[int(row["images"])] = {"key": folder.name, **row}
    return [rows[images] for images in sorted(rows)]


def read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON mapping that may not be there yet; a damaged one leaves a note."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        notes.append(f"{path.parent.name}: {path.name} is damaged and left out.")
        return {}
    return value if isinstance(value, dict) else {}


def trial_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Trials as a frame that has all of its fixed columns even when there is no row or no value."""
    frame = pd.DataFrame(list(rows))
    fixed = [*IDENTITY, *ENDING, *EXTENT]
    for column in fixed:
        if column not in frame:
            frame[column] = None
    for column in ("value", "ledger_value", DEVICE_SECONDS, "images", "steps", "seconds"):
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(float)
    for column in ("started", "ended"):
        frame[column] = pd.to_datetime(frame[column])
    return frame[fixed + sorted(c for c in frame.columns if c not in fixed)].copy()


def report_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Reports as a frame with its fixed columns."""
    frame = pd.DataFrame(list(rows))
    fixed = ["key", "step", "images", "epoch", "time_s"]
    for column in fixed:
        if column not in frame:
            frame[column] = pd.Series(dtype=object if column == "key" else float)
    return frame[fixed + [c for c in frame.columns if c not in fixed]].copy()


def write_table(tables: StudyTables, path: Path) -> None:
    """Release a study as one Parquet file: a row per training, its reports inside, the study's facts as metadata."""
    frame = tables.trials.copy()
    encoded = [
        c for c in frame.columns if frame[c].dtype == object and not all(isinstance(value, str) for value in frame[c])
    ]
    for column in encoded:
        frame[column] = [json.dumps(plain(v)) for v in frame[column]]
    by_key = {str(key): rows.drop(columns="key") for key, rows in tables.reports.groupby("key", sort=False)}
    frame["reports"] = [json.dumps(plain(by_key[k])) if k in by_key else "[]" for k in frame["key"]]
    facts = {
        "format": FORMAT,
        "encoded": encoded,
        "facts": {n: getattr(tables, n) for n in FACTS}
        | {"judge": _judge_facts(tables.judge), "claims": [asdict(claim) for claim in tables.claims]},
        "extras": {name: _columns(extra) for name, extra in tables.extras.items()},
    }
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata(
        {**(table.schema.metadata or {}), b"study": masked(json.dumps(plain(facts))).encode()}
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


FACTS = ("name", "study", "judge_hash", "claims_hash", "data", "environment", "timings", "planned", "spent",
         "evaluation", "notes")  # fmt: skip


def read_table(path: Path) -> StudyTables:
    """The study in a released table. Raises UserError where the file is none."""
    try:
        table = pq.read_table(path)
        facts = json.loads((table.schema.metadata or {})[b"study"])
        if facts["format"] != FORMAT:
            raise KeyError(facts["format"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: this is not a released table of a study ({error}); name a results table (.parquet)"
        ) from error
    frame = table.to_pandas()
    reports = [
        {"key": key, **row}
        for key, text in zip(frame["key"], frame["reports"], strict=True)
        for row in json.loads(text)
    ]
    frame = frame.drop(columns="reports")
    for column in facts["encoded"]:
        frame[column] = pd.Series([json.loads(v) for v in frame[column]], index=frame.index, dtype=object)
    refuse_ablations(path, set(frame["phase"]))
    judge, claims = facts["facts"].pop("judge"), facts["facts"].pop("claims", [])
    extras = {
        name: pd.DataFrame({column: [_cell(v) for v in values] for column, values in columns.items()})
        for name, columns in facts["extras"].items()
    }
    return StudyTables(
        **facts["facts"],
        judge=Judge(**judge) if judge else None,
        claims=[Claim.of(claim) for claim in claims],
        layout=None,
        trials=trial_frame(frame.to_dict(orient="records")),
        reports=report_frame(reports),
        extras=extras,
    )


def _judge_facts(judge: Judge | None) -> dict[str, Any] | None:
    if judge is None:
        return None
    return {"metric": judge.metric, "protocol": judge.protocol, "report": judge.report, "margins": dict(judge.margins)}


def _columns(frame: pd.DataFrame) -> dict[str, list[Any]]:
    return {str(column): [_finite(v) for v in frame[column].tolist()] for column in frame.columns}


def _finite(value: Any) -> Any:
    """A cell as strict JSON that distinguishes infinity from nothing; `_cell` reads it."""
    return {INFINITE: str(value)} if isinstance(value, float) and math.isinf(value) else plain(value)


def _cell(value: Any) -> Any:
    return float(value[INFINITE]) if isinstance(value, dict) and INFINITE in value else value
