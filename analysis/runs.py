"""Readers of a study: ledger and folders to tidy tables.

The ledger is opened read-only (SQLite's mode=ro), so a report can be made while a study runs and changes nothing.
"""

from __future__ import annotations

import argparse
import math
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy.exc import SQLAlchemyError

from analysis.page.section import Section, plain
from analysis.tables.tidy import (
    RUNNING,
    WAITING,
    StudyTables,
    read_json,
    read_reports,
    read_table,
    refuse_ablations,
    report_frame,
    trial_frame,
)
from study.contract import (
    DEVICE_SECONDS,
    PHASES,
    RESULTS,
    Attr,
    Claim,
    Judge,
    Layout,
    Outcome,
    StudyAttr,
    trial_key,
)
from trainables.runtime import cli
from trainables.runtime.errors import UserError
from trainables.settings.config import flatten
from trainables.settings.yamlfile import nearest, read_yaml

__all__ = ["StudyTables", "answered", "command", "layout_of", "load", "named"]

STUDY_HELP = "a study's name, its results folder, or a released .parquet"
Trials = list[optuna.trial.FrozenTrial]


def command(
    module: str,
    purpose: str,
    analyse: Callable[[StudyTables], Section],
    argv: Sequence[str] | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    before: Callable[[StudyTables, argparse.Namespace], None] | None = None,
    keys_at_top: bool = False,
) -> int:
    """`python -m analysis.<module> STUDY`: one section alone, as text or, with --json, its data.

    options: further arguments, as add_argument takes them; before: what they ask for, done first; keys_at_top: the
    data's own keys stand at the document's top, too.
    """
    arguments = cli.parser(f"analysis.{module}", purpose, f"python -m analysis.{module} rooms")
    arguments.add_argument("study", metavar="STUDY", help=STUDY_HELP)
    for name, option in (options or {}).items():
        arguments.add_argument(name, **option)

    def body(args: argparse.Namespace) -> Any:
        tables = named(args.study)
        if before is not None:
            before(tables, args)
        document = answered(tables, analyse(tables))
        return {**document["data"], **document} if keys_at_top else document

    return cli.run(arguments, body, None if argv is None else list(argv))


def named(study: str) -> StudyTables:
    """The study that a command names, from its results folder or from a released table."""
    return read_table(Path(study)) if study.endswith(".parquet") else load(study)


def answered(tables: StudyTables, section: Section) -> dict[str, Any]:
    """Print a section and return its JSON document for the command."""
    print(section.text())
    data = {"answers": plain(section.answers), "data": plain(section.data)}
    return {"study": tables.name, **data, "notes": tables.notes}


def layout_of(study: str | Path) -> Layout:
    """The results folder of a study given by name, folder or file. Raises UserError where there is none."""
    if str(study).endswith((".yaml", ".yml")) and Path(study).is_file():
        study = str(read_yaml(Path(study)).value.get("name"))
    for root in (Path(study), RESULTS / str(study)):
        if Layout(root).ledger.exists() or Layout(root).study_file.exists():
            return Layout(root.resolve())
    known = sorted(path.parent.name for path in RESULTS.glob("*/study.yaml"))
    hint = nearest(str(study), known) or (f"; there are {', '.join(known)}" if known else "")
    raise UserError(f"{study}: neither a study in {RESULTS}/ nor a results folder{hint}; run it with study.run first")


def load(study: str | Path) -> StudyTables:
    """All tables and facts of a study, running, half finished or all failed; StudyTables says what a column means."""
    layout = layout_of(study)
    settings = read_yaml(layout.study_file).value if layout.study_file.exists() else {}
    phases = _read_ledger(layout, settings)
    attributes: dict[str, Any] = {}
    timings: dict[str, Any] = {}
    for attrs, _ in phases.values():
        timings |= attrs.get(StudyAttr.TIMINGS) or {}
        attributes = attrs | attributes
    settings = attributes.get(StudyAttr.STUDY) or settings
    judge = _judge(attributes.get(StudyAttr.JUDGE) or settings.get("judge"))
    notes: list[str] = []
    trials: list[dict[str, Any]] = []
    reports: list[dict[str, Any]] = []
    for phase, (_, members) in phases.items():
        for trial in members:
            key = str(trial.user_attrs.get(Attr.KEY) or trial_key(phase, trial.number))
            history = read_reports(layout.trial(key), notes)
            summary = read_json(layout.trial(key) / "summary.json", notes) or trial.user_attrs.get(Attr.SUMMARY) or {}
            reports += history
            trials.append(_trial_row(phase, key, trial, history, summary, judge))
    return StudyTables(
        name=str(settings.get("name") or layout.name),
        layout=layout,
        study=settings,
        judge=judge,
        judge_hash=attributes.get(StudyAttr.JUDGE_HASH),
        data=attributes.get(StudyAttr.DATA) or {},
        environment=attributes.get(StudyAttr.ENVIRONMENT) or {},
        timings=timings,
        spent=attributes.get(StudyAttr.SPENT),
        claims=[Claim.of(claim) for claim in attributes.get(StudyAttr.CLAIMS) or ()],
        claims_hash=attributes.get(StudyAttr.CLAIMS_HASH),
        planned={phase: attrs.get(StudyAttr.PLANNED) for phase, (attrs, _) in phases.items()},
        trials=trial_frame(trials),
        reports=report_frame(reports),
        evaluation=read_json(layout.evaluation / "evaluation.json", notes),
        notes=notes,
    )


