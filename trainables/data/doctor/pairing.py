"""Evidence that a picture and a depth map belong together: places and directions of their edges.

Planes are affine in inverse depth, so its second differences vanish on walls and floors and mark creases and jumps;
in a matching pair most of those are edges of the picture too. The fit is a correlation over three channels, edge
strength and its direction as a double angle (as in structure tensors), over the pixels whose depth is known.

A pair is judged against what chance gives: the same picture with other places' depth, and the same depth under other
places' pictures. It is judged against itself, mirrored and moved. And its depth is compared with that of the
neighbouring frames of its scene. Thresholds were set on rooms (clean and planted) and on real RGB-D frames; the tests
hold their error rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import fft
from torch.nn import functional

Floats = NDArray[np.float32]
ROWS, COLUMNS = 60, 80  # working size: a sixth of NYU's rows
SPACING: Final = 2  # pixels between the samples of a second difference
FEWEST: Final = 200  # known pixels below which nothing is judged
SHIFTS_X: Final = tuple(s for s in range(-COLUMNS // 5, COLUMNS // 5 + 1) if abs(s) >= 4)
SHIFTS_Y: Final = tuple(s for s in range(-ROWS // 5, ROWS // 5 + 1) if abs(s) >= 4)
NEIGHBOURS: Final = 2  # frames of the scene on either side whose depth is compared
WEAK_Z, UNSUPPORTED_Z, NEIGHBOUR_WEIGHT = -0.7, -0.3, 2.0  # wrong pair: see wrong_pair
SCENE_WEIGHT, LOOSE_Z = 0.5, 5.0
POOR_Z: Final = 2.5  # a scene whose frames hardly fit; there another alignment must lie so far above chance, or gain:
POOR_FIT_Z, POOR_GAIN = 6.0, 0.1
CHANCE_FLOOR_Z: Final = -2.0  # a wrong pair fits by chance; far below it lies what a scene does to all of its frames
TRUSTED_Z: Final = 2.0  # neighbours that fit worse do not count where enough others are
RICH_EDGES: Final = 0.12  # standard deviation of the edge strength from which a depth map counts in full
FLIP_GAIN, SHIFT_GAIN = 0.06, 0.06  # how much better another alignment must fit than the given; more for rows:
MORE_DOWN: Final = 0.07  # real sensors are often off there
GAIN_PER_Z: Final = 0.02
# A shift in a scene: a gain above SURE_GAIN is enough, above CONFIRMED_GAIN where its neighbours say so, too (ALONG,
# see Company.along), above LEAST_GAIN where it lies RISE above the scene's median; more where the neighbours deny it.
SURE_GAIN, CONFIRMED_GAIN, LEAST_GAIN = 0.15, 0.04, 0.02
RISE, ALONG, RISE_PER_ALONG = 0.16, 0.25, 0.3
CHANCE_Z: Final = 3.0  # how far above chance another alignment must fit, in standard deviations of it
SURE_Z: Final = 5.0


@dataclass(frozen=True)
class Edges:
    """Edge strength and direction (3, ROWS, COLUMNS) and where they are known (ROWS, COLUMNS)."""

    field: Floats
    known: NDArray[np.bool_]


@dataclass(frozen=True)
class Evidence:
    """How well a pair fits: `fit` in -1..1, `z` against chance, and the best mirrored and moved fit.

    None for all where too little depth is known, or nothing to compare with.
    """

    fit: float
    z: float
    weight: float  # 0 to 1: how much there is to fit; a bare wall, or half a map, proves little
    chance: float  # standard deviation of the fit of pictures with other places' depth
    flip: tuple[float, str]  # fit and direction
    shift: tuple[float, int, int]  # fit, columns and rows (of the working size) by which the depth lies off


def reduced(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) at the working size."""
    rows, columns = rgb.shape[0] // ROWS, rgb.shape[1] // COLUMNS
    if rgb.shape[:2] != (rows * ROWS, columns * COLUMNS):
        return np.asarray(Image.fromarray(rgb).resize((COLUMNS, ROWS), Image.Resampling.BOX))
    planes = torch.from_numpy(np.require(rgb, requirements=["C", "W"])).permute(2, 0, 1)[None].float()
    means = functional.avg_pool2d(planes, (rows, columns))[0].round_()
    small: NDArray[np.uint8] = means.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return small


def picture_edges(small: NDArray[np.uint8]) -> Edges:
    """Edges of a picture (ROWS, COLUMNS, 3), divided by the local contrast so that every part of it counts."""
    image = small.astype(np.float32)
    across, down = np.zeros_like(image), np.zeros_like(image)
    across[:, 1:-1] = image[:, 2:] - image[:, :-2]
    down[1:-1] = image[2:] - image[:-2]
    squared = (across**2 + down**2).sum(2)
    strength = np.sqrt(squared)
    local = np.minimum(strength / (_mean(strength, 6) + 4), 3)
    scale = local / (squared + 1e-6)
    field = np.stack([local, (across**2 - down**2).sum(2) * scale, 2 * (across * down).sum(2) * scale])
    return Edges(field.astype(np.float32), np.ones((ROWS, COLUMNS), bool))


