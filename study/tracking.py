"""MLflow mirror of ledger and results folder, which can be filled again from them at any time.

One parent run per study, flat children found by their tag. The results folder is the spool: a training's reports are
sent again with their original times, which MLflow stores once. A thread of the driver does it all, so no call to MLflow
ever holds up a training; where MLflow is away it tries again, and says at the end what is missing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import re
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

from study.contract import (
    ARTIFACTS,
    EXPERIMENT,
    MLFLOW_STATUS,
    PARENT,
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
LIMITS = {"param": 6000, "tag": 5000, "batch": 900, "params": 90, "digest": 36}


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


def record_of(entry: Entry, layout: Layout) -> Record:
    """The mirror's view of a ledger entry."""
    ended = None if entry.ended is None else int(entry.ended.timestamp() * 1000)
    started = int(entry.started.timestamp() * 1000)
    folder = layout.trial(entry.key)
    return Record(
        entry.key, entry.phase, entry.group, entry.config, entry.outcome, entry.reason, started, ended, folder
    )


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
        self._send_reports(run, record)
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
        self.described.discard(key)

    def end_parent(self, *, finished: bool) -> None:
        """Give the parent its study and, when all phases have ended, its end."""
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
            found = self.client.create_run(self.experiment, record.started_ms, tags, run_name=record.key)
        run = str(found.info.run_id)
        if found.data.tags.get(PARENT_RUN) != self.parent:  # that one was deleted
            self.client.set_tag(run, PARENT_RUN, self.parent)
        if found.info.status != "RUNNING":
            if record.outcome is not None and found.data.tags.get(Tag.OUTCOME) == record.outcome.value:
                self.ended.add(record.key)  # the end is the last thing that is sent
                return run
            self.client.update_run(run, status="RUNNING")
        self.runs[record.key] = run
        return run

    def _describe(self, run: str, record: Record) -> None:
        """Settings as params, the data as an input with its digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        params = [Param(k, json.dumps(v)[: LIMITS["param"]]) for k, v in flatten(dict(record.config)).items()]
        for start in range(0, len(params), LIMITS["params"]):
            self.client.log_batch(run, params=params[start : start + LIMITS["params"]])
        block = record.config["data"]
        digest = str(self.data.get("train", ""))[: LIMITS["digest"]]
        source = json.dumps({"uri": block["root"] or block["source"]})
        dataset = Dataset(block["source"], digest, "local", source)
        self.client.log_inputs(run, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def _send_reports(self, run: str, record: Record) -> None:
        from mlflow.entities import Metric

        path = record.folder / "reports.jsonl"
        reports = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        new = reports[self.sent.get(record.key, 0) :]
        metrics = [
            Metric(name, float(value), int(report["time_s"] * 1000), int(report["images"]))
            for report in new
            for name, value in report["metrics"].items()
            if math.isfinite(value)
        ]
        for start in range(0, len(metrics), LIMITS["batch"]):
            self.client.log_batch(run, metrics=metrics[start : start + LIMITS["batch"]])
        self.sent[record.key] = len(reports)


def failures() -> tuple[type[Exception], ...]:
    """What a store that is away raises."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, OSError, SQLAlchemyError)


RETRY_S = (1.0, 30.0)  # first and longest wait after a failed call


class Mirror:
    """Sends records to MLflow from a thread of its own. It is a listener of the session."""

    def __init__(self, uri: str, layout: Layout, study: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        self.uri, self.layout, self.study, self.data = uri, layout, study, data
        self.queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self.waiting: dict[str, Record] = {}
        self.problem: str | None = None  # the last call's failure; None: it went well
        self.crash: BaseException | None = None
        self.closing: float | None = None  # when to give up
        self.thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self.thread.start()

    def started(self, entry: Entry) -> None:
        self.queue.put(record_of(entry, self.layout))

    def reported(self, entry: Entry, images: int, metrics: dict[str, float]) -> None:
        self.queue.put(record_of(entry, self.layout))

    def ended(self, entry: Entry) -> None:
        self.queue.put(record_of(entry, self.layout))

    def close(self, wait_s: float, *, finished: bool) -> str | None:
        """Send what is left; a sentence about what could not be sent, or None. A store that fails gets `wait_s`, one
        that works as long as it takes.
        """
        self.finished = finished
        self.closing = time.monotonic() + wait_s
        self.queue.put(None)
        while self.thread.is_alive() and (self.problem is None or time.monotonic() < self.closing + 2 * TIMEOUT_S):
            self.thread.join(0.2)
        if self.crash is not None:
            raise self.crash
        self._collect(block=False)  # what came while the thread was at its last call
        if not self.waiting and not self.thread.is_alive() and self.problem is None:
            return None
        count = f"{len(self.waiting)} training{'' if len(self.waiting) == 1 else 's'}"
        missing, send = (count, "send them") if self.waiting else ("the end of the study", "send it")
        cause = f" ({self.problem})" if self.problem else ""
        return f"MLflow at {masked(self.uri)} lacks {missing}{cause}; {send} with --sync"

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # shown by close: a bug must not vanish with its thread
            self.crash = error

    def _work(self) -> None:
        client: Client | None = None
        away: tuple[type[Exception], ...] = (*failures(), UserError)
        pause, ending = RETRY_S[0], False
        while True:
            ending = self._collect(block=not (self.waiting or ending)) or ending
            try:
                if client is None:
                    client = Client(self.uri, self.layout, self.study, self.data)
                for key, record in list(self.waiting.items()):
                    client.sync(record)
                    if self.waiting[key] is record:
                        del self.waiting[key]
                if ending and not self.waiting:
                    client.end_parent(finished=self.finished)
                    self.problem = None
                    return
                self.problem, pause = None, RETRY_S[0]
            except away as error:
                said = str(error) if isinstance(error, UserError) else cause_of(error, self.uri)
                self.problem, client = said, None
                if self.closing is not None and time.monotonic() > self.closing:
                    return
                self._wait(pause)
                pause = min(2 * pause, RETRY_S[1])

    def _collect(self, *, block: bool) -> bool:
        """Take what has come in, the newest of each training; True when the end has been asked for."""
        with contextlib.suppress(queue.Empty):
            record = self.queue.get(timeout=None if block else 0)
            while True:
                if record is None:
                    return True
                self.waiting[record.key] = record
                record = self.queue.get_nowait()
        return False

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and (self.closing is None or time.monotonic() < self.closing):
            time.sleep(0.2)
