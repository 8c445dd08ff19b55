"""Ray-casting renderer of `rooms` in NumPy, and the holes of a depth sensor (Kinect).

Boxes, vertical cylinders and ellipsoids in a closed room, shaded by lamp, windows, a weak light at the camera, and
corners that stay darker.

Depth is the distance along the optical axis (z-depth), as a Kinect and NYU Depth v2 give it. Per-pixel arithmetic is
IEEE-exact (no transcendental function, no BLAS), so that every machine renders the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainables.data.rooms.furniture import BOX, CYLINDER, ELLIPSOID, FOCAL, SHELL, Part, Pose, Scene
from trainables.data.rooms.textures import TEXTURES, Floats, Material, Surface, cells, noise

Vector = tuple[Floats, Floats, Floats]
Spot = tuple[float, float, float]
NEAR_M = np.float32(0.2)
AMBIENT = 0.13


class Rays:
    """The pixels' view directions (z-depth 1 long along the axis) in the frame of a turn, and what slab tests need."""

    def __init__(self, direction: Vector, place: tuple[float, float, float], turn: tuple[float, float]) -> None:
        cos, sin = np.float32(turn[0]), np.float32(turn[1])
        x, y, z = direction
        self.direction = (cos * x - sin * z, y, sin * x + cos * z)
        tiny = np.float32(1e-9)
        self.inverse = [1 / np.where(np.abs(d) < tiny, tiny, d) for d in self.direction]
        self.size = [np.abs(i) for i in self.inverse]
        self.turn, self.place = turn, place

    def offset(self, part: Part) -> tuple[np.float32, np.float32, np.float32]:
        """Camera to the part's centre, in the part's own frame."""
        x, y, z = (c - p for c, p in zip(part.centre, self.place, strict=True))
        cos, sin = self.turn
        return np.float32(cos * x - sin * z), np.float32(y), np.float32(sin * x + cos * z)


class Camera:
    """A pinhole camera with square pixels; rows count down, columns to the right."""

    def __init__(self, pose: Pose, rows: int, columns: int) -> None:
        self.place, self.shape = pose.place, (rows, columns)
        self.focal = FOCAL * columns
        st, ct, sp, cp = math.sin(pose.turn), math.cos(pose.turn), math.sin(pose.pitch), math.cos(pose.pitch)
        self.forward = (st * cp, sp, ct * cp)
        right, up = (ct, 0.0, -st), (-st * sp, cp, -ct * sp)
        cr, sr = math.cos(pose.roll), math.sin(pose.roll)
        self.right = tuple(cr * r + sr * u for r, u in zip(right, up, strict=True))
        self.up = tuple(cr * u - sr * r for r, u in zip(right, up, strict=True))
        x = ((np.arange(columns) - (columns - 1) / 2) / self.focal).astype(np.float32)[None, :]
        y = (((rows - 1) / 2 - np.arange(rows)) / self.focal).astype(np.float32)[:, None]
        axes = zip(self.forward, self.right, self.up, strict=True)
        first, second, third = (np.float32(f) + x * np.float32(r) + y * np.float32(u) for f, r, u in axes)
        self.direction: Vector = (first, second, third)
        self._rays: dict[tuple[float, float], Rays] = {}

    def rays(self, turn: tuple[float, float]) -> Rays:
        if turn not in self._rays:
            self._rays[turn] = Rays(self.direction, self.place, turn)
        return self._rays[turn]

    def window(self, part: Part) -> tuple[slice, slice] | None:
        """The rows and columns that a part can cover; None when it is out of view."""
        cos, sin = part.turn
        rows, columns = self.shape
        spots = []
        for sx in (-1, 1):
            for sy in (-1, 1):
                for sz in (-1, 1):
                    hx, hy, hz = sx * part.half[0], sy * part.half[1], sz * part.half[2]
                    x = part.centre[0] + cos * hx + sin * hz - self.place[0]
                    y = part.centre[1] + hy - self.place[1]
                    z = part.centre[2] - sin * hx + cos * hz - self.place[2]
                    spots.append([a[0] * x + a[1] * y + a[2] * z for a in (self.forward, self.right, self.up)])
        depths = [s[0] for s in spots]
        if max(depths) < NEAR_M:
            return None
        if min(depths) < NEAR_M:
            return slice(0, rows), slice(0, columns)
        across = [self.focal * s[1] / s[0] + (columns - 1) / 2 for s in spots]
        down = [(rows - 1) / 2 - self.focal * s[2] / s[0] for s in spots]
        left, right = max(0, math.floor(min(across))), min(columns, math.ceil(max(across)) + 1)
        top, bottom = max(0, math.floor(min(down))), min(rows, math.ceil(max(down)) + 1)
        return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