@dataclass(frozen=True)
class Small:
    """A depth map at the working size (ROWS, COLUMNS): mean inverse depth of the known pixels, and their share."""

    inverse: Floats
    seen: Floats


def small_depth(depth_m: Floats) -> Small:
    """A depth map (H, W) in metres, 0 = hole, at the working size."""
    depth = torch.from_numpy(np.require(depth_m, requirements=["C", "W"]))
    known = depth > 0
    inverse = torch.where(known, depth.clamp_min(0.1).reciprocal(), 0.0)
    seen = shrink(known.float().numpy(), ROWS, COLUMNS)
    share: Floats = np.maximum(seen, 1e-6).astype(np.float32)
    return Small(shrink(inverse.numpy(), ROWS, COLUMNS) / share, seen)


def depth_edges(small: Small) -> Edges:
    """Creases and jumps of a depth map; relative to the depth, steep ones capped."""
    seen, inverse = small.seen, small.inverse
    k, inner, known = SPACING, slice(SPACING, -SPACING), seen > 0.6
    xx, yy, xy = np.zeros_like(inverse), np.zeros_like(inverse), np.zeros_like(inverse)
    xx[:, inner] = inverse[:, 2 * k :] + inverse[:, : -2 * k] - 2 * inverse[:, inner]
    yy[inner] = inverse[2 * k :] + inverse[: -2 * k] - 2 * inverse[inner]
    diagonal = inverse[2 * k :, 2 * k :] + inverse[: -2 * k, : -2 * k]
    xy[inner, inner] = (diagonal - inverse[2 * k :, : -2 * k] - inverse[: -2 * k, 2 * k :]) / 4
    scale: Floats = np.maximum(inverse, 1e-3).astype(np.float32)
    xx, yy, xy = xx / scale, yy / scale, xy / scale
    strength = np.sqrt(np.clip(np.sqrt(xx**2 + yy**2 + 2 * xy**2), 0.02, 0.4) - 0.02)
    sign = np.sign(xx + yy)
    cos, sin = (xx - yy) * sign, 2 * xy * sign
    length = np.sqrt(cos**2 + sin**2) + 1e-6
    whole = np.zeros_like(known)
    around = known[2 * k :, inner] & known[: -2 * k, inner] & known[inner, 2 * k :] & known[inner, : -2 * k]
    whole[inner, inner] = known[inner, inner] & around
    field = np.stack([strength, strength * cos / length, strength * sin / length]) * whole
    return Edges(field.astype(np.float32), whole)


def fit(picture: Edges, depth: Edges) -> float:
    """Correlation in -1..1 of the two edge fields over the depth's known pixels; 0 for too few."""
    return _fit(picture.field, depth.field, depth.known)


def _fit(a: Floats, b: Floats, known: NDArray[np.bool_]) -> float:
    count = int(known.sum())
    if count < FEWEST:
        return 0.0
    masked = a * known
    sum_a, sum_b = float(masked[0].sum()), float(b[0].sum())
    joint = float(np.vdot(masked, b)) - sum_a * sum_b / count
    power_a = float(np.vdot(masked, masked)) - sum_a**2 / count
    power_b = float(np.vdot(b, b)) - sum_b**2 / count
    return joint / float(np.sqrt(max(power_a, 1e-9) * max(power_b, 1e-9)))


class References:
    """Frames of other places that say what fit chance gives. Bounded: a few dozen frames for a whole data set."""

    def __init__(self, pictures: Sequence[Edges], depths: Sequence[Edges], scenes: Sequence[str | None]) -> None:
        self.scenes = np.array([scene or "" for scene in scenes])
        self.pictures = np.stack([p.field.ravel() for p in pictures])
        self.power = np.stack([(p.field**2).sum(0).ravel() for p in pictures])
        self.depths = np.stack([d.field.ravel() for d in depths])
        self.known = np.stack([d.known.ravel() for d in depths]).astype(np.float32)
        self.count = self.known.sum(1)
        self.sums = self.depths[:, : ROWS * COLUMNS].sum(1)
        self.depth_power = (self.depths**2).sum(1) - self.sums**2 / np.maximum(self.count, 1)

    def chance(self, picture: Edges, depth: Edges, scene: str | None) -> tuple[Floats, Floats] | None:
        """Fits of the picture with other depth, and of the depth with other pictures; None for too few of either."""
        other = (self.scenes != scene) if scene else np.ones(len(self.scenes), bool)
        usable = other & (self.count >= FEWEST)
        if usable.sum() < 8:
            return None
        size = ROWS * COLUMNS
        first = (self.known @ picture.field[0].ravel())[usable]  # products of all are cheaper than copies of some
        joint = (self.depths @ picture.field.ravel())[usable] - first * self.sums[usable] / self.count[usable]
        power = (self.known @ (picture.field**2).sum(0).ravel())[usable] - first**2 / self.count[usable]
        with_depths = joint / np.sqrt(np.maximum(power * self.depth_power[usable], 1e-9))
        known = depth.known.ravel().astype(np.float32)
        count, total = float(known.sum()), float(depth.field[0].sum())
        first = (self.pictures[:, :size] @ known)[other]
        joint = (self.pictures @ depth.field.ravel())[other] - first * total / count
        power = (self.power @ known)[other] - first**2 / count
        own = float(np.vdot(depth.field, depth.field)) - total**2 / count
        with_pictures = joint / np.sqrt(np.maximum(power * own, 1e-9))
        return with_depths.astype(np.float32), with_pictures.astype(np.float32)


