"""The study's command, in processes of their own: outcomes, kills, owners, resume."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from study.contract import Attr
from tests.study.conftest import STUDY, Workplace

EVENTS = {
    "search_0001": "raise",
    "search_0002": "diverge",
    "search_0003": "memory",
    "search_0004": "exit",
    "search_0005": "hang",
    "search_0006": "die",
    "search_0007": "die once",
    "search_0008": "nan",
}
ENDED = {
    "search-0000": ("complete", "COMPLETE", "FINISHED"),
    "search-0001": ("failed", "FAIL", "FAILED"),
    "search-0002": ("diverged", "FAIL", "FAILED"),
    "search-0003": ("out_of_memory", "FAIL", "FAILED"),
    "search-0004": ("failed", "FAIL", "FAILED"),
    "search-0005": ("failed", "FAIL", "FAILED"),
    "search-0006": ("failed", "FAIL", "FAILED"),
    "search-0007": ("complete", "COMPLETE", "FINISHED"),
    "search-0008": ("diverged", "FAIL", "FAILED"),
}


def params(workplace: Workplace) -> dict[str, object]:
    return {key: (t.params, t.values, t.state, t.intermediate_values) for key, t in workplace.ledger().items()}


def test_every_way_to_end_reaches_ledger_and_mlflow_alike(workplace: Workplace) -> None:
    text = STUDY.replace("trials: 6", "trials: 9\n  sampler: random").replace("kind: successive_halving", "kind: none")
    workplace.write(text + "resources: {silence_limit_s: 4}\n", **EVENTS)
    done = workplace.run("--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["trainings"]["search"] == {"complete": 2, "diverged": 2, "failed": 4, "out_of_memory": 1}
    ledger, mlflow = workplace.ledger(), {run["name"]: run for run in workplace.mlflow()}
    assert set(ledger) == set(mlflow) == set(ENDED)
    for key, (outcome, state, status) in ENDED.items():
        assert (ledger[key].user_attrs[Attr.OUTCOME], ledger[key].state.name) == (outcome, state), key
        assert (mlflow[key]["tags"]["outcome"], mlflow[key]["status"]) == (outcome, status), key
    assert ledger["search-0002"].user_attrs[Attr.STEP] == 7
    assert "ValueError: a bug" in ledger["search-0001"].user_attrs[Attr.DETAIL]
    assert ledger["search-0006"].user_attrs[Attr.DEATHS] == 2
    assert ledger["search-0007"].user_attrs[Attr.ATTEMPTS] == 2
    assert len([m for m in mlflow["search-0007"]["metrics"] if m[0] == "val/rmse"]) == 5
    assert not mlflow["search-0008"]["metrics"]
    reused = {Path(workplace.root / "results/tiny/trials" / k / "starts.log").read_text().split()[0] for k in ENDED}
    assert len(reused) < len(ENDED)


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_a_killed_study_goes_on_as_if_undisturbed(workplace: Workplace, tmp_path: Path, kills: int) -> None:
    """One training at a time: the resumed study equals the undisturbed one, bit for bit."""
    text = STUDY.replace("trials: 6", "trials: 14").replace("threads: 1", f"threads: {os.cpu_count()}")
    calm = Workplace(tmp_path / "calm")
    calm.root.mkdir()
    shutil.copy(workplace.root / "mlflow.db", calm.root)
    for place in (calm, workplace):
        place.write(text + "confirm: {top: 2, seeds: 1}\n")
    assert calm.run().returncode == 0
    seed = random.randrange(1 << 30)
    moments = random.Random(seed)
    for _ in range(kills):
        driver = workplace.start("--resume", pause_s=0.1)
        _until(lambda: len(_folders(workplace)) > 0, driver)
        time.sleep(moments.uniform(0, 4))
        driver.kill()
        driver.communicate()
    done = workplace.run("--resume")
    assert done.returncode == 0, done.stderr
    assert params(workplace) == params(calm), f"seed {seed}"
    assert "PRUNED" in {t.state.name for t in calm.ledger().values()}
    runs = workplace.mlflow()
    assert sorted(run["name"] for run in runs) == sorted(workplace.ledger())
    for run in runs:
        steps = [step for name, step, _, _ in run["metrics"] if name == "val/rmse"]
        assert sorted(steps) == sorted(workplace.ledger()[run["name"]].intermediate_values), run["name"]


def test_a_second_driver_is_refused_and_a_stop_is_clean(workplace: Workplace) -> None:
    workplace.write()
    driver = workplace.start(pause_s=2.0)
    _until(lambda: len(_folders(workplace)) > 0, driver)
    second = workplace.run("--resume")
    assert second.returncode == 2
    assert f"process {driver.pid} on" in second.stderr and len(second.stderr.splitlines()) == 1
    driver.send_signal(signal.SIGTERM)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, err
    assert "go on with --resume" in out
    again = workplace.run()
    assert again.returncode == 2 and "--resume" in again.stderr
    done = workplace.run("--resume", "--set", "search.trials=7")
    assert done.returncode == 0, done.stderr
    assert sorted(workplace.ledger()) == [f"search-{number:04d}" for number in range(7)]
    changed = workplace.run("--resume", "--set", "trial.budget_images=200")
    assert changed.returncode == 2
    assert "trial.budget_images is 200, but the study began with 100" in changed.stderr


def _folders(workplace: Workplace) -> list[Path]:
    return list(workplace.root.glob("results/tiny/trials/*/state.json"))


def _until(ready: object, driver: object) -> None:
    for _ in range(600):
        if ready():  # type: ignore[operator]
            return
        assert driver.poll() is None, driver.communicate()  # type: ignore[attr-defined]
        time.sleep(0.1)
    raise AssertionError("nothing began within a minute")