def cast(scene: Scene, camera: Camera) -> tuple[Floats, NDArray[np.int32]]:
    """Depth in metres (rows, columns) and the part seen: 0..5 the room's faces, SHELL + k the scene's part k."""
    shell = camera.rays((1.0, 0.0))
    far = [
        np.maximum((np.float32(0 - o)) * i, (np.float32(s - o)) * i)
        for o, s, i in zip(camera.place, scene.size, shell.inverse, strict=True)
    ]
    depth = np.minimum(np.minimum(far[0], far[1]), far[2])
    axis = np.where(depth == far[0], 0, np.where(depth == far[1], 1, 2))
    signs = np.stack([d > 0 for d in shell.direction])
    seen = (2 * axis + np.take_along_axis(signs, axis[None], 0)[0]).astype(np.int32)
    for number, part in enumerate(scene.parts):
        window = camera.window(part)
        if window is None:
            continue
        rays = camera.rays(part.turn)
        near, hit = (_box if part.shape == BOX else _round)(part, rays, window)
        hit &= (near > NEAR_M) & (near < depth[window])
        np.copyto(depth[window], near, where=hit)
        np.copyto(seen[window], np.int32(SHELL + number), where=hit)
    return depth, seen


def _slab(part: Part, rays: Rays, window: tuple[slice, slice], axis: int) -> tuple[Floats, Floats]:
    middle = rays.inverse[axis][window] * rays.offset(part)[axis]
    reach = rays.size[axis][window] * np.float32(part.half[axis])
    return middle - reach, middle + reach


def _box(part: Part, rays: Rays, window: tuple[slice, slice]) -> tuple[Floats, NDArray[np.bool_]]:
    slabs = [_slab(part, rays, window, axis) for axis in range(3)]
    near = np.maximum(np.maximum(slabs[0][0], slabs[1][0]), slabs[2][0])
    far = np.minimum(np.minimum(slabs[0][1], slabs[1][1]), slabs[2][1])
    return near, near < far


def _round(part: Part, rays: Rays, window: tuple[slice, slice]) -> tuple[Floats, NDArray[np.bool_]]:
    """Elliptic cylinder about the vertical, or ellipsoid: a quadratic in the depth."""
    axes = (0, 2) if part.shape == CYLINDER else (0, 1, 2)
    a = b = np.float32(0) + 0 * rays.direction[0][window]
    c = np.float32(-1)
    for axis in axes:
        scaled = rays.direction[axis][window] * np.float32(1 / part.half[axis])
        offset = rays.offset(part)[axis] * np.float32(1 / part.half[axis])
        a, b, c = a + scaled * scaled, b + scaled * offset, c + offset * offset
    root = b * b - a * c
    reach = np.sqrt(np.maximum(root, 0))
    near, far = (b - reach) / a, (b + reach) / a
    if part.shape == CYLINDER:
        low, high = _slab(part, rays, window, 1)
        near, far = np.maximum(near, low), np.minimum(far, high)
    return near, (root > 0) & (near < far)


