"""Ray Tune as the executor: placement and processes. It keeps nothing; the ledger and the results folder do."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from study.resources import Share
from study.session import Session
from study.tune_adapter import NotKept, tune_classes
from study.watchdog import watched
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


def execute(
    session: Session, share: Share, worker: type, on_tick: Callable[[], None], silence_limit_s: float | None
) -> None:
    """Run a session to its end, or until it is asked to stop; trainings that run then stay running in the ledger."""
    from ray import tune
    from ray.tune import PlacementGroupFactory

    searcher_class, scheduler_class = tune_classes()
    searcher = searcher_class(session)
    ticker, stopper = _watchers(session, on_tick, silence_limit_s)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(session.capacity())
    scratch = session.ledger.layout.root.resolve() / ".ray"
    shutil.rmtree(scratch, ignore_errors=True)
    with _stoppable(session):
        tune.run(
            worker,
            name="tune",
            storage_path=str(scratch),
            resources_per_trial=PlacementGroupFactory(share.bundles),
            search_alg=searcher,
            scheduler=scheduler_class(session, searcher),
            num_samples=-1,
            reuse_actors=share.workers == 1,  # of several processes, all end with their training
            callbacks=[ticker],
            stop=stopper,
            trial_name_creator=_trial_id,
            trial_dirname_creator=_trial_id,
            raise_on_failed_trial=False,
            verbose=0,
        )
    if session.crash is not None:
        sentence, root = refused_by_disk(session.crash), session.ledger.layout.root
        if sentence is None:
            raise session.crash
        raise UserError(f"{root}: {sentence}; nothing is lost: continue with --resume") from session.crash
    shutil.rmtree(scratch, ignore_errors=True)


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that whatever is open is closed."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _stoppable(session: Session) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops the session at checkpoints, a second one the process."""

    def stop(number: int, frame: Any) -> None:
        if session.stopping:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        session.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watchers(session: Session, on_tick: Callable[[], None], silence_limit_s: float | None) -> tuple[Any, Any]:
    """What Tune calls after each of its events or about ten times a second, and what it asks whether to stop."""
    import ray
    from ray.tune import Stopper
    from ray.tune.progress_reporter import TrialProgressCallback

    class Ticker(NotKept, TrialProgressCallback):
        """A callback of the kind that prints results: where there is none, Tune adds one that keeps every trial."""

        def __init__(self, session: Session, on_tick: Callable[[], None], limit_s: float | None) -> None:
            self.session, self.on_tick, self.limit_s = session, on_tick, limit_s

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.session.began(trial.trial_id)

        def log_result(self, trial: Any, result: dict[str, Any], error: bool = False) -> None:
            """Nothing: the session's display does."""

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            """Nothing, too."""

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            silent = self.session.silent(self.limit_s) if self.limit_s is not None else []
            for trial in trials if silent else []:
                actor = trial.temporary_state.ray_actor
                if trial.trial_id in silent and actor is not None:
                    ray.kill(actor)
            self.on_tick()

    class WhenTold(NotKept, Stopper):
        def __init__(self, session: Session) -> None:
            self.session = session

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return self.session.stopped()

    return Ticker(session, on_tick, silence_limit_s), WhenTold(session)


def memory_kills() -> int:
    """Processes that the kernel has killed for memory: in this control group, else on this machine; 0 where unknown."""
    for path in (
        Path("/sys/fs/cgroup/memory.events"),
        Path("/sys/fs/cgroup/memory/memory.oom_control"),
        Path("/proc/vmstat"),
    ):
        with contextlib.suppress(OSError):
            for line in path.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0
