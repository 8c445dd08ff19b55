"""Watchdog thread: ends a study whose Ray is lost, with one sentence and exit code 1; --resume continues it.

Without its raylet Ray waits for ever inside a call that nothing interrupts; without its head (gcs_server) it ends the
process after a minute with words of its own. So the process is ended here. Nothing is lost: ledger and results folder
are as after a kill.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import psutil

EVERY_S = 1.0
FAMILY_S = 3.0  # between two looks at who is there: each reads every process of the machine
SILENT_S = 15.0  # how long a head elsewhere may be away: networks have their moments, and Ray gives up after 60 s
CONNECT_S = 5.0


@contextlib.contextmanager
def watched(head: str, raylet_socket: str, *, ours: bool) -> Iterator[None]:
    """End this process where Ray's head (HOST:PORT) or this machine's raylet goes while the block runs.

    `ours`: Ray was started by this process; what is left of it is ended, too. Workers begun in the last seconds are not
    known yet: they end by themselves without their raylet.
    """
    vital = [p for p in psutil.process_iter() if _serves(p, raylet_socket)]
    if ours:
        vital += [p for p in psutil.Process().children() if p.name() == "gcs_server"]
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(head, vital, ours, over), name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(head: str, vital: list[psutil.Process], ours: bool, over: threading.Event) -> None:
    names, heard, looked = {p.pid: p.name() for p in vital}, time.monotonic(), -math.inf
    family: list[psutil.Process] = []
    while not over.wait(EVERY_S):
        for process in vital:
            if not _lives(process):
                return _end(f"Ray's {names[process.pid]} on this machine has ended", family)
        if ours:
            if time.monotonic() - looked > FAMILY_S:  # once the raylet has gone, its children are nobody's
                family, looked = psutil.Process().children(recursive=True), time.monotonic()
        elif _answers(head):
            heard = time.monotonic()
        elif time.monotonic() - heard > SILENT_S:
            return _end(f"Ray's head at {head} has not answered for {SILENT_S:.0f} s", family)
    return None


def _end(what: str, family: list[psutil.Process]) -> None:
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    print(f"python -m study.run: {what}; nothing is lost: continue with --resume", file=sys.stderr, flush=True)
    os._exit(1)  # the main thread may be inside a call into Ray that does not return


def _serves(process: psutil.Process, raylet_socket: str) -> bool:
    try:
        return process.name() == "raylet" and f"--raylet_socket_name={raylet_socket}" in process.cmdline()
    except psutil.Error:
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _answers(head: str) -> bool:
    host, _, port = head.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError:
        return False
    return True