def render(scene: Scene, pose: Pose, rows: int, columns: int) -> tuple[NDArray[np.uint8], Floats, NDArray[np.bool_]]:
    """One frame: sRGB-like picture (rows, columns, 3), z-depth in metres, and where the surface shines or is glass."""
    camera = Camera(pose, rows, columns)
    depth, seen = cast(scene, camera)
    flat_depth, flat_seen = depth.ravel(), seen.ravel()
    place = [np.float32(p) + flat_depth * d.ravel() for p, d in zip(camera.place, camera.direction, strict=True)]
    normal, surface = _faces(scene, camera, flat_depth, flat_seen, place)
    materials, which = _materials(scene, flat_seen)
    albedo = np.empty((flat_depth.size, 3), np.float32)
    shines = np.zeros(flat_depth.size, np.float32)
    for number, pixels in _groups(which):
        material = materials[number]
        fields = (surface.u, surface.v, surface.su, surface.sv, surface.foot)
        albedo[pixels] = TEXTURES[material.kind](Surface(*(f[pixels] for f in fields)), material)
        shines[pixels] = material.emission
    light = _light(scene, camera, flat_depth, flat_seen, place, normal)
    linear = albedo * (light + (np.float32(0.95) - light) * shines[:, None])
    return _photograph(linear.reshape(rows, columns, 3)), depth, (shines > 0.5).reshape(rows, columns)


def _groups(which: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    order = np.argsort(which, kind="stable")
    numbers, starts = np.unique(which[order], return_index=True)
    return list(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True))


def _materials(scene: Scene, seen: NDArray[np.int32]) -> tuple[list[Material], NDArray[np.int64]]:
    """The materials in view, each once, and each pixel's number in that list."""
    numbers: dict[Material, int] = {}
    every = [*scene.shell, *(part.material for part in scene.parts)]
    table = np.array([numbers.setdefault(material, len(numbers)) for material in every])
    return list(numbers), table[seen]


def _faces(
    scene: Scene, camera: Camera, depth: Floats, seen: NDArray[np.int32], place: Sequence[Floats]
) -> tuple[Vector, Surface]:
    """Unit normals towards the camera and surface coordinates of every pixel."""
    half_room = tuple(s / 2 for s in scene.size)
    centre = np.array([half_room] * SHELL + [p.centre for p in scene.parts], np.float32)[seen]
    half = np.array([half_room] * SHELL + [p.half for p in scene.parts], np.float32)[seen]
    turn = np.array([(1, 0)] * SHELL + [p.turn for p in scene.parts], np.float32)[seen]
    shape = np.array([BOX] * SHELL + [p.shape for p in scene.parts])[seen]
    x, y, z = (p - centre[:, k] for k, p in enumerate(place))
    cos, sin = turn[:, 0], turn[:, 1]
    local = np.stack([cos * x - sin * z, y, sin * x + cos * z], 1)
    share = local / half
    axis = np.argmax(np.abs(share), 1)
    axis[seen < SHELL] = seen[seen < SHELL] // 2
    axis[(shape == CYLINDER) & (axis != 1)] = 0
    own = np.where(np.arange(3)[None] == axis[:, None], np.where(local < 0, -1, 1), 0).astype(np.float32)
    rounded = (shape == ELLIPSOID) | ((shape == CYLINDER) & (axis != 1))
    if rounded.any():
        gradient = share[rounded] / half[rounded]
        gradient[shape[rounded] == CYLINDER, 1] = 0
        own[rounded] = gradient / np.sqrt((gradient * gradient).sum(1, keepdims=True))
    own[seen < SHELL] *= -1
    normal = (cos * own[:, 0] + sin * own[:, 2], own[:, 1], -sin * own[:, 0] + cos * own[:, 2])
    across, up = np.where(axis == 0, 2, 0)[:, None], np.where(axis == 1, 2, 1)[:, None]
    corner = local + half
    u, su = (np.take_along_axis(a, across, 1)[:, 0] for a in (corner, half))
    v, sv = (np.take_along_axis(a, up, 1)[:, 0] for a in (corner, half))
    return normal, Surface(u, v, 2 * su, 2 * sv, depth / np.float32(camera.focal))


