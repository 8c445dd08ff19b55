"""Proposals of a search: the settings of its next trial, and the trials of an earlier study that it starts from.

A sampler is made anew for each trial, seeded from (study's seed, trial's number), and asked in a study of its own that
holds the ledger's trials: number and history alone decide what is tried next, so a resumed search proposes as if
undisturbed, and nothing is written before the whole trial is known.

No training is proposed twice: a draw that the caller refuses (it has been trained, or cannot be) is drawn again from
another seed, and where every value can be counted, what is left is tried in order. A search that has nothing left ends.

Warm start: complete trials of an earlier study's search, for the sampler of another (`search.warm_start`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from study.config import SearchConfig, Study
from study.contract import RESULTS, Layout, StudyAttr
from study.methods import SAMPLERS, Asked, draw_random
from study.search.space import Dimension
from study.store import damage, reader
from trainables.runtime.errors import UserError
from trainables.settings.config import listed

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

REDRAWS = 20  # of a sampler, where what it draws is not wanted
CHANCES = 200  # random draws after these, in a space whose values cannot be counted
ANOTHER_SEED = 1_000_003


def propose(
    search: SearchConfig,
    dimensions: Sequence[Dimension],
    base: Mapping[str, Any],
    history: Sequence[FrozenTrial],
    earlier: Sequence[FrozenTrial] = (),
    *,
    seed: int,
    directions: Sequence[Literal["minimize", "maximize"]],
    wanted: Callable[[Mapping[str, Any]], bool] = lambda settings: True,
) -> dict[str, Any] | None:
    """The settings {path: value} of trial number len(history); None when nothing is left that is `wanted`.

    The first is the recipe's own setting ({}), then come `search.first`, then the sampler, which knows `earlier`, too.
    """
    number = len(history)
    if number <= len(search.first):
        return {} if number == 0 else dict(search.first[number - 1])
    asked = Asked(dimensions, base, history, earlier, number - len(search.first) - 1, seed, directions)
    for attempt in range(REDRAWS):
        drawn = SAMPLERS[search.sampler].draw(replace(asked, seed=seed + attempt * ANOTHER_SEED))
        if drawn is None:
            break
        if wanted(drawn):
            return drawn
    if all(d.values() is not None for d in dimensions):
        return next(filter(wanted, points(dimensions, base)), None)
    chances = (draw_random(replace(asked, seed=seed + attempt * ANOTHER_SEED)) for attempt in range(CHANCES))
    return next(filter(wanted, chances), None)


def points(dimensions: Sequence[Dimension], base: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the dimensions' values, the last one's changing fastest; without what is not active."""
    if not dimensions:
        yield {}
        return
    dimension, *rest = dimensions
    for value in (dimension.values() or ()) if dimension.active(base) else ():
        for others in points(rest, {**base, dimension.path: value}):
            yield {dimension.path: value} | others
    if not dimension.active(base):
        yield from points(rest, base)


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


def _read(ledger: Path, where: str) -> tuple[Any, list[FrozenTrial]]:
    """The search of a sqlite ledger (None where it has none), and its trials; nothing is written to it."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    problem = damage(ledger)
    try:
        if problem is None:
            storage = reader(ledger)
            found = next((s for s in storage.get_all_studies() if s.study_name.endswith("/search")), None)
            trials = [] if found is None else storage.get_all_trials(storage.get_study_id_from_name(found.study_name))
            return found, trials
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError, LookupError, ValueError) as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]  # what stands in a damaged row
    raise UserError(f"{where}: {ledger} is damaged ({problem}); name another study, or null")
