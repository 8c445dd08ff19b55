"""Safe reading of foreign HDF5 files: only plain data sets stored in the file itself.

HDF5 can point elsewhere in four ways (soft and external links, external storage, virtual data sets), and h5py follows
each silently. All are refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from trainables.data.frames import BadFrame, Depth
from trainables.data.pictures import MAX_PIXELS
from trainables.data.stand_in import stand_in, stand_in_at

_KINDS: Final = {"f": "float", "u1": "uint8", "O": "references"}
MAX_SENSIBLE_M: Final = 100.0  # what exceeds it is not a depth in metres


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, for reading. Raises BadFrame where it is missing, truncated or damaged, then or while it is read."""
    if not path.is_file():
        raise BadFrame(f"{path} is missing; restore it or exclude the frame")
    with _opened(path, str(path)) as file:
        yield file


@contextmanager
def unpacked(content: bytes, name: str) -> Iterator[Any]:
    """A whole file's content, an archive's member, for reading. Raises BadFrame as `opened` does."""
    with _opened(io.BytesIO(content), name) as file:
        yield file


@contextmanager
def _opened(source: Path | io.BytesIO, name: str) -> Iterator[Any]:
    try:
        with h5py.File(source, "r", locking=False) as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py's ways to say that
        what = stand_in_at(source) if isinstance(source, Path) else stand_in(source.getvalue())
        what = what or f"is truncated, damaged or no HDF5 file ({_first_line(error)})"
        raise BadFrame(f"{name} {what}; replace it") from None


def dataset(file: Any, key: str, dtypes: str, shape: tuple[int | None, ...], where: str | None = None) -> Any:
    """A data set of the file itself. Raises BadFrame if it is missing, a link of any kind, or without a dtype of the
    kind `dtypes` ('f': any float, 'u1': uint8, 'O': references) and the shape (None: any length). `where`: the name
    to show of a file that has none.
    """
    name = f"{where or file.filename}: its {key}"
    link = file.get(key, getlink=True)
    if link is None:
        raise BadFrame(f"{name} is missing; the file holds {', '.join(list(file)[:8]) or 'nothing'}")
    if not isinstance(link, h5py.HardLink):
        raise BadFrame(f"{name} is a link; refused, store the values in the file")
    values = file[key]
    if not isinstance(values, h5py.Dataset) or values.external or values.is_virtual:
        raise BadFrame(f"{name} is not stored in the file; refused, store the values in it")
    if values.dtype.kind != dtypes[0] or (dtypes[1:] and values.dtype.itemsize != int(dtypes[1:])):
        raise BadFrame(f"{name} holds {values.dtype} where {_KINDS[dtypes]} must be")
    wrong = len(values.shape) != len(shape) or any(
        want not in (None, have) for have, want in zip(values.shape, shape, strict=False)
    )
    if wrong or int(np.prod(values.shape[-2:])) > MAX_PIXELS:
        expected = " x ".join("any" if length is None else str(length) for length in shape)
        raise BadFrame(f"{name} has shape {values.shape} where {expected} must be")
    return values


def checked_depth(depth_m: npt.NDArray[Any], name: str, limit_m: float = MAX_SENSIBLE_M) -> Depth:
    """Depth as contiguous float32. Raises BadFrame for NaN, infinite or negative depth, or what cannot be metres."""
    if not (depth_m.min() >= 0 and depth_m.max() <= limit_m):  # NaN compares false
        what = "NaN" if np.isnan(depth_m).any() else f"{depth_m.min():g} to {depth_m.max():g}"
        raise BadFrame(f"{name} holds {what} where depth in metres must be; replace it or exclude the frame")
    return np.ascontiguousarray(depth_m, dtype=np.float32)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
