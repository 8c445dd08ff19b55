"""A running study: trainings given to workers, and what these say of them until each has ended.

A training whose worker ends silently is started again from its checkpoint; it has failed when the next one ends so,
too, before anything new is reported.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.endings import Endings, Listener, pruned
from study.ledger import Entry, Ledger, Pruning
from study.plan import Plan
from study.schedule import Schedule
from study.search.space import make_pruner
from trainables.message import Message

FINISHED = "FINISHED"
STOP_WAIT_S = 25.0  # for trainings to stop at a checkpoint; schedulers of clusters kill after 30 s


@dataclass
class Live:
    """A training that a worker has. `ending`: how it ended, as the worker or the session said."""

    entry: Entry
    heard: float | None = None  # time.monotonic() of its last sign of life; None: its worker has not begun
    ending: Message | None = None


class Stop:
    """Request to stop every training at a checkpoint: a file that each sees, wherever it runs."""

    def __init__(self, file: Path) -> None:
        self.file, self.deadline = file, math.inf
        self.withdraw()

    @property
    def asked(self) -> bool:
        """Whether it was made."""
        return self.deadline < math.inf

    @property
    def overdue(self) -> bool:
        """Whether the trainings have had the time to."""
        return time.monotonic() > self.deadline

    def ask(self) -> None:
        """Make it."""
        self.deadline = time.monotonic() + STOP_WAIT_S
        self.file.touch()

    def withdraw(self) -> None:
        """Remove the file, which a later run must not find."""
        self.file.unlink(missing_ok=True)


class Session:
    """One run of a study over its ledger. capacity: how many trainings fit at once. devices: of one training."""

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        listeners: Sequence[Listener],
        capacity: Callable[[], int],
        memory_kills: Callable[[], int],
        budget: Callable[[], str | None] = lambda: None,
        devices: float = 1.0,
    ) -> None:
        self.ledger, self.listeners, self.capacity = ledger, listeners, capacity
        self.stop = Stop(ledger.layout.root / "stop")
        self.pruning = Pruning(ledger, make_pruner(plan.study))
        self.endings = Endings(plan, ledger, listeners, memory_kills, devices)
        self.schedule = Schedule(plan, ledger, self.pruning, self.endings, budget)
        self.live: dict[str, Live] = {}
        self.blocked: str | None = None  # what on the disk is in the trainings' way

    def next(self, worker: str) -> dict[str, Any] | str | None:
        """What a worker is to train; None: wait; FINISHED: nothing is left."""
        if self.stop.asked:
            return None if self.live else FINISHED
        if len(self.live) >= self.capacity():
            return None
        entry = self.schedule.next()
        if entry is None:
            return None if self.live else FINISHED
        self.ledger.start(entry)
        self.live[worker] = Live(entry)
        for listener in self.listeners:
            listener.started(entry)
        metric = f"val/{self.ledger.judge.metric}"
        places = {"folder": self.ledger.layout.trial(entry.key), "stop": self.stop.file, "cwd": Path()}
        return {"config": json.dumps(entry.config), "metric": metric} | {k: str(p.resolve()) for k, p in places.items()}

    def stopped(self) -> bool:
        """Whether all have stopped after they were asked to, or have had the time to."""
        ended = all(live.ending is not None for live in self.live.values())
        return self.stop.asked and (ended or self.stop.overdue)

    def began(self, worker: str) -> None:
        """A worker has its process and begins."""
        if worker in self.live:
            self.live[worker].heard = time.monotonic()

    def take(self, worker: str, message: Message) -> bool:
        """Take a message; False: stop the training."""
        live = self.live.get(worker)
        if live is None or live.ending is not None:
            return live is not None  # after its end: ignored
        live.heard = time.monotonic()
        report = message.report
        if report is None:
            live.ending = message
            if message.kind == "blocked":
                self.blocked = self.blocked or f"{live.entry.key}: {message.reason}"
                self.stop.ask()
            return not message.resumable  # after an error the worker raises next, so that Tune sees it, too
        entry, images, metrics = live.entry, int(report["images"]), report["metrics"]
        new = self.ledger.report(entry, images, metrics[f"val/{self.ledger.judge.metric}"])
        if new and entry.deaths:
            self.ledger.set_deaths(entry, 0)  # the training has got further since
        if new or images == max(entry.history):
            for listener in self.listeners:
                listener.reported(entry, images, metrics)
            if entry.phase == "search" and not report["final"] and self.pruning.gives_up(entry):
                live.ending = pruned(images)
                return False
        return True

    def ended(self, worker: str, *, error: bool, detail: str, last: Message | None = None) -> None:
        """A worker is done with its training, by its own account (`last`, where it completed it) or by dying."""
        live = self.live.pop(worker, None)
        if live is None:
            return
        entry, ending = live.entry, live.ending
        if ending is not None and ending.resumable:
            return  # it stays running in the ledger
        if ending is None and error:
            ending = self.endings.of_death(entry, detail)
            if ending is None:
                self.schedule.put_back(entry)
                return
        if error:
            self.endings.clear(entry)
        self.endings.finish(entry, ending or (last if last is not None and last.ends else Message("complete")))

    def silent(self, limit_s: float) -> list[str]:
        """Workers that have said nothing for longer than the limit; they are marked as failed."""
        now, found = time.monotonic(), []
        for worker, live in self.live.items():
            if live.ending is None and live.heard is not None and now - live.heard > limit_s:
                live.ending = Message("failed", reason=f"it reported nothing for {limit_s:g} s and was ended")
                found.append(worker)
        return found
