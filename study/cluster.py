"""Ray on this machine or a cluster's: started or joined, watched while it is used, and what a training gets of it.

Without its raylet Ray waits for ever inside a call that nothing interrupts; without its head (gcs_server) it ends the
process after a minute with words of its own. So a thread ends the process where either is lost, with one sentence and
exit code 1. Nothing is lost: ledger and results folder are as after a kill.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from study.plan import Plan
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
EVERY_S = 1.0
SILENT_S = 15.0  # how long a head elsewhere may be away: networks have their moments, and Ray gives up after 60 s
CONNECT_S = 5.0
CAPACITY_S = 10.0  # how long a count of the cluster's resources is good for


@contextlib.contextmanager
def ray_running(address: str | None) -> Iterator[dict[str, float]]:
    """Ray on this machine, or a cluster's; yields its resources. A Ray that is running already is used as it is."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its other output puts the study's own callback aside (see Ticker)
    token = Path.home() / ".ray" / "auth_token"
    if address is not None and token.exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray assumes it of clusters it starts, not of those it joins
    import ray

    terminate = signal.getsignal(signal.SIGTERM)
    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield dict(ray.cluster_resources())
        return
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            runtime_env=_import_path() if address else None,
        )
    except Exception as error:
        told = isinstance(error, (ConnectionError, RuntimeError, ValueError, TimeoutError))
        if refused_by_disk(error) or not (told or type(error) is Exception):  # Ray raises that class itself
            raise
        if address is None:
            sentence = f"Ray did not start ({' '.join(str(error).split())[:200]}); see its logs"
            raise SystemExit(f"python -m study.run: {sentence}; nothing is lost: continue with --resume") from error
        raise UserError(
            f"resources.address: no Ray cluster answers at {address} ({error}); start it or use null"
        ) from error
    if token.exists() and stat.S_IMODE(token.stat().st_mode) & 0o077:
        token.chmod(0o600)
    signal.signal(signal.SIGTERM, terminate)  # Ray puts its own
    for name in ("ray.tune", "ray.tune.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ray.get_runtime_context()
    (here,) = (node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    try:
        with watched(context.gcs_address, here["RayletSocketName"], ours=address is None):
            yield dict(ray.cluster_resources())
    finally:
        ray.shutdown()


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


def _end(what: str) -> None:
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


@dataclass(frozen=True)
class Share:
    """What one training gets, all its processes together."""

    cpus: int
    gpus: float
    workers: int = 1

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What each of its processes gets."""
        each = {"CPU": self.cpus / self.workers} | ({"GPU": self.gpus / self.workers} if self.gpus else {})
        return [each] * self.workers

    def fits(self, resources: dict[str, float]) -> int:
        """How many trainings fit into resources at once."""
        by_cpu = int(resources.get("CPU", 0.0) // self.cpus) if self.cpus else 1 << 30
        by_gpu = int(resources.get("GPU", 0.0) / self.gpus + 1e-9) if self.gpus else 1 << 30
        return min(by_cpu, by_gpu)


def share_of(plan: Plan, resources: dict[str, float]) -> Share:
    """What a training of the plan gets of these resources. Raises UserError where it can never have it."""
    settings = plan.study.config.resources
    where = plan.study.document.where
    there = {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}
    workers = workers_of(plan)
    needed = workers * max((c.threads or int(there["CPU"]) // workers) + c.data.workers for c in plan.configs)
    cpus = needed if settings.cpus_per_trial == "auto" else int(settings.cpus_per_trial)
    on_cpu = not there["GPU"] or any(c.device == "cpu" for c in plan.configs)
    gpus = (0.0 if on_cpu else float(workers)) if settings.gpus_per_trial == "auto" else float(settings.gpus_per_trial)
    if gpus > there["GPU"]:
        raise UserError(
            f"{where('resources.gpus_per_trial')}: {gpus:g} wanted, {there['GPU']:g} there; lower it or use auto"
        )
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"{where('resources.gpus_per_trial')}: {gpus:g} is neither whole nor a part of one")
    if cpus > there["CPU"]:
        key = "trial.threads" if settings.cpus_per_trial == "auto" else "resources.cpus_per_trial"
        raise UserError(f"{where(key)}: a training needs {cpus} CPUs and there are {there['CPU']:g}; lower {key}")
    _check_batches(plan, workers)
    if cpus % workers:
        raise UserError(f"{where('resources.cpus_per_trial')}: {cpus} cannot be shared equally by {workers} workers")
    return Share(cpus, gpus, workers)


def workers_of(plan: Plan) -> int:
    """Processes that train one model together, with a whole GPU each or none. Raises UserError where that cannot be."""
    settings = plan.study.config.resources
    where = plan.study.document.where
    gpus = 0.0 if settings.gpus_per_trial == "auto" else settings.gpus_per_trial
    if settings.workers_per_trial == "auto":
        return int(gpus) if gpus > 1 and gpus == int(gpus) else 1
    workers: int = settings.workers_per_trial
    if gpus and gpus != workers and max(gpus, workers) > 1:
        raise UserError(
            f"{where('resources.workers_per_trial')}: {workers}, of which each trains on one GPU, and "
            f"resources.gpus_per_trial is {gpus:g}; make them equal, or one of them auto"
        )
    return workers


def _check_batches(plan: Plan, workers: int) -> None:
    """Refuse a batch size, known or searched, that the workers of a training cannot share equally."""
    if workers == 1:
        return
    from trainables.runtime.parallel import check_parts  # imports torch, which a driver can do without

    sizes = [("trial.batch_size", config.batch_size) for config in plan.configs]
    for settings in plan.study.config.search.first:
        sizes += [("search.first", settings["batch_size"])] if "batch_size" in settings else []
    for dimension in plan.dimensions:
        if dimension.path == "batch_size":
            values = dimension.choices or range(int(dimension.low or 1), int(dimension.high or 1) + 1)
            sizes += [("search.space.batch_size", value) for value in values]
    for key, size in sizes:
        try:
            check_parts(size, workers)
        except UserError as error:
            raise UserError(f"{plan.study.document.where(key)}: {error}") from None


def capacity_of(share: Share, *, growing: bool) -> Callable[[], int]:
    """How many trainings fit at once; counted again now and then on a cluster, which may grow or lose nodes."""
    import ray

    seen = {"at": time.monotonic(), "count": max(1, share.fits(dict(ray.cluster_resources())))}

    def capacity() -> int:
        if growing and time.monotonic() - seen["at"] > CAPACITY_S:
            seen.update(at=time.monotonic(), count=max(1, share.fits(dict(ray.cluster_resources()))))
        return int(seen["count"])

    return capacity
