"""Intervals and verdicts: paired differences, clustered resampling, equivalence tests.

An effect is given in the same words in every section: effect, interval and n, or "not distinguishable". Three designs
occur. Frames of one scene are near-duplicates, so frames are resampled by scene (cluster bootstrap); paired trainings
share a seed, so their differences are Student-t; two groups of seeds are compared by Welch's t.

A verdict on a claim follows by rule from the paired differences of its seeds, their Student-t interval, and an
equivalence test. A difference is signed so that above zero arm `a` is better. With a claim that `a` is better:

    holds                               the 95% interval lies above zero
    does not hold                       it lies below zero
    no difference beyond the margin     it does neither, and the 90% interval lies within the margin: two one-sided
                                        tests at 5% (Schuirmann 1987); without a margin only where all pairs are equal
    cannot be told                      else

A claim of no difference holds where the 90% interval lies within the margin, and does not where the 95% interval lies
wholly beyond it on one side. A claim that `a` is not better holds where the 90% interval ends below the margin, and
does not where the 95% interval begins above it. A question is answered by "a better" or "b better" in place of holds.

Errors. Where both arms are alike, a claim of a direction comes out as holding in 2.5% of studies, whatever their seeds,
and as not holding in as many, as the interval leaves out zero in 5%. Nothing is corrected over claims: each stands for
itself, and of forty claims without an effect one is expected to hold. Two one-sided tests err in 5% at most, and where
several margins have to be met at once (analysis/reproduction.py) in no more: all of them must be (Berger 1982).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import nctdtr, stdtr, stdtrit  # scipy.stats, which calls them, takes a second to import

from analysis.page.section import number
from trainables.evaluation.protocols import Average

LEVEL = 0.95
MIN_CLUSTERS = 30  # DESIGN.md, the judge
POWER = 0.8  # share of studies in which as many seeds as are called enough would tell
MIN_SEEDS = 3  # below, a t interval says nothing that the numbers themselves do not
DRAWS = 2000
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference. low, high: its 95% interval, None where n does not carry one. n in words ('3 seeds')."""

    value: float
    low: float | None
    high: float | None
    n: str

    @property
    def distinguishable(self) -> bool:
        """Whether an interval exists and leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def words(self, unit: str = "") -> str:
        """'0.031 m (95% interval 0.012 to 0.050, n = 34 scenes)'."""
        shown = f"{number(self.value)} {unit}".strip()
        if self.low is None or self.high is None:
            return f"{shown} (n = {self.n}, no interval)"
        return f"{shown} (95% interval {number(self.low)} to {number(self.high)}, n = {self.n})"

    def versus(self, unit: str = "") -> str:
        """A difference with its sign in words, above zero worse: 'better by 0.031 m (95% interval 0.012 to ...)'."""
        if not self.value < 0:
            return f"worse by {self.words(unit)}"
        low, high = (None, None) if self.low is None or self.high is None else (-self.high, -self.low)
        return f"better by {Estimate(-self.value, low, high, self.n).words(unit)}"

    def as_dict(self) -> dict[str, Any]:
        """The estimate as plain JSON."""
        return asdict(self) | {"distinguishable": self.distinguishable}


def by_scene(values: Sequence[float], scenes: Sequence[str | None], seed: int) -> Estimate:
    """The mean of per-frame values (a metric, or a paired difference of two), resampled by whole scenes.

    The mean is over frames, as the protocol's; with a scene unknown, or fewer than MIN_CLUSTERS, without an interval.
    """
    array = np.asarray(values, dtype=np.float64)
    value = float(array.mean()) if len(array) else math.nan
    means, n = _resampled(array[:, None], scenes, seed)
    low, high = (None, None) if means is None else _ends(means[:, 0])
    return Estimate(value, low, high, n)


def reduction_by_scene(
    values: Sequence[float], others: Sequence[float], scenes: Sequence[str | None], seed: int
) -> Estimate:
    """By how many percent the mean of `values` lies below that of `others`; both are resampled by whole scenes."""
    both = np.stack([np.asarray(v, dtype=np.float64) for v in (values, others)], axis=1)
    first, second = both.mean(0) if len(both) else (math.nan, math.nan)
    means, n = _resampled(both, scenes, seed)
    low, high = (None, None) if means is None else _ends(100 * (1 - means[:, 0] / means[:, 1]))
    return Estimate(float(100 * (1 - first / second)), low, high, n)


def average_by_scene(
    values: Sequence[float],
    pixels: Sequence[int],
    scenes: Sequence[str | None],
    average: Average,
    power: int,
    seed: int,
) -> Estimate:
    """An average of per-frame values as a protocol takes it, resampled by whole scenes.

    per_image: the mean of the frames; image_median: their median; pooled: the mean over the pixels of all frames of
    values ** power, and its root. With a scene unknown, or fewer than MIN_CLUSTERS, without an interval.
    """
    if average == "per_image":
        return by_scene(values, scenes, seed)
    array, weight = np.asarray(values, dtype=np.float64), np.asarray(pixels, dtype=np.float64)
    if average == "pooled":
        both = np.stack([array**power * weight, weight], axis=1)
        value = float((both[:, 0].sum() / both[:, 1].sum()) ** (1 / power)) if len(array) else math.nan
        means, n = _resampled(both, scenes, seed)
        drawn = None if means is None else (means[:, 0] / means[:, 1]) ** (1 / power)
    else:
        value = float(np.median(array)) if len(array) else math.nan
        known, n = _picks(len(array), scenes, seed)
        drawn = None if known is None else _medians(array, *known)
    low, high = (None, None) if drawn is None else _ends(drawn)
    return Estimate(value, low, high, n)


def _medians(values: Floats, member: npt.NDArray[np.int64], picks: npt.NDArray[np.int64]) -> Floats:
    """The median of the frames of each draw of scenes; of an even number the lower one."""
    times = np.stack([np.bincount(draw, minlength=picks.shape[1]) for draw in picks])
    order = np.argsort(values)
    reached = times[:, member[order]].cumsum(axis=1)
    place = (2 * reached >= reached[:, -1:]).argmax(axis=1)
    medians: Floats = values[order][place]
    return medians


def _picks(
    count: int, scenes: Sequence[str | None], seed: int
) -> tuple[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None, str]:
    """Each frame's scene as a number, and DRAWS draws of as many scenes; None where they do not carry an interval."""
    known = [scene for scene in scenes if isinstance(scene, str)]
    names = sorted(set(known))
    if len(known) < count:
        return None, f"{count} frames of unknown scenes"
    if len(names) < MIN_CLUSTERS:
        return None, f"{len(names)} scenes"
    place = {name: i for i, name in enumerate(names)}
    member = np.array([place[scene] for scene in known])
    return (member, np.random.default_rng(seed).integers(len(names), size=(DRAWS, len(names)))), f"{len(names)} scenes"


