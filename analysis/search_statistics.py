"""Statistics of a search: score expected of a budget, what pruning cost and saved, time to a target.

Values are errors throughout: smaller is better, the caller turns the sign of other metrics.

Expected best of n trials: Dodge et al. 2019, "Show your work: improved reporting of experimental results", section 3:
of n draws from the trials' own distribution the best lies above v in (share above v) ** n. It describes trials that are
drawn independently (random search); a sampler that learns does better late, and its curve here is what its trials are
worth in random order. The band: Lourie, Cho and He 2024, "Show your work with confidence", from a simultaneous 95% band
of the distribution (equal local levels: Aldor-Noiman et al. 2013). What may lie beyond the best value seen, no trials
bound; the chance that they saw nothing so good as the curve falls with trials / n, so the band ends at a fifth of them.

Rank correlation: Kendall's tau with the interval of Fieller, Hartley and Pearson 1957 (standard error of Fisher's z:
root of 0.437 / (n - 4)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special, stats

from analysis.statistics import LEVEL, Estimate, Floats

BAND_DRAWS = 1000
BOUND = 0.2  # share of the trials up to which they bound the curve
MIN_TRIALS = 8  # below, an empirical distribution says next to nothing
MIN_PAIRS = 5  # Kendall's tau: Fieller's standard error needs n > 4


@dataclass(frozen=True)
class Curve:
    """Expected best value after 1, 2, ... trials; hours: what so many trials take; low, high: its simultaneous 95%
    band, over the first BOUND of the trials only.
    """

    expected: Floats
    hours: Floats
    low: Floats
    high: Floats


def expected_best(values: Sequence[float] | Floats) -> Floats:
    """E[least of n of these] for n = 1 to as many as there are, drawn with replacement (Dodge et al. 2019)."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    return _best_of(ordered, np.arange(1, len(ordered) + 1) / len(ordered), np.arange(1, len(ordered) + 1))


def budget_curve(values: Sequence[float], hours: Sequence[float], seed: int) -> Curve:
    """The expected best against the number of trials, and the mean hours that so many take."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count = len(ordered)
    lower, upper = distribution_band(count, seed)
    n = np.arange(1, int(count * BOUND) + 1)
    # the most that may lie at or below each value, from the value itself on; the least, from the next one on
    low = _best_of(ordered, np.append(upper[1:], 1.0), n)
    high = _best_of(ordered, np.append(lower[:-1], 1.0), n)
    spent = np.arange(1, count + 1, dtype=np.float64) * float(np.mean(hours))
    return Curve(expected_best(ordered), spent, low, high)


@lru_cache(maxsize=64)
def distribution_band(count: int, seed: int) -> tuple[Floats, Floats]:
    """What share of a distribution lies at or below each of `count` sorted draws from it: a simultaneous 95% band."""
    place = np.arange(1, count + 1)
    uniform = np.sort(np.random.default_rng(seed).random((BAND_DRAWS, count)), axis=1)
    level = special.betainc(place, count - place + 1, uniform)
    local = np.quantile(np.minimum(level, 1 - level).min(1), 1 - LEVEL)
    lower, upper = (special.betaincinv(place, count - place + 1, share) for share in (local, 1 - local))
    return lower, upper


def _best_of(ordered: Floats, share: Floats, n: npt.NDArray[np.int_]) -> Floats:
    """E[least of n] of a distribution on sorted values, of which a share lies at or below each; the last share is 1.

    The least value, plus each gap to the next times the chance that all n lie above it: (share above) ** n, as an
    exponential because powers take ten times as long.
    """
    with np.errstate(divide="ignore"):  # nothing above: log 0, whose exponential is 0
        log_above = np.log(np.maximum(1.0 - share[:-1], 0.0))
    return np.asarray(ordered[0] + np.exp(n[:, None] * log_above) @ np.diff(ordered), dtype=np.float64)


@dataclass(frozen=True)
class Overtaking:
    """Which of two kinds of trials is expected to be ahead at small budgets, which at large ones, and from where on.

    hours: the crossing, with its 95% interval over resampled trials; sure: the share of resamples in which `early` is
    ahead at the least budget and `late` at the largest one.
    """

    early: str
    late: str
    hours: float
    low: float
    high: float
    sure: float


def overtaking(trials: Mapping[str, tuple[Floats, Floats]], seed: int) -> Overtaking | None:
    """The overtaking between two kinds of trials, each (values, hours); None where neither overtakes the other for
    sure: in LEVEL of resamples.
    """
    (first, one), (second, other) = trials.items()
    budgets = _budgets(one, other)
    ahead = _difference(one, other, budgets)
    if np.sign(ahead[0]) == np.sign(ahead[-1]) or 0 in (ahead[0], ahead[-1]):
        return None
    rng, crossings = np.random.default_rng(seed), []
    for _ in range(BAND_DRAWS):
        drawn = [_redrawn(side, rng) for side in (one, other)]
        gap = _difference(drawn[0], drawn[1], budgets)
        if np.sign(gap[0]) == np.sign(ahead[0]) and np.sign(gap[-1]) == np.sign(ahead[-1]):
            crossings.append(_crossing(gap, budgets))
    sure = len(crossings) / BAND_DRAWS
    if sure < LEVEL:
        return None
    names = (first, second) if ahead[0] < 0 else (second, first)
    low, high = np.quantile(crossings, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Overtaking(*names, _crossing(ahead, budgets), float(low), float(high), sure)


def _budgets(one: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> Floats:
    """Hours from where both have had a trial to where the first of both has had all of its."""
    means = [float(np.mean(hours)) for _, hours in (one, other)]
    ends = [mean * len(values) for mean, (values, _) in zip(means, (one, other), strict=True)]
    return np.linspace(max(means), max(min(ends), max(means)), 100)


def _difference(one: tuple[Floats, Floats], other: tuple[Floats, Floats], budgets: Floats) -> Floats:
    """Expected best of `one` minus that of `other` at each budget: below zero `one` is ahead."""
    curves = []
    for values, hours in (one, other):
        spent = np.arange(1, len(values) + 1) * float(np.mean(hours))
        curves.append(np.interp(budgets, spent, expected_best(values)))
    return np.asarray(curves[0] - curves[1])


def _redrawn(side: tuple[Floats, Floats], rng: np.random.Generator) -> tuple[Floats, Floats]:
    picks = rng.integers(len(side[0]), size=len(side[0]))
    return side[0][picks], side[1][picks]


def _crossing(gap: Floats, budgets: Floats) -> float:
    """The last budget before the sign is the final one."""
    changed = np.flatnonzero(np.sign(gap) != np.sign(gap[-1]))
    return float(budgets[changed[-1]])


def rank_correlation(early: Sequence[float], final: Sequence[float]) -> Estimate:
    """Kendall's tau of early against final values of the same trainings, with its 95% interval from MIN_PAIRS on."""
    n = len(early)
    tau = float(stats.kendalltau(early, final).statistic) if n > 1 else math.nan
    if n < MIN_PAIRS or not math.isfinite(tau):
        return Estimate(tau, None, None, f"{n} trainings")
    z = math.atanh(min(max(tau, -0.999), 0.999))
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt(0.437 / (n - 4))
    return Estimate(tau, math.tanh(z - half), math.tanh(z + half), f"{n} trainings")


