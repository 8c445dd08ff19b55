"""Record of a frame for the doctor, small enough for 50,000 of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainables.data.doctor import coarse, pairing
from trainables.data.doctor.pairing import Evidence, References
from trainables.data.frames import BadFrame, Frame, FrameList
from trainables.data.pictures import STEPS_PER_METRE

HASH_SIDE: Final = 16  # a perceptual hash has its square of bits
WHITE: Final = 225


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of a frame: shares of pixels, extremes in metres, digests, coarse map, evidence on the pair."""

    split: str
    number: int  # place in the split's list
    id: str
    scene: str | None
    error: str | None
    size: tuple[int, int] = (0, 0)  # rows, columns
    holes: float = 0.0
    saturated: float = 0.0
    nearest_m: float = 0.0
    farthest_m: float = 0.0
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
    except BadFrame as error:
        return Record(split, number, identity, scene, str(error))
    known = frame.depth_m[frame.depth_m > 0]
    picture, edges = pairing.picture_edges(frame.rgb), pairing.depth_edges(frame.depth_m)
    code, thumbnail = perceptual_hash(frame.rgb)
    return Record(
        split=split, number=number, id=identity, scene=scene, error=None, size=frame.rgb.shape[:2],
        holes=1 - known.size / frame.depth_m.size,
        saturated=float((known >= frames.max_depth_m * 0.998).mean()) if known.size else 0.0,
        nearest_m=float(known.min()) if known.size else 0.0, farthest_m=float(known.max()) if known.size else 0.0,
        levels=float(frame.rgb.std()), border_px=border_px(frame.rgb), bits=depth_bits(frame),
        rgb_digest=hashlib.sha256(frame.rgb.tobytes()).digest()[:16],
        depth_digest=hashlib.sha256(frame.depth_m.tobytes()).digest()[:16],
        hash=code, thumbnail=thumbnail, grey=coarse.of_picture(frame.rgb), coarse=coarse.of_depth(frame.depth_m),
        evidence=pairing.weigh(picture, edges, scene, references) if references else None,
    )  # fmt: skip


def depth_bits(frame: Frame) -> int:
    """8 or 16 where all depths are multiples of that form's step, 0 where they are not (floating point)."""
    values = frame.depth_m.ravel()[::3].astype(np.float64)
    for bits, steps in STEPS_PER_METRE.items():
        scaled = values * steps
        if np.abs(scaled - np.round(scaled)).max() < 5e-3:
            return bits
    return 0


def border_px(rgb: NDArray[np.uint8]) -> int:
    """Width of the white frame around a picture; 0 where a side has none, or where the picture is white throughout."""
    bright = rgb.min(2)
    width = min(_run(side) for side in (bright.mean(1), bright.mean(1)[::-1], bright.mean(0), bright.mean(0)[::-1]))
    return width if width < min(bright.shape) // 8 else 0


def _run(profile: NDArray[Any]) -> int:
    dark = np.flatnonzero(profile < WHITE)
    return int(dark[0]) if dark.size else profile.size


def perceptual_hash(rgb: NDArray[np.uint8]) -> tuple[bytes, bytes]:
    """Signs of the differences of neighbours in a thumbnail, packed; and HASH_SIDE squared grey levels."""
    grey = Image.fromarray(rgb).convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    small = np.asarray(grey).astype(np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), small[:, :-1].astype(np.uint8).tobytes()