def _resampled(frames: Floats, scenes: Sequence[str | None], seed: int) -> tuple[Floats | None, str]:
    """DRAWS resampled means of each column of (frames, columns), None where scenes do not carry them; n in words."""
    known, n = _picks(len(frames), scenes, seed)
    if known is None:
        return None, n
    member, picks = known
    counts = np.bincount(member, minlength=picks.shape[1]).astype(np.float64)
    drawn = counts[picks].sum(1)
    sums = [np.bincount(member, weights=column, minlength=picks.shape[1]) for column in frames.T]
    return np.stack([total[picks].sum(1) / drawn for total in sums], axis=1), n


def _ends(means: Floats) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired(differences: Sequence[float], what: str = "seeds") -> Estimate:
    """The mean of paired differences (same seed, one setting flipped) with a Student-t interval."""
    array = np.asarray(differences, dtype=np.float64)
    n = len(array)
    value = float(array.mean()) if n else math.nan
    if n < MIN_SEEDS:
        return Estimate(value, None, None, f"{n} paired {what}")
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2) * array.std(ddof=1) / math.sqrt(n))
    return Estimate(value, value - half, value + half, f"{n} paired {what}")


def unpaired(first: Sequence[float], second: Sequence[float], what: str = "seeds", pairs: int = 1) -> Estimate:
    """Mean of `first` minus mean of `second` with Welch's t interval.

    pairs: of how many pairs of groups these two were picked after a look at the values; the interval is widened so
    that it holds for whichever pair is picked (Bonferroni).
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    n = f"{len(a)} + {len(b)} {what}"
    value = float(a.mean() - b.mean()) if len(a) and len(b) else math.nan
    if min(len(a), len(b)) < MIN_SEEDS:
        return Estimate(value, None, None, n)
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    error = math.sqrt(sum(parts))
    if error == 0:
        return Estimate(value, value, value, n)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    half = float(stdtrit(freedom, 1 - (1 - LEVEL) / (2 * pairs)) * error)
    return Estimate(value, value - half, value + half, n)


def standard_error(values: Sequence[float]) -> float | None:
    """The standard error of the mean; None for fewer than two values."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) >= 2 else None


HOLDS, FAILS, ALIKE = "holds", "does not hold", "no difference beyond the margin"
A_BETTER, B_BETTER = "a better", "b better"  # answers to a question
UNTOLD, UNTESTABLE = "cannot be told", "not testable here"  # each followed by how many seeds, or why
MOST_SEEDS = 1000
Direction = Literal["a_better", "b_better", "a_not_better", "no_difference", "open"]


@dataclass(frozen=True)
class Verdict:
    """words: the verdict. estimate: the mean difference, above zero `a` is better, with its 95% interval."""

    words: str
    estimate: Estimate