def weigh(picture: Edges, depth: Edges, scene: str | None, references: References) -> Evidence | None:
    """The evidence on one pair; None where it cannot be judged (little known depth, no edges, nothing to compare)."""
    if depth.known.sum() < FEWEST or float(depth.field[0].std()) < 1e-3 or float(picture.field[0].std()) < 1e-3:
        return None
    chance = references.chance(picture, depth, scene)
    if chance is None:
        return None
    own = fit(picture, depth)
    z = min((own - float(c.mean())) / max(float(c.std()), 1e-3) for c in chance)
    spread = max(float(np.concatenate(chance).std()), 1e-3)
    flips = [
        (_fit(picture.field, *_mirrored(depth, axis)), name) for axis, name in ((2, "left-right"), (1, "upside down"))
    ]
    shifts = [(float(moved), dx, 0) for moved, dx in zip(moved_fits(picture, depth, 2), SHIFTS_X, strict=True)]
    shifts += [(float(moved), 0, dy) for moved, dy in zip(moved_fits(picture, depth, 1), SHIFTS_Y, strict=True)]
    weight = min(1.0, float(depth.field[0].std()) / RICH_EDGES) * float(np.sqrt(depth.known.mean()))
    return Evidence(own, z, weight, spread, max(flips), max(shifts))


def _mirrored(depth: Edges, axis: int) -> tuple[Floats, NDArray[np.bool_]]:
    field = np.flip(depth.field, axis).copy()
    field[2] *= -1
    return field, np.flip(depth.known, axis - 1)


def moved_fits(picture: Edges, depth: Edges, axis: int) -> Floats:
    """Fits where the depth lies so many columns to the right of the picture (axis 2, SHIFTS_X) or rows below it (axis
    1, SHIFTS_Y): `_fit` of all of them at once, by Fourier transforms along the axis.
    """
    steps, length = (SHIFTS_X, 2 * COLUMNS) if axis == 2 else (SHIFTS_Y, 2 * ROWS)
    known = depth.known.astype(np.float32)
    fixed = np.stack([*picture.field, (picture.field**2).sum(0), np.ones_like(known)])
    moved = np.stack([*depth.field, (depth.field**2).sum(0), known])
    a = fft.rfft(fixed, length, axis).conj()
    b = fft.rfft(moved, length, axis)
    across = 3 - axis

    def along(x: NDArray[Any], y: NDArray[Any]) -> Floats:
        """Sums of x(here) * y(here + step) over the overlap, for every step."""
        sums: Floats = fft.irfft((x * y).sum(across - 1), length)[list(steps)]
        return sums

    joint = fft.irfft((a[:3] * b[:3]).sum((0, across)), length)[list(steps)]
    count, sum_a, sum_b = along(a[4], b[4]), along(a[0], b[4]), along(a[4], b[0])
    enough = np.maximum(count, 1)
    power_a = np.maximum(along(a[3], b[4]) - sum_a**2 / enough, 1e-9)
    power_b = np.maximum(along(a[4], b[3]) - sum_b**2 / enough, 1e-9)
    fits = (joint - sum_a * sum_b / enough) / np.sqrt(power_a * power_b)
    result: Floats = np.where(count >= FEWEST - 0.5, fits, 0).astype(np.float32)
    return result


def overlap(step: int) -> tuple[slice, slice]:
    """Where two arrays lie over each other when the second is moved by so many places: a slice of each."""
    if step == 0:
        return slice(None), slice(None)
    return (slice(None, -step), slice(step, None)) if step > 0 else (slice(-step, None), slice(None, step))


