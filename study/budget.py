"""Limits of a whole study. When one is reached nothing more begins; what runs is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from study.config import BudgetConfig
from study.contract import StudyAttr
from study.entry import Entry
from study.ledger import Ledger

DISK_EVERY_S = 30.0  # between two looks at the results folder
GIB = 2**30


def limits(budget: BudgetConfig, ledger: Ledger, device_share: float) -> Callable[[], str | None]:
    """Tells which limit the study has reached, in words, or None. `device_share`: devices of one training.

    A training's device-hours run from its entry to its end, so the time between a kill and its resume counts.
    """
    began = time.monotonic()
    before_s = float((ledger.attribute(StudyAttr.TIMINGS) or {}).get("training_s", 0.0))
    disk = {"at": -DISK_EVERY_S, "bytes": 0.0}

    def entries() -> Iterator[Entry]:
        for members in ledger.entries.values():
            yield from members

    def disk_gib() -> float:
        if time.monotonic() - disk["at"] >= DISK_EVERY_S:
            files = (path for path in ledger.layout.root.rglob("*") if path.is_file())
            disk.update(at=time.monotonic(), bytes=float(sum(_size(path) for path in files)))
        return disk["bytes"] / GIB

    def device_hours() -> float:
        spans = (((e.ended or datetime.now()) - e.started).total_seconds() for e in entries())
        return sum(spans) * device_share / 3600

    taken: dict[str, Callable[[], float]] = {
        "images": lambda: float(sum(max(e.history, default=0) for e in entries())),
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
