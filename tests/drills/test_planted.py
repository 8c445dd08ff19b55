"""Planted truth on real trainings: ten spoilt depths of one kind, and whether the report's suspects are those ten.

`python -m pytest -m slow -s tests/drills/test_planted.py` prints a line for each. The study is not told: the
rooms' defects are planted by their own setting, the real frames' in a copy of the folder.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainables.data.dataset import open_training, prepare_data
from trainables.data.rooms.writer import PLANTS, VISIBLE_LEVELS, mean_change
from trainables.settings.config import TrialConfig
from trainables.settings.recipe import load_recipe

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SCALES = ("s1", "s2", "s4", "s8", "s16", "s32")
PLANTED, FOUND, LOOKED_AT = 10, 9, 12
TRIAL = {  # a small U-Net: a minute for three trainings, two at a time
    "model.family": "unet",
    "model.encoder": None,
    "model.weights": None,
    "model.unet_channels": 8,
    "model.unet_levels": 4,
    "model.skips": {scale: "pre_pool" if scale in ("s1", "s2", "s4", "s8") else "none" for scale in SCALES},
    "input": [48, 64],
    "optim.schedule": "one_cycle",
    "budget_images": 2400,
    "validate_every_images": 1200,
    "checkpoint_every_images": 2400,
    "threads": 1,
}
# In inverse depth a saturated frame errs by little; in metres, two frames at a time, it doubles a batch's loss.
METRES = {"target.kind": "metric", "loss.depth": 1.0, "batch_size": 2}
VALIDATION = {"by": "scene", "share": 0.03, "max_frames": 16}


@pytest.mark.parametrize("kind", PLANTS)
@pytest.mark.parametrize("source", ["rooms", "indoor"])
def test_ten_planted_defects_are_the_first_suspects(
    source: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest, seed: int
) -> None:
    if source == "rooms":
        data, planted = _rooms(tmp_path, kind, seed)
    else:
        data, planted = _indoor(request.getfixturevalue("indoor"), tmp_path / "indoor", kind, seed)
    section = _spikes(tmp_path, data, seed)
    first = [row["sample"] for row in section["suspects"][:LOOKED_AT]]
    found = len(planted & set(first))
    others = sorted(set(section["quarantine"]) - planted)
    print(f"\n{source}, {kind}, seed {seed}: {found} of {len(planted)} among the first {LOOKED_AT} suspects; "
          f"in quarantine {len(section['quarantine'])}, of them not planted {len(others)}")  # fmt: skip
    assert found >= FOUND, (seed, sorted(planted), first)
    assert section["verdict"] == "data", seed


def test_clean_rooms_have_no_data_verdict(tmp_path: Path, seed: int) -> None:
    for one in range(seed, seed + 5):
        folder = tmp_path / str(one)
        folder.mkdir()
        section = _spikes(folder, {"source": "rooms", "root": None, "rooms": _room_settings(one)}, one)
        print(f"\nclean rooms, seed {one}: verdict {section['verdict']}, {len(section['quarantine'])} in quarantine")
        assert section["verdict"] != "data" and section["quarantine"] == [], one


def test_a_training_without_the_quarantined_samples_has_fewer_spikes(tmp_path: Path, seed: int) -> None:
    data, planted = _rooms(tmp_path, "saturated", seed)
    found = _spikes(tmp_path, data, seed, METRES)
    assert found["spikes"] and planted & set(found["quarantine"]), (seed, found["spikes"], found["quarantine"])
    again = _analysed(tmp_path, found["rerun"])
    (pair,) = again["pairs"]
    change = f"{pair['difference']:.3g} ({pair['low']:.3g} to {pair['high']:.3g}, {pair['pairs']} pairs)"
    print(f"\nsaturated, seed {seed}: {found['spikes']} spikes ({found['causes']}), {len(found['quarantine'])} in "
          f"quarantine; per 1,000 steps {pair['unflipped']:.3g} with and {pair['flipped']:.3g} without them, a change "
          f"of {change}")  # fmt: skip
    assert pair["flipped"] < pair["unflipped"], seed


def _room_settings(seed: int) -> dict[str, Any]:
    return {"seed": seed, "train_scenes": 34, "test_scenes": 1, "frames_per_scene": 12}


def _training(data: dict[str, Any]) -> TrialConfig:
    """Settings of a training on the study's data."""
    paths = {f"data.{name}": value for name, value in data.items() if name != "rooms"}
    paths |= {f"data.rooms.{name}": value for name, value in data.get("rooms", {}).items()}
    paths |= {f"data.validation.{name}": value for name, value in VALIDATION.items()}
    return load_recipe("densedepth", paths)[0]


