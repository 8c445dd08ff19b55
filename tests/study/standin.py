"""A training without torch for the tests of the study: instant, deterministic, resumable, and able to end in every way.

What a training is to suffer stands in events.json in the working folder, {trial key: event}, and how long a report
takes, in seconds, in pause. `main` runs the study's own command with it.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from study import executor, plan, preflight, run
from study.search import inert
from trainables.ray_trainable import TrainingWorker
from trainables.runtime import locks
from trainables.runtime.durable import write_bytes, write_json
from trainables.runtime.errors import Diverged, OutOfMemory, Stopped


class StandIn(TrainingWorker):
    """Reports a value that falls with the images seen and grows with the distance of the lr from 1e-3."""

    def reports(self, config: str, folder: Path) -> Iterator[dict[str, Any]]:
        settings = json.loads(config)
        state = folder / "state.json"
        history = json.loads(state.read_text()) if state.exists() else []
        for unfinished in folder.glob(".*.tmp"):  # of a write that a kill ended, as the trainer does
            unfinished.unlink()
        began = time.time()
        with (folder / "starts.log").open("a") as log:
            log.write(f"{os.getpid()} {len(history)} {os.environ.get('CUDA_VISIBLE_DEVICES')} {began}\n")
        write_reports(folder, history)
        yield from history
        event = json.loads(Path("events.json").read_text()).get(folder.name, "") if Path("events.json").exists() else ""
        if event == "silent":
            return
        budget, interval = settings["budget_images"], settings["validate_every_images"]
        for images in range((len(history) + 1) * interval, budget + 1, interval):
            until = time.monotonic() + float(Path("pause").read_text())
            while time.monotonic() < until:
                time.sleep(0.01)
                if self.told_to_stop():
                    (folder / "stopped").touch()
                    raise Stopped("at a checkpoint")
            happen(event, images, folder)
            locks.confirm()
            with (folder / "computed.log").open("a") as log:
                log.write(f"{os.getpid()} {images}\n")
            value = float(event) if event in ("nan", "inf") else value_of(settings, images)
            history.append(report_of(value, images, budget))
            if not math.isfinite(value):
                yield history[-1]
            write_json(state, history)
            write_reports(folder, history)
            write_json(folder / "summary.json", {"seconds": time.time() - began, "images": images})
            yield history[-1]


def write_reports(folder: Path, history: list[dict[str, Any]]) -> None:
    write_bytes(folder / "reports.jsonl", "".join(json.dumps(report) + "\n" for report in history).encode())


def value_of(settings: dict[str, Any], images: int) -> float:
    """The judged metric of a training after so many images."""
    off = abs(math.log10(settings["optim"]["lr"] / 1e-3)) + 0.01 * settings["seed"] / 1000
    return 1.0 / (1 + images / settings["budget_images"]) + off


def report_of(value: float, images: int, budget: int) -> dict[str, Any]:
    """A report as trainings make them."""
    metrics = {"val/rmse": value, "train/loss": 2 * value}
    report = {"step": images, "images": images, "epoch": 1.0, "time_s": time.time(), "metrics": metrics}
    return report | {"final": images >= budget}


def happen(event: str, images: int, folder: Path) -> None:
    """The event, at the second report."""
    if event == "raise":
        raise ValueError("a bug")
    if event == "diverge":
        raise Diverged(7, "the loss is not finite")
    if event == "memory":
        raise OutOfMemory("CUDA out of memory")
    if event == "exit":
        sys.exit(3)
    if event == "hang":
        time.sleep(3600)
    if event == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if event == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if event == "starved":  # as the kernel does it: the count first, see main
        (folder / "starved").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if event == "die once" and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def prepared(plan: plan.Plan) -> dict[str, Any]:
    """In place of looking at the data."""
    return {"train": "0" * 64, "test": "1" * 64, "frames": 1}


def unchecked(where: str, config: Any) -> None:
    """In place of building the model."""


def unprobed(plan: plan.Plan) -> list[str]:
    """In place of training a few steps for each searched setting."""
    return []


def without_data() -> None:
    """The study's command without data and model, which stand-ins do not need."""
    preflight.prepare = prepared
    inert.refuse_inert = unprobed
    plan.check_parts = unchecked


def main(argv: list[str]) -> int:
    without_data()
    executor.memory_kills = lambda: len(list(Path().glob("results/*/trials/*/starved")))
    return run.main(argv, worker=StandIn)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
