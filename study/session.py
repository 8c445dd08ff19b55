"""Run of a study over its ledger: which training comes next, and how each ended.

A session plans the next training, takes reports, decides who is stopped and writes outcomes. A training whose worker
ends silently is started again from its checkpoint; it has failed when the next one ends so, too, before anything
new is reported. Trainings that the ledger holds as running when a study resumes are started again: same number, same
settings.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from study.compose import Planned, seed_of
from study.contract import DEVICE_SECONDS, Outcome, StudyAttr, confirm_group, trial_key
from study.entry import Entry
from study.ledger import Ledger
from study.plan import Plan
from study.propose import propose
from study.retention import sweep
from study.space import fits
from trainables.message import Message
from trainables.runtime.durable import remove_unfinished
from trainables.runtime.locks import held
from trainables.settings.config import flat

FINISHED = "FINISHED"
DEATHS_ALLOWED = 1
STOP_WAIT_S = 25.0  # for trainings to stop at a checkpoint; schedulers of clusters kill after 30 s
REDRAWS = 20  # settings that ran out of memory are drawn again, at most so often

Answer = TypeVar("Answer")


class Listener(Protocol):
    """Who watches a session: the table, the log, the mirror."""

    def started(self, entry: Entry) -> None: ...
    def reported(self, entry: Entry, images: int, metrics: dict[str, float]) -> None: ...
    def ended(self, entry: Entry) -> None: ...


@dataclass
class Live:
    """A training that a worker has. `ending`: how it ended, as the worker or the session said."""

    entry: Entry
    heard: float | None = None  # time.monotonic() of its last sign of life; None: its worker has not begun
    ending: Message | None = None


class Session:
    """One run of a study over its ledger."""

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        listeners: Iterable[Listener],
        capacity: Callable[[], int],
        memory_kills: Callable[[], int],
        budget: Callable[[], str | None] = lambda: None,
        devices: float = 1.0,
    ) -> None:
        self.plan, self.ledger, self.listeners = plan, ledger, list(listeners)
        self.capacity, self.memory_kills, self.budget = capacity, memory_kills, budget
        self.devices = devices  # of one training
        self.spent: str | None = None  # the limit of the budget that was reached
        self.live: dict[str, Live] = {}
        self.again = [e for entries in ledger.entries.values() for e in entries if e.outcome is None]
        self.stop_file = ledger.layout.root / "stop"  # seen by every training, wherever it runs
        self.stop_file.unlink(missing_ok=True)
        self.stopping = False
        self.stop_by = math.inf
        self.blocked: str | None = None  # what on the disk is in the trainings' way
        self.crash: Exception | None = None  # raised when Tune has ended
        self.exhausted = False  # a grid with fewer points than trials
        self.kills_before = memory_kills()
        confirmed = len(ledger.entries["confirm"])  # perhaps of others than will be the best: no fewer may stand there
        ledger.set_planned(plan.counts | {"confirm": plan.counts["confirm"] + confirmed})
        ledger.set_attributes({StudyAttr.SPENT: None})
        if len(ledger.entries["search"]) >= plan.counts["search"]:
            self._confirmations()
        past = [e for entries in ledger.entries.values() for e in entries if e.outcome is not None]
        for entry in past:
            self._clear(entry)  # an earlier driver may have been killed while this worker closed
        ledger.release(*past)
        sweep(ledger, plan)

    def next(self, worker: str) -> dict[str, Any] | str | None:
        """What a worker is to train; None: wait; FINISHED: nothing is left."""
        if self.stopping:
            return None if self.live else FINISHED
        if len(self.live) >= self.capacity():
            return None
        entry = self._resumed() or self._enter_next()
        if entry is None:
            return None if self.live else FINISHED
        self.ledger.start(entry)
        self.live[worker] = Live(entry)
        for listener in self.listeners:
            listener.started(entry)
        metric = f"val/{self.ledger.judge.metric}"
        places = {"folder": self.ledger.layout.trial(entry.key), "stop": self.stop_file, "cwd": Path()}
        return {"config": json.dumps(entry.config), "metric": metric} | {k: str(p.resolve()) for k, p in places.items()}

    def stop(self) -> None:
        """Start nothing more, and have every training stop at a checkpoint."""
        self.stopping, self.stop_by = True, time.monotonic() + STOP_WAIT_S
        self.stop_file.touch()

    def stopped(self) -> bool:
        """Whether all have stopped, or have had the time to."""
        ended = all(live.ending is not None for live in self.live.values()) or time.monotonic() > self.stop_by
        return self.crash is not None or (self.stopping and ended)

    def ask(self, call: Callable[[], Answer], otherwise: Answer) -> Answer:
        """What a call says. Tune would drop an error of it, or take it for the training's: it is kept, and ends all."""
        if self.crash is None:
            try:
                return call()
            except Exception as error:
                self.crash = error
        return otherwise

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
                self.stop()
            return not message.resumable  # after an error the worker raises next, so that Tune sees it, too
        entry, images, metrics = live.entry, int(report["images"]), report["metrics"]
        new = self.ledger.report(entry, images, metrics[f"val/{self.ledger.judge.metric}"])
        if new and entry.deaths:
            self.ledger.forgive_deaths(entry)
        if new or images == max(entry.history):
            for listener in self.listeners:
                listener.reported(entry, images, metrics)
            if entry.phase == "search" and not report["final"] and self.ledger.should_prune(entry):
                live.ending = _pruned(images)
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
            ending = self._died(entry, detail)
            if ending is None:
                self.again.insert(0, entry)
                return
        if error:
            self._clear(entry)
        self._finish(entry, ending or (last if last is not None and last.ends else Message("complete")))

    def silent(self, limit_s: float) -> list[str]:
        """Workers that have said nothing for longer than the limit; they are marked as failed."""
        now, found = time.monotonic(), []
        for worker, live in self.live.items():
            if live.ending is None and live.heard is not None and now - live.heard > limit_s:
                live.ending = Message("failed", reason=f"it reported nothing for {limit_s:g} s and was ended")
                found.append(worker)
        return found

    def _died(self, entry: Entry, detail: str) -> Message | None:
        """The outcome after a silent death; None: the training is started again."""
        kills = self.memory_kills()
        starved = kills > self.kills_before or "low on memory" in detail or "OutOfMemory" in detail
        self.kills_before = kills
        if starved:
            reason = "its process was killed because the machine had no memory left"
            return Message("out_of_memory", reason=reason, detail=detail)
        self.ledger.count_death(entry)
        if entry.deaths <= DEATHS_ALLOWED:
            return None
        reason = f"its process died {entry.deaths} times without an error"
        return Message("failed", reason=reason, detail=detail)

    def _finish(self, entry: Entry, ending: Message) -> None:
        summary = None if ending.summary is None else dict(ending.summary)
        if summary and "seconds" in summary:  # the training's own, which leave out the time between a kill and a resume
            summary = summary | {DEVICE_SECONDS: summary["seconds"] * self.devices}
        self.ledger.finish(
            entry,
            Outcome(ending.kind),
            reason=ending.reason,
            detail=ending.detail,
            step=ending.step,
            summary=summary,
        )
        sweep(self.ledger, self.plan)
        for listener in self.listeners:
            listener.ended(entry)
        self.ledger.release(entry)
        if not any(other.outcome is None for other in self.ledger.entries[entry.phase]):
            self.ledger.backup()

    def _resumed(self) -> Entry | None:
        """A training to start again. One that the pruner had given up when the driver was killed ends now."""
        while self.again:
            entry = self.again.pop(0)
            final = max(entry.history, default=0) >= entry.budget_images
            if entry.phase != "search" or final or not self.ledger.should_have_pruned(entry):
                return entry
            self._clear(entry)
            self._finish(entry, _pruned(max(entry.history)))
        return None

    def _clear(self, entry: Entry) -> None:
        """Remove what a killed worker left half written, of a training that nobody takes up again.

        Where an orphan still owns the folder (trainables/ray_trainable.py), it stays until the next start.
        """
        folder = self.ledger.layout.trial(entry.key)
        if not held(folder / ".lock"):
            remove_unfinished(folder)

    def _enter_next(self) -> Entry | None:
        self.spent = self.spent or self.budget()
        if self.spent:
            self.ledger.set_attributes({StudyAttr.SPENT: self.spent})
            self._confirmations()  # how many are still to come
            return None
        for planned in (*self.plan.reproduce, *self.plan.claims):
            entry = self._enter(planned)
            if entry is not None:
                return entry
        return self._search() or self._confirm()

    def _enter(self, planned: Planned) -> Entry | None:
        """Enter a planned training unless it has been, or has to wait for the stage before it."""
        entered, config = self.ledger.entered[planned.phase], planned.config
        if planned.identity in entered:
            return None
        if planned.after is None:
            return self.ledger.add(planned, (), {})
        before = entered.get(planned.after)
        if before is None or before.outcome is None:
            return None
        start = self.ledger.layout.trial(before.key) / "checkpoints" / "best"
        staged = config.model_copy(update={"start_from": str(start)})
        entry = self.ledger.add(replace(planned, config=staged), (), {})
        if before.outcome is Outcome.COMPLETE:
            return entry
        reason = f"stage {before.stage} ({before.key}) is {before.outcome.value}, so there is nothing to start from"
        self._finish(entry, Message("failed", reason=reason))
        return None

    def _search(self) -> Entry | None:
        """Enter the next trial of the search, or nothing when there is none left."""
        plan, search = self.plan, self.plan.study.config.search
        history = self.ledger.frozen("search")
        if len(history) >= search.trials or plan.search_base is None or self.exhausted:
            return None
        base = flat(plan.search_base)
        starved = {e.batch_size for e in self.ledger.entries["search"] if e.outcome is Outcome.OUT_OF_MEMORY}
        config = plan.search_base
        for redraw in range(REDRAWS):
            seed = plan.study.config.seed + redraw * 1_000_003
            settings = propose(
                search, plan.dimensions, base, history, plan.earlier, seed=seed, directions=self.ledger.directions
            )
            if settings is None:
                self.exhausted = True
                self.ledger.set_planned({"search": len(history)})
                return None
            config = plan.trial(settings)
            if config.batch_size not in starved or len(history) <= len(search.first):
                break
        planned = Planned("search", trial_key("search", len(history)), config, None)
        return self.ledger.add(planned, plan.dimensions, fits(plan.dimensions, flat(config)))

    def _confirm(self) -> Entry | None:
        """Enter the next confirmation, once the search has ended."""
        missing = self._confirmations()
        return self._enter(missing[0]) if missing else None

    def _confirmations(self) -> list[Planned]:
        """The confirmations to come: the best of an ended search on fresh seeds, beside all that there are already, so
        many of which the ledger then expects.
        """
        config, ledger = self.plan.study.config.confirm, self.ledger
        searched, there = ledger.entries["search"], ledger.entered["confirm"]
        ended = self.exhausted or len(searched) >= self.plan.study.config.search.trials
        if config.top == 0 or not ended or any(e.outcome is None for e in searched):
            return []
        by_key, wanted = {e.key: e for e in searched}, []
        for row in ledger.judge.rank(ledger.rows("search"))[: config.top]:
            own = ledger.training(by_key[str(row["key"])])
            more = None if config.images == own.budget_images else config.images
            for index in range(config.seeds):
                update = {
                    "seed": seed_of(self.plan.study, "confirm", index),
                    "budget_images": more or own.budget_images,
                }
                group, training = confirm_group(str(row["key"]), more), own.model_copy(update=update)
                wanted.append(Planned("confirm", group, training, row["key"]))
        missing = [planned for planned in wanted if planned.identity not in there]
        ledger.set_planned({"confirm": len(there) + len(missing)})
        return missing


def _pruned(images: int) -> Message:
    return Message("pruned", reason=f"stopped early by the pruner after {images} images")
