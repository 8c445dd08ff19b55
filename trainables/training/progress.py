"""Progress of a training: everything but tensors that a resumed one needs, as one value that goes through JSON."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainables.settings.registry import METRICS
from trainables.training.optim import Plateau


@dataclass(frozen=True)
class Report:
    """Report of a training at a validation. `images` counts images seen, `time_s` is the wall clock of its making."""

    step: int
    images: int
    epoch: float
    time_s: float
    metrics: dict[str, float]
    final: bool


@dataclass
class Progress:
    """Position, sums since the last report, history. `seconds` leaves out the time between a kill and its resume."""

    step: int = 0
    images: int = 0
    clipped: int = 0
    best: float | None = None  # of the judged metric, smaller is better
    sums: dict[str, float] = field(default_factory=dict)  # over the steps since the last report
    plateau: Plateau = field(default_factory=Plateau)
    history: list[Report] = field(default_factory=list)
    seconds_before: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def add(self, rows: Sequence[Mapping[str, Any]], terms: Sequence[str]) -> None:
        """Take finished steps into the sums."""
        for row in rows:
            for name in ("loss", *terms, "grad_norm", "clipped"):
                self.sums[name] = self.sums.get(name, 0.0) + float(row[name])
            self.sums["steps"] = self.sums.get("steps", 0) + 1
            self.sums["images"] = self.sums.get("images", 0) + len(row["samples"])
            self.sums["lr"] = row["lr"]
            self.clipped += row["clipped"]

    def training_metrics(self, terms: Sequence[str]) -> dict[str, float]:
        """Means over the steps since the last report, and the last learning rate."""
        steps = self.sums["steps"]
        return {
            **{f"train/{name}": self.sums[name] / steps for name in ("loss", *terms)},
            "optim/lr": self.sums["lr"],
            "optim/grad_norm": self.sums["grad_norm"] / steps,
            "optim/clipped_share": self.sums["clipped"] / steps,
        }

    def is_best(self, metric: str, value: float) -> bool:
        """Whether this value of the judged metric is the best so far; it is then kept."""
        smaller = -value if METRICS[metric].higher_is_better else value
        if self.best is not None and smaller >= self.best:
            return False
        self.best = smaller
        return True

    def to_state(self) -> dict[str, Any]:
        """JSON-able state; `from_state` gives it back."""
        state = {name: getattr(self, name) for name in ("step", "images", "clipped", "best", "seconds")}
        plateau = asdict(self.plateau)
        plateau["best"] = None if math.isinf(self.plateau.best) else self.plateau.best
        return state | {"sums": dict(self.sums), "plateau": plateau, "history": [asdict(r) for r in self.history]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        plateau = dict(state["plateau"])
        plateau["best"] = math.inf if plateau["best"] is None else plateau["best"]
        return cls(
            step=state["step"],
            images=state["images"],
            clipped=state["clipped"],
            best=state["best"],
            sums=dict(state["sums"]),
            plateau=Plateau(**plateau),
            history=[Report(**report) for report in state["history"]],
            seconds_before=state["seconds"],
        )
