"""Samplers and pruners of a search, by name: what each can search, and what it does.

Each is one entry here: settings that name one are checked against these registries, and `study.run --help` lists them.
Optuna's own are used where it has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

    from study.search.space import Dimension

STARTUP_TRIALS = 10  # random trials before TPE or GP models anything; they count complete and pruned trials


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


@dataclass(frozen=True)
class Sampler:
    """A way to propose the next trial. draw: its settings, {path: value}, of active dimensions alone; None: nothing is
    drawn, the points of the space are tried in their order. ranges: it searches ranges, not choices alone; conditions:
    it searches settings that have `when`; learns: it looks at what was tried.
    """

    draw: Callable[[Asked], dict[str, Any] | None]
    ranges: bool = True
    conditions: bool = False
    learns: bool = False


@dataclass(frozen=True)
class Pruner:
    """A way to stop trials early. make: of Optuna's, from the images before which nothing is stopped, the budget of a
    trial in images, and the reduction (one in so many continues); None: nothing is stopped.
    """

    make: Callable[[int, int, int], BasePruner] | None


def draw_random(asked: Asked) -> dict[str, Any]:
    """Settings drawn uniformly, each on its dimension's own scale."""
    import numpy as np

    units = np.random.default_rng((asked.seed, asked.index)).random(len(asked.dimensions))
    return _at(asked, [float(u) for u in units])


def _quasi_random(asked: Asked) -> dict[str, Any]:
    import numpy as np
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


def _tpe(asked: Asked) -> dict[str, Any]:
    import optuna

    sampler = optuna.samplers.TPESampler(seed=_seed(asked), n_startup_trials=STARTUP_TRIALS, multivariate=True)
    return _suggested(asked, sampler)


def _gp(asked: Asked) -> dict[str, Any]:
    import optuna

    return _suggested(asked, optuna.samplers.GPSampler(seed=_seed(asked), n_startup_trials=STARTUP_TRIALS))


def _seed(asked: Asked) -> int:
    import numpy as np

    return int(np.random.SeedSequence((asked.seed, len(asked.history))).generate_state(1)[0])


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


def _successive_halving(least: int, budget: int, reduction: int) -> BasePruner:
    import optuna

    return optuna.pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=reduction)


def _hyperband(least: int, budget: int, reduction: int) -> BasePruner:
    import optuna

    return optuna.pruners.HyperbandPruner(min_resource=least, max_resource=budget, reduction_factor=reduction)


def _median(least: int, budget: int, reduction: int) -> BasePruner:
    import optuna

    return optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS // 2, n_warmup_steps=least)


SAMPLERS: Mapping[str, Sampler] = {
    "tpe": Sampler(_tpe, conditions=True, learns=True),
    "gp": Sampler(_gp, learns=True),
    "quasi_random": Sampler(_quasi_random),
    "random": Sampler(draw_random, conditions=True),
    "grid": Sampler(lambda asked: None, ranges=False),
}
PRUNERS: Mapping[str, Pruner] = {
    "successive_halving": Pruner(_successive_halving),
    "hyperband": Pruner(_hyperband),
    "median": Pruner(_median),
    "none": Pruner(None),
}
