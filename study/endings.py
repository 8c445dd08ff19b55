"""End of a training: its outcome in the ledger, and what is removed of its files.

Of checkpoints of ended trainings those are kept that the judge scores, of every complete training; of the search only
those of its best trials, which can still be confirmed or become the champion; in recipes of several stages also the one
that the next stage starts from. Snapshots before loss spikes stay, for replay, and so do step traces and pictures, from
which MLflow is filled again. What runs is never touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Protocol

from study.contract import DEVICE_SECONDS, PREVIEWS, Outcome
from study.ledger import Entry, Ledger
from study.plan import Plan
from trainables.message import Message
from trainables.runtime.durable import remove_unfinished
from trainables.runtime.locks import held

DEATHS_ALLOWED = 1
LATEST, BEST = "latest", "best"  # of trainables/training/checkpoint.py, which needs torch


class Listener(Protocol):
    """Who watches the trainings: the table, the log, the mirror."""

    def started(self, entry: Entry) -> None: ...
    def reported(self, entry: Entry, images: int, metrics: dict[str, float]) -> None: ...
    def ended(self, entry: Entry) -> None: ...


class Endings:
    """How trainings of a study end. devices: of one training. memory_kills: processes killed for memory so far."""

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        listeners: Sequence[Listener],
        memory_kills: Callable[[], int],
        devices: float,
    ) -> None:
        self.plan, self.ledger, self.listeners, self.devices = plan, ledger, listeners, devices
        self.memory_kills, self.kills_before = memory_kills, memory_kills()
        for entry in ledger.everything():
            if entry.outcome is not None:
                self.clear(entry)  # an earlier driver may have been killed while this worker closed
        sweep(ledger, plan)

    def finish(self, entry: Entry, ending: Message) -> None:
        """Write how a training ended, for good, and remove the checkpoints that nobody needs any more."""
        summary = None if ending.summary is None else dict(ending.summary)
        if summary and "seconds" in summary:  # the training's own, which leave out the time between a kill and a resume
            summary = summary | {DEVICE_SECONDS: summary["seconds"] * self.devices}
        if summary and summary.get("energy_wh") is not None:  # a GPU's, which trainings may share
            summary = summary | {"energy_wh": summary["energy_wh"] * min(1.0, self.devices)}
        pictures = (self.ledger.layout.trial(entry.key) / PREVIEWS).glob("*.jpg")
        last = max(pictures, key=lambda path: int(path.stem), default=None)
        if last is not None and entry.outcome is None:
            self.ledger.store.attach(entry.phase, entry.number, last)  # Optuna takes it of running trials alone
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
        if not any(other.outcome is None for other in self.ledger.entries[entry.phase]):
            self.ledger.store.backup()

    def of_death(self, entry: Entry, detail: str) -> Message | None:
        """How a training ended whose worker said nothing of it; None: it is started again."""
        kills = self.memory_kills()
        starved = kills > self.kills_before or "low on memory" in detail or "OutOfMemory" in detail
        self.kills_before = kills
        if starved:
            reason = "its process was killed because the machine had no memory left"
            return Message("out_of_memory", reason=reason, detail=detail)
        self.ledger.set_deaths(entry, entry.deaths + 1)
        if entry.deaths <= DEATHS_ALLOWED:
            return None
        reason = f"its process died {entry.deaths} times without an error"
        return Message("failed", reason=reason, detail=detail)

    def clear(self, entry: Entry) -> None:
        """Remove what a killed worker left half written, of a training that nobody takes up again.

        Where an orphan still owns the folder (trainables/ray_trainable.py), it stays until the next start.
        """
        folder = self.ledger.layout.trial(entry.key)
        if not held(folder / ".lock"):
            remove_unfinished(folder)


def write_notes(ledger: Ledger) -> None:
    """Write a note on each trial that has none, once the study has ended: each takes time in proportion to them all."""
    for phase, entries in ledger.entries.items():
        ended = [entry for entry in entries if entry.outcome is not None]
        ledger.store.describe(phase, {entry.trial_id: note(entry, ledger.judge.metric) for entry in ended})


def note(entry: Entry, metric: str) -> str:
    """What a trial tried and came to, in Markdown."""
    said = f"**{entry.key}: {entry.outcome}**"
    if entry.value is not None:
        said += f", {metric} {entry.value:.4g}"
    if entry.reason:
        said += f". {entry.reason}"
    settings = [f"- `{path}` = `{value}`" for path, value in entry.searched.items()]
    return "\n".join([f"{said}\n", *(settings or [f"`{entry.group}`, seed {entry.seed}"])])


def pruned(images: int) -> Message:
    """The end of a training that the pruner gave up."""
    return Message("pruned", reason=f"stopped early by the pruner after {images} images")


def sweep(ledger: Ledger, plan: Plan) -> None:
    """Remove the checkpoints that are not needed any more; may be called at any time, and again."""
    awaited = {(p.phase, p.after) for p in (*plan.reproduce, *plan.claims) if p.after is not None}
    judged = BEST if ledger.judge.report == "best" else LATEST
    kept = max(1, plan.study.config.confirm.top)
    best = {row["key"] for row in ledger.judge.rank(ledger.rows("search"))[:kept]}
    for entry in ledger.everything():
        if entry.outcome is None or entry.swept:
            continue
        needed = {judged, BEST} if (entry.phase, entry.identity) in awaited else {judged}
        if entry.outcome is not Outcome.COMPLETE or (entry.phase == "search" and entry.key not in best):
            needed = set()
        for part in {LATEST, BEST} - needed:
            folder = ledger.layout.trial(entry.key) / "checkpoints" / part
            if folder.exists():
                shutil.rmtree(folder)
        entry.swept = not needed  # for good: what is better than a trial stays better
