"""A training killed -9 before the n-th of its durable operations: `python -m tests.drills.killed CONFIG OUT N ...`.

Durable operations are fsync, rename, replace, unlink and rmdir of `os`, counted from the training's first line to its
last. For each N a child process trains in OUT/N and dies, and another one continues what it left. N = 'count' trains
undisturbed in OUT/count and writes the operations' names, one a line, to OUT/count/operations.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainables.settings.config import TrialConfig
from trainables.training import checkpoint, trainer

OPERATIONS = ("fsync", "rename", "replace", "unlink", "rmdir")


def count(deadly: int | None) -> list[str]:
    """Count durable operations from here on, and die at one of them."""
    seen: list[str] = []

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(seen) == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(f"{name} {args[0]}")
            return function(*args, **kwargs)

        return call

    for name in OPERATIONS:
        setattr(os, name, wrapped(name, getattr(os, name)))
    return seen


def in_child(body: Callable[[], object]) -> int:
    """Run in a forked process; its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(argv: list[str]) -> int:
    config, out = TrialConfig.model_validate_json(Path(argv[0]).read_text()), Path(argv[1])
    checkpoint.LEAST_STEPS = 0  # every step is a spike: their snapshots are written, too
    checkpoint.SpikeRecorder._is_spike = lambda self, log: True  # type: ignore[method-assign]

    def train(folder: Path, deadly: int | None) -> None:
        seen = count(deadly)
        list(trainer.iter_fit(config, folder))
        if folder.name == "count":
            (folder / "operations").write_text("\n".join(seen))

    list(trainer.iter_fit(config, out / "warm"))  # here, so that no child imports anything
    for word in argv[2:]:
        folder = out / word
        deadly = None if word == "count" else int(word)
        code = in_child(lambda folder=folder, deadly=deadly: train(folder, deadly))  # type: ignore[misc]
        if code != (0 if deadly is None else -signal.SIGKILL):
            return 1
        if deadly is not None and in_child(lambda folder=folder: list(trainer.iter_fit(config, folder))) != 0:  # type: ignore[misc]
            print(f"not resumed after a kill at {deadly}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
