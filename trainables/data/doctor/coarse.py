"""Coarse maps of pictures and depths, compared between the neighboring frames of a scene.

A camera pans between two frames: picture and depth move by the same sideways offset, unless one of them lies off.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainables.data.doctor.pairing import COLUMNS, Floats, Small, overlap, shrink

MAP_ROWS, MAP_COLUMNS = 15, 20
PANS: Final = tuple(range(-6, 7))  # sideways offsets between neighbouring frames, in columns of the coarse map
FEWEST: Final = 40  # cells known in both maps below which nothing is compared


def of_depth(small: Small) -> NDArray[np.float16]:
    """Logarithm of depth (MAP_ROWS, MAP_COLUMNS), NaN where little is known."""
    seen = shrink(small.seen, MAP_ROWS, MAP_COLUMNS)
    logs = np.where(small.seen > 0, -np.log(np.maximum(small.inverse, 1e-3)), 0)
    values = shrink((logs * small.seen).astype(np.float32), MAP_ROWS, MAP_COLUMNS) / np.maximum(seen, 1e-3)
    return np.where(seen > 0.3, values, np.nan).astype(np.float16)


def of_picture(grey_picture: Image.Image) -> NDArray[np.float16]:
    """Grey levels (MAP_ROWS, MAP_COLUMNS) of a picture, NaN at the rim: NYU's white border does not pan."""
    grey = grey_picture.resize((MAP_COLUMNS, MAP_ROWS), Image.Resampling.BOX)
    result = np.full((MAP_ROWS, MAP_COLUMNS), np.nan, np.float16)
    result[1:-1, 1:-1] = np.asarray(grey)[1:-1, 1:-1]
    return result


def distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Mean absolute difference of two coarse maps where both are known, at the best sideways offset: cameras pan."""
    return float(_distances(a, b).min())


def _distances(a: NDArray[Any], b: NDArray[Any], *, level: bool = False) -> Floats:
    """Mean absolute difference where both are known, for every offset of PANS; level: whatever their brightness."""
    result = np.full(len(PANS), np.inf, np.float32)
    for place, step in enumerate(PANS):
        _, here = overlap(step)
        _, there = overlap(-step)
        gap = a[:, here].astype(np.float32) - b[:, there].astype(np.float32)
        gap = gap[np.isfinite(gap)]
        if gap.size >= FEWEST:
            result[place] = np.abs(gap - gap.mean() if level else gap).mean()
    return result


def along(own: tuple[NDArray[Any], NDArray[Any]], other: tuple[NDArray[Any], NDArray[Any]], columns: int) -> float:
    """How much better a frame's picture and depth go along with a neighbour's if its depth lies `columns` off.

    own, other: the maps of picture and depth; columns: of pairing's working size. Between two frames picture and depth
    pan by the same offset; where one depth lies off, by offsets that differ by as much. In units of the median distance
    over all offsets; 0 where the frames cannot be compared.
    """
    grey, depth = _distances(own[0], other[0], level=True), _distances(own[1], other[1])
    if not (np.isfinite(grey).any() and np.isfinite(depth).any()):
        return 0.0
    grey, depth = (d / max(float(np.median(d[np.isfinite(d)])), 1e-6) for d in (grey, depth))
    moved = columns * MAP_COLUMNS / COLUMNS
    return _jointly(grey, depth, 0) - min(_jointly(grey, depth, int(f(moved))) for f in (np.floor, np.ceil))


def _jointly(grey: Floats, depth: Floats, apart: int) -> float:
    """The least sum of the two distances over offsets that lie so far apart."""
    here, there = overlap(apart)
    return float((grey[here] + depth[there]).min())
