"""`python -m study.overhead`: what Ray, the ledger and MLflow cost a training between its first and its last report.

The same training runs alone and as a study of one, both at once but never both awake: every few seconds one of them is
stopped, with all the processes it has, and the other goes on. So both see the same machine, however its speed changes.
A stopped study's other processes wake a second before its training does, because they make up for what they missed.
Each is timed by the seconds that it was awake between its first report and its last; start-up is reported apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from trainables import cli
from trainables.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = "python -m study.overhead --pairs 5 --set budget_images=960 --set validate_every_images=240"
SLICE_S = 10.0
CATCH_UP_S = 1.0  # Ray's timers all fire at once when it wakes, which only this measurement makes it do
SETTINGS = {
    "data.source": "rooms",
    "data.validation.max_frames": "16",
    "model.encoder": "densenet121",
    "model.weights": "null",
    "model.width": "0.5",
    "input": "[64,96]",
    "budget_images": "1440",  # reports as far apart as the default study's
    "validate_every_images": "480",
    "checkpoint_every_images": "1440",
    "threads": str(os.cpu_count()),
}


class Contender:
    """A training in processes of its own, started awake."""

    def __init__(
        self, command: list[str], folder: Path, training: Path, trains: Callable[[psutil.Process], bool]
    ) -> None:
        self.trains = trains
        self.reports, self.slices = training / "reports.jsonl", [(time.time(), math.inf)]
        self.log = folder / f"{training.name}.log"
        with self.log.open("w") as log:
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    def times(self) -> list[float]:
        """When each report was made."""
        lines = self.reports.read_text().splitlines() if self.reports.exists() else []
        return [float(json.loads(line)["time_s"]) for line in lines]

    def running(self) -> bool:
        """Whether it still runs. Raises UserError where it failed."""
        code = self.process.poll()
        if code:
            raise UserError(f"the training ended with {code}: {self.log.read_text().strip()[-400:]}")
        return code is None

    def wake(self) -> None:
        """Let it go on: first what surrounds the training, which makes up for what it has missed, then the training."""
        around, training = self._processes()
        _send(around, signal.SIGCONT)
        time.sleep(CATCH_UP_S if around else 0.0)
        self.slices.append((time.time(), math.inf))
        _send(training, signal.SIGCONT)

    def stop(self) -> None:
        """Hold it where it is."""
        around, training = self._processes()
        _send(training, signal.SIGSTOP)
        self.slices[-1] = (self.slices[-1][0], time.time())
        _send(around, signal.SIGSTOP)

    def kill(self) -> None:
        """End whatever of it is left."""
        around, training = self._processes()
        _send(around + training, signal.SIGKILL)

    def _processes(self) -> tuple[list[psutil.Process], list[psutil.Process]]:
        """(Its processes that do not train, those that do), the oldest first."""
        try:
            root = psutil.Process(self.process.pid)
            everything = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return [], []
        training = [p for p in everything if self.trains(p)]
        return [p for p in everything if p not in training], training

    def seconds(self) -> tuple[float, float]:
        """(awake between the first and the last report, awake before and after)."""
        first, *_, last = self.times()
        between = sum(max(0.0, min(end, last) - max(begin, first)) for begin, end in self.slices)
        return between, sum(end - begin for begin, end in self.slices) - between


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = cli.parser("study.overhead", __doc__ or "", EXAMPLE)
    parser.add_argument("--pairs", type=int, default=3, help="pairs of trainings (default: 3)")
    parser.add_argument("--set", metavar="PATH=VALUE", action="append", default=[], dest="assignments")
    return cli.run(parser, _measure, argv)


def _measure(args: argparse.Namespace) -> Any:
    from study.executor import terminable

    if args.pairs < 1:
        raise UserError("--pairs must be at least 1")
    settings = SETTINGS | dict(pair.split("=", 1) for pair in args.assignments)
    rounds = []
    with terminable(), tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "study.yaml").write_text("name: one\nreproduce: {recipes: [densedepth], seeds: 1}\n")
        for number in range(args.pairs):
            rounds.append(_pair(Path(folder), number, settings))
            alone, study = (rounds[-1][name][0] for name in ("alone", "study"))
            print(f"pair {number + 1}: {alone:.1f} s alone, {study:.1f} s as a study, {study / alone:.3f}", flush=True)
    ratios = [one["study"][0] / one["alone"][0] for one in rounds]
    result = {
        "study_over_alone": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "between_reports_s": {name: [one[name][0] for one in rounds] for name in ("alone", "study")},
        "before_and_after_s": {name: [one[name][1] for one in rounds] for name in ("alone", "study")},
        "pairs": args.pairs,
    }
    spread = result["study_over_alone"]
    print(
        f"between first and last report, as a study over alone: {spread['median']:.3f} "
        f"(min {spread['min']:.3f}, max {spread['max']:.3f}, n = {args.pairs} pairs)"
    )
    for name, seconds in result["before_and_after_s"].items():
        print(f"before the first and after the last report, {name}: {statistics.median(seconds):.1f} s")
    return result


def _pair(folder: Path, number: int, settings: dict[str, str]) -> dict[str, tuple[float, float]]:
    """Contender.seconds() of the training alone and as a study."""
    alone = [sys.executable, "-m", "trainables.train", "densedepth", "--out", f"alone-{number}"]
    alone += [part for path, value in settings.items() for part in ("--set", f"{path}={value}")]
    study = [sys.executable, "-m", "study.run", "study.yaml", "--set", f"name=pair-{number}"]
    for path, value in settings.items():
        study += ["--set", f"{path}={value}" if path.startswith("data.") else f"trial.{path}={value}"]
    plans = {
        "study": (study, folder / "results" / f"pair-{number}" / "trials" / "reproduce-0000", _is_worker),
        "alone": (alone, folder / f"alone-{number}", lambda process: True),
    }
    contenders: dict[str, Contender] = {}
    try:
        for name, (command, training, trains) in plans.items():  # each alone up to its first report
            contenders[name] = one = Contender(command, folder, training, trains)
            while one.running() and not one.times():
                time.sleep(0.2)
            one.stop()
        order = list(contenders.values())[:: 1 if number % 2 else -1]
        while any(one.running() for one in order):
            for one in order:
                if one.running():
                    one.wake()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        one.process.wait(SLICE_S)
                    one.stop()
        return {name: one.seconds() for name, one in contenders.items()}
    finally:
        for one in contenders.values():
            one.kill()


def _is_worker(process: psutil.Process) -> bool:
    """Whether it is the process of Ray's that trains."""
    with contextlib.suppress(psutil.Error):
        return "TrainingWorker" in " ".join(process.cmdline())
    return False


def _send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


if __name__ == "__main__":
    sys.exit(main())
