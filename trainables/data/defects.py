"""Defects to plant in the embedded training set, as known truth for the doctor and the spike detector.

Every function takes stored depth (uint8, 0 = hole) and returns the spoilt depth of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Stored = NDArray[np.uint8]
Plant = Callable[[Stored, Stored, np.random.Generator], Stored]  # own depth, another scene's depth, draws
VISIBLE_LEVELS = 6  # mean change under which a frame is passed over: its spoilt depth is nearly as good as the true one


def wrong_pair(depth: Stored, other: Stored, random: np.random.Generator) -> Stored:
    """The depth of a frame of another scene."""
    return other


def all_holes(depth: Stored, other: Stored, random: np.random.Generator) -> Stored:
    """No depth at all."""
    return np.zeros_like(depth)


def saturated(depth: Stored, other: Stored, random: np.random.Generator) -> Stored:
    """Everything beyond the nearer part of the frame reads the largest value."""
    known = depth[depth > 0]
    limit = np.quantile(known, float(random.uniform(0.15, 0.4))) if known.size else 0
    return np.where(depth > limit, np.uint8(255), depth)


def flipped(depth: Stored, other: Stored, random: np.random.Generator) -> Stored:
    """Left and right exchanged."""
    return np.ascontiguousarray(depth[:, ::-1])


def shifted(depth: Stored, other: Stored, random: np.random.Generator) -> Stored:
    """Moved sideways by 8 to 20% of the width; the last column fills the gap."""
    columns = depth.shape[1]
    step = max(1, round(float(random.uniform(0.08, 0.2)) * columns)) * int(random.choice([-1, 1]))
    return depth[:, np.clip(np.arange(columns) + step, 0, columns - 1)]


PLANTS: dict[str, Plant] = {
    "wrong_pair": wrong_pair,
    "all_holes": all_holes,
    "saturated": saturated,
    "flipped": flipped,
    "shifted": shifted,
}


def mean_change(before: Stored, after: Stored) -> float:
    """Mean absolute change in stored levels where either is known; flipping a view onto a wall changes nothing."""
    known = (before > 0) | (after > 0)
    return float(np.abs(before.astype(np.int16) - after)[known].mean()) if known.any() else 0.0
