"""Ray on this machine or a cluster's: started or joined, and watched while it is used.

Without its raylet Ray waits for ever inside a call that nothing interrupts; without its head (gcs_server) it ends the
process after a minute with words of its own. So a thread ends the process where either is lost, with one sentence and
exit code 1. Nothing is lost: ledger and results folder are as after a kill.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from trainables.runtime.durable import make_private
from trainables.runtime.errors import UserError, refused_by_disk

# Ray as an executor only: nothing printed, nothing pickled for a restore, its own signal handler off. Each is named by
# Ray's documentation: the page "Environment variables used by Ray Tune", that of Trainable (RAY_CHDIR_TO_TRIAL_DIR) and
# that on usage statistics.
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
SOCKET = "/ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"  # the longest of Ray's paths, in TMPDIR
SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # the longest path of a socket
SHORT = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - for Ray, whose folders are its own, where TMPDIR is too long
OPEN_FILES = 4096  # with fewer Ray warns, in a log; how many it needs grows with the CPUs
EVERY_S = 1.0
SILENT_S = 15.0  # how long a head elsewhere may be away: networks have their moments, and Ray gives up after 60 s
CONNECT_S = 5.0
JOIN_S = 120.0  # how long joining a cluster may take: where something else listens, Ray asks it for ten minutes


@contextlib.contextmanager
def ray_running(address: str | None) -> Iterator[None]:
    """Ray on this machine, or a cluster's, while the block runs. A Ray that is running already is used as it is."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its other output puts the study's own callback aside (see Ticker)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    if address is None:
        _make_room()
    else:
        _find(address)
    with _terminable():
        _start(address)
    for name in ("ray.tune", "ray.tune.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ray.get_runtime_context()
    here: dict[str, Any] = next((node for node in ray.nodes() if node["NodeID"] == context.get_node_id()), {})
    try:
        with watched(context.gcs_address, here.get("RayletSocketName", ""), ours=address is None):
            yield
    finally:
        ray.shutdown()


def _start(address: str | None) -> None:
    import ray

    environment = _import_path() if address else None
    what = f"resources.address: what listens at {address} has let nobody join a Ray cluster for {JOIN_S:.0f} s"
    patience = threading.Timer(JOIN_S, _end, (what, 2))
    patience.daemon = True
    if address is not None:
        patience.start()
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            runtime_env=environment,
        )
    except Exception as error:  # whatever it is, Ray raised it
        if refused_by_disk(error):
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        if address is None:
            sentence = f"Ray did not start ({said}); see its logs"
            raise SystemExit(f"python -m study.run: {sentence}; nothing is lost: continue with --resume") from error
        raise UserError(
            f"resources.address: no Ray cluster answers at {address} ({said}); start it or use null"
        ) from error
    finally:
        patience.cancel()


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: Ray, while it starts, puts handlers of its own that exit with 1 or 15."""
    seen, woken = socket.socketpair()
    seen.setblocking(False)
    woken.setblocking(False)
    terminate, wakeup = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(woken.fileno())

    def terminated() -> bool:
        with contextlib.suppress(BlockingIOError):
            return signal.SIGTERM in seen.recv(4096)
        return False

    try:
        yield
        if terminated():
            raise KeyboardInterrupt
    except SystemExit as error:
        if terminated():
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, terminate)
        woken.close()
        seen.close()


def _make_room() -> None:
    """Give a Ray of this machine a token, and a folder whose sockets' paths are short enough. Raises UserError where
    there is none.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # Ray itself raises the soft limit
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        print(f"ulimit -n: {hard} open files may be too few for Ray, which asks for {OPEN_FILES}; raise the limit")
    longest = SOCKET_BYTES - len(SOCKET.format(pid=os.getpid()))
    named = os.environ.get("RAY_TMPDIR")
    wanted = named or os.environ.get("TMPDIR", SHORT[0])
    if len(os.fsencode(Path(wanted).absolute())) > longest:
        short = next((name for name in SHORT if os.access(name, os.W_OK | os.X_OK)), None)
        if named or short is None:
            raise UserError(
                f"{'RAY_TMPDIR' if named else 'TMPDIR'}: {wanted} is too long for Ray's sockets; "
                f"set it to a folder of at most {longest} letters"
            )
        os.environ["TMPDIR"] = short  # where Ray looks, too
    if not os.environ.get("RAY_AUTH_TOKEN"):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # Ray would keep one in the home folder, if there is one


def _find(address: str) -> None:
    """Look for a cluster, whose absence Ray takes ten minutes to notice, and for its token.

    Raises UserError where nothing listens, or the token is empty.
    """
    if not address.startswith(("auto", "local")) and not _answers(address.rpartition("//")[2]):
        raise UserError(f"resources.address: nothing answers at {address}; start the cluster there or use null")
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token")
    with contextlib.suppress(RuntimeError):  # there may be no home
        token = token.expanduser()
    if token.is_file():
        if not token.read_text().strip():
            raise UserError(f"{token} is empty; copy the token of the cluster's head there, or remove it")
        os.environ["RAY_AUTH_MODE"] = "token"  # Ray assumes it of clusters it starts, not of those it joins
        if note := make_private(token):
            print(note)


def _import_path() -> dict[str, Any] | None:
    """For a cluster's workers, where this driver was told to look for modules; on this machine they inherit it."""
    path = os.environ.get("PYTHONPATH")
    return {"env_vars": {"PYTHONPATH": path}} if path else None


@contextlib.contextmanager
def watched(head: str, raylet_socket: str, *, ours: bool) -> Iterator[None]:
    """End this process where Ray's head (HOST:PORT) or this machine's raylet goes while the block runs.

    `ours`: Ray was started by this process, so it ends with it; workers end by themselves without their raylet.
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
    names, heard = {p.pid: p.name() for p in vital}, time.monotonic()
    while not over.wait(EVERY_S):
        for process in vital:
            if not _lives(process):
                return _end(f"Ray's {names[process.pid]} on this machine has ended")
        if ours or _answers(head):
            heard = time.monotonic()
        elif time.monotonic() - heard > SILENT_S:
            return _end(f"Ray's head at {head} has not answered for {SILENT_S:.0f} s")
    return None


def _end(what: str, code: int = 1) -> None:
    print(f"python -m study.run: {what}; nothing is lost: continue with --resume", file=sys.stderr, flush=True)
    os._exit(code)  # the main thread may be inside a call into Ray that does not return


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
    except (OSError, ValueError):  # nobody there; no number
        return False
    return True
