"""Fixtures of the study's tests: a study's file, its command in another process, and what the stores then hold."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from study.contract import Attr

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
name: tiny
data: {source: rooms}
trial: {model.weights: null, threads: 1, budget_images: 100, validate_every_images: 20}
search:
  trials: 6
  pruner: {kind: successive_halving, min_images: 20, reduction: 3}
  space:
    optim.lr: {low: 1e-5, high: 1e-1, scale: log}
    batch_size: {choices: [2, 4, 8]}
"""


# A study of the real trainer on tiny frames, to be formatted with their root and the threads of a training.
REAL = """
name: tiny
data: {{source: kaggle, root: {root}}}
trial:
  model.family: unet
  model.encoder: null
  model.weights: null
  model.unet_channels: 8
  model.unet_levels: 2
  model.skips: {{s1: pre_pool, s2: pre_pool, s4: none, s8: none, s16: none, s32: none}}
  input: [48, 64]
  batch_size: 4
  budget_images: 240
  validate_every_images: 48
  checkpoint_every_images: 16
  snapshot_every_steps: 0
  optim.schedule: one_cycle
  threads: {threads}
reproduce: {{recipes: [densedepth], seeds: 1}}
search:
  trials: 5
  pruner: {{kind: successive_halving, min_images: 48, reduction: 3}}
  space:
    optim.lr: {{low: 1e-5, high: 1e-2, scale: log}}
    optim.clip_norm: {{choices: [null, 0.1]}}
confirm: {{top: 1, seeds: 1}}
"""


class Workplace:
    """A folder in which studies run with stand-in trainings."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url: str | None = None  # of a ledger that is not in the results folder
        # The stand-in imports Ray with its class, before study.run can set how to log in.
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token"}

    def write(self, text: str = STUDY, **events: str) -> None:
        (self.root / "study.yaml").write_text(text)
        (self.root / "pause").write_text("0.01")
        (self.root / "events.json").write_text(
            json.dumps({key.replace("_", "-"): event for key, event in events.items()})
        )

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "tests.study.standin", "study.yaml", *words]

    def start(self, *words: str, pause_s: float | None = None) -> subprocess.Popen[str]:
        if pause_s is not None:
            (self.root / "pause").write_text(str(pause_s))
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(*words), cwd=self.root, env=self.environment, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, *words: str, pause_s: float | None = None) -> subprocess.CompletedProcess[str]:
        process = self.start(*words, pause_s=pause_s)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def ledger_url(self, name: str = "tiny") -> str:
        return self.url or f"sqlite:///{self.root / 'results' / name / 'ledger.db'}"

    def ledger(self, name: str = "tiny") -> dict[str, optuna.trial.FrozenTrial]:
        """Every training of the ledger by its key."""
        url = self.ledger_url(name)
        studies = optuna.get_all_study_names(url)
        trials = [t for study in studies for t in optuna.load_study(study_name=study, storage=url).get_trials()]
        return {trial.user_attrs[Attr.KEY]: trial for trial in trials}

    def mlflow(self) -> list[dict[str, Any]]:
        """Every child run of the store, read past MLflow: key (as `name`), status, tags, metrics, params."""
        with sqlite3.connect(self.root / "mlflow.db") as connection:
            runs = []
            for run, status in connection.execute("SELECT run_uuid, status FROM runs"):
                tags = dict(connection.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run,)))
                points = connection.execute(
                    "SELECT key, step, value, timestamp FROM metrics WHERE run_uuid = ?", (run,)
                )
                params = dict(connection.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run,)))
                runs.append(
                    {
                        "name": tags.get("trial_key"),
                        "status": status,
                        "tags": tags,
                        "metrics": points.fetchall(),
                        "params": params,
                    }
                )
        return [run for run in runs if run["name"]]


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[Any], what: str, limit_s: float = 120.0) -> None:
    """Wait for something that comes about while the process lives."""
    began = time.monotonic()
    while not ready():
        assert process.poll() is None, (what, process.communicate())
        assert time.monotonic() - began < limit_s, what
        time.sleep(0.05)


def command(place: Workplace, *words: str) -> subprocess.Popen[bytes]:
    """A study with the real trainer, what it says in driver.log."""
    arguments = [sys.executable, "-m", "study.run", "study.yaml", *words]
    with (place.root / "driver.log").open("ab") as log:
        return subprocess.Popen(arguments, cwd=place.root, env=place.environment, stdout=log, stderr=log)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of four CPUs and a logical GPU that somebody else has started, elsewhere."""
    import ray

    with tempfile.TemporaryDirectory() as elsewhere:
        with contextlib.chdir(elsewhere):
            ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture
def workplace(tmp_path: Path, empty_store: Path) -> Workplace:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return Workplace(tmp_path)
