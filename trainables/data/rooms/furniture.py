"""Scenes of `rooms`: a room of one of five kinds, furnished with pieces of everyday size, and a camera's walk in it.

World: x right, y up, z into the plan, metres, floor at y = 0. A piece is built in its own frame (x along the wall,
y up, z away from the wall, origin on the floor at the middle of its back) from boxes, cylinders and ellipsoids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainables.data.rooms.textures import Colour, Material

Random = np.random.Generator
BOX, CYLINDER, ELLIPSOID = 0, 1, 2
SHELL = 6  # the first six parts are the faces of the room: low x, high x, floor, ceiling, low z, high z
CLEARANCE_M = 0.68  # camera to anything; with the lens below, no depth is under 0.5 m
FOCAL = 0.82  # focal length over image width: the Kinect's field of view
TURNS = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))  # cos, sin of a piece against the walls z=0, x=0, z=L, x=W


@dataclass(frozen=True)
class Part:
    """A primitive: centre and half size in metres, the turn of its own frame about the vertical, material, shape."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    material: Material
    shape: int = BOX
    turn: tuple[float, float] = (1.0, 0.0)


@dataclass
class Scene:
    """A furnished room. `obstacles` are (low, high) corners of bounding boxes, one per piece."""

    kind: str
    size: tuple[float, float, float]
    shell: tuple[Material, ...]
    lamp: tuple[float, float, float]
    lamp_colour: Colour
    window_lights: list[tuple[tuple[float, float, float], tuple[float, float]]]  # place, inward normal (x, z)
    camera_light: float
    parts: list[Part] = field(default_factory=list)
    obstacles: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=list)


@dataclass(frozen=True)
class Pose:
    """A camera: place in metres; turn, pitch (down is negative) and roll in radians."""

    place: tuple[float, float, float]
    turn: float
    pitch: float
    roll: float


class Palette:
    """The materials that a scene's pieces share, drawn once per scene."""

    def __init__(self, random: Random) -> None:
        self.random = random
        tone = float(random.uniform(0.35, 1.25))
        self.wood = self.make("wood", (0.42 * tone, 0.25 * tone, 0.13 * tone))
        self.white = self.make("wood", (0.72, 0.71, 0.68))
        self.fabric = self.make("fabric", self.colour(0.5))
        self.accent = self.make("fabric", self.colour(0.8))
        self.metal = self.make("plain", (0.25, 0.25, 0.27))
        self.sheet = self.make("fabric", (0.75, 0.75, 0.74))
        self.body = self.wood if random.random() < 0.6 else self.white

    def colour(self, saturation: float, bright: float = 0.5) -> Colour:
        """A random colour whose channels differ more with `saturation` (0..1)."""
        level = bright * float(self.random.uniform(0.5, 1.3))
        red, green, blue = (1 + saturation * float(self.random.uniform(-0.8, 0.8)) for _ in range(3))
        return min(0.9, level * red), min(0.9, level * green), min(0.9, level * blue)

    def make(
        self, kind: str, a: Colour, b: Colour = (0.1, 0.1, 0.1), scale: float = 0.2, emission: float = 0.0
    ) -> Material:
        return Material(kind, a, b, scale, int(self.random.integers(1, 10**6)), emission)


def _box(
    x: float, y: float, z: float, wide: float, high: float, deep: float, material: Material, shape: int = BOX
) -> Part:
    """A part by the middle of its base (x, y, z) and its full size."""
    return Part((x, y + high / 2, z), (wide / 2, high / 2, deep / 2), material, shape)


def _legs(wide: float, deep: float, high: float, thick: float, material: Material) -> list[Part]:
    x, near, far = (wide - thick) / 2, thick / 2, deep - thick / 2
    return [_box(sx, 0, z, thick, high, thick, material) for sx in (-x, x) for z in (near, far)]


def table(p: Palette) -> list[Part]:
    wide, deep, high = float(p.random.uniform(1.1, 1.8)), float(p.random.uniform(0.75, 0.95)), 0.74
    parts = [_box(0, high - 0.04, deep / 2, wide, 0.04, deep, p.wood), *_legs(wide, deep, high - 0.04, 0.06, p.wood)]
    bowl = p.make("plain", p.colour(0.8))
    return [*parts, _box(0.1, high, deep / 2, 0.24, 0.09, 0.24, bowl, CYLINDER)]


def chair(p: Palette) -> list[Part]:
    seat = p.accent if p.random.random() < 0.4 else p.wood
    return [_box(0, 0.42, 0.22, 0.42, 0.05, 0.42, seat), _box(0, 0.47, 0.03, 0.42, 0.45, 0.03, p.wood),
            *_legs(0.42, 0.42, 0.42, 0.04, p.wood)]  # fmt: skip


