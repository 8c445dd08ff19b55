"""Surfaces of `rooms`: color as a function of the place on a surface.

Only IEEE-exact operations (+ - * / sqrt floor) and integer hashes are used, so that every machine gets the same bytes.
Detail finer than a pixel fades out, as in a real photograph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """What a surface is made of: a texture of TEXTURES, two colours (linear, 0..1), a length in metres, a seed."""

    kind: str
    a: Colour
    b: Colour
    scale: float
    seed: int
    emission: float = 0.0  # 0: lit by the lamps; 1: shines by itself


@dataclass(frozen=True)
class Surface:
    """Where on a face each pixel lies: u (across), v (up) in metres from the lower corner, of a face su x sv metres.

    `foot` is the width of a pixel on the surface in metres.
    """

    u: Floats
    v: Floats
    su: Floats
    sv: Floats
    foot: Floats


def cells(x: Floats, y: Floats, seed: int) -> Floats:
    """A random number in 0..1 for the integer cell that each (x, y) lies in."""
    ix = np.floor(x).astype(np.int32).view(np.uint32)
    iy = np.floor(y).astype(np.int32).view(np.uint32)
    mixed = ix * np.uint32(374761393) + iy * np.uint32(668265263) + np.uint32(seed * 2246822519 & 0xFFFFFFFF)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(1274126177)
    mixed ^= mixed >> np.uint32(16)
    return (mixed & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)


def noise(x: Floats, y: Floats, seed: int) -> Floats:
    """Smooth random numbers in 0..1 with features one unit wide."""
    fx, fy = x - np.floor(x), y - np.floor(y)
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    lower = cells(x, y, seed) * (1 - fx) + cells(x + 1, y, seed) * fx
    upper = cells(x, y + 1, seed) * (1 - fx) + cells(x + 1, y + 1, seed) * fx
    smooth: Floats = lower * (1 - fy) + upper * fy
    return smooth


def _fade(surface: Surface, period: float) -> Floats:
    """1 where a detail of that period is well resolved, 0 where it is finer than two pixels."""
    kept: Floats = np.clip(1.6 - surface.foot * np.float32(2.2 / period), 0, 1)
    return kept


def _tint(colour: Colour, brightness: Floats) -> Floats:
    tinted: Floats = np.asarray(colour, np.float32) * brightness[:, None]
    return tinted


def _mix(a: Colour, b: Colour, share: Floats) -> Floats:
    first, second = np.asarray(a, np.float32), np.asarray(b, np.float32)
    mixed: Floats = first + (second - first) * share[:, None]
    return mixed


def _line(x: Floats, period: float, width: Floats) -> Floats:
    """1 on lines at multiples of `period`, anti-aliased by `width` (metres), else 0."""
    distance = np.abs(x - np.floor(x / period + np.float32(0.5)) * np.float32(period))
    drawn: Floats = np.clip(1.5 - distance / width, 0, 1) * np.clip(np.float32(0.4 * period) / width, 0, 1)
    return drawn


def _inside(surface: Surface, left: float, right: float, low: float, high: float) -> Floats:
    """1 inside a rectangle given in shares of the face, soft over a pixel."""
    foot = np.maximum(surface.foot, 1e-4)
    u, v = surface.u, surface.v
    edge_u = np.minimum(u - left * surface.su, right * surface.su - u)
    edge_v = np.minimum(v - low * surface.sv, high * surface.sv - v)
    return np.clip(np.minimum(edge_u, edge_v) / foot + 0.5, 0, 1)


def paint(s: Surface, m: Material) -> Floats:
    return _tint(m.a, 0.97 + 0.06 * (noise(s.u * 1.3, s.v * 1.3, m.seed) - 0.5))


def stripes(s: Surface, m: Material) -> Floats:
    phase = s.u / m.scale - np.floor(s.u / m.scale)
    soft = np.clip((0.25 - np.abs(phase - 0.5)) * m.scale / np.maximum(s.foot, 1e-3) + 0.5, 0, 1)
    return _mix(m.a, m.b, 0.5 + (soft - 0.5) * _fade(s, m.scale))


def dots(s: Surface, m: Material) -> Floats:
    row = np.floor(s.v / m.scale)
    shifted = s.u / m.scale + 0.5 * (row - 2 * np.floor(row / 2))
    du, dv = shifted - np.floor(shifted) - 0.5, s.v / m.scale - row - 0.5
    distance = np.sqrt(du * du + dv * dv)
    soft = np.clip((0.27 - distance) * m.scale / np.maximum(s.foot, 1e-3) + 0.5, 0, 1)
    return _mix(m.a, m.b, soft * _fade(s, m.scale))


def brick(s: Surface, m: Material) -> Floats:
    high = m.scale / 3
    row = np.floor(s.v / high)
    u = s.u + 0.5 * m.scale * (row - 2 * np.floor(row / 2))
    tone = 0.8 + 0.4 * cells(u / m.scale, row, m.seed)
    width = np.maximum(s.foot, 0.008)
    mortar = np.maximum(_line(u, m.scale, width), _line(s.v, high, width)) * _fade(s, high)
    return _tint(m.a, tone) * (1 - mortar[:, None]) + np.asarray(m.b, np.float32) * mortar[:, None]


def wainscot(s: Surface, m: Material) -> Floats:
    upper = paint(s, m)
    lower = _tint(m.b, 1 - 0.35 * _line(s.u, m.scale, np.maximum(s.foot, 0.006)) * _fade(s, m.scale))
    share = np.clip((1.0 - s.v) / np.maximum(s.foot, 1e-3) + 0.5, 0, 1)[:, None]
    rail = (np.abs(s.v - 1.0) < 0.03)[:, None]
    return (upper * (1 - share) + lower * share) * np.where(rail, np.float32(0.8), np.float32(1))


def skirted(texture: Callable[[Surface, Material], Floats]) -> Callable[[Surface, Material], Floats]:
    """A wall with a white skirting board."""

    def wall(s: Surface, m: Material) -> Floats:
        share = np.clip((0.09 - s.v) / np.maximum(s.foot, 1e-3) + 0.5, 0, 1)[:, None]
        return texture(s, m) * (1 - share) + np.float32(0.78) * share

    return wall


def boards(s: Surface, m: Material) -> Floats:
    row = np.floor(s.v / m.scale)
    length = 8.0 * m.scale
    u = s.u + length * cells(row, row, m.seed + 7)
    tone = 0.78 + 0.44 * cells(u / length, row, m.seed)
    grain = 1 + 0.30 * (noise(u * 3.0, s.v / m.scale * 9.0, m.seed) - 0.5) * _fade(s, m.scale / 3)
    width = np.maximum(s.foot, 0.004)
    seam = np.maximum(_line(s.v, m.scale, width), _line(u, length, width)) * _fade(s, m.scale)
    return _tint(m.a, tone * grain * (1 - 0.55 * seam))


def tiles(s: Surface, m: Material) -> Floats:
    row, column = np.floor(s.v / m.scale), np.floor(s.u / m.scale)
    odd = (row + column) - 2 * np.floor((row + column) / 2)
    tone = 0.92 + 0.16 * cells(column, row, m.seed)
    width = np.maximum(s.foot, 0.006)
    grout = np.maximum(_line(s.u, m.scale, width), _line(s.v, m.scale, width)) * _fade(s, m.scale)
    return _mix(m.a, m.b, odd) * (tone * (1 - 0.5 * grout))[:, None]


def carpet(s: Surface, m: Material) -> Floats:
    fine = (cells(s.u * 60, s.v * 60, m.seed) - 0.5) * _fade(s, 0.03)
    coarse = (noise(s.u * 9, s.v * 9, m.seed + 1) - 0.5) * _fade(s, 0.11)
    large = noise(s.u * 1.7, s.v * 1.7, m.seed + 2) - 0.5
    return _tint(m.a, 1 + 0.35 * fine + 0.30 * coarse + 0.18 * large)


def rug(s: Surface, m: Material) -> Floats:
    border = _inside(s, 0.06, 0.94, 0.06, 0.94) - _inside(s, 0.11, 0.89, 0.11, 0.89)
    step = m.scale
    lattice = np.abs(s.u / step - np.floor(s.u / step) - 0.5) + np.abs(s.v / step - np.floor(s.v / step) - 0.5)
    diamond = np.clip((0.32 - lattice) * step / np.maximum(s.foot, 1e-3) + 0.5, 0, 1) * _fade(s, step)
    return _mix(m.a, m.b, np.clip(border + 0.7 * diamond * _inside(s, 0.14, 0.86, 0.14, 0.86), 0, 1))


def panels(s: Surface, m: Material) -> Floats:
    width = np.maximum(s.foot, 0.012)
    grid = np.maximum(_line(s.u, m.scale, width), _line(s.v, m.scale, width)) * _fade(s, m.scale)
    return _tint(m.a, 1 - 0.35 * grid)


def wood(s: Surface, m: Material) -> Floats:
    along = s.su > s.sv
    long, across = np.where(along, s.u, s.v), np.where(along, s.v, s.u)
    return _tint(m.a, 0.86 + 0.28 * noise(long * 3, across * 45, m.seed) * _fade(s, 0.05) + 0.14 * _fade(s, 0.3))


def fabric(s: Surface, m: Material) -> Floats:
    weave = (cells(s.u * 90, s.v * 90, m.seed) - 0.5) * _fade(s, 0.02)
    folds = noise(s.u * 5, s.v * 5, m.seed) - 0.5
    seams = 1 - _inside(s, 0.02, 0.98, 0.05, 0.95)
    return _tint(m.a, 1 + 0.3 * weave + 0.16 * folds - 0.22 * seams)


def spread(s: Surface, m: Material) -> Floats:
    squares = 0.5 * (_line(s.u, m.scale, np.maximum(s.foot, 0.03)) + _line(s.v, m.scale, np.maximum(s.foot, 0.03)))
    return _mix(m.a, m.b, np.clip(squares, 0, 1)) * (0.92 + 0.16 * noise(s.u * 4, s.v * 4, m.seed))[:, None]


def curtain(s: Surface, m: Material) -> Floats:
    phase = s.u / m.scale - np.floor(s.u / m.scale)
    return _tint(m.a, 0.72 + 0.56 * (4 * phase * (1 - phase)) * (0.7 + 0.3 * noise(s.u * 6, s.v, m.seed)))


def books(s: Surface, m: Material) -> Floats:
    """Spines of many colours, each of its own height, the dark back of the shelf above them."""
    x = s.u / m.scale
    high = 0.68 + 0.3 * cells(x, 0 * x, m.seed)
    red, green, blue = (0.12 + 0.6 * cells(x, 0 * x + k, m.seed) for k in (3, 5, 7))
    spine = np.stack([red, 0.8 * green, 0.8 * blue], 1) * (0.75 + 0.25 * _fade(s, m.scale))[:, None]
    edge = 1 - 0.5 * _line(s.u, m.scale, np.maximum(s.foot, 0.003)) * _fade(s, m.scale)
    bright = np.where(s.v / s.sv < high, edge, np.float32(0.12))
    coloured: Floats = spine.astype(np.float32) * bright[:, None]
    return coloured


def door(s: Surface, m: Material) -> Floats:
    lines = np.zeros_like(s.u)
    for low, high in ((0.06, 0.44), (0.52, 0.94)):
        lines += _inside(s, 0.14, 0.86, low, high) - 0.94 * _inside(s, 0.19, 0.81, low + 0.025, high - 0.025)
    return wood(s, m) * (1 - 0.45 * np.clip(lines, 0, 1))[:, None]


def cupboard(s: Surface, m: Material) -> Floats:
    """A front divided into doors `scale` wide, each with its seam and handle."""
    count = np.maximum(np.floor(s.su / m.scale + 0.5), 1)
    period = s.su / count
    phase = s.u / period - np.floor(s.u / period)
    width = np.maximum(s.foot, 0.006)
    seam = np.clip(1.5 - np.minimum(phase, 1 - phase) * period / width, 0, 1)
    handle = (np.abs(phase - 0.86) * period < np.maximum(0.012, s.foot / 2)) & (np.abs(s.v / s.sv - 0.55) < 0.09)
    colour = wood(s, m) * (1 - 0.6 * seam)[:, None]
    return np.where(handle[:, None], np.asarray(m.b, np.float32), colour)


def window(s: Surface, m: Material) -> Floats:
    """Sky over a horizon of trees and houses, behind glass."""
    up = s.v / s.sv
    sky = _mix((0.86, 0.92, 1.0), m.a, np.clip(up, 0, 1))
    skyline = 0.32 + 0.25 * cells(s.u * 3, 0 * s.u, m.seed) * cells(s.u * 3, 0 * s.u, m.seed + 1)
    outside = _tint(m.b, 0.7 + 0.5 * noise(s.u * 8, s.v * 8, m.seed))
    return np.where((up < skyline)[:, None], outside, sky)


def picture(s: Surface, m: Material) -> Floats:
    """A framed painting: a landscape or coloured fields."""
    inner = _inside(s, 0.1, 0.9, 0.1, 0.9)[:, None]
    hills = 0.35 + 0.4 * noise(s.u * 5, 0 * s.u, m.seed)
    up = s.v / s.sv
    land = np.where((up < hills)[:, None], _tint(m.a, 0.7 + 0.6 * up), _tint(m.b, 1.2 - 0.5 * up))
    fields = np.stack([cells(s.u * 5 / s.su, s.v * 4 / s.sv, m.seed + k) for k in range(3)], 1)
    content = land if m.seed % 2 else 0.1 + 0.7 * fields
    frame = np.float32(0.05 + 0.25 * (m.seed % 3))
    return (content * inner + frame * (1 - inner)).astype(np.float32)


def leaves(s: Surface, m: Material) -> Floats:
    fine = 1.1 * cells(s.u * 22, s.v * 22, m.seed) * _fade(s, 0.06)
    return _tint(m.a, 0.35 + fine + 0.4 * noise(s.u * 7, s.v * 7, m.seed))


def screen(s: Surface, m: Material) -> Floats:
    inner = _inside(s, 0.04, 0.96, 0.06, 0.94)[:, None]
    glare = _mix(m.a, m.b, np.clip(s.u / s.su * 0.6 + s.v / s.sv * 0.5 - 0.3, 0, 1))
    return glare * inner + np.float32(0.03) * (1 - inner)


def plain(s: Surface, m: Material) -> Floats:
    return _tint(m.a, np.ones_like(s.u))


TEXTURES: dict[str, Callable[[Surface, Material], Floats]] = {
    "paint": skirted(paint), "stripes": skirted(stripes), "dots": skirted(dots), "brick": skirted(brick),
    "wainscot": skirted(wainscot), "ceiling": paint, "panels": panels, "boards": boards, "tiles": tiles,
    "carpet": carpet, "rug": rug, "wood": wood, "fabric": fabric, "spread": spread, "curtain": curtain, "books": books,
    "door": door, "cupboard": cupboard, "window": window, "picture": picture, "leaves": leaves, "screen": screen,
    "plain": plain,
}  # fmt: skip
