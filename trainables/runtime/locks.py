"""Exclusive locks on files (flock), which end with the process that holds them, however it ends, and owners' files.

Every lock of the project is taken here. Between hosts they hold where the file system carries them (local disks, NFS 4,
Lustre with flock); one that cannot lock at all is refused in one sentence.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from trainables.runtime.errors import Blocked, UserError

HELD = (errno.EAGAIN, errno.EACCES)  # the second by SMB (fs/smb/client/smb2maperror.c of Linux)
POLL_S = 0.1
OWNER_S = 0.5  # how often a folder's owner looks whether it still is
ALIVE_S = 30.0  # how often an owner that names itself shows that it lives
DEAD_S = 180.0  # an owner on another host that has been silent for so long is gone


def take(file: IO[Any], wait_s: float = 0.0) -> bool:
    """Lock an open file until it is closed; False where another process holds it for longer than `wait_s`.

    Raises Blocked where the file system cannot lock: whatever else flock says of an open file (ENOLCK, EOPNOTSUPP,
    ENOSYS, EINVAL, EIO), that is its meaning.
    """
    deadline, endless = time.monotonic() + wait_s, wait_s == math.inf
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if endless else fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if endless or error.errno not in HELD:
                raise Blocked(
                    f"{file.name}: its file system cannot lock files ({os.strerror(error.errno or 0)}); "
                    "use a folder on a local disk or mount it with locks"
                ) from error
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)


@contextlib.contextmanager
def exclusive(path: Path | None) -> Iterator[None]:
    """One process at a time in the block: wait for the file's lock, however long. None: there is nothing to lock."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        take(file, math.inf)
        yield


def held(path: Path) -> bool:
    """Whether a process holds a file's lock."""
    try:
        with path.open("r+") as file:
            return not take(file)
    except FileNotFoundError:
        return False


class FolderLock:
    """Ownership of a folder, from its making until `close`: a process that has lost it to a successor is ended.

    A predecessor gets `wait_s` to end. The lock is a new file each time, so that a process of a hung or cut-off node,
    which keeps the old one for as long as it likes, notices that it owns nothing any more: before it puts anything in
    its place (`confirm`), or within OWNER_S.
    """

    def __init__(self, folder: Path, wait_s: float) -> None:
        self.path, deadline = folder / ".lock", time.monotonic() + wait_s
        while True:
            with self.path.open("a") as before:
                ended = take(before, max(0.0, deadline - time.monotonic()))
                if ended and not self._names(os.fstat(before.fileno())):
                    continue  # another successor was quicker: its lock is waited for like the predecessor's
                self.file = self._put()
                break
        self.mine = os.fstat(self.file.fileno())
        _OWNED.add(self)
        threading.Thread(target=self._watch, daemon=True).start()

    def confirm(self) -> None:
        """End this process at once where the folder has another owner or is gone: closing would write to it."""
        # In this order: a successor comes after `close`, so the folder is looked at before whether it was given up.
        if not self._names(self.mine) and not self.file.closed:
            os._exit(1)

    def _names(self, lock: os.stat_result) -> bool:
        try:
            return os.path.samestat(lock, self.path.stat())
        except FileNotFoundError:
            return False

    def _put(self) -> IO[Any]:
        """Put a locked new file in the lock's place; no other process knows its name before."""
        descriptor, name = tempfile.mkstemp(prefix=".lock.", suffix=".tmp", dir=self.path.parent)
        os.close(descriptor)
        fresh = Path(name)
        file = fresh.open("w")
        try:
            if not take(file):
                raise Blocked(f"{fresh}: a new file is locked already; use a folder on a local disk")
            fresh.replace(self.path)
        except BaseException:
            file.close()
            fresh.unlink(missing_ok=True)
            raise
        return file

    def close(self) -> None:
        """Give the folder up."""
        _OWNED.discard(self)
        self.file.close()

    def _watch(self) -> None:
        while not self.file.closed:
            self.confirm()
            time.sleep(OWNER_S)


_OWNED: set[FolderLock] = set()  # of this process


def confirm() -> None:
    """End this process where it has lost a folder; asked right before anything durable is put in its place."""
    for lock in tuple(_OWNED):
        lock.confirm()


@contextlib.contextmanager
def owned(path: Path) -> Iterator[None]:
    """Own a study while the block runs, with a sign of life every ALIVE_S: the file's date.

    Raises UserError naming the owner where it has one that lives. An owner on another host, whose lock the file system
    may not carry to this one, is waited for until it shows that it lives or has been silent for DEAD_S.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not take(file):
            raise UserError(_refusal(path, _read(path)))
        owner = _read(path)
        if owner and owner["host"] != socket.gethostname():
            _wait_for_sign(path, owner)
        file.truncate(0)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
        file.flush()
        over = threading.Event()
        thread = threading.Thread(target=_show, args=(file.fileno(), over), name="owner", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            file.truncate(0)


def _show(descriptor: int, over: threading.Event) -> None:
    while not over.wait(ALIVE_S):
        with contextlib.suppress(OSError):  # a file system that is away for a while, or keeps no dates
            os.utime(descriptor)


def _wait_for_sign(path: Path, owner: dict[str, object]) -> None:
    """Wait until an owner on another host is gone. Raises UserError at its next sign of life."""
    shown = path.stat().st_mtime
    rest_s = min(DEAD_S, DEAD_S - (time.time() - shown))  # the clocks of two hosts differ
    if rest_s > 0:
        who = f"process {owner['pid']} on {owner['host']}"
        print(f"{path}: {who} has owned this study and may have ended; waiting {rest_s:.0f} s for a sign of it",
              file=sys.stderr, flush=True)  # fmt: skip
    until = time.monotonic() + rest_s
    while time.monotonic() < until:
        time.sleep(min(1.0, DEAD_S / 10))
        if path.stat().st_mtime != shown:
            raise UserError(_refusal(path, owner))


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
