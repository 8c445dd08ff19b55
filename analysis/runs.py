"""From ledger and folders to tidy tables, and the analysis's only writes to the tracking store.

The ledger is opened read-only (SQLite's mode=ro), so a report can be made while a study runs and changes nothing.
MLflow is imported when it is written to, not before: most sections never do.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import math
import os
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy.exc import SQLAlchemyError

from analysis.section import Section, plain
from analysis.tables import (
    RUNNING,
    WAITING,
    StudyTables,
    read_json,
    read_reports,
    read_table,
    report_frame,
    trial_frame,
)
from study.contract import PHASES, RESULTS, Attr, Judge, Layout, Outcome, StudyAttr, Tag, trial_key
from trainables import cli
from trainables.config import flatten
from trainables.errors import UserError
from trainables.yamlfile import nearest, read_yaml

__all__ = ["StudyTables", "command", "layout_of", "load", "log_to_parent", "openings", "record_opening", "register"]

Trials = list[optuna.trial.FrozenTrial]
EXPERIMENT, PARENT = "DenseDepth", "study"  # where study/tracking.py keeps a study's runs
OPENINGS = "DenseDepth sealed test"  # the experiment whose runs are the openings, of all studies


def command(
    module: str, purpose: str, analyse: Callable[[StudyTables], Section], argv: Sequence[str] | None = None
) -> int:
    """`python -m analysis.<module> STUDY`: one section alone, as text or, with --json, its data."""
    arguments = cli.parser(f"analysis.{module}", purpose, f"python -m analysis.{module} rooms-quick")
    arguments.add_argument("study", metavar="STUDY", help="a study's name, its results folder, or a released .parquet")

    def body(args: argparse.Namespace) -> Any:
        tables = read_table(Path(args.study)) if args.study.endswith(".parquet") else load(args.study)
        section = analyse(tables)
        print(section.text())
        return {
            "study": tables.name,
            "answers": plain(section.answers),
            "data": plain(section.data),
            "notes": tables.notes,
        }

    return cli.run(arguments, body, None if argv is None else list(argv))


def layout_of(study: str | Path) -> Layout:
    """The results folder of a study given by name, folder or file. Raises UserError where there is none."""
    if str(study).endswith((".yaml", ".yml")) and Path(study).is_file():
        study = str(read_yaml(Path(study)).value.get("name"))
    for root in (Path(study), RESULTS / str(study)):
        if Layout(root).ledger.exists() or Layout(root).study_file.exists():
            return Layout(root.resolve())
    known = sorted(path.parent.name for path in RESULTS.glob("*/study.yaml"))
    hint = nearest(str(study), known) or (f"; there are {', '.join(known)}" if known else "")
    raise UserError(
        f"{study}: no study of that name in {RESULTS}/ and no results folder{hint}; run it by study.run first"
    )


def load(study: str | Path) -> StudyTables:
    """Everything known of a study, running, half finished or all failed; StudyTables says what a column means."""
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
            if phase in PHASES and named in (None, name):
                result[phase] = (
                    frozen.user_attrs,
                    storage.get_all_trials(storage.get_study_id_from_name(frozen.study_name), deepcopy=False),
                )
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
    ledger_value = trial.value if trial.state.is_finished() and trial.values else None
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
    return Judge(**{name: settings[name] for name in ("metric", "protocol", "report", "margins")})


def openings(tables: StudyTables, fingerprint: str) -> int | None:
    """How often the tracking store saw these test data opened; None where the study has no tracking store."""
    with _store(tables) as client:
        if client is None:
            return None
        experiment = client.get_experiment_by_name(OPENINGS)
        return 0 if experiment is None else len(_opened(client, experiment.experiment_id, fingerprint))


def record_opening(tables: StudyTables, fingerprint: str, facts: Mapping[str, str]) -> int | None:
    """Record one more opening, before anything is scored, and return how many there are now; None: no store.

    Raises UserError where the store does not take it: then nothing may be opened.
    """
    with _store(tables) as client:
        if client is None:
            return None
        experiment = client.get_experiment_by_name(OPENINGS)
        known = experiment.experiment_id if experiment is not None else client.create_experiment(OPENINGS)
        tags = {"test_data": fingerprint, Tag.STUDY: tables.name, **facts}
        run = client.create_run(known, tags=tags, run_name=f"opened by {tables.name}")
        client.set_terminated(run.info.run_id)
        return len(_opened(client, known, fingerprint))


def log_to_parent(tables: StudyTables, files: Mapping[str, Path], summary: str | None) -> bool:
    """Put files {folder: path} and a Markdown summary on the study's parent run; False where there is none."""
    with _store(tables) as client:
        parent = None if client is None else _parent(client, tables)
        if client is None or parent is None:
            return False
        for folder, path in files.items():
            log = client.log_artifacts if path.is_dir() else client.log_artifact
            log(parent, str(path), folder or None)
        if summary is not None:
            client.set_tag(parent, "mlflow.note.content", summary)
        return True


