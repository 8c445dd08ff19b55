"""Checkpoints: old or new and whole, whenever their process dies."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainables.settings.config import TrialConfig
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
