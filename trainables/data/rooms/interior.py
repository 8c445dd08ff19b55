"""Layout of a scene of `rooms`: walls, door and windows, furniture that does not overlap, and the camera's walk."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from trainables.data.rooms.furniture import (
    BOX,
    CLEARANCE_M,
    ELLIPSOID,
    FREE_PIECES,
    TURNS,
    WALL_PIECES,
    Palette,
    Part,
    Pose,
    Random,
    Scene,
    chair,
    table,
)
from trainables.data.rooms.textures import Material

Span = tuple[float, float, float, float]  # along the wall from, to; height from, to


def furnished(random: Random) -> Scene:
    """A random room: its kind, size, surfaces, openings and furniture."""
    kind = str(random.choice(sorted(WALL_PIECES)))
    palette = Palette(random)
    wide, deep, high = _plan(random)
    lamp_x, lamp_z = wide * float(random.uniform(0.35, 0.65)), deep * float(random.uniform(0.35, 0.65))
    scene = Scene(
        kind=kind, size=(wide, high, deep), shell=_shell(palette, kind), lamp=(lamp_x, high - 0.55, lamp_z),
        lamp_colour=(1.0, float(random.uniform(0.86, 0.97)), float(random.uniform(0.68, 0.9))), window_lights=[],
        camera_light=float(random.uniform(0.6, 0.9)),
    )  # fmt: skip
    scene.parts += _ceiling_lamp(scene, palette)
    taken: list[list[Span]] = [[], [], [], []]
    _openings(scene, palette, taken)
    makers = list(WALL_PIECES[kind]) * (2 if wide * deep > 22 else 1)
    for maker in makers:
        _against_wall(scene, palette, taken, maker(palette))
    for maker in FREE_PIECES[kind]:
        _in_the_middle(scene, palette, maker(palette), with_chairs=maker is table)
    if kind in ("bedroom", "living room") and random.random() < 0.7:
        _rug(scene, palette)
    _pictures(scene, palette, taken)
    return scene


def _plan(random: Random) -> tuple[float, float, float]:
    """Width, depth and height of a room; most are ordinary, some small, some halls. The diagonal stays under 10 m."""
    low, high = ((2.9, 3.7), (3.5, 5.0), (4.6, 7.0))[int(random.choice(3, p=[0.3, 0.45, 0.25]))]
    wide, deep = float(random.uniform(low, high)), float(random.uniform(low, high))
    return wide, min(deep, 6.2), float(random.uniform(2.35, 2.9))


def _shell(p: Palette, kind: str) -> tuple[Material, ...]:
    random = p.random
    bright = random.uniform(0.42, 0.75)
    base = p.make("paint", p.colour(0.2, 0.6))
    r, g, b = base.a
    style = str(random.choice(["paint", "paint", "stripes", "dots", "wainscot", "brick"]))
    scale = {"stripes": 0.2, "dots": 0.16, "wainscot": 0.12, "brick": 0.24}.get(style, 0.2)
    second = (0.7, 0.68, 0.64) if style == "wainscot" else (r * 0.8, g * 0.8, b * 0.8)
    wall = p.make(style, base.a if style != "brick" else (0.42, 0.2, 0.14), second, scale)
    other = p.make("paint", (r * 0.95, g * 0.95, b * 0.95)) if style == "brick" else wall
    grounds = {"kitchen": ["tiles"], "office": ["carpet", "tiles"]}.get(kind, ["boards", "boards", "carpet"])
    ground = str(random.choice(grounds))
    if ground == "boards":
        tone = random.uniform(0.4, 1.1)
        floor = p.make("boards", (0.48 * tone, 0.30 * tone, 0.16 * tone), scale=0.15)
    elif ground == "tiles":
        first = p.colour(0.1, 0.55)
        shade = float(random.choice([1.0, 1.0, 0.45]))
        floor = p.make("tiles", first, (first[0] * shade, first[1] * shade, first[2] * shade), 0.4)
    else:
        floor = p.make("carpet", p.colour(0.35, 0.35))
    ceiling = p.make("panels" if kind == "office" else "ceiling", (bright + 0.15,) * 3, scale=0.6)
    return wall, wall, floor, ceiling, other, wall


def _ceiling_lamp(scene: Scene, p: Palette) -> list[Part]:
    x, y, z = scene.lamp
    glow = p.make("plain", (1.0, 0.93, 0.78), emission=1.0)
    rod = (scene.size[1] - y) / 2
    return [Part((x, y, z), (0.2, 0.13, 0.2), glow, ELLIPSOID), Part((x, y + rod, z), (0.012, rod, 0.012), p.metal)]


def _wall_length(scene: Scene, wall: int) -> float:
    return scene.size[0] if wall % 2 == 0 else scene.size[2]


def _origin(scene: Scene, wall: int, along: float) -> tuple[float, float]:
    """The floor point on a wall, `along` metres from its middle in the wall's own x direction."""
    cos, sin = TURNS[wall]
    wide, _, deep = scene.size
    x, z = ((wide / 2, 0.0), (0.0, deep / 2), (wide / 2, deep), (wide, deep / 2))[wall]
    return x + cos * along, z - sin * along