def register(tables: StudyTables, name: str, champion: str, log_model: Callable[[str], str]) -> str | None:
    """Register a model under alias `champion`; `log_model(run_id)` logs it to the champion's run and returns its URI.

    Returns the registered version; a version of the same champion is used again. None: no store.
    """
    with _store(tables) as client:
        if client is None:
            return None
        import mlflow

        experiment = client.get_experiment_by_name(EXPERIMENT)
        query = f"tags.{Tag.STUDY} = '{tables.layout.name if tables.layout else tables.name}'"
        runs = (
            []
            if experiment is None
            else client.search_runs([experiment.experiment_id], f"{query} and tags.{Tag.KEY} = '{champion}'")
        )
        if not runs:
            raise UserError(
                f"{champion}: its run is not in the tracking store; refill it by study.run --sync, then go on"
            )
        for version in client.search_model_versions(f"name = '{name}'"):
            if version.tags.get(Tag.KEY) == champion and version.run_id == runs[0].info.run_id:
                client.set_registered_model_alias(name, "champion", version.version)
                return str(version.version)
        uri = log_model(runs[0].info.run_id)
        client.set_terminated(runs[0].info.run_id, "FINISHED", runs[0].info.end_time)  # logging reopened the run
        made = mlflow.register_model(uri, name, tags={Tag.KEY: champion, Tag.STUDY: tables.name})
        client.set_registered_model_alias(name, "champion", made.version)
        return str(made.version)


def tracking_uri(tables: StudyTables) -> str | None:
    """The study's tracking store; a relative SQLite file is looked for here, then beside results/."""
    uri = (tables.study.get("tracking") or {}).get("uri")
    if not uri or not str(uri).startswith("sqlite:///"):
        return uri or None
    path = Path(str(uri).removeprefix("sqlite:///"))
    if not path.is_absolute() and not path.exists() and tables.layout is not None:
        path = tables.layout.root.parent.parent / path
    return f"sqlite:///{path.resolve()}"


@contextlib.contextmanager
def _store(tables: StudyTables) -> Iterator[Any]:
    """MLflow's client, or None without a store; its failures as a UserError. A fresh file is made under its lock."""
    uri = tracking_uri(tables)
    if uri is None:
        yield None
        return
    defaults = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    for variable, value in defaults.items():
        os.environ.setdefault(variable, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import mlflow

    try:
        with _fresh(uri):
            mlflow.set_tracking_uri(uri)
            client = mlflow.MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
        yield client
    except (mlflow.exceptions.MlflowException, SQLAlchemyError, ConnectionError) as error:
        shown = re.sub(r"//[^/@]*@", "//***@", uri)
        cause = str(error).splitlines()[0].replace(uri, shown)
        raise UserError(f"tracking.uri: the store {shown} does not take part ({cause}); start or mend it") from error


@contextlib.contextmanager
def _fresh(uri: str) -> Iterator[None]:
    """study/tracking.py's lock beside an SQLite store: two processes that make a fresh one at once spoil it."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    path = Path(uri.removeprefix("sqlite:///"))
    with path.with_name(f".{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _opened(client: Any, experiment: str, fingerprint: str) -> Sequence[Any]:
    runs: Sequence[Any] = client.search_runs([experiment], f"tags.test_data = '{fingerprint}'", max_results=10_000)
    return runs


def _parent(client: Any, tables: StudyTables) -> str | None:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None or tables.layout is None:
        return None
    query = f"tags.{Tag.STUDY} = '{tables.layout.name}' and tags.{Tag.PHASE} = '{PARENT}'"
    runs = client.search_runs([experiment.experiment_id], query, max_results=1)
    return str(runs[0].info.run_id) if runs else None