def bed(p: Palette) -> list[Part]:
    wide = float(p.random.choice([0.95, 1.4, 1.65]))
    cover = p.make("spread", p.colour(0.6), p.colour(0.5), 0.3)
    pillows = (-wide / 4, wide / 4) if wide > 1.2 else (0.0,)
    return [_box(0, 0, 1.03, wide + 0.06, 0.28, 2.06, p.wood), _box(0, 0.28, 1.03, wide, 0.2, 2.0, p.sheet),
            _box(0, 0.3, 1.32, wide + 0.04, 0.22, 1.44, cover), _box(0, 0, 0.03, wide + 0.1, 1.0, 0.06, p.wood),
            *(_box(x, 0.48, 0.32, 0.6, 0.14, 0.4, p.sheet) for x in pillows)]  # fmt: skip


def sofa(p: Palette) -> list[Part]:
    seats = int(p.random.integers(2, 4))
    wide = 0.65 * seats
    parts = [_box(0, 0.1, 0.45, wide + 0.4, 0.2, 0.85, p.fabric), _box(0, 0.1, 0.11, wide + 0.4, 0.72, 0.22, p.fabric)]
    parts += [_box(side * (wide / 2 + 0.1), 0.1, 0.45, 0.2, 0.5, 0.88, p.fabric) for side in (-1, 1)]
    xs = [(k - (seats - 1) / 2) * 0.65 for k in range(seats)]
    parts += [_box(x, 0.3, 0.55, 0.62, 0.14, 0.64, p.fabric) for x in xs]
    return [*parts, *(_box(x + 0.1, 0.44, 0.3, 0.38, 0.36, 0.14, p.accent) for x in xs[:: seats - 1])]


def shelf(p: Palette) -> list[Part]:
    wide, high, deep = float(p.random.uniform(0.7, 1.2)), float(p.random.choice([1.1, 1.5, 1.9])), 0.3
    parts = [_box(side * (wide / 2 - 0.01), 0, deep / 2, 0.025, high, deep, p.body) for side in (-1, 1)]
    parts += [_box(0, 0, 0.01, wide, high, 0.02, p.body)]
    levels = int(high / 0.36)
    for k in range(levels + 1):
        y = k * (high - 0.02) / levels
        parts.append(_box(0, y, deep / 2, wide, 0.025, deep, p.body))
        if k < levels and p.random.random() < 0.85:
            spines = p.make("books", (0, 0, 0), scale=float(p.random.uniform(0.03, 0.05)))
            length = wide * float(p.random.uniform(0.45, 0.95))
            parts.append(_box((length - wide) / 2 * 0.93, y + 0.025, 0.13, length, 0.29, 0.2, spines))
    return parts


def wardrobe(p: Palette) -> list[Part]:
    front = p.make("cupboard", p.body.a, (0.1, 0.1, 0.1), 0.55)
    wide, high = float(p.random.choice([1.0, 1.5, 2.0])), float(p.random.uniform(1.9, 2.15))
    return [_box(0, 0.06, 0.28, wide, high, 0.56, p.body), _box(0, 0.08, 0.57, wide - 0.02, high - 0.04, 0.02, front),
            _box(0, 0, 0.26, wide - 0.06, 0.06, 0.5, p.metal)]  # fmt: skip


def drawers(p: Palette) -> list[Part]:
    wide, rows = float(p.random.uniform(0.7, 1.2)), int(p.random.integers(2, 5))
    parts = [_box(0, 0, 0.22, wide, 0.2 * rows + 0.05, 0.44, p.body)]
    parts += [_box(0, 0.03 + 0.2 * k, 0.45, wide - 0.05, 0.18, 0.02, p.body) for k in range(rows)]
    return parts + [_box(0, 0.11 + 0.2 * k, 0.47, 0.16, 0.02, 0.02, p.metal) for k in range(rows)]


def nightstand(p: Palette) -> list[Part]:
    front = _box(0, 0.28, 0.41, 0.38, 0.18, 0.02, p.body)
    return [_box(0, 0, 0.2, 0.42, 0.5, 0.4, p.body), front, *_shaded_lamp(p, 0.5)]


def _shaded_lamp(p: Palette, base: float) -> list[Part]:
    shade = p.make("plain", (1.0, 0.86, 0.6), emission=0.8)
    return [_box(0, base, 0.2, 0.14, 0.02, 0.14, p.metal, CYLINDER), _box(0, base, 0.2, 0.03, 0.24, 0.03, p.metal),
            _box(0, base + 0.2, 0.2, 0.28, 0.22, 0.28, shade, CYLINDER)]  # fmt: skip


def floor_lamp(p: Palette) -> list[Part]:
    shade = p.make("plain", (1.0, 0.86, 0.6), emission=0.8)
    return [_box(0, 0, 0.22, 0.32, 0.03, 0.32, p.metal, CYLINDER), _box(0, 0.03, 0.22, 0.035, 1.4, 0.035, p.metal),
            _box(0, 1.35, 0.22, 0.42, 0.3, 0.42, shade, CYLINDER)]  # fmt: skip


