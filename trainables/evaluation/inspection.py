"""Look at depth maps before any is scored: the scale of whole numbers, and what is wrong or odd in them."""

from __future__ import annotations

import hashlib
import math
from typing import Final

import numpy as np

from trainables.data.frames import BadFrame, FrameList
from trainables.evaluation.maps import DepthMaps
from trainables.evaluation.protocols import Kind
from trainables.evaluation.scoring import whole_map
from trainables.runtime.errors import UserError

SCALES: Final = (1000.0, 256.0, 5000.0, 6553.5)  # whole numbers to the metre that are in use (FACTS.md section 10)
SCALE_TOLERANCE: Final = 1.12  # half the way between the two nearest of them, in their logarithm
SAMPLED: Final = 16  # maps whose median recognises the scale
NAMED: Final = 5  # of the maps that a sentence names
ODD: Final = {"constant": "hold one value everywhere", "clipped": "hold depth of 0 or below, which is clipped"}


def scale_of(
    maps: DepthMaps, frames: FrameList, kind: Kind, stated: float | None
) -> tuple[float | None, tuple[str, ...]]:
    """Stored numbers to the metre, None where they are metres or have no unit, and what to say of it.

    Whole numbers of metric maps get the scale in use that brings their median nearest to the truth's. Raises UserError
    where none does, and for a stated one that makes no sense.
    """
    if stated is not None:
        if not (math.isfinite(stated) and stated > 0):
            raise UserError(f"--scale {stated}: must be above 0: how many steps of a stored number make a metre")
        return stated, (f"stored numbers are divided by {stated:g}, as stated",)
    if kind in ("disparity", "relative") or not maps.whole_numbers():
        return None, ()
    if kind == "inverse":
        raise UserError(f"{maps.where[0]} holds whole numbers, and inverse depth has no usual scale; state --scale")
    ratios = []
    for i in np.unique(np.linspace(0, len(frames) - 1, min(SAMPLED, len(frames))).astype(int)).tolist():
        values, truth = maps.map(i, None), frames.reader.depth_m(frames.depth_of[i])
        if (values > 0).any() and (truth > 0).any():
            ratios.append(float(np.median(values[values > 0]) / np.median(truth[truth > 0])))
    ratio = float(np.median(ratios)) if ratios else math.nan
    best = min(SCALES, key=lambda scale: abs(math.log(ratio / scale)))
    if not 1 / SCALE_TOLERANCE < ratio / best < SCALE_TOLERANCE:  # NaN compares false
        known = ", ".join(f"{scale:g}" for scale in SCALES)
        raise UserError(
            f"{maps.where[0]} and the others hold whole numbers, about {ratio:.4g} to a metre of the truth, where "
            f"{known} are in use; state --scale"
        )
    return best, (f"stored numbers are divided by {best:g}: recognised, about {ratio:.4g} are a metre of the truth",)


def inspect(maps: DepthMaps, scale: float | None, frames: FrameList, kind: Kind) -> tuple[str, tuple[str, ...]]:
    """SHA-256 of all maps' numbers, and what to say of them. Raises UserError naming the maps that cannot be scored."""
    size = frames.reader.depth_m(frames.depth_of[0]).shape
    digest, faults = hashlib.sha256(), []
    odd: dict[str, list[str]] = {what: [] for what in ODD}
    sizes: dict[tuple[int, ...], int] = {}
    for i, name in enumerate(frames.ids):
        try:
            values = whole_map(maps.map(i, scale), size, name)
        except BadFrame as error:
            faults.append(str(error))
            continue
        digest.update(values.data)
        sizes[values.shape] = sizes.get(values.shape, 0) + 1
        least, most = float(values.min()), float(values.max())
        if least == most:
            odd["constant"].append(name)
        if least <= 0 and kind == "metric":
            odd["clipped"].append(name)
    if faults:
        more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise UserError(
            f"{len(faults)} of {len(frames)} maps cannot be scored, and nothing is scored on fewer frames: "
            f"{'; '.join(faults[:NAMED])}{more}"
        )
    notes = [_resized(sizes, size)]
    for what, names in odd.items():
        if names:
            more = ", ..." if len(names) > NAMED else ""
            notes.append(f"{len(names)} of {len(frames)} maps {ODD[what]}: {', '.join(names[:NAMED])}{more}")
    return digest.hexdigest(), tuple(notes)


def _resized(sizes: dict[tuple[int, ...], int], size: tuple[int, ...]) -> str:
    """The convention of sizes and borders."""
    if set(sizes) == {size}:
        return f"maps and frames are {size[0]} x {size[1]}: nothing is resized"
    shapes = ", ".join(f"{rows} x {columns}" for rows, columns in sizes)
    return (
        f"maps of {shapes} are taken to show the whole frame, border included; resized to {size[0]} x {size[1]}, "
        "bilinear, half-pixel centers, anti-aliased where they shrink"
    )
