"""The two classes that Ray Tune drives over a session (study/session.py).

LedgerSearcher      Tune's Searcher: None is a barrier, FINISHED the end
LedgerScheduler     Tune's TrialScheduler: reports to the pruner, and stops what it gives up
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.session import FINISHED, Session
from trainables.message import RESULT_KEY, Message

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher


class NotKept:
    """An object that Tune may try to copy or keep with its own state: there is one, and the ledger is what is kept."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


def tune_classes() -> tuple[type[Searcher], type[TrialScheduler]]:
    """The two classes that Tune drives; made here because importing Ray takes seconds."""
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    class LedgerSearcher(NotKept, Searcher):
        """Argument names are Tune's."""

        def __init__(self, session: Session) -> None:
            super().__init__()
            self.session = session
            self.errors: dict[str, str] = {}

        def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
            """At None after a crash Tune would wait for ten minutes where nothing runs."""
            after_a_crash: dict[str, Any] | str | None = FINISHED
            return self.session.ask(lambda: self.session.next(trial_id), after_a_crash)

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            detail = self.errors.pop(trial_id, "")
            last = _message(result) if result and RESULT_KEY in result else None  # none came before it was stopped
            self.session.ask(lambda: self.session.ended(trial_id, error=error, detail=detail, last=last), None)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the ledger is the state."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: the ledger is the state."""

    class LedgerScheduler(NotKept, FIFOScheduler):
        def __init__(self, session: Session, searcher: LedgerSearcher) -> None:
            super().__init__()
            self.session, self.searcher = session, searcher

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            goes_on = self.session.ask(lambda: self.session.take(trial.trial_id, _message(result)), False)
            return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
            self.searcher.errors[trial.trial_id] = _error_text(trial)

    return LedgerSearcher, LedgerScheduler


def _message(result: dict[str, Any]) -> Message:
    return Message.from_json(result[RESULT_KEY])


def _error_text(trial: Any) -> str:
    """What Tune wrote of a trial's error; never unpickled."""
    path = Path(trial.error_file) if trial.error_file else None
    return path.read_text()[-4000:] if path and path.exists() else ""
