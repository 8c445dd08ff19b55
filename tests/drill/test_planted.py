"""Planted truth on real trainings: ten spoilt depths of one kind, and whether the report's suspects are those ten.

`python -m pytest -m slow -s tests/drill/test_planted.py` prints a line for each. The study is not told: the
rooms' defects are planted by their own setting, the real frames' in a copy of the folder.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainables.data.dataset import open_training, prepare_data
from trainables.data.defects import PLANTS, VISIBLE_LEVELS, mean_change
from trainables.recipe import load_recipe

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PLANTED, FOUND, LOOKED_AT = 10, 9, 12
TRIAL = {
    "model.encoder": "densenet121",
    "model.weights": None,
    "model.width": 0.25,
    "input": [64, 96],
    "optim.schedule": "one_cycle",
    "budget_images": 2400,
    "validate_every_images": 1200,
    "checkpoint_every_images": 2400,
    "threads": 2,
}
VALIDATION = {"by": "scene", "share": 0.03, "max_frames": 16}


@pytest.mark.parametrize("kind", PLANTS)
@pytest.mark.parametrize("source", ["rooms", "indoor"])
def test_ten_planted_defects_are_the_first_suspects(
    source: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = secrets.randbits(31)
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


def test_clean_rooms_have_no_data_verdict(tmp_path: Path) -> None:
    for place in range(5):
        folder = tmp_path / str(place)
        folder.mkdir()
        seed = secrets.randbits(31)
        section = _spikes(folder, {"source": "rooms", "root": None, "rooms": _room_settings(seed)}, seed)
        print(f"\nclean rooms, seed {seed}: verdict {section['verdict']}, {len(section['quarantine'])} in quarantine")
        assert section["verdict"] != "data" and section["quarantine"] == [], seed


def _room_settings(seed: int) -> dict[str, Any]:
    return {"seed": seed, "train_scenes": 34, "test_scenes": 1, "frames_per_scene": 12}


def _rooms(folder: Path, kind: str, seed: int) -> tuple[dict[str, Any], set[str]]:
    """Settings of rooms with ten defects among the 396 frames that are trained on, and those frames' ids."""
    for tried in range(50):
        rooms = _room_settings(seed + tried) | {"defects": {kind: PLANTED}}
        data = {"source": "rooms", "root": None, "rooms": rooms}
        config = load_recipe("densedepth", {"data": data | {"validation": VALIDATION}})[0]
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
    config = load_recipe("densedepth", {"data": data | {"validation": VALIDATION}})[0]
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


def _spikes(folder: Path, data: dict[str, Any], seed: int) -> dict[str, Any]:
    """A study of three trials, and what `analysis.spikes` says of it."""
    study = {
        "name": "planted",
        "seed": seed % 1000,
        "data": data | {"validation": VALIDATION},
        "trial": TRIAL,
        "search": {
            "trials": 3,
            "sampler": "random",
            "pruner": {"kind": "none"},
            "space": {"optim.lr": {"low": 3e-4, "high": 1e-3, "scale": "log"}, "batch_size": {"choices": [4, 8]}},
        },
        "tracking": {"uri": None},
    }
    (folder / "study.yaml").write_text(json.dumps(study))
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(ROOT)}
    for words in (["study.run", "study.yaml"], ["analysis.spikes", "planted", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    section: dict[str, Any] = json.loads(done.stdout)
    return section
