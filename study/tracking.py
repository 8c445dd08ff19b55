"""MLflow mirror of ledger and results folder, which can be filled again from them at any time.

One parent run per study, flat children found by their tag. The results folder is the spool: a training's reports are
sent again with their original times, which MLflow stores once; a run's tag says which pictures it has. study/mirror.py
calls it from a thread.

MLflow's own monitor of system metrics is not used: it would measure the driver's process, not the trainings'. What
these measure of their devices is shown in its place.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

from PIL import Image

from study.contract import (
    ARTIFACTS,
    EXPERIMENT,
    MLFLOW_STATUS,
    PARENT,
    PREVIEWS,
    Layout,
    Outcome,
    Tag,
    local_folder,
    masked,
    sqlite_file,
    store_lock,
    store_problem,
)
from study.ledger import Entry
from trainables.runtime import locks
from trainables.runtime.errors import UserError
from trainables.settings.config import flatten

SENT = ("trace.parquet", "preview.png", "summary.json", "config.json")
TIMEOUT_S = 3
NO_SERVER = "what answers there is no MLflow server"
SHOWN_AS = {"mlflow.experimentKind": "custom_model_development"}  # else the UI opens on its pages for language models
PARENT_RUN = "mlflow.parentRunId"  # MLflow's own tag
SYSTEM = ("device/", "memory/")  # metrics that MLflow's UI shows as those of the system, by the prefix system/
PICTURES = "validation"  # name of the reports' pictures
LATEST, BEST = "latest", "best"  # of trainables/training/checkpoint.py, which needs torch
PAGE = 1000  # of a search
LIMITS = {"param": 6000, "tag": 5000, "batch": 900, "params": 90, "digest": 36, "name": 120}


@dataclass(frozen=True)
class Record:
    """A training as the mirror sees it, at one moment."""

    key: str
    phase: str
    group: str
    config: Mapping[str, Any]
    outcome: Outcome | None
    reason: str | None
    started_ms: int
    ended_ms: int | None
    folder: Path
    title: str  # its key, and what sets it apart from the study's other trainings


def record_of(entry: Entry, layout: Layout) -> Record:
    """The mirror's view of a ledger entry."""
    ended = None if entry.ended is None else int(entry.ended.timestamp() * 1000)
    started = int(entry.started.timestamp() * 1000)
    folder = layout.trial(entry.key)
    title = f"{entry.key} {difference(entry)}"[: LIMITS["name"]]
    return Record(
        entry.key, entry.phase, entry.group, entry.config, entry.outcome, entry.reason, started, ended, folder, title
    )


def difference(entry: Entry) -> str:
    """What sets a training apart from the study's others, in a few words: what it searches, claims or repeats."""
    seed = f"seed {entry.seed}"
    if entry.phase == "search":
        return ", ".join(f"{path.rpartition('.')[2]}={_short(value)}" for path, value in entry.searched.items()) or seed
    if entry.phase == "claims":
        what = ", ".join(f"{served['claim']}: {served['arm']}" for served in entry.origin)
    else:
        what = f"repeats {entry.origin}" if entry.phase == "confirm" else str(entry.config["recipe"])
    return f"{what}, {seed}" + (f", stage {entry.stage + 1}" if entry.stage else "")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def check_reachable(uri: str) -> None:
    """Raise UserError where MLflow's store cannot be used; asked before the first training, by the mirror's own calls.

    An SQLite file that is not there yet is left to the mirror's thread: MLflow takes seconds to make one.
    """
    file = sqlite_file(uri)
    try:
        if file is None:
            _check_database(uri)
        elif not _check_file(file):
            return
        with locks.exclusive(store_lock(uri)):
            experiment_of(connect(uri), uri)
    except failures() as error:
        raise UserError(
            f"tracking.uri: {masked(uri)} cannot be used ({cause_of(error, uri)}); "
            "start or repair it, or use tracking.uri: null"
        ) from error


