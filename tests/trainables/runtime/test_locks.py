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


CODES = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO, errno.EPERM, errno.EBADF]


@pytest.mark.parametrize("code", CODES, ids=lambda code: errno.errorcode[code])
def test_a_file_system_without_locks_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    sentence = r"lock: its file system cannot lock files \(.+\); use a folder on a local disk"
    with pytest.raises(Blocked, match=sentence), locks.exclusive(tmp_path / "lock"):
        pass
    with pytest.raises(Blocked, match=sentence), (tmp_path / "lock").open("w") as file:
        locks.take(file)
    with pytest.raises(Blocked, match=sentence):
        locks.FolderLock(tmp_path, 0.0)


def test_a_lock_that_smb_says_is_held_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (tmp_path / "lock").open("w") as file:
        assert not locks.take(file, 0.2)


def test_the_slower_of_two_successors_waits_for_the_quicker_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both wait for one predecessor; its end lets both into its lock's file, of which one is not the lock any more."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    predecessor = (tmp_path / ".lock").open("a")
    assert locks.take(predecessor)
    owners, done = list[locks.FolderLock](), threading.Event()

    def succeed() -> None:
        owners.append(locks.FolderLock(tmp_path, 20.0))
        done.set()

    threads = [threading.Thread(target=succeed) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    predecessor.close()
    assert done.wait(20)
    time.sleep(0.5)
    assert len(owners) == 1 and not ended  # the other one waits for its end
    owners[0].close()
    for thread in threads:
        thread.join(20)
    assert len(owners) == 2 and not ended
    owners[1].close()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_folder_that_is_removed_ends_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    lock = locks.FolderLock(tmp_path, 0.0)
    (tmp_path / ".lock").unlink()
    locks.confirm()
    assert ended
    lock.close()


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


def test_a_dead_owners_lock_is_taken_over_a_living_ones_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "ALIVE_S", 0.1)
    path = tmp_path / "study.lock"
    path.write_text(json.dumps({"pid": 1, "host": socket.gethostname(), "since": "2026"}))
    with locks.owned(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* wait for it or end it"), locks.owned(path):
            pass
        os.utime(path, (0, 0))
        time.sleep(0.5)
        assert path.stat().st_mtime > 1e9  # a sign of life
    assert path.read_text() == ""


def test_an_owner_on_another_host_is_waited_for_until_it_shows_that_it_lives_or_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A driver that was killed hard is started again on another host, whose file system says nothing of its lock."""
    monkeypatch.setattr(locks, "DEAD_S", 0.6)
    path = tmp_path / "study.lock"
    left = json.dumps({"pid": 1, "host": "elsewhere", "since": "2026"})
    path.write_text(left)
    sign = threading.Timer(0.2, lambda: os.utime(path))
    sign.start()
    with pytest.raises(UserError, match="process 1 on elsewhere has run this study since 2026"), locks.owned(path):
        pass
    sign.join()
    began = time.monotonic()
    with locks.owned(path):
        assert 0.3 < time.monotonic() - began < 3.0
    path.write_text(left)
    os.utime(path, (time.time() + 3600,) * 2)  # by that host's clock
    with locks.owned(path):
        assert capsys.readouterr().err.count("waiting 1 s for a sign of it") == 3
    path.write_text(left)
    os.utime(path, (0, 0))
    with locks.owned(path):
        assert capsys.readouterr().err == ""