def plant(p: Palette) -> list[Part]:
    pot = p.make("plain", p.colour(0.6, 0.4))
    leaf = p.make("leaves", (0.10, float(p.random.uniform(0.25, 0.45)), 0.08))
    high = float(p.random.uniform(0.6, 1.1))
    return [_box(0, 0, 0.22, 0.3, 0.3, 0.3, pot, CYLINDER), _box(0, 0.3, 0.22, 0.04, high / 2, 0.04, p.wood),
            _box(0, 0.38, 0.24, 0.5, high, 0.5, leaf, ELLIPSOID)]  # fmt: skip


def desk(p: Palette) -> list[Part]:
    wide = float(p.random.uniform(1.1, 1.5))
    dark = p.make("screen", (0.02, 0.03, 0.06), (0.25, 0.33, 0.45))
    return [_box(0, 0.71, 0.35, wide, 0.03, 0.7, p.body), _box(-wide / 2 + 0.22, 0, 0.35, 0.4, 0.71, 0.62, p.body),
            _box(wide / 2 - 0.03, 0, 0.35, 0.04, 0.71, 0.66, p.body), _box(0.1, 0.74, 0.2, 0.22, 0.02, 0.18, p.metal),
            _box(0.1, 0.76, 0.19, 0.04, 0.14, 0.03, p.metal), _box(0.1, 0.86, 0.22, 0.56, 0.34, 0.03, dark),
            _box(0.1, 0.74, 0.5, 0.44, 0.02, 0.14, p.metal),
            _box(-wide / 2 + 0.25, 0.74, 0.3, 0.22, 0.12, 0.3, p.sheet)]  # fmt: skip


def television(p: Palette) -> list[Part]:
    wide = float(p.random.uniform(1.2, 1.7))
    dark = p.make("screen", (0.015, 0.015, 0.02), (0.10, 0.11, 0.13))
    return [_box(0, 0, 0.2, wide, 0.45, 0.4, p.body), _box(0, 0.47, 0.2, 0.3, 0.04, 0.16, p.metal),
            _box(0, 0.5, 0.2, wide * 0.8, wide * 0.45, 0.04, dark)]  # fmt: skip


def coffee_table(p: Palette) -> list[Part]:
    wide = float(p.random.uniform(0.8, 1.2))
    paper = p.make("plain", p.colour(0.9))
    return [_box(0, 0.38, 0.3, wide, 0.04, 0.6, p.wood), *_legs(wide, 0.6, 0.38, 0.05, p.wood),
            _box(0.15, 0.42, 0.3, 0.21, 0.02, 0.28, paper)]  # fmt: skip


def kitchen(p: Palette) -> list[Part]:
    wide = float(p.random.uniform(1.6, 2.6))
    front = p.make("cupboard", p.body.a, (0.15, 0.15, 0.15), 0.5)
    top = p.make("plain", p.colour(0.1, 0.3))
    steel = p.make("plain", (0.5, 0.51, 0.52))
    return [_box(0, 0.1, 0.29, wide, 0.76, 0.58, front), _box(0, 0, 0.26, wide, 0.1, 0.5, p.metal),
            _box(0, 0.86, 0.31, wide + 0.02, 0.04, 0.62, top), _box(0, 1.45, 0.17, wide, 0.65, 0.34, front),
            _box(-wide / 4, 0.9, 0.3, 0.5, 0.01, 0.4, steel), _box(-wide / 4, 0.9, 0.1, 0.03, 0.25, 0.03, steel),
            _box(wide / 4, 0.9, 0.32, 0.22, 0.16, 0.22, steel, CYLINDER)]  # fmt: skip


def fridge(p: Palette) -> list[Part]:
    white = p.make("plain", (0.72, 0.73, 0.75))
    return [_box(0, 0.04, 0.3, 0.6, 1.75, 0.58, white), _box(0, 0.06, 0.605, 0.58, 1.08, 0.03, white),
            _box(0, 1.16, 0.605, 0.58, 0.61, 0.03, white), _box(0.24, 0.8, 0.64, 0.03, 0.3, 0.03, p.metal),
            _box(0.24, 1.2, 0.64, 0.03, 0.25, 0.03, p.metal)]  # fmt: skip


Maker = Callable[[Palette], list[Part]]
WALL_PIECES: dict[str, tuple[Maker, ...]] = {  # in the order in which they claim their place
    "bedroom": (bed, wardrobe, nightstand, drawers, shelf, plant),
    "living room": (sofa, television, shelf, floor_lamp, plant, drawers, shelf),
    "office": (desk, shelf, desk, shelf, wardrobe, plant),
    "dining room": (drawers, shelf, plant, floor_lamp, wardrobe),
    "kitchen": (kitchen, fridge, shelf, plant),
}
FREE_PIECES: dict[str, tuple[Maker, ...]] = {
    "bedroom": (chair,), "living room": (coffee_table, chair), "office": (chair, chair), "dining room": (table,),
    "kitchen": (table,),
}  # fmt: skip