def _check_file(file: Path) -> bool:
    """Whether an SQLite store is there already. Raises UserError or OSError where it cannot be opened or written to;
    MLflow would try again for minutes.
    """
    if file.is_dir():
        raise UserError(f"tracking.uri: {file} is a folder; name a file or null")
    there = file.exists() and file.stat().st_size > 0
    for path in (file.parent, *([file] if file.exists() else [])):
        if not os.access(path, os.W_OK):
            what = "file" if path == file else "folder"
            raise UserError(f"tracking.uri: {path} is not a writable {what}; name another file or null")
    if there:
        try:
            with contextlib.closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
                connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.Error as error:
            raise OSError(str(error)) from error
    return there


def _check_database(uri: str) -> None:
    """Connect to a database server, within a time; MLflow itself would try again for minutes."""
    if urlsplit(uri).scheme in ("http", "https"):
        return
    from sqlalchemy import create_engine

    try:
        create_engine(uri, connect_args={"connect_timeout": TIMEOUT_S}).connect().close()
    except (ImportError, ValueError) as error:  # no driver; a port that is no number
        raise OSError(str(error)) from error


def connect(uri: str) -> Any:
    """MLflow's client, which gives up soon and prints nothing."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_S))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import logging

    from mlflow import MlflowClient  # sets its loggers anew

    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # the mirror reports a failed call in a sentence
    return MlflowClient(tracking_uri=uri)


def experiment_of(client: Any, uri: str) -> str:
    """The id of the experiment that holds all studies, made where it is missing.

    Raises UserError where it cannot be used as it is, and what `failures` lists where the store does not take writes.
    """
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        file = sqlite_file(uri)
        place = None if file is None else (file.parent / ARTIFACTS).as_uri()
        try:
            made = str(client.create_experiment(EXPERIMENT, artifact_location=place, tags=SHOWN_AS))
        except failures():
            if client.get_experiment_by_name(EXPERIMENT) is None:
                raise
            return experiment_of(client, uri)  # another study has made it in this moment
        if not made:
            raise OSError(NO_SERVER)
        return made
    number = str(found.experiment_id)
    if not number:
        raise OSError(NO_SERVER)
    problem = store_problem(uri, EXPERIMENT, number, found.lifecycle_stage, found.artifact_location)
    if problem:
        raise UserError(problem)
    folder = local_folder(found.artifact_location)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise UserError(f"tracking.uri: MLflow keeps files in {folder}, which is not writable; make it writable")
    for name, value in SHOWN_AS.items():
        client.set_experiment_tag(number, name, value)
    return number


UNANSWERED = re.compile(r"API request to \S+ failed with exception (?:.*\(Caused by \w+\((.*)\)\)|(.*))$")


def cause_of(error: BaseException, uri: str) -> str:
    """A failed call's error in one line, without passwords, with the proxy through which it went."""
    said = " ".join(masked(str(error).partition("\n")[0]).split()) or type(error).__name__
    if unanswered := UNANSWERED.match(said):
        inner = str(unanswered[1] or unanswered[2]).strip("'\"")
        said = f"it does not answer: {re.sub(r'^HTTPS?Connection(Pool)?[(].*?[)]: ', '', inner)}"
    parts = urlsplit(uri)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        return f"{said[:200]}; asked through the proxy {masked(proxy)}, which NO_PROXY={parts.hostname} would leave out"
    return said[:300]