def _rooms(folder: Path, kind: str, seed: int) -> tuple[dict[str, Any], set[str]]:
    """Settings of rooms with ten defects among the 396 frames that are trained on, and those frames' ids."""
    for tried in range(50):
        rooms = _room_settings(seed + tried) | {"defects": {kind: PLANTED}}
        data = {"source": "rooms", "root": None, "rooms": rooms}
        config = _training(data)
        with contextlib.chdir(folder):
            prepare_data(config.data)
            trained = set(open_training(config).train.ids)
            (listed,) = Path("data").glob("*/data/defects.csv")
            planted = {row[0] for row in csv.reader(listed.open())}
            if planted <= trained:
                return data, planted
            shutil.rmtree("data")
    raise AssertionError(f"from seed {seed} on, some planted frame was always in the validation part")


def _indoor(source: Path, root: Path, kind: str, seed: int) -> tuple[dict[str, Any], set[str]]:
    """A copy of the real frames with ten depths spoilt, of those that are trained on, and their ids."""
    shutil.copytree(source, root)
    data = {"source": "kaggle", "root": str(root)}
    config = _training(data)
    trained = open_training(config).train.ids
    depth_of = dict(csv.reader((root / "data" / "nyu2_train.csv").open()))
    random = np.random.default_rng(seed)
    stored = {name: np.asarray(Image.open(root / depth_of[name])) for name in trained}
    planted: dict[str, Any] = {}
    for name in map(str, random.permutation(trained)):
        others = [other for other in trained if Path(other).parent != Path(name).parent]
        spoilt = PLANTS[kind](stored[name], stored[str(random.choice(others))], random)
        if len(planted) < PLANTED and mean_change(stored[name], spoilt) >= VISIBLE_LEVELS:
            planted[name] = spoilt
    for name, spoilt in planted.items():
        (root / depth_of[name]).chmod(0o600)
        Image.fromarray(spoilt).save(root / depth_of[name])
    return data, set(planted)


def _spikes(folder: Path, data: dict[str, Any], seed: int, changed: dict[str, Any] | None = None) -> dict[str, Any]:
    """A study of three trials, and what `analysis.spikes` says of it. `changed`: settings of all of them."""
    sizes = {} if changed else {"batch_size": {"choices": [4, 8]}}
    study = {
        "name": "planted",
        "seed": seed % 1000,
        "data": data | {"validation": VALIDATION},
        "trial": TRIAL | (changed or {}),
        "search": {
            "trials": 3,
            "sampler": "random",
            "pruner": {"kind": "none"},
            "space": {"optim.lr": {"low": 5e-4, "high": 3e-3, "scale": "log"}} | sizes,
        },
        "tracking": {"uri": None},
    }
    return _analysed(folder, study)


def _analysed(folder: Path, study: dict[str, Any]) -> dict[str, Any]:
    """Run a study to its end; what `analysis.spikes` says of it."""
    path = folder / f"{study['name']}.yaml"
    path.write_text(json.dumps(study))
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(ROOT)}
    for words in (["study.run", path.name], ["analysis.spikes", study["name"], "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    section: dict[str, Any] = json.loads(done.stdout)
    return section
