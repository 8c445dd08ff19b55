"""Look at depth maps before any is scored: the scale of whole numbers, and what is wrong or odd in them."""

from __future__ import annotations

import hashlib
import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trainables.data.frames import BadFrame, FrameList
from trainables.evaluation.maps import DepthMaps
from trainables.evaluation.protocols import Kind
from trainables.evaluation.scoring import whole_map
from trainables.runtime.errors import UserError

SCALES: Final = (1000.0, 256.0, 5000.0, 6553.5)  # whole numbers to the metre that are in use (FACTS.md section 10)
SCALE_TOLERANCE: Final = 1.12  # half the way between the two nearest of them, in their logarithm
SAMPLED: Final = 16  # maps whose median recognises the scale
# Numbers to a metre of the truth beyond which they are hardly metres: centimetres are 100. Not nearer, because a poor
# model is scored, too, and so are depth's square and inverse, if they are called metres.
FEWEST, MOST = 1 / 200, 50
PLACES: Final = 1024  # pixels at which a map is compared with the truth
UNLIKE: Final = -0.5  # correlation below which a map is large where the truth is near
OPPOSITE: Final = (
    "the maps are large where the truth is near: they look like inverse depth or disparity; if so, state --kind"
)
NAMED: Final = 5  # of the maps that a sentence names
ODD: Final = {"constant": "hold one value everywhere", "clipped": "hold depth of 0 or below, which is clipped"}


def scale_of(
    maps: DepthMaps, frames: FrameList, kind: Kind, stated: float | None
) -> tuple[float | None, tuple[str, ...]]:
    """Stored numbers to the metre, None where they are metres or have no unit, and what to say of it.

    Whole numbers of metric maps get the scale in use that brings their median nearest to the truth's; other numbers are
    metres. Raises UserError where that cannot be, and for a stated scale that makes no sense.
    """
    if stated is not None:
        if not (math.isfinite(stated) and stated > 0):
            raise UserError(f"--scale {stated}: must be above 0: how many steps of a stored number make a metre")
        return stated, (f"stored numbers are divided by {stated:g}, as stated",)
    whole = maps.whole_numbers()
    if kind == "inverse" and whole:
        raise UserError(f"{maps.where[0]} holds whole numbers, and inverse depth has no usual scale; state --scale")
    if kind != "metric":
        return None, ()
    ratio, likeness, unknown = _beside_truth(maps, frames)
    notes = (OPPOSITE,) if likeness < UNLIKE else ()
    if not whole:
        if ratio > MOST or ratio < FEWEST:  # NaN compares false
            raise UserError(
                f"{maps.where[0]} and the others hold about {ratio:.4g} to a metre of the truth, so they are hardly "
                "metres; state --scale (1000 for millimetres, 1 if they are meant as metres), or another --kind"
            )
        return None, notes
    if math.isnan(ratio):
        if UNREADABLE in unknown:  # which `inspect` names
            return None, ()
        raise UserError(f"{maps.where[0]} and the others: {unknown.pop()}, so their unit is not known; state --scale")
    best = min(SCALES, key=lambda scale: abs(math.log(ratio / scale)))
    if not 1 / SCALE_TOLERANCE < ratio / best < SCALE_TOLERANCE:  # NaN compares false
        known = ", ".join(f"{scale:g}" for scale in SCALES)
        raise UserError(
            f"{maps.where[0]} and the others hold whole numbers, about {ratio:.4g} to a metre of the truth, where "
            f"{known} are in use; state --scale"
        )
    said = f"stored numbers are divided by {best:g}: recognised, about {ratio:.4g} are a metre of the truth"
    return best, (said, *notes)


UNREADABLE: Final = "a map cannot be read"


def _beside_truth(maps: DepthMaps, frames: FrameList) -> tuple[float, float, set[str]]:
    """A map's numbers to a metre of the truth, and its correlation with the truth over a frame: medians over a sample
    of the frames. NaN where no frame says it, for the reasons given.
    """
    ratios: list[float] = []
    likenesses: list[float] = []
    unknown: set[str] = set()
    for i in np.unique(np.linspace(0, len(frames) - 1, min(SAMPLED, len(frames))).astype(int)).tolist():
        try:
            values, truth = maps.map(i, None), frames.reader.depth_m(frames.depth_of[i])
        except BadFrame:
            unknown.add(UNREADABLE)
            continue
        if values.ndim != 2 or not np.isfinite(values).all():
            unknown.add(UNREADABLE)
        elif not (values > 0).any():
            unknown.add("no number is above 0")
        elif not (truth > 0).any():
            unknown.add("the truth has no depth")
        else:
            ratios.append(float(np.median(values[values > 0]) / np.median(truth[truth > 0])))
            pred, true = _at_places(values, truth)
            if np.ptp(pred) and np.ptp(true):
                likenesses.append(float(np.corrcoef(pred, true)[0, 1]))
    return _median(ratios), _median(likenesses), unknown


def _median(found: list[float]) -> float:
    return float(np.median(found)) if found else math.nan


def _at_places(values: npt.NDArray[Any], truth: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """A map and the truth, of whatever sizes, at PLACES evenly spaced pixels at most of those that have truth."""
    rows, columns = np.nonzero(truth > 0)
    places = np.unique(np.linspace(0, len(rows) - 1, min(PLACES, len(rows))).round().astype(int))
    rows, columns = rows[places], columns[places]
    own = rows * values.shape[0] // truth.shape[0], columns * values.shape[1] // truth.shape[1]
    return values[own].astype(np.float64), truth[rows, columns].astype(np.float64)


def inspect(maps: DepthMaps, scale: float | None, frames: FrameList, kind: Kind) -> tuple[str, tuple[str, ...]]:
    """SHA-256 of all maps' numbers, and what to say of them. Raises UserError naming the maps that cannot be scored."""
    size = frames.reader.depth_m(frames.depth_of[0]).shape
    digest, faults = hashlib.sha256(), []
    odd: dict[str, list[str]] = {what: [] for what in ODD}
    sizes: dict[tuple[int, ...], int] = {}
    largest = 0.0
    for i, name in enumerate(frames.ids):
        try:
            values = whole_map(maps.map(i, scale), size, name)
        except BadFrame as error:
            faults.append(str(error))
            continue
        digest.update(values.data)
        sizes[values.shape] = sizes.get(values.shape, 0) + 1
        least, most = float(values.min()), float(values.max())
        largest = max(largest, most)
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
    if kind == "metric" and largest <= 1:
        notes.append(
            "no map holds a number above 1, as depth from 0 to 1 without a scale; if so, state --kind relative"
        )
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
