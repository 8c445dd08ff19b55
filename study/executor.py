"""Ray Tune as the executor: placement and processes. It keeps nothing; the ledger and the results folder do.

Tune drives four objects over one session (study/session.py): a Searcher that gives out trainings, a TrialScheduler that
takes their messages, a callback that looks for silent workers, and a Stopper.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from study.resources import Share
from study.session import FINISHED, Session
from trainables.message import RESULT_KEY, Message
from trainables.runtime.errors import UserError, refused_by_disk

Answer = TypeVar("Answer")


def execute(
    session: Session, share: Share, worker: type, on_tick: Callable[[], None], silence_limit_s: float | None
) -> None:
    """Run a session to its end, or until it is asked to stop; trainings that run then stay running in the ledger."""
    from ray import tune
    from ray.tune import PlacementGroupFactory

    guard = Guard(session)
    searcher, scheduler, ticker, stopper = tune_classes()
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(session.capacity())
    scratch = session.ledger.layout.root.resolve() / ".ray"
    shutil.rmtree(scratch, ignore_errors=True)
    with _stoppable(session):
        tune.run(
            worker,
            name="tune",
            storage_path=str(scratch),
            resources_per_trial=PlacementGroupFactory(share.bundles),
            search_alg=searcher(guard),
            scheduler=scheduler(guard),
            num_samples=-1,
            reuse_actors=share.workers == 1,  # of several processes, all end with their training
            callbacks=[ticker(session, on_tick, silence_limit_s)],
            stop=stopper(guard),
            trial_name_creator=_trial_id,
            trial_dirname_creator=_trial_id,
            raise_on_failed_trial=False,
            verbose=0,
        )
    guard.check()
    shutil.rmtree(scratch, ignore_errors=True)


class Guard:
    """Calls of Tune into a session. The first exception is kept and ends the study: Tune would drop it, or take it for
    the training's.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.crash: Exception | None = None
        self.errors: dict[str, str] = {}  # trial -> what Tune wrote of its error, until its end is taken

    def ask(self, call: Callable[[], Answer], otherwise: Answer) -> Answer:
        """What a call returns; `otherwise` once one has raised."""
        if self.crash is None:
            try:
                return call()
            except Exception as error:
                self.crash = error
        return otherwise

    def over(self) -> bool:
        """Whether Tune is to end."""
        return self.crash is not None or self.session.stopped()

    def check(self) -> None:
        """Raise the exception that was kept, UserError where the disk caused it."""
        if self.crash is None:
            return
        sentence, root = refused_by_disk(self.crash), self.session.ledger.layout.root
        if sentence is None:
            raise self.crash
        raise UserError(f"{root}: {sentence}; nothing is lost: continue with --resume") from self.crash


class NotKept:
    """An object that Tune may try to copy or keep with its own state: there is one, and the ledger is what is kept."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


def tune_classes() -> tuple[Any, Any, Any, Any]:
    """Searcher, scheduler, callback and stopper; made here because importing Ray takes seconds."""
    import ray
    from ray.tune import Stopper
    from ray.tune.progress_reporter import TrialProgressCallback
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    class LedgerSearcher(NotKept, Searcher):
        """Argument names are Tune's."""

        def __init__(self, guard: Guard) -> None:
            super().__init__()
            self.guard = guard

        def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
            """None is a barrier. At None after a crash Tune would wait for ten minutes where nothing runs."""
            after_a_crash: dict[str, Any] | str | None = FINISHED
            return self.guard.ask(lambda: self.guard.session.next(trial_id), after_a_crash)

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            session, detail = self.guard.session, self.guard.errors.pop(trial_id, "")
            last = _message(result) if result and RESULT_KEY in result else None  # none came before it was stopped
            self.guard.ask(lambda: session.ended(trial_id, error=error, detail=detail, last=last), None)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the ledger is the state."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: the ledger is the state."""

    class LedgerScheduler(NotKept, FIFOScheduler):
        def __init__(self, guard: Guard) -> None:
            super().__init__()
            self.guard = guard

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            goes_on = self.guard.ask(lambda: self.guard.session.take(trial.trial_id, _message(result)), False)
            return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
            self.guard.errors[trial.trial_id] = _error_text(trial)

    class Ticker(NotKept, TrialProgressCallback):
        """Called after each of Tune's events or about ten times a second. It is of the kind that prints results: where
        there is none, Tune adds one that keeps every trial.
        """

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
                # Tune has no documented way to a trial's actor: this attribute is public by its name alone.
                actor = trial.temporary_state.ray_actor
                if trial.trial_id in silent and actor is not None:
                    ray.kill(actor)
            self.on_tick()

    class WhenOver(NotKept, Stopper):
        def __init__(self, guard: Guard) -> None:
            self.guard = guard

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return self.guard.over()

    return LedgerSearcher, LedgerScheduler, Ticker, WhenOver


def _message(result: dict[str, Any]) -> Message:
    return Message.from_json(result[RESULT_KEY])


def _error_text(trial: Any) -> str:
    """What Tune wrote of a trial's error; never unpickled."""
    path = Path(trial.error_file) if trial.error_file else None
    return path.read_text()[-4000:] if path and path.exists() else ""


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


@contextlib.contextmanager
def _stoppable(session: Session) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops the session at checkpoints, a second one the process."""

    def stop(number: int, frame: Any) -> None:
        if session.stop.asked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        session.stop.ask()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