class Client:
    """MLflow's runs of one study, as they are when it is made. After a failed call make another: a run that was deleted
    in the meantime is made again.
    """

    def __init__(self, uri: str, layout: Layout, study: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        self.layout, self.study, self.data = layout, study, data
        with locks.exclusive(store_lock(uri)):
            self.client = connect(uri)
            self.experiment = experiment_of(self.client, uri)
        self.runs: dict[str, str] = {}
        self.sent: dict[str, int] = {}  # reports of a run that are there
        self.pictured: dict[str, int] = {}  # the images seen at the last report whose picture is there
        self.described: set[str] = set()
        self.ended: set[str] = set()
        self.parent = self._parent()

    def sync(self, record: Record) -> None:
        """Bring one training's run to the record's state."""
        if record.key in self.ended:
            return
        run = self.runs.get(record.key) or self._child(record)
        if record.key in self.ended:
            return
        if record.key not in self.described:
            self._describe(run, record)
            self.described.add(record.key)
        reports = _reports(record.folder)
        self._send_reports(run, record.key, reports)
        self._send_pictures(run, record, reports)
        if record.outcome is None:
            return
        for name in SENT:
            if (record.folder / name).exists():
                self.client.log_artifact(run, str(record.folder / name))
        self.client.set_tag(run, Tag.OUTCOME, record.outcome.value)
        if record.reason:
            self.client.set_tag(run, Tag.REASON, record.reason[: LIMITS["tag"]])
        self.client.set_terminated(run, MLFLOW_STATUS.get(record.outcome, "FAILED"), record.ended_ms)
        self._end(record.key)

    def _end(self, key: str) -> None:
        """A run is complete: keep nothing else of it."""
        self.ended.add(key)
        self.runs.pop(key)
        self.sent.pop(key, None)
        self.pictured.pop(key, None)
        self.described.discard(key)

    def end_parent(self, *, finished: bool) -> None:
        """Give the parent its study, its list of models and, when all phases have ended, its end."""
        self._list_models()
        for path in (self.layout.study_file, self.layout.log):
            if path.exists():
                self.client.log_text(self.parent, masked(path.read_text()), path.name)
        self.client.set_terminated(self.parent, "FINISHED" if finished else "KILLED")

    def _find(self, **tags: str) -> Any:
        wanted = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
        runs = self.client.search_runs([self.experiment], wanted, max_results=1)
        return runs[0] if runs else None

    def _parent(self) -> str:
        name = self.layout.name
        found = self._find(**{Tag.STUDY: name, Tag.PHASE: PARENT})
        run = found or self.client.create_run(
            self.experiment,
            tags={Tag.STUDY: name, Tag.PHASE: PARENT, "results": str(self.layout.root.resolve())},
            run_name=name,
        )
        self.client.update_run(run.info.run_id, status="RUNNING")
        return str(run.info.run_id)

    def _child(self, record: Record) -> str:
        found = self._find(**{Tag.STUDY: self.layout.name, Tag.KEY: record.key})
        if found is None:
            tags = {
                PARENT_RUN: self.parent,
                Tag.STUDY: self.layout.name,
                Tag.PHASE: record.phase,
                Tag.KEY: record.key,
                Tag.RECIPE: str(record.config["recipe"]),
                Tag.SEED: str(record.config["seed"]),
                Tag.GROUP: record.group[: LIMITS["tag"]],
            }
            found = self.client.create_run(self.experiment, record.started_ms, tags, run_name=record.title)
        run = str(found.info.run_id)
        if found.data.tags.get(PARENT_RUN) != self.parent:  # that one was deleted
            self.client.set_tag(run, PARENT_RUN, self.parent)
        if found.info.status != "RUNNING":
            if record.outcome is not None and found.data.tags.get(Tag.OUTCOME) == record.outcome.value:
                self.ended.add(record.key)  # the end is the last thing that is sent
                return run
            self.client.update_run(run, status="RUNNING")
        self.runs[record.key] = run
        self.pictured[record.key] = int(found.data.tags.get(Tag.PICTURES, -1))
        return run

    def _describe(self, run: str, record: Record) -> None:
        """Settings as params, the data as an input with its digest."""
        from mlflow.entities import DatasetInput, InputTag, Param

        params = [Param(k, json.dumps(v)[: LIMITS["param"]]) for k, v in flatten(dict(record.config)).items()]
        for start in range(0, len(params), LIMITS["params"]):
            self.client.log_batch(run, params=params[start : start + LIMITS["params"]])
        data = self._dataset(record.config)
        self.client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])

    def _dataset(self, config: Mapping[str, Any]) -> Any:
        """The training's data, as MLflow knows data."""
        from mlflow.entities import Dataset

        block = config["data"]
        digest = str(self.data.get("train", ""))[: LIMITS["digest"]]
        return Dataset(block["source"], digest, "local", json.dumps({"uri": block["root"] or block["source"]}))

    def _send_reports(self, run: str, key: str, reports: Sequence[Mapping[str, Any]]) -> None:
        new = reports[self.sent.get(key, 0) :]
        metrics = [metric for report in new for metric in _metrics(report)]
        for start in range(0, len(metrics), LIMITS["batch"]):
            self.client.log_batch(run, metrics=metrics[start : start + LIMITS["batch"]])
        self.sent[key] = len(reports)

    def _send_pictures(self, run: str, record: Record, reports: Sequence[Mapping[str, Any]]) -> None:
        """Send the pictures of reports that are not there yet. MLflow would show one that is sent again twice."""
        times = {int(report["images"]): int(report["time_s"] * 1000) for report in reports}
        for images in sorted(images for images in times if images > self.pictured[record.key]):
            path = record.folder / PREVIEWS / f"{images}.jpg"
            if not path.exists():  # not every report has one
                continue
            with Image.open(path, formats=["JPEG"]) as picture:
                self.client.log_image(
                    run, picture, key=PICTURES, step=images, timestamp=times[images], synchronous=True
                )
            self.client.set_tag(run, Tag.PICTURES, str(images))
            self.pictured[record.key] = images

    def _list_models(self) -> None:
        """Make MLflow's models of this study those of the checkpoints that are kept, which stay where they are."""
        listed = {}
        query = f"tags.{Tag.STUDY} = '{self.layout.name}'"
        for model in _pages(self.client.search_logged_models, [self.experiment], query):
            whole = model.tags[Tag.CHECKPOINT] if model.status == "READY" else model.model_id  # else half listed
            listed[whole, model.tags[Tag.WEIGHTS]] = model
        complete = f"{query} and tags.{Tag.OUTCOME} = '{Outcome.COMPLETE}'"
        for run in _pages(self.client.search_runs, [self.experiment], complete):
            for name in (BEST, LATEST):
                folder = self.layout.trial(run.data.tags[Tag.KEY]) / "checkpoints" / name
                if (folder / "SHA256.json").is_file():
                    weights = json.loads((folder / "SHA256.json").read_text())["weights.safetensors"]
                    place = str(folder.relative_to(self.layout.root))
                    if listed.pop((place, weights), None) is None:
                        self._list_model(run, folder, {Tag.CHECKPOINT: place, Tag.WEIGHTS: weights})
        for model in listed.values():
            self.client.delete_logged_model(model.model_id)

    def _list_model(self, run: Any, folder: Path, tags: Mapping[str, str]) -> None:
        """Add a checkpoint to the models, with the validation of its report, tied to the data."""
        from mlflow.entities import LoggedModelOutput, Metric

        state, config = (json.loads((folder / name).read_text()) for name in ("state.json", "config.json"))
        report = state["report"] if "report" in state else state["history"][-1]
        key, number, data = run.data.tags[Tag.KEY], run.info.run_id, self._dataset(config)
        model = self.client.create_logged_model(
            self.experiment,
            name=f"{key}-{folder.name}",
            source_run_id=number,
            tags={Tag.STUDY: self.layout.name, Tag.KEY: key, Tag.PHASE: run.data.tags[Tag.PHASE], **tags},
            params={name: str(config[name]) for name in ("recipe", "seed")} | {"images": str(report["images"])},
            model_type="depth",
        )
        scores = [
            Metric(m.key, m.value, m.timestamp, m.step, model.model_id, data.name, data.digest, number)
            for m in _metrics(report)
            if m.key.startswith("val/")
        ]
        self.client.log_batch(number, metrics=scores)
        self.client.log_outputs(number, [LoggedModelOutput(model.model_id, int(report["images"]))])
        self.client.finalize_logged_model(model.model_id, "READY")


def _reports(folder: Path) -> list[dict[str, Any]]:
    """A training's reports so far."""
    path = folder / "reports.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _metrics(report: Mapping[str, Any]) -> list[Any]:
    """A report's finite metrics, as MLflow knows metrics."""
    from mlflow.entities import Metric

    return [
        Metric(
            f"system/{name}" if name.startswith(SYSTEM) else name,
            float(value),
            int(report["time_s"] * 1000),
            int(report["images"]),
        )
        for name, value in report["metrics"].items()
        if math.isfinite(value)
    ]


def _pages(search: Callable[..., Any], *asked: Any) -> Iterator[Any]:
    """All that a search of MLflow's finds, page by page."""
    token = None
    while True:
        page = search(*asked, max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def failures() -> tuple[type[Exception], ...]:
    """What a store that is away raises."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, OSError, SQLAlchemyError)