@dataclass(frozen=True)
class Regret:
    """What pruning may have cost. missed: the share of resamples in which one of the pruned trials would have been
    better than the best complete one; loss: by how much on average over all resamples; pruned: how many were judged.
    """

    missed: float
    loss: float
    pruned: int


def regret(
    pruned: Sequence[tuple[float, float]], complete: pd.DataFrame, best: float, seed: int, least: int = MIN_PAIRS
) -> Regret | None:
    """What pruning may have cost, if pruned trials had gone on as complete ones did from the same number of images on.

    pruned: (images, value) where each was stopped. complete: columns key, images, value, final: all reports of the
    complete trials. Of each pruned trial the end is drawn as its value times final / value of a complete trial at the
    report of as many images. None where no report has `least` complete trials.
    """
    ratios: list[Floats] = []
    starts: list[float] = []
    for images, value in pruned:
        peers = complete[complete["images"] == images]
        if len(peers) >= least:
            ratios.append((peers["final"] / peers["value"]).to_numpy(float))
            starts.append(value)
    if not ratios:
        return None
    rng = np.random.default_rng(seed)
    ends = np.stack([start * rng.choice(r, BAND_DRAWS) for start, r in zip(starts, ratios, strict=True)])
    gain = np.clip(best - ends.min(0), 0, None)
    return Regret(float((gain > 0).mean()), float(gain.mean()), len(ratios))


@dataclass(frozen=True)
class Reached:
    """The share of trainings that have reached a target by each time, with its pointwise 95% interval (Clopper and
    Pearson); `half`: the time by which half of all have, None: fewer did.
    """

    seconds: Floats
    share: Floats
    low: Floats
    high: Floats
    half: float | None


def time_to_target(times: Sequence[float | None]) -> Reached:
    """How many of all trainings had reached a target when: the seconds that each took, None where it never did.

    A training that was stopped has not reached it. To treat it as undecided would be fair only if it had been stopped
    by chance, and a pruner stops those that are behind.
    """
    n, seconds = len(times), np.sort(np.array([time for time in times if time is not None], dtype=np.float64))
    hits = np.arange(1, len(seconds) + 1)
    edge = (1 - LEVEL) / 2
    low = special.betaincinv(hits, n - hits + 1, edge)
    high = np.where(hits < n, special.betaincinv(hits + 1, np.maximum(n - hits, 1), 1 - edge), 1.0)
    half = np.flatnonzero(hits >= n / 2)
    return Reached(seconds, hits / n, low, high, float(seconds[half[0]]) if len(half) else None)
