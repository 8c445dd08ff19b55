"""Display of a running study: a table of 80 columns on a terminal, plain lines elsewhere, and study.log."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.contract import Outcome
from study.ledger import Entry, Ledger

if TYPE_CHECKING:
    from rich.live import Live as RichLive

WIDTH = 80
REDRAW_S = 0.5


class Display:
    """A listener of the session that shows its state and logs its events."""

    def __init__(self, ledger: Ledger, confirm_images: int | None, *, device_share: float) -> None:
        self.ledger, self.confirm_images, self.device_share = ledger, confirm_images, device_share
        self.running: dict[str, tuple[Entry, float, int, float | None]] = {}
        self.began, self.drawn = time.monotonic(), 0.0
        self.images_before = self._images_done()
        self.log = _file_log(ledger.layout.log)
        self.live: RichLive | None = None

    def __enter__(self) -> Display:
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.live import Live as RichLive

            console = Console(width=min(WIDTH, Console().width))
            self.live = RichLive(self.render(), console=console, auto_refresh=False, transient=False)
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live is not None:
            self.live.update(self.render(), refresh=True)
            self.live.stop()
            self.live = None
        for handler in list(self.log.handlers):
            self.log.removeHandler(handler)
            handler.close()

    def started(self, entry: Entry) -> None:
        self.running[entry.key] = (entry, time.monotonic(), max(entry.history, default=0), None)
        again = f", attempt {entry.attempts}" if entry.attempts > 1 else ""
        self.say(f"{entry.key} started ({entry.config['recipe']}, seed {entry.config['seed']}{again})")

    def reported(self, entry: Entry, images: int, metrics: dict[str, float]) -> None:
        value = metrics[f"val/{self.ledger.judge.metric}"]
        _, since, _, _ = self.running.get(entry.key, (entry, time.monotonic(), 0, None))
        self.running[entry.key] = (entry, since, images, value)
        self.say(f"{entry.key} {images} of {entry.budget_images} images, {self._named(value)}", to_console=False)

    def ended(self, entry: Entry) -> None:
        self.running.pop(entry.key, None)
        value = "" if entry.value is None else f", {self._named(entry.value)}"
        reason = f": {entry.reason}" if entry.reason else ""
        self.say(f"{entry.key} {_words(entry.outcome)}{value}{reason}")

    def say(self, line: str, *, to_console: bool = True) -> None:
        """One line to the log, and to the screen where no table shows it."""
        self.log.info(line)
        if to_console and self.live is None:
            print(line, flush=True)

    def tick(self) -> None:
        """Draw the table again when it is time."""
        if self.live is not None and time.monotonic() - self.drawn > REDRAW_S:
            self.drawn = time.monotonic()
            self.live.update(self.render(), refresh=True)

    def seconds_left(self) -> float | None:
        """From the images trained so far in this run; None before there are any."""
        done = self._images_done() + sum(images for _, _, images, _ in self.running.values())
        rate = (done - self.images_before) / max(time.monotonic() - self.began, 1e-9)
        return max(self._images_planned() - done, 0) / rate if done > self.images_before else None

    def render(self) -> Any:
        """The table: phases, running trainings with bars, the best so far, and the time left."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        phases = Table(box=None, width=WIDTH, padding=(0, 1))
        for heading in ("phase", "done", "running", "pruned", "diverged", "failed", "of"):
            phases.add_column(heading, justify="left" if heading == "phase" else "right")
        for phase, count in self.ledger.store.planned.items():
            outcomes = [e.outcome for e in self.ledger.entries[phase]]
            failed = sum(o in (Outcome.FAILED, Outcome.OUT_OF_MEMORY) for o in outcomes)
            cells = [outcomes.count(Outcome.COMPLETE), sum(e.phase == phase for e, *_ in self.running.values())]
            cells += [outcomes.count(Outcome.PRUNED), outcomes.count(Outcome.DIVERGED), failed, count]
            if count or outcomes:
                phases.add_row(phase, *(str(cell) for cell in cells))
        lines = [Text(_bar(*running, self.ledger.judge.metric), no_wrap=True) for running in self.running.values()]
        return Group(phases, *lines, Text(self.summary(), no_wrap=True, overflow="ellipsis"))

    def summary(self) -> str:
        """The best so far, the time left and device-hours, in one line."""
        best = self.best()
        left = self.seconds_left()
        parts = [f"best {best.key} {self._named(best.value)}" if best else "no result yet"]
        parts.append(f"{duration(left)} left" if left is not None else "time left unknown")
        parts.append(f"{self._device_hours():.2f} device-h")
        return " | ".join(parts)

    def best(self) -> Entry | None:
        """The best complete training of any phase by the judge."""
        entries = {e.key: e for e in self.ledger.everything()}
        rows = [row for phase in self.ledger.entries for row in self.ledger.rows(phase)]
        ranked = self.ledger.judge.rank(rows)
        return entries[str(ranked[0]["key"])] if ranked else None

    def _named(self, value: float | None) -> str:
        return f"{self.ledger.judge.metric} {value:.4f}"

    def _images_done(self) -> int:
        ended = [e for e in self.ledger.everything() if e.outcome is not None]
        return sum(e.budget_images for e in ended)

    def _images_planned(self) -> int:
        known = self.ledger.everything()
        images = sum(e.budget_images for e in known)
        mean = images / len(known) if known else 0.0
        planned = self.ledger.store.planned
        left = {name: max(count - len(self.ledger.entries[name]), 0) for name, count in planned.items()}
        longer = left.pop("confirm", 0) * (self.confirm_images or mean)
        return int(images + mean * sum(left.values()) + longer)

    def _device_hours(self) -> float:
        ended = [e for e in self.ledger.everything() if e.ended is not None]
        busy = sum((e.ended - e.started).total_seconds() for e in ended if e.ended is not None)
        busy += sum(time.monotonic() - since for _, since, _, _ in self.running.values())
        return busy * self.device_share / 3600


def duration(seconds: float) -> str:
    """'1,234 days', '2 h 05 min', '4 min', '12 s'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 6000 else f"{minutes / 1440:,.0f} days"


def _bar(entry: Entry, since: float, images: int, value: float | None, metric: str) -> str:
    share = min(images / entry.budget_images, 1.0)
    filled = round(share * 20)
    shown = "" if value is None else f" {metric} {value:.4f}"
    bar = "#" * filled + "." * (20 - filled)
    return f" {entry.key:<15} [{bar}] {share:4.0%} {duration(time.monotonic() - since):>9}{shown}"


def _words(outcome: Outcome | None) -> str:
    return "ended" if outcome is None else outcome.value.replace("_", " ")


class _Log(logging.FileHandler):
    """Raises what keeps a line from being written (a full disk), where logging prints a traceback and continues."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


def _file_log(path: Path) -> logging.Logger:
    log = logging.getLogger(f"study.{path.parent.name}")
    log.setLevel(logging.INFO)
    log.propagate = False
    handler = _Log(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    return log
