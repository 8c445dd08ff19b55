"""The command beside each training trains it again: recipe and own settings give its configuration back."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from analysis import runs
from analysis.sections import trainings
from tests.analysis.make_results import Training, make_results
from trainables.settings.assignments import parse_assignments
from trainables.settings.config import as_dict
from trainables.settings.recipe import load_recipe

OWN: list[dict[str, Any]] = [
    {},
    {"optim.lr": 3e-4, "optim.clip_norm": 30.0, "model.frozen": ["*"], "data.root": "/x/set #2"},
    {"loss": {"ssim": 1.0, "mse": 0.1}, "data.exclude": ["a b", "c'd"], "input": [64, 96], "model.weights": None},
    {"data.rooms.defects": {"all_holes": 4}, "batch_size": 2, "precision": "float32", "mirrored": False},
]


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("recipe", ["densedepth", "kaggle_clipped+inverse"])
def test_the_command_gives_the_configuration_back(own: dict[str, Any], recipe: str, tmp_path: Path) -> None:
    (config,) = load_recipe(recipe, own | {"seed": 7})
    name, _, variant = recipe.partition("+")
    overrides = {path: value for path, value in {"variant": variant}.items() if value}
    one = Training("search", 0.5, recipe=name, overrides=overrides)
    layout = make_results(tmp_path / "s", [one], base=as_dict(config) | {"variant": variant or None})
    (row,) = runs.load(layout.root).trials.to_dict("records")
    said, why_none = trainings.command(row, trainings.own_settings(row))
    assert why_none == ""
    words = shlex.split(said)
    assert words[:4] == ["python", "-m", "trainables.train", recipe]
    sets = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    again = load_recipe(recipe, parse_assignments(sets))[0]
    shown = {"study", "phase"}
    assert {k: v for k, v in as_dict(again).items() if k not in shown} == {
        k: v for k, v in json.loads((layout.trial("search-0000") / "config.json").read_text()).items() if k not in shown
    }


def test_a_training_from_anothers_weights_has_a_reason_instead(tmp_path: Path) -> None:
    one = Training("search", 0.5, overrides={"start_from": "results/x/checkpoints/best"})
    tables = runs.load(make_results(tmp_path / "s", [one]).root)
    (entry,) = trainings.analyse(tables).entries
    assert entry.command == "" and "results/x/checkpoints/best" in entry.words[0]


def test_an_unknown_recipe_has_a_reason_instead(tmp_path: Path) -> None:
    (row,) = runs.load(make_results(tmp_path / "s", [Training("search", 0.5)]).root).trials.to_dict("records")
    assert trainings.own_settings(row | {"recipe": "gone"}) is None
    assert "cannot be compared" in trainings.command(row | {"recipe": "gone"}, None)[1]