def _set_down(parts: list[Part], x: float, z: float, turn: tuple[float, float]) -> list[Part]:
    """The parts of a piece, moved from its own frame into the room."""
    cos, sin = turn

    def moved(part: Part) -> Part:
        px, py, pz = part.centre
        return replace(part, centre=(x + cos * px + sin * pz, py, z - sin * px + cos * pz), turn=turn)

    return [moved(part) for part in parts]


def _bounds(parts: list[Part]) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for part in parts:
        cos, sin = abs(part.turn[0]), abs(part.turn[1])
        hx, hy, hz = part.half
        reach = np.array([cos * hx + sin * hz, hy, sin * hx + cos * hz])
        low, high = np.minimum(low, np.array(part.centre) - reach), np.maximum(high, np.array(part.centre) + reach)
    return low, high


def _free(scene: Scene, parts: list[Part], margin: float) -> bool:
    """Does a piece lie inside the room and apart from the others?"""
    low, high = _bounds(parts)
    wide, tall, deep = scene.size
    if low[0] < -0.01 or low[2] < -0.01 or high[0] > wide + 0.01 or high[2] > deep + 0.01 or high[1] > tall:
        return False
    return not any(
        all(low[k] < ends[1][k] + margin and high[k] > ends[0][k] - margin for k in (0, 2)) for ends in scene.obstacles
    )


def _openings(scene: Scene, p: Palette, taken: list[list[Span]]) -> None:
    """One door, and one to three windows with curtains on other walls."""
    random = p.random
    walls = [int(w) for w in random.permutation(4)]
    length = _wall_length(scene, walls[0])
    along = float(random.uniform(-0.5, 0.5)) * (length - 1.3)
    leaf = p.make("door", p.white.a if random.random() < 0.5 else p.wood.a)
    frame = p.white
    parts = [Part((0, 1.0, 0.015), (0.43, 1.0, 0.02), leaf), Part((0, 2.04, 0.02), (0.5, 0.04, 0.04), frame),
             *(Part((s * 0.465, 1.0, 0.02), (0.035, 1.0, 0.04), frame) for s in (-1, 1)),
             Part((0.34, 1.03, 0.06), (0.06, 0.015, 0.025), p.metal)]  # fmt: skip
    scene.parts += _set_down(parts, *_origin(scene, walls[0], along), TURNS[walls[0]])
    taken[walls[0]].append((along - 0.55, along + 0.55, 0.0, 2.1))
    for wall in walls[1 : 1 + int(random.integers(1, 4))]:
        _window(scene, p, taken, wall)


