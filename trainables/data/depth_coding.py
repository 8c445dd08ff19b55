"""Coding of a depth map in its file: units, holes and the largest depth, by file type and by the data's settings.

    PNG, 8 bits     value / 255 * largest depth
    PNG, 16 bits    value / data.depth_scale: 1000 for millimetres, 256 for KITTI's, 5000 for TUM's
    NPY, TIFF       floating point: metres; whole numbers: as 16-bit PNG
    logarithmic     MoGe's 16-bit PNG: 1 to 65534 are equal steps of log depth between `near` and `far` of its text

0, `data.hole_values` and, in floating point, what is not a positive number mean no depth.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainables.data.frames import BadFrame, Depth
from trainables.data.hdf5 import MAX_SENSIBLE_M, checked_depth
from trainables.data.npy import read_npy_header
from trainables.data.pictures import MAX_PIXELS, check_complete, check_depth, decode_grey, read_header
from trainables.settings.config import DataConfig

MILLIMETRES: Final = 1000.0  # steps per metre
_NPY: Final = b"\x93NUMPY"
_TIFF: Final = (b"II*\0", b"MM\0*")
_LEVELS: Final = 65533  # steps between MoGe's 1 and 65534


@dataclass(frozen=True)
class DepthCoding:
    """What stored values mean. depth_scale: steps per metre of 16 bits; None: millimetres."""

    depth_scale: float | None
    max_depth_m: float
    hole_values: tuple[float, ...]
    logarithmic: bool = False

    @classmethod
    def of(cls, data: DataConfig, *, logarithmic: bool = False) -> DepthCoding:
        """The coding that the settings say."""
        return cls(data.depth_scale, data.reach_m, data.hole_values, logarithmic)

    def steps(self) -> dict[int, float]:
        """Steps per metre by bit depth; empty for a coding without equal steps."""
        return {} if self.logarithmic else {8: 255 / self.max_depth_m, 16: self.depth_scale or MILLIMETRES}

    def check(self, content: bytes, name: str) -> tuple[int, int]:
        """Columns and rows, from the header. Raises BadFrame for what shows without decoding."""
        if content.startswith((_NPY, *_TIFF)):
            values = self._values(content, name)
            return values.shape[1], values.shape[0]
        header = read_header(content, name)
        check_depth(header, name)
        check_complete(header, content, name)
        return header.width, header.height

    def decode(self, content: bytes, name: str) -> Depth:
        """Depth (H, W) float32 in metres, 0 = hole, of a whole file. Raises BadFrame."""
        if self.logarithmic:
            return _decode_logarithmic(content, name, self.hole_values)
        values = self._values(content, name)
        if values.dtype.kind == "f":
            return self._of_metres(values, name)
        steps = self.steps()[8 * values.dtype.itemsize]
        depth: Depth = np.divide(values, steps, dtype=np.float32)
        for value in self.hole_values:
            depth[values == value] = 0
        return depth

    def _values(self, content: bytes, name: str) -> npt.NDArray[Any]:
        if content.startswith(_NPY):
            return _decode_npy(content, name)
        if content.startswith(_TIFF):
            return _decode_tiff(content, name)
        return decode_grey(content, name)

    def _of_metres(self, values: npt.NDArray[Any], name: str) -> Depth:
        known = np.isfinite(values) & (values > 0)
        for value in self.hole_values:
            known &= values != value
        return checked_depth(np.where(known, values, 0), name, max(MAX_SENSIBLE_M, self.max_depth_m))


def _decode_npy(content: bytes, name: str) -> npt.NDArray[Any]:
    """An array (H, W) of floats or of 8 or 16 bits, of whole content; nothing is unpickled."""
    file = io.BytesIO(content)
    try:
        shape, columns_first, dtype = read_npy_header(file)
    except (ValueError, EOFError, OSError) as error:
        raise BadFrame(f"{name} is no .npy array ({_first_line(error)}); replace it") from None
    sides = tuple(length for length in shape if length != 1) if len(shape) == 3 else shape
    size = math.prod(shape)
    if not (dtype.kind == "f" or dtype in (np.uint8, np.uint16)) or len(sides) != 2 or not 0 < size <= MAX_PIXELS:
        raise BadFrame(f"{name} holds {dtype} {shape} where depth (H, W) of floats or 16 bits must be; convert it")
    body = content[file.tell() :]
    if len(body) != size * dtype.itemsize:
        raise BadFrame(f"{name} is truncated; replace it")
    return np.frombuffer(body, dtype).reshape(sides, order="F" if columns_first else "C")


def _decode_tiff(content: bytes, name: str) -> npt.NDArray[Any]:
    """A TIFF (H, W) of floats or of 16 bits."""
    try:
        with Image.open(io.BytesIO(content), formats=["TIFF"]) as image:
            if image.mode not in ("F", "I;16", "I;16B", "L") or not 0 < image.width * image.height <= MAX_PIXELS:
                raise BadFrame(f"{name} is a TIFF of {image.mode} {image.size} where one channel of floats or 16 bits "
                               "must be; convert it")  # fmt: skip
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, Image.DecompressionBombError) as error:
        raise BadFrame(f"{name} is truncated or damaged ({_first_line(error)}); replace it") from None
    return values if values.dtype.kind == "f" or values.dtype.itemsize == 1 else values.astype(np.uint16)


def _decode_logarithmic(content: bytes, name: str, holes: tuple[float, ...]) -> Depth:
    """MoGe's code (microsoft/MoGe, moge/utils/io.py): near^(1 - s) * far^s, s = (value - 1) / 65533; 0 is no depth and
    65535 beyond measure. Older files carry the unit of near and far in metres as `unit`.
    """
    values = decode_grey(content, name)
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            near, far, unit = (float(image.info.get(key, default)) for key, default in _MOGE_TEXT)
    except (OSError, SyntaxError, ValueError, TypeError) as error:
        raise BadFrame(f"{name} has no text with its near and far ({_first_line(error)}); replace it") from None
    if values.dtype != np.uint16 or not 0 < near <= far < math.inf or not 0 < unit < math.inf:
        raise BadFrame(f"{name} is no logarithmic depth of 16 bits (near {near:g}, far {far:g}); replace it")
    share = (values.astype(np.float64) - 1) / _LEVELS
    depth = unit * near ** (1 - share) * far**share
    hole = (values == 0) | (values == 65535) | np.isin(values, holes)
    return checked_depth(np.where(hole, 0, depth), name)


_MOGE_TEXT: Final = (("near", math.nan), ("far", math.nan), ("unit", 1.0))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
