"""Arrays in .npy files, alone or packed in a zip (.npz is one), read by bytes: no header is trusted, nothing is
unpickled.
"""

from __future__ import annotations

import math
import os
import threading
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from trainables.data.frames import BadFrame
from trainables.data.pictures import MAX_PIXELS
from trainables.runtime.errors import UserError

MAX_FRAMES: Final = 1 << 16
_HEADER: Final = 4096  # bytes within which a .npy's header ends


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and dtype of a .npy file at its start. Raises ValueError for no header."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns_first, dtype = read(file, max_header_size=_HEADER)
        return shape, columns_first, np.dtype(dtype)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error):
        raise
    except Exception as error:  # NumPy reads a damaged header as Python's source, whose errors are of many kinds
        raise ValueError(_first_line(error)) from error


class Stack:
    """One .npy, in a folder or a zip, read by bytes; its file stays open per process, under a lock."""

    def __init__(self, root: Path, name: str, where: str) -> None:
        self.root, self.name, self.where = root, name, where
        self.shape: tuple[int, ...] = ()
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        self.start = 0
        self._open: tuple[int, IO[bytes]] | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, root: Path, name: str, where: str) -> Stack:
        """Read the header; nothing in it is ever unpickled. Raises UserError for what is no array of plain numbers
        stored row by row, and for one that claims more than MAX_FRAMES frames or 4 * MAX_PIXELS numbers in each.
        """
        stack = cls(root, name, where)
        try:
            file = stack._file()
            stack.shape, columns_first, stack.dtype = read_npy_header(file)
            stack.start = file.tell()
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{where} is truncated or no .npy array ({_first_line(error)}); replace it") from None
        if stack.dtype.kind not in "fiu" or columns_first or not stack.shape:
            held = "Python objects, which are never unpickled" if stack.dtype.hasobject else f"{stack.dtype}"
            raise UserError(f"{where} holds {held}, shape {stack.shape}; store plain numbers, row by row")
        pixels = math.prod(stack.shape[1:])
        if not 0 < stack.shape[0] <= MAX_FRAMES or not 0 < pixels <= 4 * MAX_PIXELS:
            raise UserError(f"{where} claims {stack.dtype} {stack.shape}; refused, replace it")
        return stack

    def size(self) -> int:
        """Bytes of one frame; of the whole array where it has one dimension."""
        return int(np.prod(self.shape[1:] if len(self.shape) > 1 else self.shape)) * self.dtype.itemsize

    def frame(self, index: int) -> Any:
        """One frame. Raises BadFrame."""
        return np.frombuffer(self.part(index * self.size(), self.size()), self.dtype).reshape(self.shape[1:])

    def part(self, offset: int, count: int) -> bytes:
        """Part of the array. Raises BadFrame where the file ends before it or is damaged."""
        with self._lock:
            try:
                file = self._file()
                file.seek(self.start + offset)
                content = file.read(count)
            except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise BadFrame(f"{self.where} is damaged ({_first_line(error)}); replace it") from None
        if len(content) < count:
            raise BadFrame(f"{self.where} is truncated; replace it")
        return content

    def _file(self) -> IO[bytes]:
        if self._open is None or self._open[0] != os.getpid():  # a forked process must not move its parent's place
            if self.root.is_dir():
                file: IO[bytes] = (self.root / self.name).open("rb")
            else:
                file = zipfile.ZipFile(self.root).open(self.name)  # noqa: SIM115 - stays open for the next frame
            self._open = os.getpid(), file
        return self._open[1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open=None, _lock=threading.Lock())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
