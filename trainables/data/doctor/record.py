"""Record of a frame for the doctor, small enough for 50,000 of them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainables.data.doctor import coarse, pairing
from trainables.data.doctor.pairing import Evidence, References
from trainables.data.frames import Frame, FrameList
from trainables.runtime.device import single_threaded
from trainables.runtime.errors import UserError

HASH_SIDE: Final = 16  # a perceptual hash has its square of bits
WHITE: Final = 225
AHEAD: Final = 2  # frames examined before they are asked for
LEVELS_STEP, BITS_STEP = 4, 17  # one pixel of so many is looked at for the levels of a picture and the bits of a depth


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of a frame: shares of pixels, extremes in metres, digests, coarse map, evidence on the pair."""

    split: str
    number: int  # place in the split's list
    id: str
    scene: str | None
    error: str | None
    size: tuple[int, int] = (0, 0)  # rows, columns
    max_depth_m: float = 0.0  # the largest depth of its split
    holes: float = 0.0
    saturated: float = 0.0
    nearest_m: float = 0.0
    median_m: float = 0.0
    farthest_m: float = 0.0
    farthest_share: float = 0.0  # of the known pixels, at farthest_m
    second_m: float = 0.0  # the largest depth below farthest_m, where that is the largest that can be stored
    lower: float = 0.0  # log depth of the lowest quarter of the map less that of its upper half: below 0 indoors
    levels: float = 0.0  # standard deviation of the picture
    border_px: int = 0
    bits: int = 0  # 8, 16 or 0 for floating point
    rgb_digest: bytes = b""
    depth_digest: bytes = b""
    hash: bytes = b""
    thumbnail: bytes = b""
    grey: NDArray[np.float16] | None = None
    coarse: NDArray[np.float16] | None = None
    evidence: Evidence | None = None


def examine(frames: FrameList, number: int, split: str, references: References | None) -> Record:
    """The record of one frame; an unreadable one has its sentence as `error`."""
    identity, scene = frames.ids[number], frames.scenes[number]
    try:
        frame = frames.read(number)
    except UserError as error:  # a bad frame, or a link that leads out of the root
        return Record(split, number, identity, scene, str(error))
    depth_m = frame.depth_m
    known = depth_m[depth_m > 0]
    picture, small = pairing.reduced(frame.rgb), pairing.small_depth(depth_m)
    grey = Image.fromarray(picture).convert("L")
    code, thumbnail = perceptual_hash(grey)
    steps = frames.reader.steps()
    bits = depth_bits(frame, steps)
    found: dict[str, float] = {}
    if known.size:
        farthest = float(known.max())
        found = {
            "saturated": np.count_nonzero(known >= frames.max_depth_m * 0.998) / known.size,
            "nearest_m": float(known.min()), "median_m": float(np.median(known[::7])), "farthest_m": farthest,
            "farthest_share": np.count_nonzero(known == farthest) / known.size, "lower": lower(small),
        }  # fmt: skip
        if bits and round(farthest * steps[bits]) == 2**bits - 1:
            below = known[known < farthest]
            found["second_m"] = float(below.max()) if below.size else 0.0
    return Record(
        split=split, number=number, id=identity, scene=scene, error=None, size=frame.rgb.shape[:2],
        max_depth_m=frames.max_depth_m,
        holes=1 - known.size / depth_m.size, levels=float(frame.rgb[::LEVELS_STEP, ::LEVELS_STEP].std()),
        border_px=border_px(frame.rgb), bits=bits,
        rgb_digest=hashlib.sha256(np.ascontiguousarray(frame.rgb).data).digest()[:16],
        depth_digest=hashlib.sha256(np.ascontiguousarray(depth_m).data).digest()[:16],
        hash=code, thumbnail=thumbnail, grey=coarse.of_picture(grey), coarse=coarse.of_depth(small),
        evidence=pairing.weigh(pairing.picture_edges(picture), pairing.depth_edges(small), scene, references)
        if references else None, **found,
    )  # fmt: skip


def examined(frames: FrameList, numbers: Iterable[int], split: str, references: References | None) -> Iterator[Record]:
    """The records of some frames, in order. Its operations are small: on one thread they take a quarter of the time
    that they take on two, and a twentieth where another process wants the second core.
    """
    waiting: deque[Future[Record]] = deque()
    with single_threaded("doctor") as pool:
        for number in numbers:
            waiting.append(pool.submit(examine, frames, number, split, references))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def lower(small: pairing.Small) -> float:
    """Log depth of the lowest quarter of a map less that of its upper half; 0 where one of them is not known."""
    logs = np.where(small.seen > 0.5, -np.log(np.maximum(small.inverse, 1e-3)), np.nan)
    rows = logs.shape[0]
    parts = [part[np.isfinite(part)] for part in (logs[-rows // 4 :], logs[: rows // 2])]
    return float(np.median(parts[0]) - np.median(parts[1])) if all(part.size for part in parts) else 0.0


def depth_bits(frame: Frame, steps: dict[int, float]) -> int:
    """8 or 16 where all depths are multiples of that form's step, 0 where they are not (floating point)."""
    values = frame.depth_m.ravel()[::BITS_STEP].astype(np.float64)
    for bits, per_metre in steps.items():
        scaled = values * per_metre
        if np.abs(scaled - np.round(scaled)).max() < 5e-3:
            return bits
    return 0


def border_px(rgb: NDArray[np.uint8]) -> int:
    """Width of the white frame around a picture; 0 where a side has none, or where the picture is white throughout."""
    thick = min(rgb.shape[:2]) // 8
    sides = (
        rgb[:thick],
        rgb[: -thick - 1 : -1],
        rgb[:, :thick].swapaxes(0, 1),
        rgb[:, : -thick - 1 : -1].swapaxes(0, 1),
    )
    width = thick
    for side in sides:
        width = min(width, _run(side[:width]))
        if not width:
            return 0
    return width if width < thick else 0


def _run(side: NDArray[np.uint8]) -> int:
    """How many of the outermost lines (lines, pixels, 3) are white."""
    if not len(side) or side[0].min(1).mean() < WHITE:
        return 0
    dark = np.flatnonzero(np.minimum(np.minimum(side[..., 0], side[..., 1]), side[..., 2]).mean(1) < WHITE)
    return int(dark[0]) if dark.size else len(side)


def perceptual_hash(grey_picture: Image.Image) -> tuple[bytes, bytes]:
    """Signs of the differences of neighbours in a thumbnail, packed; and HASH_SIDE squared grey levels."""
    grey = grey_picture.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    small = np.asarray(grey).astype(np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), small[:, :-1].astype(np.uint8).tobytes()
