"""Owner of a study: study.lock names it, and the kernel's lock on the file decides, so a dead owner holds nothing.

Where the file system does not carry locks from host to host, the owner's sign of life (the file's date) decides.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from trainables.runtime import locks
from trainables.runtime.errors import UserError

ALIVE_S = 30.0  # how often an owner shows that it lives
DEAD_S = 180.0  # an owner on another host that has been silent for so long is gone


@contextlib.contextmanager
def owned(path: Path) -> Iterator[Callable[[], None]]:
    """Own a study while the block runs; yields what is to be called now and then as a sign of life.

    Raises UserError naming the owner where it has one that lives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not locks.take(file):
            raise UserError(_refusal(path, _read(path)))
        owner, silent_s = _read(path), time.time() - path.stat().st_mtime
        if owner and owner["host"] != socket.gethostname() and silent_s < DEAD_S:
            raise UserError(f"{_refusal(path, owner)}; it was alive {max(silent_s, 0):.0f} s ago")
        file.truncate(0)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
        file.flush()
        os.fsync(file.fileno())
        shown = time.monotonic()

        def alive() -> None:
            nonlocal shown
            if time.monotonic() - shown > ALIVE_S:
                shown = time.monotonic()
                os.utime(file.fileno())

        try:
            yield alive
        finally:
            file.truncate(0)


def _read(path: Path) -> dict[str, object]:
    """The owner that the file names; nothing where it is empty or torn."""
    try:
        owner = json.loads(path.read_text())
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) and {"pid", "host", "since"} <= owner.keys() else {}


def _refusal(path: Path, owner: dict[str, object]) -> str:
    if not owner:
        return f"{path}: another process owns this study; wait until it has ended"
    who = f"process {owner['pid']} on {owner['host']}"
    return f"{path}: {who} has run this study since {owner['since']}; wait for it or end it"
