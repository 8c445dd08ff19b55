"""`python -m trainables.bench.overhead`: cost of Ray, the ledger and MLflow between a training's first and last step.

The same training runs alone and as a study of one, both at once but never both awake: every second one of them is
stopped, with all the processes it has, and the other continues: both see the same machine, however its speed changes.
A stopped study's other processes wake before its training does, because they make up for what they missed.
Each is timed by the seconds that it was awake between its first step and its last; start-up is reported apart.

What is made up for is not timed: timers slower than a slice, and what of a report was still to do at a slice's end. So
processor time of the processes around the training is reported beside it, over timed seconds alone and with what they
made up for, as a share of a core: the true share should lie between.
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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from trainables.runtime import cli
from trainables.runtime.errors import UserError
from trainables.settings.assignments import parse_assignments

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = "python -m trainables.bench.overhead --pairs 5 --set budget_images=960 --set validate_every_images=240"
SLICE_S = 1.0  # a shared machine's speed drifts by tens of percent within ten seconds, and hardly within two
CATCH_UP_S = 0.5  # Ray's timers all fire at once when it wakes, which only this measurement makes it do
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
        self.trains, self.training = trains, training
        self.slices = [(time.time(), math.inf)]
        self.around_s, self.made_up_s, self.counted_s = 0.0, 0.0, 0.0  # processor time of what surrounds the training
        self._clocks: dict[psutil.Process, float] = {}
        self._awake: list[psutil.Process] = []
        self._seen: set[psutil.Process] = set()  # one that loses its parent while it is held is not found through it
        self.log = folder / f"{training.name}.log"
        with self.log.open("w") as log:
            path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            environment = os.environ | {"PYTHONPATH": path}
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        self.root = psutil.Process(self.process.pid)

    def begun(self) -> bool:
        """Whether the first step is next or done."""
        return (self.training / "reports.jsonl").exists()

    def window(self) -> tuple[float, float]:
        """When the first step ended and when the last, once all have."""
        import pyarrow.parquet as pq

        report = json.loads((self.training / "reports.jsonl").read_text().splitlines()[0])
        began = float(report["time_s"]) - float(report["metrics"]["time/seconds"])
        seconds = pq.read_table(self.training / "trace.parquet", columns=["seconds"])["seconds"]
        return began + seconds[0].as_py(), began + seconds[-1].as_py()

    def running(self) -> bool:
        """Whether it still runs. Raises UserError where it failed."""
        code = self.process.poll()
        if code:
            raise UserError(f"the training ended with {code}: {self.log.read_text().strip()[-400:]}")
        return code is None

    def wake(self) -> None:
        """Continue it: first what surrounds the training, which makes up for what it has missed, then the training."""
        around, self._awake = self._processes()
        before = _clocks(around)
        _send(around, signal.SIGCONT)
        time.sleep(CATCH_UP_S)  # without surroundings, too: a machine that was idle starts slowly
        self._clocks = _clocks(around)
        self.made_up_s += _passed(before, self._clocks)
        self.slices.append((time.time(), math.inf))
        _send(self._awake, signal.SIGCONT)

    def stop(self) -> None:
        """Hold it where it is; one that has ended is left to itself."""
        _send(self._awake if self.running() else [], signal.SIGSTOP)  # what else there is takes a while to look up
        self.slices[-1] = (self.slices[-1][0], time.time())
        clocks = _clocks(list(self._clocks))
        around, training = self._processes()
        if self._awake and training:  # neither starting up nor ending
            self.around_s += _passed(self._clocks, clocks)
            self.counted_s += self.slices[-1][1] - self.slices[-1][0]
        _send(around + training, signal.SIGSTOP)

    def kill(self) -> None:
        """End whatever of it is left."""
        self._processes()
        _send(self._seen, signal.SIGKILL)
        psutil.wait_procs(self._seen, 10)

    def _processes(self) -> tuple[list[psutil.Process], list[psutil.Process]]:
        """(Its processes that do not train, those that do), the oldest first."""
        try:
            everything = [self.root, *self.root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return [], []
        self._seen |= set(everything)
        training = [p for p in everything if self.trains(p)]
        return [p for p in everything if p not in training], training

    def seconds(self) -> tuple[float, float]:
        """(awake between the first and the last step, awake before and after)."""
        first, last = self.window()
        between = sum(max(0.0, min(end, last) - max(begin, first)) for begin, end in self.slices)
        return between, sum(end - begin for begin, end in self.slices) - between


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = cli.parser("trainables.bench.overhead", __doc__ or "", EXAMPLE)
    parser.add_argument("--pairs", type=int, default=3, help="pairs of trainings (default: 3)")
    parser.add_argument("--set", metavar="PATH=VALUE", action="append", default=[], dest="assignments")
    return cli.run(parser, _measure, argv)


def _measure(args: argparse.Namespace) -> Any:
    from trainables.runtime.cli import terminable

    if args.pairs < 1:
        raise UserError("--pairs must be at least 1")
    parse_assignments(args.assignments)  # refuses here what both commands would refuse
    settings = SETTINGS | dict(pair.split("=", 1) for pair in args.assignments)
    rounds: list[dict[str, Contender]] = []
    with terminable(), tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "study.yaml").write_text("name: one\nreproduce: {recipes: [densedepth], seeds: 1}\n")
        for number in range(args.pairs):
            rounds.append(_pair(Path(folder), number, settings))
            print(f"pair {number + 1}: {_words(rounds[-1:])}", flush=True)
        result = _result(rounds)
        print(f"all: {_words(rounds)}")
        for name, seconds in result["before_and_after_s"].items():
            print(f"before the first and after the last step, {name}: {statistics.median(seconds):.1f} s")
    return result


def _words(rounds: list[dict[str, Contender]]) -> str:
    result = _result(rounds)
    ratio = result["study_over_alone"]
    low_share, high_share = result["around_share"]
    low, high = ratio["interval"] or (None, None)
    interval = "" if low is None else f", 95% interval {low:.3f} to {high:.3f}"
    return (
        f"as a study over alone, between first and last step: {ratio['mean']:.3f} (median {ratio['median']:.3f}, "
        f"n = {len(rounds)} pairs{interval}); "
        f"processes around the training: {low_share:.2%} to {high_share:.2%} of a core"
    )


def _result(rounds: list[dict[str, Contender]]) -> dict[str, Any]:
    import numpy as np
    from scipy import stats

    seconds = {name: [one[name].seconds() for one in rounds] for name in ("alone", "study")}
    logs = np.log([study / alone for (study, _), (alone, _) in zip(seconds["study"], seconds["alone"], strict=True)])
    studies = [one["study"] for one in rounds]
    names = ("around_s", "made_up_s", "counted_s")
    around, made_up, counted = (sum(getattr(one, name) for one in studies) for name in names)
    half = stats.sem(logs) * stats.t.ppf(0.975, len(logs) - 1) if len(logs) > 1 else None
    return {
        "study_over_alone": {
            "mean": float(np.exp(logs.mean())),  # geometric
            "median": float(np.exp(np.median(logs))),
            "interval": None if half is None else np.exp([logs.mean() - half, logs.mean() + half]).tolist(),
            "each": np.exp(logs).tolist(),
        },
        "around_share": [around / counted, (around + made_up) / counted],
        "between_steps_s": {name: [between for between, _ in both] for name, both in seconds.items()},
        "before_and_after_s": {name: [outside for _, outside in both] for name, both in seconds.items()},
        "pairs": len(rounds),
    }


def _pair(folder: Path, number: int, settings: dict[str, str]) -> dict[str, Contender]:
    """The training alone and as a study, both to their ends."""
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
        for name, (command, training, trains) in plans.items():  # each alone up to its first step
            contenders[name] = one = Contender(command, folder, training, trains)
            while one.running() and not one.begun():
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
        if not contenders["study"].counted_s:
            raise UserError("the training is over within a slice; give it more: --set budget_images=...")
        return contenders
    finally:
        for one in contenders.values():
            one.kill()


def _is_worker(process: psutil.Process) -> bool:
    """Whether it is the process of Ray's that trains."""
    with contextlib.suppress(psutil.Error):
        return "TrainingWorker" in " ".join(process.cmdline())
    return False


def _clocks(processes: list[psutil.Process]) -> dict[psutil.Process, float]:
    """Seconds of processor time that each has taken so far."""
    clocks = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            clocks[process] = times.user + times.system
    return clocks


def _passed(before: dict[psutil.Process, float], after: dict[psutil.Process, float]) -> float:
    return sum(after[process] - seconds for process, seconds in before.items() if process in after)


def _send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


if __name__ == "__main__":
    sys.exit(main())
