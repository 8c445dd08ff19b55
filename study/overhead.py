"""`python -m study.overhead`: what Ray, the ledger and MLflow cost a training between its first and its last step.

The same training runs alone and as a study of one, in turn, each in a process of its own; the time is that between the
first and the last row of the step trace, so that start-up is reported apart. Ratios are taken within a pair.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trainables import cli
from trainables.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = "python -m study.overhead --pairs 5 --set budget_images=960"
SETTINGS = {
    "data.source": "rooms",
    "model.encoder": "densenet121",
    "model.weights": "null",
    "model.width": "0.5",
    "input": "[96,128]",
    "budget_images": "480",
    "validate_every_images": "120",
    "checkpoint_every_images": "480",
    "threads": str(os.cpu_count()),
}


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = cli.parser("study.overhead", __doc__ or "", EXAMPLE)
    parser.add_argument("--pairs", type=int, default=3, help="pairs of trainings (default: 3)")
    parser.add_argument("--set", metavar="PATH=VALUE", action="append", default=[], dest="assignments")
    return cli.run(parser, _measure, argv)


def _measure(args: argparse.Namespace) -> Any:
    if args.pairs < 1:
        raise UserError("--pairs must be at least 1")
    settings = SETTINGS | dict(pair.split("=", 1) for pair in args.assignments)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "study.yaml").write_text("name: one\nreproduce: {recipes: [densedepth], seeds: 1}\n")
        rounds = [_pair(Path(folder), number, settings) for number in range(args.pairs)]
    ratios = [one["study"][0] / one["alone"][0] for one in rounds]
    result = {
        "study_over_alone": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "steps_s": {name: [one[name][0] for one in rounds] for name in ("alone", "study")},
        "before_and_after_steps_s": {name: [one[name][1] for one in rounds] for name in ("alone", "study")},
        "pairs": args.pairs,
    }
    spread = result["study_over_alone"]
    print(
        f"between first and last step, as a study over alone: {spread['median']:.3f} "
        f"(min {spread['min']:.3f}, max {spread['max']:.3f}, n = {args.pairs} pairs)"
    )
    for name, seconds in result["before_and_after_steps_s"].items():
        print(f"start-up and end, {name}: {statistics.median(seconds):.1f} s")
    return result


def _pair(folder: Path, number: int, settings: dict[str, str]) -> dict[str, tuple[float, float]]:
    """(seconds between first and last step, all other seconds) of the training alone and as a study."""
    alone = [sys.executable, "-m", "trainables.train", "densedepth", "--out", f"alone-{number}"]
    alone += [part for path, value in settings.items() for part in ("--set", f"{path}={value}")]
    study = [sys.executable, "-m", "study.run", "study.yaml", "--set", f"name=pair-{number}"]
    for path, value in settings.items():
        study += ["--set", f"{path}={value}" if path.startswith("data.") else f"trial.{path}={value}"]
    traces = {
        "alone": folder / f"alone-{number}",
        "study": folder / "results" / f"pair-{number}" / "trials" / "reproduce-0000",
    }
    runs = [("alone", alone), ("study", study)]
    return {name: _timed(folder, command, traces[name]) for name, command in (runs if number % 2 else runs[::-1])}


def _timed(folder: Path, command: list[str], training: Path) -> tuple[float, float]:
    import pyarrow.parquet as pq

    began = time.perf_counter()
    process = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    whole = time.perf_counter() - began
    if process.returncode:
        raise UserError(f"{' '.join(command[1:5])} ended with {process.returncode}: {process.stderr.strip()[-400:]}")
    seconds = pq.read_table(training / "trace.parquet", columns=["seconds"])["seconds"].to_pylist()
    steps = float(seconds[-1] - seconds[0])
    return steps, whole - steps


if __name__ == "__main__":
    sys.exit(main())
