"""Surrogate of a search: a random forest from settings to the judged value, and what it says of them.

The forest is scikit-learn's, and so is partial dependence (Friedman 2001; sklearn.inspection). Its band: forests of
resampled trials, so it shows what other trials of the same search might have said, not what the forest cannot know.
Ablation path: from the recipe's setting to the best one, at each step the flip that the forest expects most of (Fawcett
and Hoos 2016, with a surrogate as Biedenkapp et al. 2017). Settings are given by their place in their range, 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import partial_dependence

from analysis.dimensions import Dimension
from analysis.statistics import LEVEL, Floats

TREES, LEAF = 100, 2
RESAMPLES, FEWER_TREES = 40, 15
GRID = 21  # points of a range
SEED = 0


@dataclass(frozen=True)
class Surrogate:
    """Forests of one search. score: R2 of the whole one on trials that a tree has not seen (out of bag)."""

    dimensions: tuple[Dimension, ...]
    places: Floats  # (trials, settings)
    whole: RandomForestRegressor
    resampled: tuple[RandomForestRegressor, ...]
    score: float


@dataclass(frozen=True)
class Dependence:
    """Partial dependence of the value on one setting: at places, with the pointwise 95% band over resampled trials."""

    places: Floats
    mean: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Flip:
    """One step of an ablation path: the setting flipped and the values expected after it, of each resampled forest."""

    setting: str
    expected: float
    low: float
    high: float


def fit(complete: pd.DataFrame, dimensions: Sequence[Dimension], values: Floats) -> Surrogate:
    """The surrogate of complete trials; settings that not every trial has are left out."""
    known = tuple(d for d in dimensions if np.isfinite(d.places(complete)).all())
    places = np.stack([d.places(complete) for d in known], axis=1)
    whole = RandomForestRegressor(TREES, min_samples_leaf=LEAF, oob_score=True, random_state=SEED).fit(places, values)
    rng, forests = np.random.default_rng(SEED), []
    for k in range(RESAMPLES):
        picks = rng.integers(len(values), size=len(values))
        one = RandomForestRegressor(FEWER_TREES, min_samples_leaf=LEAF, random_state=k)
        forests.append(one.fit(places[picks], values[picks]))
    return Surrogate(known, places, whole, tuple(forests), float(whole.oob_score_))


def dependence(surrogate: Surrogate, path: str) -> Dependence:
    """The value expected at each place of one setting, averaged over the trials' other settings."""
    column = [d.path for d in surrogate.dimensions].index(path)
    grid = _grid(surrogate.dimensions[column], surrogate.places[:, column])
    mean = _at(surrogate.whole, surrogate.places, {column: grid}).ravel()
    drawn = np.stack([_at(forest, surrogate.places, {column: grid}).ravel() for forest in surrogate.resampled])
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return Dependence(grid, mean, low, high)


def contour(surrogate: Surrogate, first: str, second: str) -> tuple[Floats, Floats, Floats, Floats]:
    """Places of two settings, the value expected at each pair (first, second), and half the width of its 95% band."""
    paths = [d.path for d in surrogate.dimensions]
    columns = paths.index(first), paths.index(second)
    grids = {c: _grid(surrogate.dimensions[c], surrogate.places[:, c]) for c in columns}
    mean = _at(surrogate.whole, surrogate.places, grids)
    drawn = np.stack([_at(forest, surrogate.places, grids) for forest in surrogate.resampled])
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return grids[columns[0]], grids[columns[1]], mean, (high - low) / 2


def ablation(surrogate: Surrogate, start: Floats, end: Floats) -> tuple[float, list[Flip]]:
    """What the forest expects of `start` (places, one per setting), and the path from it to `end`."""
    now, left = start.copy(), [c for c in range(len(start)) if start[c] != end[c]]
    path = []
    while left:
        tried = np.stack([np.where(np.arange(len(now)) == c, end, now) for c in left])
        best = left[int(np.argmin(surrogate.whole.predict(tried)))]
        now = np.where(np.arange(len(now)) == best, end, now)
        left.remove(best)
        drawn = [float(forest.predict(now[None])[0]) for forest in surrogate.resampled]
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        expected = float(surrogate.whole.predict(now[None])[0])
        path.append(Flip(surrogate.dimensions[best].path, expected, float(low), float(high)))
    return float(surrogate.whole.predict(start[None])[0]), path


def _grid(dimension: Dimension, seen: Floats) -> Floats:
    """The choices that were tried, or points of a range between its least and greatest tried value."""
    if dimension.choices:
        return np.unique(seen)
    return np.linspace(seen.min(), seen.max(), GRID)


def _at(forest: RandomForestRegressor, places: Floats, grids: dict[int, Floats]) -> npt.NDArray[np.float64]:
    columns = list(grids)
    found = partial_dependence(forest, places, columns, custom_values=grids, method="recursion", kind="average")
    return np.asarray(found["average"][0], dtype=np.float64)
