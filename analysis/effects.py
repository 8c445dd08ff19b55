"""Effect of a setting in a search, bin against bin, with interval and permutation test.

Every setting is asked about, and its best and worst bins are picked after a look at their means. Both are paid for: p
values are corrected over settings (Holm), an interval is widened over pairs of bins (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import intervals
from analysis.dimensions import Dimension
from study.contract import Judge

MIN_BIN = intervals.MIN_SEEDS  # trials of a bin that is compared: fewer carry no interval
PERMUTATIONS = 2000
SEED = 0
Row = dict[str, Any]


def effect(complete: pd.DataFrame, dimension: Dimension, judge: Judge) -> Row | None:
    """Worst against best bin of one setting: difference, interval, the permutation test's p; None: too few trials.

    The two bins are picked after a look at their means, so the interval holds for all pairs of bins at once.
    """
    bins = dimension.binned(complete)
    values = complete["value"].to_numpy(float) * (1.0 if judge.minimise else -1.0)
    names = [name for name in dict.fromkeys(bins) if name is not None and (bins == name).sum() >= MIN_BIN]
    kept = np.array([name in names for name in bins])
    if len(names) < 2:
        return None
    values, bins = values[kept], bins[kept]
    means = {name: float(values[bins == name].mean()) for name in names}
    best, worst = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    a, b = values[bins == worst], values[bins == best]
    found = intervals.unpaired(a.tolist(), b.tolist(), "trials", pairs=math.comb(len(names), 2))
    return {
        "setting": dimension.path, "best": best, "worst": worst, "difference": found.value,
        "low": found.low, "high": found.high, "n_best": len(b), "n_worst": len(a), "n": len(values),
        "p": permutation(values, bins, names),
    }  # fmt: skip


def permutation(values: np.ndarray, bins: np.ndarray, names: Sequence[str]) -> float:
    """How often a shuffled setting explains as much variance between its bins as the real one."""
    rng = np.random.default_rng(SEED)
    ranks = pd.Series(values).rank().to_numpy()  # ranks: one wild value must not decide
    member = np.stack([bins == name for name in names]).astype(float)
    counts = member.sum(1)
    real = float((((member @ ranks) / counts - ranks.mean()) ** 2 * counts).sum())
    shuffled = rng.permuted(np.tile(ranks, (PERMUTATIONS, 1)), axis=1)
    between = ((((shuffled @ member.T) / counts) - ranks.mean()) ** 2 * counts).sum(1)
    return float((1 + (between >= real - 1e-9).sum()) / (1 + PERMUTATIONS))


def holm(tested: list[Row]) -> None:
    """Correct the p values for having asked of every setting, in place."""
    highest = 0.0
    for place, row in enumerate(sorted(tested, key=lambda r: float(r["p"]))):
        highest = max(highest, min(1.0, row["p"] * (len(tested) - place)))
        row["p"] = highest
