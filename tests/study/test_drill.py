"""Drills with the real trainer, minutes long: `make drill`. The seed of every drill is printed when it fails."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.study.conftest import Workplace
from trainables.checkpoint import read_weights

STUDY = """
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


@pytest.mark.slow
def test_five_kills_of_the_driver_with_the_real_trainer(tiny_root: Path, workplace: Workplace, tmp_path: Path) -> None:
    """One training at a time: same trials, none lost or doubled in ledger or MLflow, the same losses bit for bit."""
    text = STUDY.format(root=tiny_root, threads=os.cpu_count())
    calm = Workplace(tmp_path / "calm")
    calm.root.mkdir()
    for place in (calm, workplace):
        (place.root / "study.yaml").write_text(text)
    assert command(calm).wait() == 0, (calm.root / "driver.log").read_text()[-2000:]
    seed = random.randrange(1 << 30)
    moments, kills = random.Random(seed), 0
    while kills < 5:
        driver = command(workplace, "--resume")
        time.sleep(moments.uniform(6, 16))
        if driver.poll() is not None:
            break
        driver.kill()
        driver.wait()
        kills += 1
    assert kills >= 3, f"the study ended after {kills} kills (seed {seed})"
    assert command(workplace, "--resume").wait() == 0, f"seed {seed}"
    told, expected = workplace.ledger(), calm.ledger()
    assert {k: (t.params, t.values, t.state) for k, t in told.items()} == {
        k: (t.params, t.values, t.state) for k, t in expected.items()
    }, f"seed {seed}"
    assert sorted(run["name"] for run in workplace.mlflow()) == sorted(expected), f"seed {seed}"
    for key in expected:
        one, other = (place.root / "results/tiny/trials" / key for place in (workplace, calm))
        left, right = (pq.read_table(f / "trace.parquet").drop_columns(["seconds"]) for f in (one, other))
        assert left.equals(right), f"{key}: the losses differ (seed {seed})"
        weights = [read_weights(f / "checkpoints" / "latest") for f in (one, other)]
        assert all(weights[0][name].equal(weights[1][name]) for name in weights[0]), f"{key} (seed {seed})"


def command(place: Workplace, *words: str) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "study.run", "study.yaml", *words]
    with (place.root / "driver.log").open("ab") as log:
        return subprocess.Popen(arguments, cwd=place.root, env=place.environment, stdout=log, stderr=log)
