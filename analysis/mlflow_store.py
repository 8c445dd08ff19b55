"""Writes of the analysis to the tracking store: openings of the sealed test, the report, the champion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.runs import tracking_store, tracking_uri
from analysis.tables.tidy import StudyTables
from study.contract import EXPERIMENT, PARENT, Tag, masked
from trainables.runtime.errors import UserError

OPENINGS = "DenseDepth sealed test"  # the experiment whose runs are the openings, of all studies
UI = "http://127.0.0.1:5000"  # where `make ui` serves a store that is a file
MOST_RUNS = 10_000
ALL_RUNS = 3  # mlflow.entities.ViewType.ALL: a run that was deleted in the UI is an opening all the same


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
        experiment = client.get_experiment_by_name(OPENINGS)
        known = experiment.experiment_id if experiment is not None else client.create_experiment(OPENINGS)
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
        experiment = client.get_experiment_by_name(EXPERIMENT)
        query = f"tags.{Tag.STUDY} = '{tables.layout.name if tables.layout else tables.name}'"
        runs = (
            []
            if experiment is None
            else client.search_runs([experiment.experiment_id], f"{query} and tags.{Tag.KEY} = '{champion}'")
        )
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
        query = f"tags.{Tag.STUDY} = '{tables.layout.name}'"
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


def _parent(client: Any, tables: StudyTables) -> str | None:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None or tables.layout is None:
        return None
    query = f"tags.{Tag.STUDY} = '{tables.layout.name}' and tags.{Tag.PHASE} = '{PARENT}'"
    runs = client.search_runs([experiment.experiment_id], query, max_results=1)
    return str(runs[0].info.run_id) if runs else None
