"""Verdicts on claims by rule: paired differences of seeds, a Student-t interval, and an equivalence test.

A difference is signed so that above zero arm `a` is better. With a claim that `a` is better:

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
itself, and of forty claims without an effect one is expected to hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from analysis.intervals import LEVEL, MIN_SEEDS, Estimate, paired

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
    """The least number of seeds above those there are at which the rule would tell, if mean and standard deviation
    stayed as they are; MIN_SEEDS where there are too few to have one; None: more than MOST_SEEDS.
    """
    n = len(differences)
    if n < 2:
        return MIN_SEEDS
    mean, deviation = float(np.mean(differences)), spread(differences)
    for more in range(max(n + 1, MIN_SEEDS), MOST_SEEDS + 1):
        if rule(mean, deviation, more, expected, margin) is not None:
            return more
    return None


def spread(differences: Sequence[float]) -> float:
    """The standard deviation of two differences or more."""
    return float(np.std(differences, ddof=1))
