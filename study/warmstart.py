"""Warm start: complete trials of an earlier study's search, for the sampler of another (`search.warm_start`)."""

from __future__ import annotations

import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study.config import SAMPLERS, Study
from study.contract import RESULTS, Layout, StudyAttr
from study.ledger_file import damage
from study.space import Dimension
from trainables.config import listed
from trainables.errors import UserError

if TYPE_CHECKING:
    from optuna.study import FrozenStudy  # type: ignore[attr-defined]
    from optuna.trial import FrozenTrial


OBJECTIVES = {1: "one objective", 2: "two objectives"}


def earlier_trials(study: Study, dimensions: Sequence[Dimension]) -> list[FrozenTrial]:
    """The complete trials of the search named by `search.warm_start`, in order; none where none is named.

    Raises UserError where there is no such ledger, it cannot be read, or it searched something else, elsewhere or for
    something else.
    """
    source, sampler = study.config.search.warm_start, study.config.search.sampler
    if source is None:
        return []
    from optuna.trial import TrialState

    where = study.document.where("search.warm_start")
    if not SAMPLERS[sampler].learns:
        learning = listed([name for name, other in SAMPLERS.items() if other.learns])
        raise UserError(f"{where}: {sampler} learns nothing from trials; use {learning}, or null")
    ledger = next((Layout(r).ledger for r in (Path(source), RESULTS / source) if Layout(r).ledger.exists()), None)
    if ledger is None:
        raise UserError(f"{where}: there is no ledger in {source} or {RESULTS / source}; name an earlier study")
    found, trials = _read(ledger, where)
    if found is None:
        raise UserError(f"{where}: {source} holds no search; name another study")
    metric = (found.user_attrs.get(StudyAttr.JUDGE) or {}).get("metric")
    if metric != study.judge.metric:
        raise UserError(f"{where}: {source} was judged by {metric}, this study by {study.judge.metric}; name another")
    here, there = len(study.config.search.objectives or (metric,)), len(found.directions)
    if here != there:
        raise UserError(
            f"{where}: {source} searched {OBJECTIVES[there]}, this study {OBJECTIVES[here]}; make search.objectives "
            "equal, or use null"
        )
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    spaces = {d.path: d.distribution() for d in dimensions}
    for trial in complete:
        for path, distribution in trial.distributions.items():
            if spaces.get(path) != distribution:
                raise UserError(
                    f"{where}: {source} searched {path} over {distribution}, here it is "
                    f"{spaces.get(path, 'not searched')}; make them equal"
                )
    return complete


def _read(ledger: Path, where: str) -> tuple[FrozenStudy | None, list[FrozenTrial]]:
    """The search of a sqlite ledger, and its trials; nothing is written to it."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    problem = damage(ledger)
    try:
        if problem is None:
            address = f"sqlite:///file:{urllib.parse.quote(str(ledger.resolve()))}?mode=ro&uri=true"
            storage = optuna.storages.RDBStorage(address, skip_table_creation=True)
            found = next((s for s in storage.get_all_studies() if s.study_name.endswith("/search")), None)
            trials = [] if found is None else storage.get_all_trials(storage.get_study_id_from_name(found.study_name))
            return found, trials
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError, LookupError, ValueError) as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]  # what stands in a damaged row
    raise UserError(f"{where}: {ledger} is damaged ({problem}); name another study, or null")