def _window(scene: Scene, p: Palette, taken: list[list[Span]], wall: int) -> None:
    random = p.random
    wide, sill = float(random.uniform(0.9, 1.7)), float(random.uniform(0.85, 1.0))
    high = float(random.uniform(1.0, 1.25))
    along = float(random.uniform(-0.5, 0.5)) * (_wall_length(scene, wall) - wide - 0.8)
    middle = sill + high / 2
    glass = p.make("window", (0.45, 0.65, 0.95), (0.2, 0.3, 0.16), emission=1.0)
    bars = [Part((0, middle + s * high / 2, 0.02), (wide / 2 + 0.04, 0.035, 0.03), p.white) for s in (-1, 1)]
    bars += [Part((s * wide / 2, middle, 0.02), (0.035, high / 2, 0.03), p.white) for s in (-1, 0, 1)]
    parts = [Part((0, middle, 0.005), (wide / 2, high / 2, 0.006), glass), *bars]
    if random.random() < 0.6:
        cloth = p.make("curtain", p.colour(0.5, 0.6), scale=0.11)
        drop = float(random.choice([middle + high / 2 + 0.1 - sill + 0.1, middle + high / 2 + 0.02]))
        top = middle + high / 2 + 0.12
        parts += [Part((s * (wide / 2 + 0.16), top - drop / 2, 0.07), (0.18, drop / 2, 0.04), cloth) for s in (-1, 1)]
        parts += [Part((0, top + 0.02, 0.07), (wide / 2 + 0.4, 0.015, 0.015), p.metal)]
    x, z = _origin(scene, wall, along)
    scene.parts += _set_down(parts, x, z, TURNS[wall])
    taken[wall].append((along - wide / 2 - 0.36, along + wide / 2 + 0.36, sill - 0.1, sill + high + 0.2))
    cos, sin = TURNS[wall]
    scene.window_lights.append(((x + 0.25 * sin, middle, z + 0.25 * cos), (sin, cos)))


def _against_wall(scene: Scene, p: Palette, taken: list[list[Span]], parts: list[Part]) -> None:
    """Put a piece with its back to a wall where there is room; leave it out where there is none."""
    low, high = _bounds(parts)
    for _ in range(14):
        wall = int(p.random.integers(4))
        reach = (_wall_length(scene, wall) - (high[0] - low[0])) / 2 - 0.03
        if reach <= 0:
            continue
        along = float(p.random.uniform(-reach, reach))
        if any(along + low[0] < s[1] and along + high[0] > s[0] and high[1] > s[2] for s in taken[wall]):
            continue
        cos, sin = TURNS[wall]
        x, z = _origin(scene, wall, along)
        placed = _set_down(parts, x + 0.02 * sin, z + 0.02 * cos, TURNS[wall])
        if _free(scene, placed, 0.08) and not _blocks_a_door(scene, placed):
            scene.parts += placed
            scene.obstacles.append(_bounds(placed))
            taken[wall].append((along + float(low[0]), along + float(high[0]), 0.0, float(high[1])))
            return


def _blocks_a_door(scene: Scene, parts: list[Part]) -> bool:
    low, high = _bounds(parts)
    doors = [part for part in scene.parts if part.material.kind == "door"]
    return any(all(low[k] < d.centre[k] + 0.6 and high[k] > d.centre[k] - 0.6 for k in (0, 2)) for d in doors)


def _in_the_middle(scene: Scene, p: Palette, parts: list[Part], with_chairs: bool) -> None:
    random = p.random
    wide, _, deep = scene.size
    for _ in range(14):
        turn = TURNS[int(random.integers(4))] if len(parts) > 6 else _direction(float(random.uniform(0, 2 * math.pi)))
        x, z = wide * float(random.uniform(0.25, 0.75)), deep * float(random.uniform(0.25, 0.75))
        group = _set_down(parts, x, z, turn)
        if with_chairs:
            _, high = _bounds(parts)
            for side, cz, spin in ((-1, 0.1, 0.0), (1, high[2] - 0.1, math.pi)):
                for cx in (-0.3, 0.35):
                    own = _direction(spin + math.pi + float(random.uniform(-0.3, 0.3)))
                    seat = _set_down(chair(p), cx, cz + side * 0.45, own)
                    group += [_turned(part, x, z, turn) for part in seat]
        if _free(scene, group, 0.1) and not _blocks_a_door(scene, group):
            scene.parts += group
            scene.obstacles.append(_bounds(group))
            return


def _turned(part: Part, x: float, z: float, turn: tuple[float, float]) -> Part:
    """A part that has its own turn, set down with its group."""
    (moved,) = _set_down([part], x, z, turn)
    (c1, s1), (c2, s2) = turn, part.turn
    return replace(moved, turn=(c1 * c2 - s1 * s2, s1 * c2 + c1 * s2))


def _direction(angle: float) -> tuple[float, float]:
    return math.cos(angle), math.sin(angle)


