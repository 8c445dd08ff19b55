"""Effects with their uncertainty, in the same words in every section: effect, interval and n, or "not distinguishable".

Three designs occur. Frames of one scene are near-duplicates, so frames are resampled by scene (cluster bootstrap);
paired trainings share a seed, so their differences are Student-t; two groups of seeds are compared by Welch's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit  # scipy.stats, whose t.ppf calls it, takes a second to import

from analysis.section import number

LEVEL = 0.95
MIN_CLUSTERS = 30  # DESIGN.md, the judge
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


def _resampled(frames: Floats, scenes: Sequence[str | None], seed: int) -> tuple[Floats | None, str]:
    """DRAWS resampled means of each column of (frames, columns), None where scenes do not carry them; n in words."""
    known = [scene for scene in scenes if isinstance(scene, str)]
    names = sorted(set(known))
    if len(known) < len(frames):
        return None, f"{len(frames)} frames of unknown scenes"
    if len(names) < MIN_CLUSTERS:
        return None, f"{len(names)} scenes"
    place = {name: i for i, name in enumerate(names)}
    member = np.array([place[scene] for scene in known])
    counts = np.bincount(member, minlength=len(names)).astype(np.float64)
    picks = np.random.default_rng(seed).integers(len(names), size=(DRAWS, len(names)))
    drawn = counts[picks].sum(1)
    sums = [np.bincount(member, weights=column, minlength=len(names)) for column in frames.T]
    return np.stack([total[picks].sum(1) / drawn for total in sums], axis=1), f"{len(names)} scenes"


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
