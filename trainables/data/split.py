"""Seeded choices of frames: held-out scenes, a share, every n-th, another frame's depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from trainables.data.frames import FrameList
from trainables.runtime.errors import UserError


def held_out(
    scenes: Sequence[str | None], by: Literal["scene", "frame"], share: float, seed: int, key: str
) -> frozenset[int]:
    """Positions of the frames that are set apart: whole scenes in seeded order until the share of frames is reached, at
    least one scene, never all; or by frame, as published. `key` names the setting.

    Raises UserError where scenes are unknown or fewer than two.
    """
    random = np.random.default_rng(seed)
    wanted = share * len(scenes)
    if by == "frame":
        count = min(max(1, round(wanted)), len(scenes) - 1)
        if count < 1:
            raise UserError(f"{key} needs at least two frames in the list")
        return frozenset(int(i) for i in random.permutation(len(scenes))[:count])
    sizes = Counter(scene for scene in scenes if scene is not None)
    if len(sizes) < 2 or sizes.total() < len(scenes):
        have = f"{len(sizes)} scene(s)" if sizes.total() == len(scenes) else "frames of unknown scene"
        raise UserError(f"{key} is by scene, but the list has {have}; do it by frame")
    names = sorted(sizes)
    chosen: set[str] = set()
    count = 0
    for k in random.permutation(len(names))[: len(names) - 1]:
        chosen.add(names[k])
        count += sizes[names[k]]
        if count >= wanted:
            break
    return frozenset(i for i, scene in enumerate(scenes) if scene in chosen)


def thinned(indices: list[int], share: float, seed: int) -> list[int]:
    """A seeded share of the indices, at least one, in their order."""
    count = max(1, round(share * len(indices)))
    kept = np.random.default_rng(seed).permutation(len(indices))[:count]
    return [indices[i] for i in sorted(kept)]


def evenly(indices: Sequence[int], count: int | None) -> list[int]:
    """At most `count` of the indices, evenly spaced."""
    if count is None or count >= len(indices):
        return list(indices)
    return [indices[(2 * k + 1) * len(indices) // (2 * count)] for k in range(count)]


def mispaired(frames: FrameList, seed: int) -> FrameList:
    """Each image with another frame's depth: one random cycle through all of them (Sattolo), so none keeps its own."""
    if len(frames) < 2:
        raise UserError("data.pairing: shuffled needs at least two training frames")
    random = np.random.default_rng(seed)
    order = list(range(len(frames)))
    for i in range(len(order) - 1, 0, -1):
        j = int(random.integers(i))
        order[i], order[j] = order[j], order[i]
    return replace(frames, depth_of=tuple(frames.depth_of[k] for k in order))
