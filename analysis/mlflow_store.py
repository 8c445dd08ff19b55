"""Tracking store as the analysis uses it: openings of the sealed test, the report, the champion.

MLflow is imported when the store is used, not before: most sections never use it. Only a study makes a store: where
that of a copied results folder is not at hand, none is made in its place.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from analysis.tables.tidy import StudyTables
from study.contract import EXPERIMENT, PARENT, Tag, masked, sqlite_file, store_lock, store_problem
from trainables.runtime import locks
from trainables.runtime.errors import UserError

OPENINGS = "DenseDepth sealed test"  # the experiment whose runs are the openings, of all studies
UI = "http://127.0.0.1:5000"  # where `make ui` serves a store that is a file
MOST_RUNS = 10_000
ALL_RUNS = 3  # mlflow.entities.ViewType.ALL: a run that was deleted in the UI is an opening all the same


def tracking_uri(tables: StudyTables) -> str | None:
    """The study's tracking store; a relative SQLite file lies beside results/, else here (a copied results folder)."""
    uri = (tables.study.get("tracking") or {}).get("uri")
    if not uri or not str(uri).startswith("sqlite:///"):
        return uri or None
    path = Path(str(uri).removeprefix("sqlite:///"))
    if not path.is_absolute() and tables.layout is not None:
        beside = tables.layout.root.parent.parent / path
        path = path if path.exists() and not beside.exists() else beside
    return f"sqlite:///{path.resolve()}"


@contextlib.contextmanager
def tracking_store(tables: StudyTables) -> Iterator[Any]:
    """MLflow's client, or None where the study has no store; a store that is missing or fails is a UserError."""
    uri = tracking_uri(tables)
    if uri is None:
        yield None
        return
    file = sqlite_file(uri)
    if tables.layout is not None and file is not None and not file.exists():
        raise UserError(
            f"tracking.uri: {file} is not there; put the study's store in this place, or fill one with study.run --sync"
        )
    defaults = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    for variable, value in defaults.items():
        os.environ.setdefault(variable, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import mlflow

    try:
        with locks.exclusive(store_lock(uri)):
            mlflow.set_tracking_uri(uri)
            client = mlflow.MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
        yield client
    except (mlflow.exceptions.MlflowException, SQLAlchemyError, OSError) as error:
        cause = masked(str(error).partition("\n")[0])
        raise UserError(
            f"tracking.uri: the store {masked(uri)} cannot be used ({cause}); start or repair it"
        ) from error


def openings(tables: StudyTables, fingerprint: str) -> int | None:
    """How often the tracking store saw these test data opened; None where the study has no tracking store."""
    with tracking_store(tables) as client:
        if client is None:
            return None
        experiment = client.get_experiment_by_name(OPENINGS)
        return 0 if experiment is None else len(_opened(client, experiment.experiment_id, fingerprint))


def record_opening(tables: StudyTables, fingerprint: str, facts: Mapping[str, str]) -> int | None:
    """Record one more opening, before anything is scored, and return how many there are now; None: no store.

    Raises UserError where the store does not take it: then nothing may be opened.
    """
    with tracking_store(tables) as client:
        if client is None:
            return None
        known = _writable(client, tables, OPENINGS) or client.create_experiment(OPENINGS)
        tags = {"test_data": fingerprint, Tag.STUDY: tables.name, **facts}
        run = client.create_run(known, tags=tags, run_name=f"opened by {tables.name}")
        client.set_terminated(run.info.run_id)
        return len(_opened(client, known, fingerprint))


def log_to_parent(tables: StudyTables, files: Mapping[str, Path], summary: str | None) -> bool:
    """Put files {folder: path} and a Markdown summary on the study's parent run; False where there is none."""
    with tracking_store(tables) as client:
        parent = None if client is None else _parent(client, tables)
        if client is None or parent is None:
            return False
        for folder, path in files.items():
            log = client.log_artifacts if path.is_dir() else client.log_artifact
            log(parent, str(path), folder or None)
        if summary is not None:
            client.set_tag(parent, "mlflow.note.content", summary)
        return True


def register(
    tables: StudyTables, name: str, champion: str, weights: str, make_version: Callable[[str], str]
) -> str | None:
    """Register a model under alias `champion`; `make_version(run_id)` logs it to the champion's run as a new version.

    Returns the registered version; one of the same champion and weights (their SHA-256), as its tags say, is used
    again. None: no store.
    """
    with tracking_store(tables) as client:
        if client is None:
            return None
        experiment = _writable(client, tables, EXPERIMENT)
        query = f"tags.{Tag.STUDY} = '{tables.name}' and tags.{Tag.KEY} = '{champion}'"
        runs = client.search_runs([experiment], query) if experiment else []
        if not runs:
            raise UserError(
                f"{champion}: its run is not in the tracking store; refill it with study.run --sync and try again"
            )
        for version in client.search_model_versions(f"name = '{name}'"):
            if (version.tags.get(Tag.KEY), version.tags.get(Tag.WEIGHTS)) == (champion, weights):
                client.set_registered_model_alias(name, "champion", version.version)
                return str(version.version)
        made = make_version(runs[0].info.run_id)
        client.set_terminated(runs[0].info.run_id, "FINISHED", runs[0].info.end_time)  # logging reopened the run
        client.set_registered_model_alias(name, "champion", made)
        return made


def run_pages(tables: StudyTables) -> dict[str, str]:
    """The MLflow UI's address of each training's run, by key; of a store that is a file, where `make ui` shows it."""
    if tables.layout is None:
        return {}  # a stranger's table must not choose what this machine connects to
    with tracking_store(tables) as client:
        experiment = None if client is None else client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return {}
        query = f"tags.{Tag.STUDY} = '{tables.name}'"
        uri = str(tracking_uri(tables))
        base = masked(uri).replace("***@", "").rstrip("/") if uri.startswith("http") else UI
        runs = client.search_runs([experiment.experiment_id], query, max_results=MOST_RUNS)
        return {
            run.data.tags[Tag.KEY]: f"{base}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}"
            for run in runs
            if Tag.KEY in run.data.tags
        }


def _opened(client: Any, experiment: str, fingerprint: str) -> Sequence[Any]:
    query = f"tags.test_data = '{fingerprint}'"
    runs: Sequence[Any] = client.search_runs([experiment], query, run_view_type=ALL_RUNS, max_results=MOST_RUNS)
    return runs


def _writable(client: Any, tables: StudyTables, name: str) -> str | None:
    """The id of an experiment, None where there is none. Raises UserError for one that cannot be written to."""
    found = client.get_experiment_by_name(name)
    if found is None:
        return None
    number, uri = str(found.experiment_id), str(tracking_uri(tables))
    problem = store_problem(uri, name, number, found.lifecycle_stage, found.artifact_location)
    if problem:
        raise UserError(problem)
    return number


def _parent(client: Any, tables: StudyTables) -> str | None:
    experiment = _writable(client, tables, EXPERIMENT)
    if experiment is None or tables.layout is None:
        return None
    query = f"tags.{Tag.STUDY} = '{tables.name}' and tags.{Tag.PHASE} = '{PARENT}'"
    runs = client.search_runs([experiment], query, max_results=1)
    return str(runs[0].info.run_id) if runs else None
