"""Trainings of several processes: drills with the real trainer on a Ray of their own."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from study.contract import Attr
from tests.study.conftest import REAL, Workplace, command

GONE_S = 20.0  # within which a training's processes have ended with what they belong to


def drill(place: Workplace, root: Path) -> None:
    text = REAL.format(root=root, threads=1) + "resources: {workers_per_trial: 2}\ntracking: {uri: null}\n"
    text = text.replace("budget_images: 240", "budget_images: 960").replace("trials: 5", "trials: 3")
    (place.root / "study.yaml").write_text(text)


def processes(driver: int) -> dict[str, list[psutil.Process]]:
    """The processes that train for a driver's Ray, by their class."""
    found: dict[str, list[psutil.Process]] = {"TrainingWorker": [], "Peer": []}
    for process in psutil.Process(driver).children(recursive=True):
        for name, members in found.items():
            if f"ray::{name}" in " ".join(process.cmdline()) or f"ray::{name}" in process.name():
                members.append(process)
    return found


def ended(members: list[psutil.Process]) -> bool:
    """Whether all have; one that nobody has buried yet counts as ended."""
    return not any(map(alive, members))


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(condition: Callable[[], bool], limit_s: float) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "it did not come about in time"
        time.sleep(0.05)
    return time.monotonic() - began


def reported(place: Workplace, key: str) -> bool:
    return (place.root / f"results/tiny/trials/{key}/checkpoints/latest").exists()


@pytest.mark.slow
def test_all_processes_of_a_training_end_with_it_and_the_study_goes_on(tiny_root: Path, workplace: Workplace) -> None:
    """One after the other a worker, a trial's own process and the driver are killed; prunings come by themselves."""
    drill(workplace, tiny_root)
    driver = command(workplace)
    took: dict[str, float] = {}
    try:
        for victim, key in (("Peer", "reproduce-0000"), ("TrainingWorker", "search-0000"), ("driver", "search-0001")):
            until(lambda key=key: reported(workplace, key), 400)  # type: ignore[misc]
            found = processes(driver.pid)
            (leader,), (peer,) = found["TrainingWorker"], found["Peer"]
            {"Peer": peer, "TrainingWorker": leader, "driver": driver}[victim].kill()
            took[victim] = until(lambda both=[leader, peer]: ended(both), GONE_S)  # type: ignore[misc]
    finally:
        driver.kill()
        driver.wait()
    print(f"seconds until both processes of a training had ended, by what was killed: {took}")
    assert command(workplace, "--resume").wait() == 0, (workplace.root / "driver.log").read_text()[-3000:]
    ledger = workplace.ledger()
    outcomes = {key: trial.user_attrs[Attr.OUTCOME] for key, trial in ledger.items()}
    assert set(outcomes.values()) == {"complete", "pruned"}, outcomes
    # A death is forgiven once the training has got further; an attempt stays counted.
    counted = [Attr.ATTEMPTS, Attr.DEATHS]
    told = [[ledger[key].user_attrs[name] for name in counted] for key in ("reproduce-0000", "search-0000")]
    assert told == [[2, 0], [2, 0]]
    for key, outcome in outcomes.items():
        summary = json.loads((workplace.root / f"results/tiny/trials/{key}/summary.json").read_text())
        assert summary["processes"] == 2
        assert outcome != "complete" or summary["images"] == 960


@pytest.mark.slow
def test_a_study_stopped_in_mid_training_stops_all_its_processes_at_one_checkpoint(
    tiny_root: Path, workplace: Workplace
) -> None:
    drill(workplace, tiny_root)
    driver = command(workplace)
    until(lambda: reported(workplace, "reproduce-0000"), 120)
    training = [p for members in processes(driver.pid).values() for p in members]
    os.kill(driver.pid, signal.SIGTERM)
    assert driver.wait(60) == 130, (workplace.root / "driver.log").read_text()[-3000:]
    until(lambda: ended(training), GONE_S)
    state = json.loads(
        (workplace.root / "results/tiny/trials/reproduce-0000/checkpoints/latest/state.json").read_text()
    )
    assert 0 < state["images"] < 960
