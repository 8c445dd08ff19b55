"""Ledger entry of one training: its settings, its progress, its outcome."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from study.contract import Attr, Judge, Outcome, trial_key

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclass(slots=True)
class Entry:
    """A training. `history`: images seen -> the judge's metric.

    `config` and `summary` are empty once an ended training is let go of (Ledger.release).
    """

    phase: str
    number: int
    trial_id: int
    group: str
    config: dict[str, Any]
    origin: Any
    attempts: int
    deaths: int
    outcome: Outcome | None
    reason: str | None
    value: float | None
    started: datetime
    ended: datetime | None
    summary: dict[str, Any]
    history: dict[int, float] = field(default_factory=dict)
    judged: tuple[int, bool] | None = None  # see Attr.JUDGED
    swept: bool = False  # none of its checkpoints is left (study/retention.py)
    seed: int = field(init=False)
    stage: int = field(init=False)
    batch_size: int = field(init=False)
    budget_images: int = field(init=False)

    def __post_init__(self) -> None:
        self.seed, self.stage = int(self.config["seed"]), int(self.config["stage"])
        self.batch_size, self.budget_images = int(self.config["batch_size"]), int(self.config["budget_images"])

    @property
    def key(self) -> str:
        return trial_key(self.phase, self.number)

    @property
    def identity(self) -> tuple[str, int, int]:
        return (self.group, self.seed, self.stage)


def read_entry(phase: str, frozen: FrozenTrial, judge: Judge) -> Entry:
    """The entry of one of Optuna's trials. Raises ValueError where it is not what was written."""
    attrs = frozen.user_attrs
    outcome = attrs.get(Attr.OUTCOME)
    history = dict(frozen.intermediate_values)
    if Attr.DIGEST in attrs and attrs[Attr.DIGEST] != digest(attrs):
        raise ValueError(f"what {phase} {frozen.number} is to train has changed")
    if frozen.datetime_start is None:
        raise ValueError(f"{phase} {frozen.number} never began")
    return Entry(
        phase=phase,
        number=frozen.number,
        trial_id=frozen._trial_id,
        group=attrs[Attr.GROUP],
        config=attrs[Attr.CONFIG],
        origin=attrs[Attr.ORIGIN],
        attempts=attrs[Attr.ATTEMPTS],
        deaths=attrs[Attr.DEATHS],
        outcome=Outcome(outcome) if outcome else None,
        reason=attrs.get(Attr.REASON),
        value=judge.value([{f"val/{judge.metric}": v} for _, v in sorted(history.items())]),
        started=frozen.datetime_start,
        ended=frozen.datetime_complete,
        summary=attrs.get(Attr.SUMMARY) or {},
        history=history,
        judged=tuple(attrs[Attr.JUDGED]) if Attr.JUDGED in attrs else None,
    )


def digest(attrs: Mapping[str, Any]) -> str:
    """Digest of a training's attributes that never change."""
    fixed = [attrs[name] for name in (Attr.KEY, Attr.CONFIG, Attr.GROUP, Attr.ORIGIN)]
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
