"""The examples in the docstrings of public functions: they run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import trainables
from tests.analysis.make_results import planted_study
from trainables.models.depth_model import build_model
from trainables.settings.config import TrialConfig
from trainables.training.checkpoint import take_snapshot, write_checkpoint

MODULES = (
    "trainables.settings.recipe", "trainables.training.trainer", "trainables.trained", "trainables.evaluation.scoring",
    "analysis",
)  # fmt: skip
WITHOUT = {"open_training"}  # public functions whose use is shown in another's example


@pytest.fixture
def names(tiny_config: Callable[..., TrialConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the examples take as given: settings, an untrained model's checkpoint, and a study named rooms."""
    config, checkpoint = tiny_config(), tmp_path / "best"
    model = build_model(config.model, config.target.kind)
    write_checkpoint(checkpoint, take_snapshot(model, None, {"step": 0}), config)
    planted_study(tmp_path / "results" / "rooms", seed=0)
    monkeypatch.chdir(tmp_path)
    return {"config": config, "checkpoint": checkpoint}


@pytest.mark.parametrize("module", MODULES)
def test_examples_give_what_they_say(module: str, names: dict[str, Any], tmp_path: Path) -> None:
    found = [test for test in doctest.DocTestFinder().find(importlib.import_module(module)) if test.examples]
    assert found
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_ONLY_FIRST_FAILURE)
    threads = torch.get_num_threads()
    for test in found:
        test.globs |= names | {"folder": tmp_path / test.name}
        out: list[str] = []
        assert not runner.run(test, out=out.append).failed, "".join(out)
    assert torch.get_num_threads() == threads


def test_every_public_function_has_an_example() -> None:
    for name in set(trainables.__all__) - WITHOUT:
        value = getattr(trainables, name)
        if not isinstance(value, type):
            assert ">>> " in (value.__doc__ or ""), name
            assert value.__module__ in MODULES, name
