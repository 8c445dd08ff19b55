"""Units of stored depth: whether a split's depths can be what they are read as, and what they are more likely.

Files do not say their unit. Five scales of 16 bits circulate (FACTS.md section 10), beside centimetres; and depth that
is stretched to each frame's own range, turned round (disparity), or marks its holes with the largest value. A guess
rests on what a set of pictures of rooms, or of streets, has in common: its median depth, and how far it reaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from trainables.data.doctor.record import Record
from trainables.settings.registry import NYU_MAX_DEPTH_M

FEWEST: Final = 2  # frames with depth below which nothing is guessed
MOST: Final = 0.9  # share of frames that must show a habit
TYPICAL: Final = 0.25  # the usual median depth of a set, over its largest depth: 2.5 m indoors
DOUBT: Final = 1.2  # how much better another unit must fit, in factors of e
NEARLY: Final = 0.3  # a unit that fits worse by less is named, too
BEYOND_WEIGHT: Final = 2.0  # of depth beyond the largest
FEW_AT_TOP: Final = 0.01  # share of pixels: a frame's own farthest point, where clipping leaves more
HOLES_AT_TOP: Final = 0.005
GAP: Final = 0.9  # the next value below a code for holes, over it
LOWEST: Final = 0.045  # nearest stored value over the largest, where a frame is stretched to its own range
INVERTED: Final = 0.12  # log depth by which the floor lies behind what stands above it


@dataclass(frozen=True)
class Unit:
    """Steps per metre of 16-bit depth and the largest depth that goes with them."""

    name: str
    scale: float
    max_depth_m: float

    def settings(self) -> dict[str, Any]:
        """The data settings that say it."""
        reach = {} if self.max_depth_m == NYU_MAX_DEPTH_M else {"max_depth_m": self.max_depth_m}
        return ({} if self.scale == 1000 else {"depth_scale": self.scale}) | reach


UNITS: Final = (
    Unit("millimetres", 1000, NYU_MAX_DEPTH_M),
    Unit("metres times 256", 256, NYU_MAX_DEPTH_M),
    Unit("metres times 5000 (TUM)", 5000, NYU_MAX_DEPTH_M),
    Unit("65535 for 10 m", 6553.5, NYU_MAX_DEPTH_M),
    Unit("centimetres", 100, NYU_MAX_DEPTH_M),
    Unit("metres times 256 outdoors (KITTI)", 256, 80.0),
)


@dataclass(frozen=True)
class Doubt:
    """A kind of finding (checks.KINDS) about a whole split, in words, and the settings that would mend it."""

    kind: str
    detail: str
    settings: dict[str, Any]


def doubts(records: Sequence[Record], steps: dict[int, float], max_depth_m: float, *, stated: bool) -> Iterable[Doubt]:
    """What does not fit in a split's readable records. stated: the user set unit or reach: they are not guessed at."""
    known = [r for r in records if r.error is None and r.holes < 1]
    if len(known) < FEWEST:
        return
    for bits in sorted({r.bits for r in known} & steps.keys()):
        own = [r for r in known if r.bits == bits]
        if len(own) < max(FEWEST, len(known) // 2):
            continue
        largest = 2**bits - 1
        if _most(own, lambda r: _at_top(r, steps) and r.farthest_share > HOLES_AT_TOP and _gap(r)):
            kept = {"hole_values": [largest]}
            yield Doubt("hole_value", f"{largest} stands for no depth, as {_share(own)} of the pixels show", kept)
        elif _stretched(own, steps, bits):
            lost = "every frame is stretched to its own nearest and farthest point: its metres are lost for good"
            yield Doubt("stretched", lost, {})
        elif bits == 16 and not stated and (unit := _likely(own, steps[bits], max_depth_m)) is not None:
            yield unit
    behind = [r.lower for r in known]
    if len(known) > FEWEST and np.median(behind) > INVERTED and np.mean(np.array(behind) > 0) > 0.75:
        yield Doubt("inverted", f"the lowest quarter of a map is {math.exp(np.median(behind)):.1f} times as far as its "
                    "upper half: disparity or inverse depth, perhaps, where depth must be", {})  # fmt: skip


def _most(records: Sequence[Record], habit: Callable[[Record], bool]) -> bool:
    return sum(habit(r) for r in records) >= MOST * len(records)


def _at_top(record: Record, steps: dict[int, float]) -> bool:
    """Whether its largest stored value is the largest that can be stored."""
    return round(record.farthest_m * steps[record.bits]) == (1 << record.bits) - 1


def _gap(record: Record) -> bool:
    return record.second_m < GAP * record.farthest_m


def _share(records: Sequence[Record]) -> str:
    return f"{np.mean([r.farthest_share for r in records]):.0%}"


def _stretched(records: Sequence[Record], steps: dict[int, float], bits: int) -> bool:
    """Whether every frame ends at the largest value, by few pixels, and begins near 0, or, of 8 bits, anywhere."""
    if not _most(records, lambda r: _at_top(r, steps)):
        return False
    if _most(records, lambda r: r.nearest_m <= LOWEST * r.farthest_m):
        return True
    return bits == 8 and len(records) > 2 * FEWEST and _most(records, lambda r: r.farthest_share < FEW_AT_TOP)


def _likely(records: Sequence[Record], scale: float, max_depth_m: float) -> Doubt | None:
    """The finding that another unit fits far better than the one that the depths were read in."""
    median = float(np.median([r.median_m for r in records])) * scale
    farthest = float(np.quantile([r.farthest_m for r in records], 0.9)) * scale

    def misfit(steps: float, reach: float) -> float:
        """Distance of median and reach from what is usual, in factors of e."""
        beyond = math.log(max(farthest / steps, 1e-6) / reach)
        short = abs(min(beyond, 0.0)) / 2
        return abs(math.log(max(median / steps, 1e-6) / (TYPICAL * reach))) + short + BEYOND_WEIGHT * max(beyond, 0.0)

    fits = sorted((misfit(unit.scale, unit.max_depth_m), place) for place, unit in enumerate(UNITS))
    best = UNITS[fits[0][1]]
    if misfit(scale, max_depth_m) - fits[0][0] < DOUBT or best.scale == scale:
        return None
    also = [UNITS[place] for fit, place in fits[1:] if fit - fits[0][0] < NEARLY]
    words = f"; {' or '.join(unit.name for unit in also)} fits nearly as well" if also else ""
    detail = (
        f"the unit is hardly 1/{scale:g} m, which makes the median {median / scale:.2g} m and the reach "
        f"{farthest / scale:.2g} m; more likely {best.name} (median {median / best.scale:.2g} m, reach "
        f"{farthest / best.scale:.2g} m){words}; if it is right, set data.depth_scale: {scale:g}"
    )
    return Doubt("unit", detail, best.settings())
