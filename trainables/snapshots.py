"""Rolling pre-spike snapshot: kept in memory, and written for replay when a loss spike is seen.

The online detector is deliberately simple (analysis/spikes.py judges later): a loss is a spike when its logarithm lies
THRESHOLD scaled median absolute deviations above the trailing window's median, and the loss at least doubles it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from trainables.checkpoint import SPIKES, Snapshot, write_checkpoint
from trainables.config import TrialConfig

WINDOW_STEPS = 100
LEAST_STEPS = 30  # before that the loss still falls too fast to call anything a spike
THRESHOLD = 6.0
MAD_TO_SIGMA = 1.4826
MOST_SNAPSHOTS = 3  # per training: they are as large as a checkpoint


class SpikeRecorder:
    """Takes a snapshot every `snapshot_every_steps` steps and writes the last one before each of the first spikes."""

    def __init__(self, config: TrialConfig, checkpoints: Path) -> None:
        self._config = config
        self._folder = checkpoints / SPIKES
        self._every = config.snapshot_every_steps
        self._recent: deque[tuple[int, Snapshot]] = deque(maxlen=2)  # a flush looks back less than one interval
        self._logs: deque[float] = deque(maxlen=WINDOW_STEPS)

    def before_step(self, step: int, take: Callable[[], Snapshot]) -> None:
        """Offer the state before a step."""
        if self._every and step % self._every == 0:
            self._recent.append((step, take()))

    def observe(self, steps: Sequence[dict[str, Any]]) -> None:
        """Look at finished steps {'step', 'loss', 'samples'}; write a snapshot for each new spike."""
        for row in steps:
            log = math.log(max(float(row["loss"]), 1e-12))
            if self._every and len(self._logs) >= LEAST_STEPS and self._is_spike(log):
                self._write(row)
            else:
                self._logs.append(log)

    def _is_spike(self, log: float) -> bool:
        middle = median(self._logs)
        spread = MAD_TO_SIGMA * median(abs(value - middle) for value in self._logs)
        return log - middle > max(THRESHOLD * spread, math.log(2))

    def _write(self, row: dict[str, Any]) -> None:
        before = [(step, snapshot) for step, snapshot in self._recent if step <= row["step"]]
        if not before:
            return
        step, snapshot = before[-1]
        folder = self._folder / f"step-{step}"
        if folder.exists() or len(list(self._folder.glob("step-*"))) >= MOST_SNAPSHOTS:
            return
        spike = {"spike_step": row["step"], "spike_loss": float(row["loss"]), "spike_samples": list(row["samples"])}
        write_checkpoint(folder, Snapshot(snapshot.weights, snapshot.optimiser, snapshot.state | spike), self._config)
