"""The next setting to try.

A sampler is made anew for each trial, seeded from (study's seed, trial's number), and asked in a study of its own that
holds the ledger's trials: the number and the history alone decide what is tried next, so a resumed search goes on as if
undisturbed, and nothing is written before the whole trial is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from study.config import SearchConfig
from study.space import STARTUP_TRIALS, Dimension

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial


def propose(
    search: SearchConfig,
    dimensions: Sequence[Dimension],
    base: Mapping[str, Any],
    history: Sequence[FrozenTrial],
    earlier: Sequence[FrozenTrial] = (),
    *,
    seed: int,
    directions: Sequence[Literal["minimize", "maximize"]],
) -> dict[str, Any] | None:
    """The settings {path: value} of trial number len(history); None when a grid is exhausted.

    The first is the recipe's own setting ({}), then come `search.first`, then the sampler, which knows `earlier`, too.
    """
    number = len(history)
    if number <= len(search.first):
        return {} if number == 0 else dict(search.first[number - 1])
    index = number - len(search.first) - 1
    if search.sampler == "grid":
        return _grid(dimensions, index)
    if search.sampler in ("random", "quasi_random"):
        units = _units(search.sampler, len(dimensions), index, seed)
        return _active({d.path: d.at(u) for d, u in zip(dimensions, units, strict=True)}, dimensions, base)
    return _ask(search, dimensions, base, history, earlier, seed, directions)


def _units(sampler: str, size: int, index: int, seed: int) -> list[float]:
    if sampler == "random":
        return [float(u) for u in np.random.default_rng((seed, index)).random(size)]
    from scipy.stats import qmc

    engine = qmc.Sobol(size, scramble=True, rng=np.random.default_rng(seed))
    if index:  # scipy cannot skip none
        engine.fast_forward(index)
    return [min(float(u), math.nextafter(1.0, 0.0)) for u in engine.random(1)[0]]


def _grid(dimensions: Sequence[Dimension], index: int) -> dict[str, Any] | None:
    result = {}
    for dimension in reversed(dimensions):
        index, place = divmod(index, len(dimension.choices))
        result[dimension.path] = dimension.choices[place]
    return result if index == 0 else None


def _active(drawn: dict[str, Any], dimensions: Sequence[Dimension], base: Mapping[str, Any]) -> dict[str, Any]:
    settings, kept = dict(base), {}
    for dimension in dimensions:
        if dimension.active(settings):
            kept[dimension.path] = settings[dimension.path] = drawn[dimension.path]
    return kept


def _ask(
    search: SearchConfig,
    dimensions: Sequence[Dimension],
    base: Mapping[str, Any],
    history: Sequence[FrozenTrial],
    earlier: Sequence[FrozenTrial],
    seed: int,
    directions: Sequence[Literal["minimize", "maximize"]],
) -> dict[str, Any]:
    import optuna

    seeded = int(np.random.SeedSequence((seed, len(history))).generate_state(1)[0])
    sampler: optuna.samplers.BaseSampler
    if search.sampler == "gp":
        sampler = optuna.samplers.GPSampler(seed=seeded, n_startup_trials=STARTUP_TRIALS)
    else:
        sampler = optuna.samplers.TPESampler(seed=seeded, n_startup_trials=STARTUP_TRIALS, multivariate=True)
    asked = optuna.create_study(directions=directions, sampler=sampler)
    asked.add_trials([*earlier, *history])  # copies, numbered in this order
    trial = asked.ask()
    settings, kept = dict(base), {}
    for dimension in dimensions:
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
