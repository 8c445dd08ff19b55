"""Scoring at full size: 654 maps of 480 x 640 under every protocol, in under a minute on two cores and in 2 GB."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FRAMES, SCENES, DISTINCT = 654, 40, 12
SECONDS, GIGABYTES = 60, 2

pytestmark = pytest.mark.slow


def depth_of(number: int) -> np.ndarray:
    """A room's depth in metres: a tilted wall, boxes before it, the noise of a sensor."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:480, 0:640] / 640
    depth = 2 + rng.uniform(0, 4) + 2 * y * rng.uniform(-1, 1) + 2 * x * rng.uniform(-1, 1)
    for _ in range(8):
        top, left = rng.integers(0, 360), rng.integers(0, 520)
        depth[top : top + 120, left : left + 120] *= rng.uniform(0.4, 0.9)
    return (depth + rng.normal(0, 0.01, depth.shape)).clip(0.5, 9.9)


def test_a_full_test_set_is_scored_in_a_minute_and_two_gigabytes(tmp_path: Path) -> None:
    data, maps = tmp_path / "nyu", tmp_path / "maps"
    (data / "data/nyu2_test").mkdir(parents=True)
    maps.mkdir()
    lines, scenes = [], []
    for i in range(FRAMES):
        names = [f"data/nyu2_test/{i:05d}_{what}.png" for what in ("colors", "depth")]
        stored = maps / f"{i:05d}.npy"
        if i < DISTINCT:
            depth = depth_of(i)
            pixels = np.repeat((255 / depth).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
            Image.fromarray(pixels).save(data / names[0])
            Image.fromarray((depth * 1000).round().astype(np.uint16)).save(data / names[1])
            noisy = depth * np.random.default_rng(i).lognormal(0.05, 0.1, depth.shape)
            np.save(stored, noisy.astype(np.float32))
        else:
            for name in names:
                os.link(data / f"{name[:15]}{i % DISTINCT:05d}{name[20:]}", data / name)
            os.link(maps / f"{i % DISTINCT:05d}.npy", stored)
        lines.append(",".join(names))
        scenes.append(f"{names[0]},scene_{i % SCENES}")
    for name, content in (("nyu2_train", lines[:1]), ("nyu2_test", lines), ("scenes", scenes)):
        (data / f"data/{name}.csv").write_text("\n".join(content) + "\n")
    command = [sys.executable, "-m", "analysis.score", str(maps), "--data", str(data), "--json"]
    command += ["--tracking", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    started = time.perf_counter()
    users = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}  # which tests set to one thread
    ran = subprocess.run(command, cwd=ROOT, env=users, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    gigabytes = used.ru_maxrss / 2**20
    print(f"{seconds:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of CPU, {gigabytes:.2f} GB")
    assert document["frames"] == FRAMES and document["protocols"]["densedepth"]["abs_rel"]["low"] is not None
    assert gigabytes < GIGABYTES
    assert seconds < SECONDS
