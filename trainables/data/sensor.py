"""Holes of a depth sensor (Kinect), for a perfect depth map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainables.data.furniture import FOCAL
from trainables.data.textures import cells, noise

BASELINE_M = 0.075  # between the Kinect's projector and camera
RANGE_M = 8.0


def holes(depth_m: NDArray[np.float32], glass: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """Where the sensor sees nothing (rows, columns): shadows, glass and lamps, steep or far surfaces, specks."""
    rows, columns = depth_m.shape
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    scale = np.float32(160 / columns)
    speck = cells(x, y, seed) < 0.012
    blob = noise(x * scale / 9, y * scale / 9, seed + 1) > 0.9
    steep = np.zeros_like(speck)
    slope = np.abs(np.diff(depth_m, axis=0)) * FOCAL * columns
    steep[1:] = slope > 7 * depth_m[1:] * (0.6 + 0.8 * cells(x, y, seed + 2)[1:])
    patchy = noise(x * scale / 5, y * scale / 5, seed + 3) < 0.75
    return speck | blob | steep | (glass & patchy) | (depth_m > RANGE_M) | _shadow(depth_m)


def _shadow(depth_m: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels that the projector, to the right of the camera, cannot reach: something nearer hides them."""
    columns = depth_m.shape[1]
    disparity = np.float32(FOCAL * columns * BASELINE_M) / depth_m
    landing = np.arange(columns, dtype=np.float32)[None] - disparity
    nearest = np.maximum.accumulate(landing, axis=1)
    return landing < nearest - np.float32(0.7)
