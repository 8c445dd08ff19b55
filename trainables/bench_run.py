"""Shared parts of the bench: trainings to measure, rounds in turn, loops in processes of their own."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from trainables.bench_limit import synchronise

RESIDENT = 4  # batches that are kept in memory


def interleave(bodies: dict[str, Callable[[], None]], pairs: int, device: Any) -> dict[str, list[float]]:
    """Seconds of each body in each of `pairs` rounds, run in turn after one round that does not count."""
    timings: dict[str, list[float]] = {name: [] for name in bodies}
    for number in range(pairs + 1):
        for name, body in bodies.items():
            took = seconds(body, device)
            if number:
                timings[name].append(took)
    return timings


def seconds(body: Callable[[], None], device: Any) -> float:
    """What a body takes on the device."""
    synchronise(device)
    start = time.perf_counter()
    body()
    synchronise(device)
    return time.perf_counter() - start


@contextlib.contextmanager
def training_of(config: Any) -> Iterator[Any]:
    from trainables.device import keep_freed_memory
    from trainables.trainer import Training

    keep_freed_memory()  # as the command does
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Training(config, Path(folder), None)) as training:
        yield training


def resident_batches(training: Any) -> Iterator[Any]:
    """An endless cycle of the first batches, already on the device."""
    from trainables.data.loader import TrainLoader

    loader = iter(TrainLoader(training.data.train, training.config, 0))
    batches = [next(loader).to(training.device) for _ in range(RESIDENT)]
    return itertools.cycle(batches)


class Elsewhere:
    """A training loop in a process of its own: what this process sets for itself does not reach it.

    make: from the settings as JSON to a function that trains so many steps and returns when they are done.
    """

    def __init__(self, make: Callable[[str], contextlib.AbstractContextManager[Callable[[int], None]]], config: Any):
        from torch import multiprocessing

        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, config.model_dump_json(), theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.wait()

    def start(self, steps: int) -> None:
        """Begin to train so many steps."""
        self._pipe.send(steps)

    def wait(self) -> None:
        """Return when they are done. Raises EOFError where the process has failed; it prints why."""
        self._pipe.recv()

    def run(self, steps: int) -> None:
        """Train so many steps."""
        self.start(steps)
        self.wait()

    def own_mib(self) -> float:
        """Memory that no other process shares."""
        return float(psutil.Process(self._process.pid).memory_full_info().uss) / 2**20

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(make: Callable[[str], Any], settings: str, pipe: Any) -> None:
    with make(settings) as train:
        pipe.send(0)
        with contextlib.suppress(EOFError):
            while True:
                steps = pipe.recv()
                train(steps)
                pipe.send(steps)


@contextlib.contextmanager
def loaded_loop(settings: str) -> Iterator[Callable[[int], None]]:
    """This project's trainer, fed by its loader."""
    from trainables.config import TrialConfig
    from trainables.data.loader import TrainLoader

    with training_of(TrialConfig.model_validate_json(settings)) as training:
        batches = iter(TrainLoader(training.data.train, training.config, 0))

        def train(steps: int) -> None:
            for _ in range(steps):
                training.train_step(batches)
            training.flush()

        yield train
