"""Resampling of per-frame scores over seeds and scenes together: mean, inter-quartile mean, profile, improvement.

Scores of one configuration are a matrix of its seeds by the frames of one test set. Two things are a sample there: the
seeds, of all trainings that the settings could give, and the scenes, of all rooms (frames of one scene are
near-duplicates). One draw takes as many seeds and as many scenes, with replacement, of both at once; a frame counts as
often as its seed times its scene were drawn (two-way bootstrap; Owen 2007, "The pigeonhole bootstrap").

A few seeds drawn from themselves vary too little. What the seeds' draw adds to a draw is therefore stretched from a
normal's to Student's t interval, by t(n - 1) / z * root(n / (n - 1)) (Hesterberg 2015, expanded percentile interval).

Inter-quartile mean, performance profile and probability of improvement: Agarwal et al. 2021, "Deep reinforcement
learning at the edge of the statistical precipice", with frames in the place of tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from analysis.statistics import DRAWS, LEVEL, MIN_CLUSTERS, MIN_SEEDS, Estimate, Floats

TRIMMED = 0.25  # of each end, by an inter-quartile mean


@dataclass(frozen=True)
class Scores:
    """Scores of one configuration: values (seeds, frames), all finite; the scene of each frame, None: not known."""

    values: Floats
    scenes: tuple[str | None, ...]

    @property
    def n(self) -> str:
        """'3 seeds x 215 scenes', or what there is."""
        seeds = f"{len(self.values)} seed{'' if len(self.values) == 1 else 's'}"
        known = {scene for scene in self.scenes if scene is not None}
        unknown = None in self.scenes
        return f"{seeds} x {len(self.scenes)} frames of unknown scenes" if unknown else f"{seeds} x {len(known)} scenes"

    @property
    def resampled(self) -> bool:
        """Whether the scenes carry an interval: all are known, and there are MIN_CLUSTERS."""
        return None not in self.scenes and len(set(self.scenes)) >= MIN_CLUSTERS


@dataclass(frozen=True)
class Draws:
    """How often each seed and each frame counts in every draw: (DRAWS, seeds), (DRAWS, frames)."""

    seeds: Floats
    frames: Floats


def draw(scores: Scores, seed: int) -> Draws:
    """DRAWS resamples of seeds and of whole scenes."""
    rng = np.random.default_rng(seed)
    names = sorted({str(scene) for scene in scores.scenes})
    member = np.array([names.index(str(scene)) for scene in scores.scenes])
    return Draws(_counts(rng, len(scores.values)), _counts(rng, len(names))[:, member])


def mean(scores: Scores, seed: int) -> Estimate:
    """The mean over seeds and frames, for other seeds and other scenes."""
    return _estimated(scores, lambda counts: _mean(scores.values, counts), seed)


def interquartile_mean(scores: Scores, seed: int) -> Estimate:
    """The mean of the middle half of all seeds' frames (scipy.stats.trim_mean at 25%): neither the easiest frames nor
    a few ruined ones decide it.
    """
    flat = scores.values.ravel()
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]

    def statistic(counts: Draws) -> Floats:
        weights = (counts.seeds[:, :, None] * counts.frames[:, None, :]).reshape(len(counts.seeds), -1)[:, order]
        return np.asarray(_trimmed(ordered, weights), dtype=np.float64)

    return _estimated(scores, statistic, seed)


def profile(scores: Scores, thresholds: Floats, seed: int) -> tuple[Floats, Floats | None, Floats | None]:
    """The share of all seeds' frames with a value at or below each threshold, and its pointwise 95% band; without
    MIN_CLUSTERS known scenes the share alone.
    """
    below = (scores.values[:, :, None] <= thresholds).astype(np.float64)
    share = below.mean((0, 1))
    if not scores.resampled:
        return share, None, None
    counts = draw(scores, seed)
    found = np.stack([_stretched(below[:, :, i], counts) for i in range(len(thresholds))], axis=1)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return share, np.clip(low, 0, 1), np.clip(high, 0, 1)


def no_interval(better: Scores, other: Scores) -> str | None:
    """Why the probability of improvement has no interval; None where it has one."""
    a, b = len(better.values), len(other.values)
    if not better.resampled:
        known = len(set(better.scenes))
        return "scenes are unknown" if None in better.scenes else f"{known} scenes are too few"
    return f"{a} and {b} seeds are too few" if 2 / math.comb(a + b, a) > 1 - LEVEL else None


def improvement(better: Scores, other: Scores, seed: int) -> Estimate:
    """The probability that a training of `better` has a lower value than one of `other`, on a frame drawn at random:
    per frame the share of pairs of seeds (Mann-Whitney's U over all pairs, ties one half), averaged over frames.

    Both hold the same frames in the same order. An interval needs as many seeds as could tell two alike configurations
    apart at 5% (an exact test of their order: 4 and 4, or 3 and 5).
    """
    a, b = better.values, other.values
    wins = (a[:, None, :] < b[None, :, :]) + 0.5 * (a[:, None, :] == b[None, :, :])  # (seeds, seeds, frames)
    value = float(wins.mean())
    n = f"{len(a)} and {len(b)} seeds x {better.n.partition(' x ')[2]}"
    if no_interval(better, other) is not None:
        return Estimate(value, None, None, n)
    first, second = draw(better, seed), _counts(np.random.default_rng(seed + 1), len(b))
    pairs = first.seeds[:, :, None] * second[:, None, :] / (first.seeds.sum(1) * second.sum(1))[:, None, None]
    whole = np.einsum("dab,abf,df->d", pairs, wins, first.frames, optimize=True) / first.frames.sum(1)
    by_seed = np.einsum("dab,ab->d", pairs, wins.mean(2)) - value
    found = np.clip(whole + (_stretch(min(len(a), len(b))) - 1) * by_seed, 0, 1)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), n)


def _estimated(scores: Scores, statistic: Callable[[Draws], Floats], seed: int) -> Estimate:
    """A statistic of seeds and frames with its interval over both; over scenes alone where there are too few seeds, and
    none where scenes do not carry one.
    """
    seeds, frames = scores.values.shape
    whole = Draws(np.ones((1, seeds)), np.ones((1, frames)))
    value = float(statistic(whole)[0])
    if not scores.resampled:
        return Estimate(value, None, None, scores.n)
    counts = draw(scores, seed)
    if seeds < MIN_SEEDS:
        found = statistic(Draws(np.ones((DRAWS, seeds)), counts.frames))
        low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(value, float(low), float(high), f"{scores.n}, the luck of seeds not included")
    by_seed = statistic(Draws(counts.seeds, np.ones((DRAWS, frames)))) - value
    found = statistic(counts) + (_stretch(seeds) - 1) * by_seed
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), scores.n)


def _stretched(values: Floats, counts: Draws) -> Floats:
    """Drawn means of (seeds, frames), what the seeds' draw adds stretched."""
    seeds = len(values)
    if seeds < MIN_SEEDS:
        return _mean(values, Draws(np.ones_like(counts.seeds), counts.frames))
    own = values.mean(1)
    by_seed = counts.seeds @ own / counts.seeds.sum(1) - own.mean()
    return np.asarray(_mean(values, counts) + (_stretch(seeds) - 1) * by_seed, dtype=np.float64)


def _stretch(n: int) -> float:
    """Student's t interval of a mean of n over the interval that resampling it would give."""
    edge = (1 + LEVEL) / 2
    return float(stdtrit(n - 1, edge) / ndtri(edge) * math.sqrt(n / (n - 1)))


def _mean(values: Floats, counts: Draws) -> Floats:
    """The mean of (seeds, frames) in every draw."""
    total = np.einsum("ds,sf,df->d", counts.seeds, values, counts.frames, optimize=True)
    return np.asarray(total / counts.seeds.sum(1) / counts.frames.sum(1), dtype=np.float64)


def _trimmed(ordered: Floats, weights: Floats) -> Floats:
    """The mean of what lies between the first and last TRIMMED of the weight, of values in ascending order."""
    total = weights.sum(1, keepdims=True)
    upper = np.cumsum(weights, axis=1) / total
    lower = upper - weights / total
    kept = np.clip(np.minimum(upper, 1 - TRIMMED) - np.maximum(lower, TRIMMED), 0, None)
    return np.asarray((kept * ordered).sum(1) / kept.sum(1), dtype=np.float64)


def _counts(rng: np.random.Generator, n: int) -> Floats:
    """How often each of n is drawn in DRAWS draws of n."""
    return rng.multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(np.float64)


def matched(entries: Sequence[Sequence[tuple[str, str | None, float]]]) -> Scores:
    """Scores of several seeds, each as (frame, scene, value), on the frames that all of them have a value of."""
    by_seed = [{frame: value for frame, _, value in entry} for entry in entries]
    scene_of = {frame: scene for frame, scene, _ in entries[0]}
    common = [frame for frame in by_seed[0] if all(frame in one for one in by_seed)]
    values: npt.NDArray[np.float64] = np.array([[one[frame] for frame in common] for one in by_seed], dtype=np.float64)
    return Scores(values.reshape(len(entries), len(common)), tuple(scene_of[frame] for frame in common))
