"""Mirror of a running study in MLflow: a thread of the driver, so no call to MLflow ever holds up a training.

Where MLflow is away it tries again, and says at the end what is missing.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

from study.contract import Layout, masked
from study.ledger import Entry
from study.tracking import TIMEOUT_S, Client, Record, cause_of, failures, record_of
from trainables.runtime.errors import UserError

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