def verdict(differences: Sequence[float], expected: Direction, margin: float | None) -> Verdict:
    """The verdict on a claim from its pairs' differences; fewer than three carry none."""
    estimate, n = paired(differences), len(differences)
    if n >= MIN_SEEDS:
        told = rule(estimate.value, spread(differences), n, expected, margin)
        if told is not None:
            return Verdict(told, estimate)
    needed = enough(differences, expected, margin)
    seeds = f"{n} seed{'' if n == 1 else 's'}"
    would = f"more than {MOST_SEEDS:,}" if needed is None else f"about {needed:,}"
    return Verdict(f"{UNTOLD} ({seeds}; {would} would do)", estimate)


def rule(mean: float, deviation: float, n: int, expected: Direction, margin: float | None) -> str | None:
    """The rule on `n` differences of a mean and standard deviation; None: it cannot be told."""
    error, width = deviation / math.sqrt(n), margin or 0.0
    half, half_one_sided = (float(stdtrit(n - 1, share)) * error for share in ((1 + LEVEL) / 2, LEVEL))
    low, high = mean - half, mean + half
    alike = abs(mean) + half_one_sided <= width
    if expected == "no_difference":
        return HOLDS if alike else FAILS if low > width or high < -width else None
    if expected == "a_not_better":
        return HOLDS if mean + half_one_sided <= width else FAILS if low > width else None
    if low > 0:
        return {"a_better": HOLDS, "b_better": FAILS, "open": A_BETTER}[expected]
    if high < 0:
        return {"a_better": FAILS, "b_better": HOLDS, "open": B_BETTER}[expected]
    return ALIKE if alike else None


def enough(differences: Sequence[float], expected: Direction, margin: float | None) -> int | None:
    """The least number of seeds above those there are at which the rule would tell in POWER of studies, if mean and
    standard deviation were the true ones; MIN_SEEDS where there are too few to have one; None: more than MOST_SEEDS.
    """
    n = len(differences)
    if n < 2:
        return MIN_SEEDS
    return seeds_needed(float(np.mean(differences)), spread(differences), expected, margin, n + 1)


def seeds_needed(
    mean: float, deviation: float, expected: Direction, margin: float | None, least: int = MIN_SEEDS
) -> int | None:
    """The least number of paired seeds, from `least` on, at which the rule tells in POWER of studies whose differences
    have this true mean and standard deviation; None: more than MOST_SEEDS.
    """
    counts = range(max(least, MIN_SEEDS), MOST_SEEDS + 1)
    place = bisect_left(counts, POWER, key=lambda n: power(mean, deviation, n, expected, margin))
    return counts[place] if place < len(counts) else None


def power(mean: float, deviation: float, n: int, expected: Direction, margin: float | None) -> float:
    """The share of studies of `n` pairs in which the rule tells, of differences with a true mean and deviation.

    By the noncentral t distribution; for two one-sided tests the lower bound (Phillips 1990), whose error vanishes
    from a share of one half on.
    """
    if deviation == 0:
        return float(rule(mean, deviation, n, expected, margin) is not None)
    width, scale, freedom = margin or 0.0, math.sqrt(n) / deviation, n - 1
    two, one = (float(stdtrit(freedom, share)) for share in ((1 + LEVEL) / 2, LEVEL))

    def above(bound: float, critical: float) -> float:
        """How often the interval's lower end lies above a bound."""
        return 1.0 - _nct(freedom, (mean - bound) * scale, critical)

    def below(bound: float, critical: float) -> float:
        """How often its upper end lies below it."""
        return _nct(freedom, (mean - bound) * scale, -critical)

    alike = max(0.0, above(-width, one) + below(width, one) - 1.0)
    if expected == "no_difference":
        return min(1.0, alike + above(width, two) + below(-width, two))
    if expected == "a_not_better":
        return min(1.0, below(width, one) + above(width, two))
    # both may be true of one interval, which is then told as a difference
    return max(alike, above(0.0, two) + below(0.0, two))


def _nct(freedom: int, shift: float, value: float) -> float:
    """The noncentral t distribution's share below a value; far shifts, of which scipy knows none, are 0 or 1."""
    share = float(nctdtr(freedom, shift, value))
    return share if math.isfinite(share) else float(shift < 0)


def half_one_sided(differences: Sequence[float]) -> float:
    """Half the width of the 90% t interval of the mean, which two one-sided tests at 5% look at."""
    n = len(differences)
    return float(stdtrit(n - 1, LEVEL)) * spread(differences) / math.sqrt(n)


def tost(differences: Sequence[float], margin: float) -> float:
    """The p value of two one-sided t tests (Schuirmann 1987) that the mean lies within the margin; three values or
    more. Below 0.05 the 90% interval lies within the margin.
    """
    n, error = len(differences), spread(differences) / math.sqrt(len(differences))
    mean = abs(float(np.mean(differences)))
    if error == 0:
        return float(mean > margin)
    return float(stdtr(n - 1, (mean - margin) / error))


def spread(differences: Sequence[float]) -> float:
    """The standard deviation of two differences or more."""
    return float(np.std(differences, ddof=1))
