"""MLflow mirror of ledger and results folder, which can be filled again from them at any time.

One parent run per study, flat children found by their tag. The results folder is the spool: a training's reports are
sent again with their original times, which MLflow stores once. A thread of the driver does it all, so no call to MLflow
ever holds up a training; where MLflow is away it tries again, and says at the end what is missing.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from study.contract import (
    EXPERIMENT,
    MLFLOW_STATUS,
    PARENT,
    Layout,
    Outcome,
    Tag,
    masked,
    sqlite_file,
    store_lock,
)
from study.ledger import Entry
from trainables.runtime import locks
from trainables.runtime.errors import UserError
from trainables.settings.config import flatten

ARTIFACTS = ("trace.parquet", "preview.png", "summary.json", "config.json")
TIMEOUT_S = 3
SHOWN_AS = {"mlflow.experimentKind": "custom_model_development"}  # else the UI opens on its pages for language models
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
    """Raise UserError where MLflow's store cannot be used; asked before the first training."""
    shown = masked(uri)
    parts = urlsplit(uri)
    file = sqlite_file(uri)
    if file is not None:
        folder = file.parent
        if not os.access(folder, os.W_OK):
            raise UserError(f"tracking.uri: {folder} is not a writable folder; name another file or null")
    elif parts.scheme in ("http", "https"):
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", f"{parts.path.rstrip('/')}/health")
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            raise UserError(
                f"tracking.uri: {shown} does not answer ({error}); start it, or use tracking.uri: null"
            ) from error
        finally:
            connection.close()
        if status >= 500:
            raise UserError(f"tracking.uri: {shown} answers with error {status}; repair it, or use tracking.uri: null")
    else:
        from sqlalchemy import create_engine
        from sqlalchemy.exc import SQLAlchemyError

        try:
            engine = create_engine(uri, connect_args={"connect_timeout": TIMEOUT_S})
            engine.connect().close()
        except (SQLAlchemyError, ImportError) as error:
            cause = str(error).splitlines()[0].replace(uri, shown)
            raise UserError(f"tracking.uri: {shown} cannot be opened ({cause}); start it, or use null") from error


class Client:
    """MLflow's runs of one study; every method may be called again after it failed."""

    def __init__(self, uri: str, layout: Layout, study: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_S))
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import logging

        from mlflow import MlflowClient  # sets its loggers anew

        logging.getLogger("alembic").setLevel(logging.ERROR)
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # the mirror reports a failed call in a sentence
        self.layout, self.study, self.data = layout, study, data
        with locks.exclusive(store_lock(uri)):
            self.client = MlflowClient(tracking_uri=uri)
            self.experiment = self._experiment(uri)
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
        for name in ARTIFACTS:
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

    def _experiment(self, uri: str) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        file = sqlite_file(uri)
        place = None if file is None else (file.parent / "mlartifacts").as_uri()
        return str(self.client.create_experiment(EXPERIMENT, artifact_location=place, tags=SHOWN_AS))

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
                "mlflow.parentRunId": self.parent,
                Tag.STUDY: self.layout.name,
                Tag.PHASE: record.phase,
                Tag.KEY: record.key,
                Tag.RECIPE: str(record.config["recipe"]),
                Tag.SEED: str(record.config["seed"]),
                Tag.GROUP: record.group[: LIMITS["tag"]],
            }
            found = self.client.create_run(self.experiment, record.started_ms, tags, run_name=record.key)
        run = str(found.info.run_id)
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
        cause = f" ({self.problem})" if self.problem else ""
        return f"MLflow at {masked(self.uri)} lacks {count}{cause}; send them with --sync"

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # shown by close: a bug must not vanish with its thread
            self.crash = error

    def _work(self) -> None:
        client: Client | None = None
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
            except failures() as error:
                self.problem = masked(str(error).splitlines()[0])[:200] if str(error) else type(error).__name__
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