def _rug(scene: Scene, p: Palette) -> None:
    wide, _, deep = scene.size
    cloth = p.make("rug", p.colour(0.7, 0.4), p.colour(0.5, 0.6), 0.3)
    half = (wide * float(p.random.uniform(0.2, 0.3)), 0.008, deep * float(p.random.uniform(0.2, 0.3)))
    scene.parts.append(Part((wide / 2, 0.008, deep / 2), half, cloth, BOX))


def _pictures(scene: Scene, p: Palette, taken: list[list[Span]]) -> None:
    """Pictures at eye height, where the wall is free."""
    for wall in range(4):
        for _ in range(3):
            wide, high = float(p.random.uniform(0.35, 1.0)), float(p.random.uniform(0.35, 0.7))
            reach = (_wall_length(scene, wall) - wide) / 2 - 0.1
            along, middle = float(p.random.uniform(-reach, reach)), float(p.random.uniform(1.5, 1.7))
            span = (along - wide / 2 - 0.08, along + wide / 2 + 0.08, middle - high / 2 - 0.05, middle + high / 2)
            if any(span[0] < s[1] and span[1] > s[0] and span[2] < s[3] and span[3] > s[2] for s in taken[wall]):
                continue
            canvas = p.make("picture", p.colour(0.9), p.colour(0.6, 0.7))
            part = Part((0, middle, 0.015), (wide / 2, high / 2, 0.015), canvas)
            scene.parts += _set_down([part], *_origin(scene, wall, along), TURNS[wall])
            taken[wall].append(span)


def walk(scene: Scene, random: Random, frames: int) -> list[Pose]:
    """`frames` poses of a hand-held camera that steps through the room while it pans, clear of walls and furniture."""
    wide, high, deep = scene.size
    for attempt in range(2000):
        if attempt % 200 == 199 and scene.obstacles:  # too crowded: carry a piece out
            _carry_out(scene)
        ends = [np.array([random.uniform(CLEARANCE_M, s - CLEARANCE_M) for s in (wide, deep)]) for _ in range(2)]
        ends[1] = ends[0] + (ends[1] - ends[0]) * min(1.0, 1.6 / max(float(np.hypot(*(ends[1] - ends[0]))), 1e-6))
        eye = float(random.uniform(1.15, min(1.65, high - CLEARANCE_M - 0.05)))
        target = np.array([wide, deep]) * random.uniform(0.2, 0.8, 2)
        toward = target - ends[0]
        if np.hypot(*toward) < 0.28 * math.hypot(wide, deep):
            continue
        turn = math.atan2(toward[0], toward[1])
        pan, pitch = float(random.uniform(-1.1, 1.1)), -float(random.uniform(0.08, 0.34))
        shake = random.uniform(-1, 1, (frames, 4)) * np.array([0.03, 0.03, 0.03, 0.025])
        share = [(k / (frames - 1) if frames > 1 else 0.5) for k in range(frames)]
        ground = [ends[0] + (ends[1] - ends[0]) * s for s in share]
        poses = []
        for s, (x, z), (dy, dturn, dpitch, roll) in zip(share, ground, shake.tolist(), strict=True):
            place = (float(x), eye + dy, float(z))
            poses.append(Pose(place, turn + pan * (s - 0.5) + dturn, pitch + dpitch, roll))
        if all(_clear(scene, pose) for pose in poses):
            return poses
    raise AssertionError("an empty room always has a place for the camera")


def _clear(scene: Scene, pose: Pose) -> bool:
    place = np.array(pose.place)
    lamp = np.array(scene.lamp)
    if np.linalg.norm(place - lamp) < CLEARANCE_M + 0.25 or scene.size[1] - place[1] < CLEARANCE_M:
        return False
    gaps = [np.maximum(np.maximum(low - place, place - high), 0) for low, high in scene.obstacles]
    return all(np.linalg.norm(gap) > CLEARANCE_M for gap in gaps)


def _carry_out(scene: Scene) -> None:
    low, high = scene.obstacles.pop()
    scene.parts = [
        part for part in scene.parts
        if not all(first - 1e-6 <= c <= last + 1e-6 for first, c, last in zip(low, part.centre, high, strict=True))
    ]  # fmt: skip
