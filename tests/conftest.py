"""Shared fixtures: a tiny data set in the Kaggle layout, and the settings of a training that takes a second."""

from __future__ import annotations

import gc
import os
import secrets
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from PIL import Image

os.environ["OMP_NUM_THREADS"] = "1"  # before torch, which only those that run tests import

from trainables.settings.config import TrialConfig
from trainables.settings.recipe import load_recipe

# Hypothesis draws the same inputs in each run: a failure of `make test` is the last change's. With
# `--hypothesis-profile=default` it draws anew.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")

ROWS, COLUMNS = 48, 64
SCENES, FRAMES = 5, 6


def pytest_collection_finish() -> None:
    """Half a million objects of imported modules live as long as the tests: no collection looks through them again."""
    gc.collect()
    gc.freeze()


def write_tiny(root: Path, *, holes: bool = False) -> Path:
    """Tilted planes with a nearer box, brighter where nearer, in the exact Kaggle layout."""
    rng = np.random.default_rng(7)
    lists: dict[str, list[str]] = {"train": [], "test": []}
    y, x = np.mgrid[0:ROWS, 0:COLUMNS] / COLUMNS
    for scene in range(SCENES + 1):
        for frame in range(FRAMES):
            depth = 1.5 + scene + 3 * y + rng.uniform(0, 2) * x
            top, left = rng.integers(4, 24, 2)
            depth[top : top + 16, left : left + 20] = rng.uniform(1, 3)
            rgb = np.stack([255 / (1 + depth), 25 * depth, 128 + 60 * np.sin(9 * x)], -1) + rng.normal(
                0, 4, (*depth.shape, 3)
            )
            picture = Image.fromarray(rgb.clip(0, 255).astype(np.uint8))
            if holes:
                depth[: 4 + frame] = 0
            if scene < SCENES:
                stem = f"data/nyu2_train/scene_{scene:04d}_out/{frame + 1}"
                names, eight = (f"{stem}.jpg", f"{stem}.png"), (depth / 10 * 255).round().astype(np.uint8)
                target, split = Image.fromarray(eight), "train"
            else:
                stem = f"data/nyu2_test/{frame:05d}"
                names, split = (f"{stem}_colors.png", f"{stem}_depth.png"), "test"
                target = Image.fromarray((depth * 1000).round().astype(np.uint16))
            (root / names[0]).parent.mkdir(parents=True, exist_ok=True)
            picture.save(root / names[0], **({"quality": 95} if split == "train" else {}))
            target.save(root / names[1])
            lists[split].append(",".join(names))
    for split, lines in lists.items():
        (root / f"data/nyu2_{split}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of what a test draws: the test's own in each run, or SEED of the environment; drawn anew by a drill."""
    if given := os.environ.get("SEED"):
        return int(given)
    drill = request.node.get_closest_marker("slow") is not None
    return secrets.randbits(30) if drill else zlib.crc32(request.node.nodeid.encode()) >> 2


@pytest.fixture(scope="session")
def indoor() -> Path:
    """The real RGB-D frames in the Kaggle layout, which are not part of the repository."""
    root = Path(__file__).parents[2] / "shared" / "indoor_rgbd"
    if not root.is_dir():
        pytest.skip("../shared/indoor_rgbd is not here; it holds the real RGB-D frames")
    return root


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's store before its first run, to be copied: each study of a test would take seconds to make one."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Kaggle-layout data set of 30 training and 6 test frames without holes."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_config(tiny_root: Path) -> Callable[..., TrialConfig]:
    """Settings by dotted path over a U-Net that trains in a second: tiny_config(**{'optim.lr': 1e-3})."""

    def make(**overrides: Any) -> TrialConfig:
        settings = {
            "data.source": "kaggle",
            "data.root": str(tiny_root),
            "model.family": "unet",
            "model.encoder": None,
            "model.weights": None,
            "model.unet_channels": 4,
            "model.unet_levels": 2,
            "model.skips": dict.fromkeys(("s1", "s2"), "pre_pool") | dict.fromkeys(("s4", "s8", "s16", "s32"), "none"),
            "input": [48, 64],
            "batch_size": 4,
            "budget_images": 48,
            "validate_every_images": 24,
            "checkpoint_every_images": 12,
            "snapshot_every_steps": 0,
            "optim.schedule": "one_cycle",
            "optim.lr": 1e-3,
            "threads": 1,
            "device": "cpu",
            "precision": "float32",
        }
        return load_recipe("densedepth", settings | overrides)[0]

    return make
