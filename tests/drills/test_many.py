"""Many short trials: how busy a study keeps its machine, and what grows with the number of trials."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from scipy import stats

from tests.drills import judge
from tests.drills.table import record
from tests.study.conftest import STUDY, Workplace
from tests.study.standin import value_of

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 25  # trials whose samples become one point: neighbouring samples are no independent ones
# What may grow, per 100 trials: a driver holds a record of every trial, and so do Tune and MLflow's client. Its memory
# does not keep to this: 8.7 MB on 2026-11-28 (LOG.md says where they are).
TOLERATED = {"rss_mb": 6.0, "fds": 0.5, "threads": 0.5, "children": 0.5, "shm_mb": 0.5}
MANY = STUDY.replace("kind: successive_halving, min_images: 20, reduction: 3", "kind: none")


@dataclass
class Watched:
    """Samples of a driver while it works: trials ended, and each quantity."""

    trials: list[int] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    def sample(self, driver: psutil.Process, ended: int) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [driver, *driver.children(recursive=True)]
            now = {
                "rss_mb": driver.memory_info().rss / 2**20,
                "fds": driver.num_fds(),
                "threads": driver.num_threads(),
                "children": len(family) - 1,
                "shm_mb": sum(map(shared, family)) / 2**20,
                "driver_s": sum(driver.cpu_times()[:2]),
                "machine_s": reference_s(),
            }
            self.trials.append(ended)
            for name, value in now.items():
                self.values.setdefault(name, []).append(value)

    def slopes(self) -> dict[str, tuple[float, float]]:
        """Growth per 100 trials over the second half of the study, and half of its 95% interval.

        Of the driver's own CPU seconds: of what it takes for one trial; `driver_s` at this machine's average speed,
        `driver_raw_s` as they are.
        """
        half = max(self.trials) // 2
        blocks = np.array(self.trials) // BLOCK
        inside = [b for b in sorted(set(blocks)) if half <= b * BLOCK < max(self.trials) - BLOCK + 1]
        points = {n: [float(np.mean(np.array(v)[blocks == b])) for b in inside] for n, v in self.values.items()}
        assert len(inside) > 5, "too few trials for slopes"
        x, machine = np.array(inside) * BLOCK / 100, np.array(points.pop("machine_s"))
        taken = np.diff(points.pop("driver_s")) / BLOCK
        found = {name: slope(x, values) for name, values in points.items()}
        steady = taken * machine.mean() / ((machine[1:] + machine[:-1]) / 2)
        return found | {"driver_s": slope(x[1:], steady), "driver_raw_s": slope(x[1:], taken)}


def reference_s() -> float:
    """CPU seconds of a piece of work that is always the same: how slow the machine is now."""
    began = time.process_time()
    sum(number % 7 for number in range(200_000))
    return time.process_time() - began


def slope(x: object, y: object) -> tuple[float, float]:
    """Least squares: the slope, and half of its 95% interval."""
    fit = stats.linregress(x, y)
    return float(fit.slope), float(fit.stderr * stats.t.ppf(0.975, len(x) - 2))  # type: ignore[arg-type]


def shared(process: psutil.Process) -> int:
    """Bytes of shared memory (/dev/shm) that a process has mapped and touched."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("RssShmem"):
                return int(line.split()[1]) * 1024
    return 0


def study_of(place: Workplace, trials: int, pause_s: float, reports: int) -> Watched:
    """Run a study of so many trials, two at once, and watch its driver."""
    every = f"validate_every_images: {100 // reports}"
    text = MANY.replace("trials: 6", f"trials: {trials}").replace("validate_every_images: 20", every)
    place.write(f"{text}resources: {{cpus_per_trial: {max(1, (os.cpu_count() or 1) // 2)}}}\n")
    (place.root / "pause").write_text(str(pause_s))
    log = place.root / "results/tiny/study.log"
    watched = Watched()
    with (place.root / "out").open("w") as out:
        driver = subprocess.Popen(place.command(), cwd=place.root, env=place.environment, stdout=out, stderr=out)
        while driver.poll() is None:
            time.sleep(1)
            watched.sample(psutil.Process(driver.pid), log.read_text().count(" complete,") if log.exists() else 0)
    assert driver.returncode == 0, (place.root / "out").read_text()[-2000:]
    return watched


@pytest.mark.slow
def test_one_second_trials_lose_nothing(workplace: Workplace) -> None:
    began = time.monotonic()
    study_of(workplace, 200, 0.5, 2)
    busy, span = spent(workplace)
    share = busy / (2 * span)
    wrong = judge.faults(workplace, replay=value_of)
    record("200 one-second trials", 0, 200, f"{share:.1%} busy; {wrong or 'nothing wrong'}", time.monotonic() - began)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("cores", [2, 4, 8])
def test_the_default_study_keeps_more_cores_busy(workplace: Workplace, cores: int) -> None:
    """Its trainings as stand-ins that sleep, as long in proportion, on a Ray that counts so many cores.

    On paper each phase takes its trainings' seconds by the cores, or as long as its longest training.
    """
    import ray

    began, text = time.monotonic(), (ROOT / "study.yaml").read_text()
    for old, new in (("name: rooms", "name: tiny"), ("validate_every_images: 480", "validate_every_images: 160")):
        assert old in text
        text = text.replace(old, new)
    workplace.write(text)
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
    try:
        address = ray.get_runtime_context().gcs_address
        driver = workplace.start("--set", f"resources.address={address}", pause_s=1.0)
        out, err = driver.communicate(timeout=900)
    finally:
        ray.shutdown()
    assert driver.returncode == 0, (out[-2000:], err[-2000:])
    _, span = spent(workplace)
    by_phase: dict[str, list[float]] = {}
    for path in (workplace.root / "results/tiny/trials").glob("*/summary.json"):
        phase = path.parent.name.rpartition("-")[0]
        by_phase.setdefault(phase, []).append(json.loads(path.read_text())["seconds"])
    paper = sum(max(sum(seconds) / cores, max(seconds)) for seconds in by_phase.values())
    count = sum(map(len, by_phase.values()))
    result = f"{span:.0f} s, on paper {paper:.0f} s"
    record(f"the default study's trainings as stand-ins, {cores} cores", 0, count, result, time.monotonic() - began)
    assert count == 72 and span < 1.3 * paper


def spent(place: Workplace) -> tuple[float, float]:
    """Seconds of all trials by their workers' clocks, and from the first start to the last end."""
    starts, ends, busy = [], [], 0.0
    for folder in (place.root / "results/tiny/trials").iterdir():
        start = float((folder / "starts.log").read_text().split()[3])
        seconds = json.loads((folder / "summary.json").read_text())["seconds"]
        starts.append(start)
        ends.append(start + seconds)
        busy += seconds
    return busy, max(ends) - min(starts)


@pytest.mark.slow
def test_nothing_grows_over_a_thousand_trials(workplace: Workplace) -> None:
    began, count = time.monotonic(), int(os.environ.get("TRIALS", "1000"))
    found = study_of(workplace, count, 0.05, 2).slopes()
    _, span = spent(workplace)
    wrong = judge.faults(workplace, replay=value_of)
    told = ", ".join(f"{name} {value:+.4f} +- {half:.4f}" for name, (value, half) in found.items())
    result = f"per 100 trials: {told}; {span / count:.3f} s per trial; {wrong or 'nothing wrong'}"
    record(f"{count:,} trials", 0, count, result, time.monotonic() - began)
    assert not wrong, "\n".join(wrong)
    grown = {name for name, most in TOLERATED.items() if found[name][0] > most or sum(found[name]) > most}
    assert not grown, told
