"""Order of a study's trainings: which one begins next, phase after phase, within the budget of the whole study.

First come trainings that the ledger holds as running when a study resumes, or whose worker died: same number, same
settings. Then the planned ones of reproduction and claims, the search's proposals, and its confirmations.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from study.compose import Planned, seed_of
from study.config import BudgetConfig
from study.contract import Outcome, StudyAttr, confirm_group, trial_key
from study.endings import Endings, pruned
from study.ledger import Entry, Ledger, Pruning
from study.plan import Plan
from study.propose import propose
from study.space import fits
from trainables.message import Message
from trainables.settings.config import flat

REDRAWS = 20  # settings that ran out of memory are drawn again, at most so often
DISK_EVERY_S = 30.0  # between two looks at the results folder
GIB = 2**30


class Schedule:
    """The trainings that are still to begin. budget: the limit that the study has reached, in words, or None."""

    def __init__(
        self, plan: Plan, ledger: Ledger, pruning: Pruning, endings: Endings, budget: Callable[[], str | None]
    ) -> None:
        self.plan, self.ledger, self.pruning, self.endings, self.budget = plan, ledger, pruning, endings, budget
        self.spent: str | None = None  # the limit of the budget that was reached
        self.exhausted = False  # a grid with fewer points than trials
        self.again = [entry for entry in ledger.everything() if entry.outcome is None]
        confirmed = len(ledger.entries["confirm"])  # perhaps of others than will be the best: no fewer may stand there
        ledger.store.set_planned(plan.counts | {"confirm": plan.counts["confirm"] + confirmed})
        ledger.store.set_attributes({StudyAttr.SPENT: None})
        if len(ledger.entries["search"]) >= plan.counts["search"]:
            self._confirmations()

    def next(self) -> Entry | None:
        """The entry of the next training; None: there is none before one that runs has ended."""
        return self._resumed() or self._enter_next()

    def put_back(self, entry: Entry) -> None:
        """Have a training begin again before all others."""
        self.again.insert(0, entry)

    def _resumed(self) -> Entry | None:
        """A training to start again. One that the pruner had given up when the driver was killed ends now."""
        while self.again:
            entry = self.again.pop(0)
            final = max(entry.history, default=0) >= entry.budget_images
            if entry.phase != "search" or final or not self.pruning.gave_up(entry):
                return entry
            self.endings.clear(entry)
            self.endings.finish(entry, pruned(max(entry.history)))
        return None

    def _enter_next(self) -> Entry | None:
        self.spent = self.spent or self.budget()
        if self.spent:
            self.ledger.store.set_attributes({StudyAttr.SPENT: self.spent})
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
        self.endings.finish(entry, Message("failed", reason=reason))
        return None

    def _search(self) -> Entry | None:
        """Enter the next trial of the search, or nothing when there is none left."""
        plan, search = self.plan, self.plan.study.config.search
        history = self.ledger.store.frozen("search")
        if len(history) >= search.trials or plan.search_base is None or self.exhausted:
            return None
        base = flat(plan.search_base)
        starved = {e.batch_size for e in self.ledger.entries["search"] if e.outcome is Outcome.OUT_OF_MEMORY}
        config, directions = plan.search_base, self.ledger.store.directions
        for redraw in range(REDRAWS):
            seed = plan.study.config.seed + redraw * 1_000_003
            settings = propose(search, plan.dimensions, base, history, plan.earlier, seed=seed, directions=directions)
            if settings is None:
                self.exhausted = True
                self.ledger.store.set_planned({"search": len(history)})
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
            own = by_key[str(row["key"])].training()
            more = None if config.images == own.budget_images else config.images
            for index in range(config.seeds):
                update = {
                    "seed": seed_of(self.plan.study, "confirm", index),
                    "budget_images": more or own.budget_images,
                }
                group, training = confirm_group(str(row["key"]), more), own.model_copy(update=update)
                wanted.append(Planned("confirm", group, training, row["key"]))
        missing = [planned for planned in wanted if planned.identity not in there]
        ledger.store.set_planned({"confirm": len(there) + len(missing)})
        return missing


def limits(budget: BudgetConfig, ledger: Ledger, device_share: float) -> Callable[[], str | None]:
    """Which limit of the budget the study has reached, in words, or None. device_share: devices of one training.

    When one is reached nothing more begins; what runs is finished. A training's device-hours run from its entry to its
    end, so the time between a kill and its resume counts.
    """
    began = time.monotonic()
    before_s = float((ledger.store.attribute(StudyAttr.TIMINGS) or {}).get("training_s", 0.0))
    disk = {"at": -DISK_EVERY_S, "bytes": 0.0}

    def disk_gib() -> float:
        if time.monotonic() - disk["at"] >= DISK_EVERY_S:
            files = (path for path in ledger.layout.root.rglob("*") if path.is_file())
            disk.update(at=time.monotonic(), bytes=float(sum(_size(path) for path in files)))
        return disk["bytes"] / GIB

    def device_hours() -> float:
        spans = (((e.ended or datetime.now()) - e.started).total_seconds() for e in ledger.everything())
        return sum(spans) * device_share / 3600

    taken: dict[str, Callable[[], float]] = {
        "images": lambda: float(sum(max(e.history, default=0) for e in ledger.everything())),
        "hours": lambda: (before_s + time.monotonic() - began) / 3600,
        "device_hours": device_hours,
        "disk_gib": disk_gib,
    }

    def spent() -> str | None:
        for name, measure in taken.items():
            limit = getattr(budget, name)
            if limit is not None and (amount := measure()) >= limit:
                return f"budget.{name} is {limit:g}, and {amount:.4g} are spent"
        return None

    return spent


def _size(path: Path) -> int:
    """A file's size; none where a training replaced it meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
