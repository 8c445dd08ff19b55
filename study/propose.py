"""Proposals of a search: the settings of its next trial, and the trials of an earlier study that it starts from.

A sampler is made anew for each trial, seeded from (study's seed, trial's number), and asked in a study of its own that
holds the ledger's trials: number and history alone decide what is tried next, so a resumed search proposes as if
undisturbed, and nothing is written before the whole trial is known.

No training is proposed twice: a draw that the caller refuses (it has been trained, or cannot be) is drawn again from
another seed, and where every value can be counted, what is left is tried in order. A search that has nothing left ends.

Warm start: complete trials of an earlier study's search, for the sampler of another (`search.warm_start`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from study.config import SAMPLERS, SearchConfig, Study
from study.contract import RESULTS, Layout, StudyAttr
from study.space import STARTUP_TRIALS, Dimension
from study.store import damage, reader
from trainables.runtime.errors import UserError
from trainables.settings.config import listed
from trainables.settings.registry import bind

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

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
        drawn = DRAW[search.sampler](replace(asked, seed=seed + attempt * ANOTHER_SEED))
        if drawn is None:
            break
        if wanted(drawn):
            return drawn
    if all(d.values() is not None for d in dimensions):
        return next(filter(wanted, points(dimensions, base)), None)
    chances = (_random(replace(asked, seed=seed + attempt * ANOTHER_SEED)) for attempt in range(CHANCES))
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


@dataclass(frozen=True)
class Asked:
    """What a sampler may know. index: of the draws that it makes, from 0."""

    dimensions: Sequence[Dimension]
    base: Mapping[str, Any]
    history: Sequence[FrozenTrial]
    earlier: Sequence[FrozenTrial]
    index: int
    seed: int
    directions: Sequence[Literal["minimize", "maximize"]]


def _random(asked: Asked) -> dict[str, Any]:
    units = np.random.default_rng((asked.seed, asked.index)).random(len(asked.dimensions))
    return _at(asked, [float(u) for u in units])


def _quasi_random(asked: Asked) -> dict[str, Any]:
    from scipy.stats import qmc

    engine = qmc.Sobol(len(asked.dimensions), scramble=True, rng=np.random.default_rng(asked.seed))
    if asked.index:  # scipy cannot skip none
        engine.fast_forward(asked.index)
    return _at(asked, [min(float(u), math.nextafter(1.0, 0.0)) for u in engine.random(1)[0]])


def _at(asked: Asked, units: Sequence[float]) -> dict[str, Any]:
    """The settings at shares of the dimensions' ranges; those that are not active are left out."""
    settings, kept = dict(asked.base), {}
    for dimension, unit in zip(asked.dimensions, units, strict=True):
        if dimension.active(settings):
            kept[dimension.path] = settings[dimension.path] = dimension.at(unit)
    return kept


def _grid(asked: Asked) -> None:
    """Nothing is drawn: `propose` takes the points in their order."""


def _tpe(asked: Asked) -> dict[str, Any]:
    import optuna

    sampler = optuna.samplers.TPESampler(seed=_seed(asked), n_startup_trials=STARTUP_TRIALS, multivariate=True)
    return _suggested(asked, sampler)


def _gp(asked: Asked) -> dict[str, Any]:
    import optuna

    return _suggested(asked, optuna.samplers.GPSampler(seed=_seed(asked), n_startup_trials=STARTUP_TRIALS))


def _seed(asked: Asked) -> int:
    return int(np.random.SeedSequence((asked.seed, len(asked.history))).generate_state(1)[0])


DRAW: Mapping[str, Callable[[Asked], dict[str, Any] | None]] = bind(
    SAMPLERS, {"tpe": _tpe, "gp": _gp, "quasi_random": _quasi_random, "random": _random, "grid": _grid}
)


def _suggested(asked: Asked, sampler: BaseSampler) -> dict[str, Any]:
    """What a sampler of Optuna suggests to a study in memory that holds the trials."""
    import optuna

    study = optuna.create_study(directions=asked.directions, sampler=sampler)
    study.add_trials([*asked.earlier, *asked.history])  # copies, numbered in this order
    trial = study.ask()
    settings, kept = dict(asked.base), {}
    for dimension in asked.dimensions:
        if dimension.active(settings):
            kept[dimension.path] = settings[dimension.path] = dimension.value(_drawn(trial, dimension))
    return kept


def _drawn(trial: Trial, dimension: Dimension) -> Any:
    """A draw from the dimension's distribution."""
    space: Any = dimension.distribution()
    if dimension.choices:
        return trial.suggest_categorical(dimension.path, space.choices)
    suggest: Any = trial.suggest_int if dimension.integer else trial.suggest_float
    return suggest(dimension.path, space.low, space.high, log=space.log)


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
