"""Locks on files: exclusive, with and without a deadline, on file systems that have none; and owners' files."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from trainables.runtime import locks
from trainables.runtime.errors import Blocked, UserError


def test_a_lock_is_held_until_its_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not locks.held(path)
    with path.open("w") as first, path.open("a") as second:
        assert locks.take(first) and locks.held(path)
        began = time.monotonic()
        assert not locks.take(second, 0.3) and time.monotonic() - began >= 0.3
        threading.Timer(0.2, first.close).start()
        assert locks.take(second, 20.0)
    assert not locks.held(path)


def test_a_second_one_waits_for_the_block_to_end(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", list[str]()

    def wait() -> None:
        with locks.exclusive(path):
            order.append("second")

    with locks.exclusive(path), locks.exclusive(None):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    sentence = r"lock: its file system cannot lock files \(.+\); use a folder on a local disk"
    with pytest.raises(Blocked, match=sentence), locks.exclusive(tmp_path / "lock"):
        pass


def test_a_folder_that_is_owned_is_confirmed_before_anything_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    lock = locks.FolderLock(tmp_path, 0.0)
    locks.confirm()
    assert not ended
    (tmp_path / ".lock").rename(tmp_path / "old")
    (tmp_path / ".lock").touch()  # a successor's
    locks.confirm()
    assert ended
    lock.close()
    ended.clear()
    locks.confirm()
    assert not ended


def test_a_dead_owners_lock_is_taken_over_a_living_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "study.lock"
    path.write_text(json.dumps({"pid": 1, "host": socket.gethostname(), "since": "2026"}))
    with locks.owned(path) as alive:
        alive()
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* wait for it or end it"), locks.owned(path):
            pass
    assert path.read_text() == ""
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "2026"}))
    with pytest.raises(UserError, match=r"alive [0-9]+ s ago"), locks.owned(path):
        pass
    os.utime(path, (0, 0))
    with locks.owned(path):
        pass