def _light(
    scene: Scene, camera: Camera, depth: Floats, seen: NDArray[np.int32], place: Sequence[Floats], normal: Vector
) -> Floats:
    """Incident light (pixels, 3), about 0..1.2."""
    total = _corners(scene, seen, place)[:, None] * (AMBIENT * (1 + 0.25 * normal[1]))[:, None].astype(np.float32)
    total = total * np.ones(3, np.float32)

    def add(source: Spot, strength: float, reach_m: float, colour: Spot, out: Floats | None) -> None:
        dx, dy, dz = (np.float32(s) - p for s, p in zip(source, place, strict=True))
        squared = dx * dx + dy * dy + dz * dz + np.float32(1e-4)
        length = np.sqrt(squared)
        facing = np.maximum(dx * normal[0] + dy * normal[1] + dz * normal[2], 0) / length
        value = np.float32(strength) * (0.15 + 0.85 * facing) / (1 + squared * np.float32(1 / reach_m**2))
        if out is not None:
            value = value * out / length
        nonlocal total
        total = total + value[:, None] * np.asarray(colour, np.float32)

    add(scene.lamp, 0.75, 2.2, scene.lamp_colour, None)
    for spot, (nx, nz) in scene.window_lights:
        ahead = (place[0] - np.float32(spot[0])) * np.float32(nx) + (place[2] - np.float32(spot[2])) * np.float32(nz)
        add(spot, 0.9, 1.5, (0.82, 0.92, 1.0), np.maximum(ahead, 0))
    add(camera.place, scene.camera_light, 1.6, (1.0, 0.98, 0.94), None)
    return (total * _under(scene, seen, place)[:, None]).astype(np.float32)


def _corners(scene: Scene, seen: NDArray[np.int32], place: Sequence[Floats]) -> Floats:
    """Ambient light that reaches a point of the room's faces: less near other faces."""
    result = np.ones_like(place[0])
    for axis in range(3):
        gap = np.minimum(place[axis], np.float32(scene.size[axis]) - place[axis])
        shade = 0.55 + 0.45 * np.clip(gap / np.float32(0.45), 0, 1)
        result *= np.where((seen // 2 == axis) & (seen < SHELL), np.float32(1), shade)
    return result


def _under(scene: Scene, seen: NDArray[np.int32], place: Sequence[Floats]) -> Floats:
    """Soft shadow on floor and walls around and under the furniture that stands there."""
    result = np.ones_like(place[0])
    on_shell = np.flatnonzero(seen < SHELL)
    x, y, z = (p[on_shell] for p in place)
    shade = np.ones_like(x)
    for low, high in scene.obstacles:
        squared = np.zeros_like(x)
        for first, last, p in zip(low, high, (x, y, z), strict=True):
            gap = np.maximum(np.maximum(np.float32(first) - p, p - np.float32(last)), 0)
            squared += gap * gap
        distance = np.sqrt(squared)
        shade *= 1 - 0.45 * np.clip(1 - distance / np.float32(0.3), 0, 1)
    result[on_shell] = shade
    return result


def _photograph(linear: Floats) -> NDArray[np.uint8]:
    """Lens blur, half-automatic exposure, and the square root as gamma."""
    blurred = linear
    for axis in (0, 1):
        padded = np.concatenate([np.take(blurred, [0], axis), blurred, np.take(blurred, [-1], axis)], axis)
        count = linear.shape[axis]
        before, after = np.take(padded, range(count), axis), np.take(padded, range(2, count + 2), axis)
        blurred = (before + after) * np.float32(0.13) + blurred * np.float32(0.74)
    mean = np.float32(int((blurred * 4096).astype(np.int64).sum()) / (4096 * blurred.size))  # exact in any order
    exposure = np.sqrt(np.float32(0.2) / np.maximum(mean, np.float32(0.02)))
    value = np.sqrt(np.clip(blurred * np.float32(1.25) * exposure, 0, 1))
    picture: NDArray[np.uint8] = (value * 255 + np.float32(0.5)).astype(np.uint8)
    return picture


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