@dataclass(frozen=True)
class Company:
    """What the other frames of its scene say about a frame.

    `unlike` is the distance of its coarse map to the nearest neighbour's over what is usual there: the scene's median
    of that, more at its ends (trainables/data/doctor/checks.py). `scene_z` is the median of the scene's z: in a scene
    that is well registered, one poor fit says more; where hardly any frame fits, it says less. `usual_gain` is the
    median of the scene's shift_gain. `along` is the mean of coarse.along over a frame's neighbours for the shift that
    fits best: about -0.1 where nothing lies off, 0.3 where it does.
    """

    unlike: float
    scene_z: float
    usual_gain: float
    along: float | None = None  # None: nobody asked, or no neighbours


def belonging(evidence: Evidence, company: Company | None) -> float:
    """How well the depth belongs to its picture, in standard deviations from chance: by its fit and its neighbours."""
    unlike = 1.0 if company is None else company.unlike
    return max(evidence.z, CHANCE_FLOOR_Z) - NEIGHBOUR_WEIGHT * float(np.log(max(unlike, 0.1)))


def wrong_pair(evidence: Evidence, company: Company | None) -> bool:
    """Whether the depth belongs to another picture. Without company only a fit below chance is taken for proof."""
    if company is None:
        return evidence.z < UNSUPPORTED_Z
    expected = SCENE_WEIGHT * max(0.0, company.scene_z - LOOSE_Z) - max(0.0, POOR_Z - company.scene_z)
    return (belonging(evidence, company) - expected) * evidence.weight < WEAK_Z


def flipped(evidence: Evidence, company: Company | None) -> bool:
    """Whether the mirrored depth fits, and the given one does not."""
    gain = _gain(evidence.flip[0], evidence)
    return gain > FLIP_GAIN and not _lucky(evidence.flip[0], gain, evidence, company)


def shifted(evidence: Evidence, company: Company | None) -> bool:
    """Whether the depth fits when moved, and not as given; in a scene: more so than is usual for its frames."""
    gain, more = shift_gain(evidence), 0.0 if evidence.shift[1] else MORE_DOWN
    if _lucky(evidence.shift[0], gain, evidence, company):
        return False
    if company is None:
        return gain > SHIFT_GAIN + more
    doubt = None if company.along is None else max(0.0, ALONG - company.along)
    if gain > (CONFIRMED_GAIN if doubt == 0 else SURE_GAIN) + more:
        return True
    return gain > LEAST_GAIN + more and gain - company.usual_gain > RISE + RISE_PER_ALONG * (doubt or 0.0) + more


def shift_gain(evidence: Evidence) -> float:
    """How much better the best moved depth fits than the given one."""
    return _gain(evidence.shift[0], evidence)


def _gain(other: float, evidence: Evidence) -> float:
    """Less where the given fit is far from chance: furniture that repeats itself fits in several places."""
    return (other - evidence.fit - GAIN_PER_Z * max(0.0, evidence.z - 2)) * evidence.weight


def _lucky(other: float, gain: float, evidence: Evidence, company: Company | None) -> bool:
    """Whether another alignment may fit by chance; more is asked for in a scene whose frames hardly fit."""
    poor = company is not None and company.scene_z < POOR_Z and gain <= POOR_GAIN
    return other <= (POOR_FIT_Z if poor else CHANCE_Z) * evidence.chance


def verdict(evidence: Evidence, company: Company | None) -> str | None:
    """What is wrong with a pair: "flipped", "shifted", "wrong_pair" or nothing.

    A wrong pair may fit somewhere by luck: where it is unlike its neighbours too, a shift must fit clearly.
    """
    strange, mirrored, moved = wrong_pair(evidence, company), flipped(evidence, company), shifted(evidence, company)
    if mirrored and (not moved or evidence.flip[0] >= evidence.shift[0]):
        return "flipped"
    if moved and (not strange or evidence.shift[0] > SURE_Z * evidence.chance):
        return "shifted"
    return "flipped" if mirrored else "wrong_pair" if strange else None


def shrink(values: NDArray[Any], rows: int, columns: int) -> Floats:
    """Means over equal boxes."""
    high, wide = values.shape[0] // rows, values.shape[1] // columns
    if values.shape == (high * rows, wide * columns):
        means: Floats = functional.avg_pool2d(
            torch.from_numpy(np.require(values, requirements=["C", "W"]))[None, None], (high, wide)
        )[0, 0].numpy()
        return means
    image = Image.fromarray(values.astype(np.float32))
    small: Floats = np.asarray(image.resize((columns, rows), Image.Resampling.BOX))
    return small


def _mean(values: Floats, radius: int) -> Floats:
    """Mean over a square window; the border is repeated."""
    size = 2 * radius + 1
    padded = np.pad(values, ((radius + 1, radius), (radius + 1, radius)), mode="edge").astype(np.float64)
    sums = padded.cumsum(0).cumsum(1)
    window = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    mean: Floats = (window / size**2).astype(np.float32)
    return mean
