"""Colors of depth: one scale in every picture of the project, near in yellow and far in dark blue, and holes in grey.

viridis can be read by color-blind eyes and in grey; errors have a scale of their own, so that none is taken for depth.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

DEPTH = "viridis_r"  # of a depth map, near to far
ERROR = "magma"  # of an absolute error, none to large
HOLE = "#9a9a9a"  # pixels without depth
HOLE_RGB = (0x9A, 0x9A, 0x9A)
# 33 of matplotlib's 256 colors, evenly spaced, for pictures drawn without matplotlib, which is slow.
# What lies between is interpolated, at most 2 of 255 away from matplotlib's.
DEPTH_STOPS = (
    "fde724 e9e419 d4e11a bfdf24 aadb32 95d73f 81d34c 6dce58 5bc862 4bc26c 3dbb74 "
    "30b47a 27ad80 21a685 1e9e88 1e978a 208f8c 23898d 26818e 287a8e 2c728e 2f6a8d "
    "32628d 365a8c 3a528b 3e4989 424085 453681 472c7b 482273 47186a 460c5f 440154"
)
ERROR_STOPS = (
    "000003 030311 0a0722 120d33 1c1046 281159 350f6a 430f75 50127b 5d177e 691c80 "
    "762181 822581 8f2a80 9c2e7f a9327c b63679 c23a75 ce4070 da4769 e55063 ee5b5e "
    "f4685b f8775c fb8660 fd9567 fda470 feb37b fec286 fdd193 fddfa1 fceeb0 fbfcbf"
)


def depth_rgb(depth_m: NDArray[np.floating], low_m: float, high_m: float) -> NDArray[np.uint8]:
    """Colors (H, W, 3) of a depth map (H, W) in metres, from `low_m` to `high_m`; grey without a depth above 0."""
    return _colored(depth_m, np.isfinite(depth_m) & (depth_m > 0), low_m, high_m, DEPTH_STOPS)


def error_rgb(error_m: NDArray[np.floating], known: NDArray[np.bool_], worst_m: float) -> NDArray[np.uint8]:
    """Colors (H, W, 3) of absolute errors (H, W) in metres, from 0 to `worst_m`; grey where nothing is known."""
    return _colored(error_m, known, 0.0, worst_m, ERROR_STOPS)


def _colored(
    values: NDArray[np.floating], known: NDArray[np.bool_], low: float, high: float, stops: str
) -> NDArray[np.uint8]:
    share = np.where(known, values - low, 0.0) / max(high - low, 1e-6)
    picture = _table(stops)[(share.clip(0.0, 1.0) * 255).round().astype(np.uint8)]
    picture[~known] = HOLE_RGB
    return picture


@functools.cache
def _table(stops: str) -> NDArray[np.uint8]:
    """256 colors (256, 3)."""
    colors = np.array([list(bytes.fromhex(stop)) for stop in stops.split()], dtype=np.float64)
    at, places = np.linspace(0.0, 255.0, len(colors)).round(), np.arange(256.0)
    channels = [np.interp(places, at, colors[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)
