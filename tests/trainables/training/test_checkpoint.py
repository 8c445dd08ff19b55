"""Checkpoints: old or new and whole, whenever their process dies."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainables.models.depth_model import build_model
from trainables.runtime.errors import Blocked, UserError
from trainables.settings.config import TrialConfig, stored_config
from trainables.training import checkpoint

Make = Callable[..., TrialConfig]


def test_kill_at_every_durable_operation_of_a_checkpoint(tiny_config: Make, tmp_path: Path) -> None:
    """A process that dies at any fsync or rename of writing a checkpoint leaves the old one or the new one, whole."""
    config = tiny_config(budget_images=8, validate_every_images=8)
    model = nn.Linear(3, 2)
    old = checkpoint.take_snapshot(model, None, {"step": 1})
    new = checkpoint.take_snapshot(nn.Linear(3, 2), None, {"step": 2})
    seen = set()
    for deadly in range(200):
        folder = tmp_path / str(deadly) / "latest"
        checkpoint.write_checkpoint(folder, old, config)
        pid = os.fork()
        if pid == 0:
            count = {"n": 0}

            def deadly_call(function: Any, count: dict[str, int] = count, deadly: int = deadly) -> Any:
                def call(*args: Any, **kwargs: Any) -> Any:
                    if count["n"] == deadly:
                        os._exit(9)
                    count["n"] += 1
                    return function(*args, **kwargs)

                return call

            os.fsync = deadly_call(os.fsync)
            Path.rename = deadly_call(Path.rename)  # type: ignore[method-assign]
            Path.replace = deadly_call(Path.replace)  # type: ignore[method-assign]
            checkpoint.write_checkpoint(folder, new, config)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert checkpoint.heal(folder)
        state = checkpoint.read_state(folder)
        assert state["step"] in (1, 2)
        seen.add(state["step"])
        weights = checkpoint.read_weights(folder)
        assert torch.equal(weights["weight"], (old if state["step"] == 1 else new).weights["weight"])
        if os.waitstatus_to_exitcode(status) == 0:
            break
    else:
        pytest.fail("the write never finished")
    assert deadly >= 5
    assert seen == {1, 2}


def rewritten(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The checkpoint with a JSON file as another version would have written it, hash and all."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    hashes = json.loads((folder / checkpoint.HASHES).read_text())
    hashes[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / checkpoint.HASHES).write_text(json.dumps(hashes))
    return folder


@pytest.fixture
def best(tiny_config: Make, tmp_path: Path) -> Path:
    config = tiny_config()
    model = build_model(config.model, config.target.kind)
    checkpoint.write_checkpoint(tmp_path / "best", checkpoint.take_snapshot(model, None, {"step": 1}), config)
    return tmp_path / "best"


def without(*path: str) -> Callable[[dict[str, Any]], Any]:
    def change(settings: dict[str, Any]) -> None:
        for part in path[:-1]:
            settings = settings[part]
        del settings[path[-1]]

    return change


def with_value(value: Any, *path: str) -> Callable[[dict[str, Any]], Any]:
    def change(settings: dict[str, Any]) -> None:
        for part in path[:-1]:
            settings = settings[part]
        settings[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("config.json", with_value(1, "warmup_images"), "its warmup_images is unknown here"),
        ("config.json", with_value(1, "model", "attention"), "its model.attention is unknown here"),
        ("config.json", without("data", "subset"), "it has no data.subset"),
        ("config.json", with_value("lion", "optim", "name"), "its optim.name: input should be"),
        ("config.json", with_value("plane", "loss"), "its loss"),
        ("config.json", with_value({}, "loss"), "its settings: loss: at least one term needs a weight above 0"),
        ("state.json", with_value(2, "format"), "checkpoint format 2, here 1"),
        ("state.json", with_value("x", "format"), "checkpoint format x, here 1"),
    ],
)
def test_a_checkpoint_of_another_version_is_named_so(best: Path, name: str, change: Any, words: str) -> None:
    rewritten(best, name, change)
    with pytest.raises(UserError, match="written by another version of this project") as refusal:
        checkpoint.read_model(best)
    assert words.lower() in str(refusal.value).lower() and str(best) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_without_a_format_is_of_the_first(best: Path) -> None:
    assert json.loads((best / "state.json").read_text())["format"] == checkpoint.FORMAT == 1
    checkpoint.read_model(rewritten(best, "state.json", without("format")))


def test_weights_that_do_not_fit_their_settings_are_a_sentence(best: Path) -> None:
    rewritten(best, "config.json", with_value(8, "model", "unet_channels"))
    with pytest.raises(UserError, match=r"best: its weights do not fit this model \(\S+ is \[\S+.*\] there, \["):
        checkpoint.read_model(best)


def test_a_start_is_checked_by_shapes_alone(best: Path, tiny_config: Make, tmp_path: Path) -> None:
    checkpoint.check_start(tiny_config(start_from=str(best)))
    checkpoint.check_start(tiny_config())
    with pytest.raises(UserError, match=r"start_from: .*best: its weights do not fit this model"):
        checkpoint.check_start(tiny_config(**{"start_from": str(best), "model.unet_channels": 8}))
    for place, sentence in (
        (tmp_path, r"this folder holds no checkpoint itself; name \S+/best$"),
        (tmp_path / "nowhere" / "x", r"no such checkpoint folder; name one that a training wrote"),
        (best / "weights.safetensors", r"this is a file, not a checkpoint's folder; name \S+/best$"),
    ):
        with pytest.raises(UserError, match=rf"^start_from: \S+: {sentence}"):
            checkpoint.check_start(tiny_config(start_from=str(place)))


def test_a_best_checkpoint_in_the_place_of_the_latest_resumes_nothing(best: Path, tiny_config: Make) -> None:
    config = tiny_config()
    model = build_model(config.model, config.target.kind)
    shutil.copytree(best, best.with_name("latest"))
    with pytest.raises(Blocked, match=r"optimizer\.safetensors is missing, without which no training is resumed"):
        checkpoint.restore(best.with_name("latest"), model, torch.optim.SGD(model.parameters(), lr=1.0))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '"x"', "\ud800"])
def test_stored_settings_that_are_none_are_a_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"^trials/x/config\.json (holds|was written by)"):
        stored_config(text, "trials/x/config.json")
