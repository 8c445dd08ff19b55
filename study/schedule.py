"""Order of a study's trainings: which one begins next, phase after phase, within the budget of the whole study.

First come trainings that the ledger holds as running when a study resumes, or whose worker died: same number, same
settings. Then the planned ones of reproduction and claims, the search's proposals, and its confirmations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from study.compose import Planned, seed_of
from study.config import BudgetConfig
from study.contract import Outcome, StudyAttr, confirm_group, trial_key
from study.endings import Endings, pruned
from study.ledger import Entry, Ledger, Pruning
from study.plan import Plan, trained
from study.search.propose import propose
from study.search.space import fits
from trainables.message import Message
from trainables.settings.config import as_dict, flat

DISK_EVERY_S = 30.0  # between two looks at the results folder
GIB = 2**30


class Schedule:
    """The trainings that are still to begin. budget: the limit that the study has reached, in words, or None."""

    def __init__(
        self, plan: Plan, ledger: Ledger, pruning: Pruning, endings: Endings, budget: Callable[[], str | None]
    ) -> None:
        self.plan, self.ledger, self.pruning, self.endings, self.budget = plan, ledger, pruning, endings, budget
        self.spent: str | None = None  # the limit of the budget that was reached
        self.exhausted = False  # no settings are left to try
        self.trained = {trained(entry.config) for entry in ledger.entries["search"]}
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
        plan, entries = self.plan, self.ledger.entries["search"]
        history = self.ledger.store.frozen("search")
        if len(history) >= plan.counts["search"] or plan.search_base is None or self.exhausted:
            return None
        ran_out = [entry.training() for entry in entries if entry.outcome is Outcome.OUT_OF_MEMORY]

        def wanted(settings: Mapping[str, Any]) -> bool:
            config = plan.trainable(settings)
            if config is None or trained(as_dict(config)) in self.trained:
                return False
            return not plan.starved(config, ran_out)

        settings = propose(
            plan.study.config.search,
            plan.dimensions,
            flat(plan.search_base),
            history,
            plan.earlier,
            seed=plan.study.config.seed,
            directions=self.ledger.store.directions,
            wanted=wanted,
        )
        if settings is None:
            self.exhausted = True
            self.ledger.store.set_planned({"search": len(history)})
            return None
        config = plan.trial(settings)
        self.trained.add(trained(as_dict(config)))
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
        ended = self.exhausted or len(searched) >= self.plan.counts["search"]
        if config.top == 0 or not ended or any(e.outcome is None for e in searched):
            return []
        by_key, wanted = {e.key: e for e in searched}, []
        for key in self._best(config.top, by_key):
            own = by_key[key].training()
            more = None if config.images == own.budget_images else config.images
            for index in range(config.seeds):
                update = {
                    "seed": seed_of(self.plan.study, "confirm", index),
                    "budget_images": more or own.budget_images,
                }
                group, training = confirm_group(key, more), own.model_copy(update=update)
                wanted.append(Planned("confirm", group, training, key))
        missing = [planned for planned in wanted if planned.identity not in there]
        ledger.store.set_planned({"confirm": len(there) + len(missing)})
        return missing

    def _best(self, count: int, by_key: Mapping[str, Entry]) -> list[str]:
        """The keys of the best trials, each of another training: a ledger of an earlier version may hold one twice."""
        best: dict[str, str] = {}
        for row in self.ledger.judge.rank(self.ledger.rows("search")):
            key = str(row["key"])
            best.setdefault(trained(by_key[key].config), key)
        return list(best.values())[:count]


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
