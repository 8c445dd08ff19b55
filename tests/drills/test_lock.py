"""A training's lock: taken over from a process that hangs, which then ends by itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

from trainables.runtime.locks import FolderLock


def own(folder: Path, owned: Any) -> None:
    lock = FolderLock(folder, 0.3)
    owned.set()
    time.sleep(600)
    lock.close()


def test_a_lock_is_taken_over_from_a_process_that_hangs(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")  # a new interpreter would import Ray for seconds
    owned = fork.Event()
    owner = fork.Process(target=own, args=(tmp_path, owned))
    owner.start()
    assert owner.pid is not None and owned.wait(20)
    os.kill(owner.pid, signal.SIGSTOP)
    began = time.monotonic()
    lock = FolderLock(tmp_path, 0.3)
    assert time.monotonic() - began >= 0.3  # it might have been about to end
    os.kill(owner.pid, signal.SIGCONT)
    owner.join(10)
    assert owner.exitcode == 1
    lock.close()
    FolderLock(tmp_path, 0.0).close()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