def _read_ledger(layout: Layout, settings: Mapping[str, Any]) -> dict[str, tuple[dict[str, Any], Trials]]:
    """Per phase that has begun: the study's user attributes and its trials."""
    url = settings.get("ledger")
    if not url and not layout.ledger.exists():
        return {}
    address = str(url or f"sqlite:///file:{urllib.parse.quote(str(layout.ledger))}?mode=ro&uri=true")
    try:
        storage = optuna.storages.RDBStorage(address, skip_table_creation=True)
        studies = storage.get_all_studies()
        named = settings.get("name") if url else None  # a file holds one study, whatever its folder is called now
        result = {}
        for frozen in studies:
            name, _, phase = frozen.study_name.rpartition("/")
            if named in (None, name):
                found = storage.get_all_trials(storage.get_study_id_from_name(frozen.study_name), deepcopy=False)
                refuse_ablations(layout.root, {phase} if found else ())
                result[phase] = (frozen.user_attrs, found)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        where = layout.ledger if not url else "the ledger named in study.yaml"
        raise UserError(f"{where}: the ledger cannot be read ({str(error).splitlines()[0]}); restore it") from error
    return {phase: result[phase] for phase in PHASES if phase in result}


def _trial_row(
    phase: str,
    key: str,
    trial: optuna.trial.FrozenTrial,
    history: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    judge: Judge | None,
) -> dict[str, Any]:
    attrs = trial.user_attrs
    config = attrs.get(Attr.CONFIG) or {}
    value = judge.value(history) if judge else None
    told = list(trial.values or []) if trial.state.is_finished() else []
    ledger_value = told[0] if told else None
    last = history[-1] if history else {}
    started, ended = trial.datetime_start, trial.datetime_complete
    elapsed = (ended - started).total_seconds() if started and ended else math.nan
    row = {
        "key": key,
        "phase": phase,
        "number": trial.number,
        "group": str(attrs.get(Attr.GROUP) or key),
        "outcome": _outcome(trial),
        "reason": attrs.get(Attr.REASON),
        "detail": attrs.get(Attr.DETAIL),
        "step": attrs.get(Attr.STEP),
        "attempts": attrs.get(Attr.ATTEMPTS),
        "origin": attrs.get(Attr.ORIGIN),
        "value": ledger_value if value is None and not history else value,
        "ledger_value": ledger_value,
        DEVICE_SECONDS: told[1] if len(told) > 1 else None,
        "images": last.get("images"),
        "steps": last.get("step"),
        "seconds": summary.get("seconds", last.get("time/seconds", elapsed)),
        "started": started,
        "ended": ended,
    }
    row |= {name: config.get(name) for name in ("recipe", "stage", "variant", "seed")}
    row |= {f"config.{path}": v for path, v in flatten(dict(config)).items()} if config else {}
    row |= {f"param.{path}": v for path, v in trial.params.items()}
    return row | {f"summary.{path}": v for path, v in flatten(dict(summary)).items() if summary}


def _outcome(trial: optuna.trial.FrozenTrial) -> str:
    """The outcome that the study wrote; where a trial ended without one, what Optuna's state says."""
    states = optuna.trial.TrialState
    if trial.state in (states.RUNNING, states.WAITING):
        return RUNNING if trial.state == states.RUNNING else WAITING
    fallback = {states.COMPLETE: Outcome.COMPLETE, states.PRUNED: Outcome.PRUNED}.get(trial.state, Outcome.FAILED)
    return str(Outcome(trial.user_attrs.get(Attr.OUTCOME, fallback)))


def _judge(settings: Mapping[str, Any] | None) -> Judge | None:
    if not settings:
        return None
    return Judge(**{f.name: settings[f.name] for f in fields(Judge) if f.name in settings})
