"""DenseDepth's `nyu_test.zip`: the 654 test frames as arrays, in the archive or unpacked in a folder. Test split only.

    eigen_test_rgb.npy (N, 480, 640, 3) uint8   eigen_test_depth.npy (N, 480, 640) float metres, in-painted
    eigen_test_crop.npy [20, 459, 24, 615]      rows and columns of the protocol's crop, both ends included

Frames are read one at a time; a packed array is unpacked as far as the frame, so read them in order.
"""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np

from trainables.data.files import CONTENT_LIMIT, Files, FolderFiles, ZipFiles
from trainables.data.frames import BadFrame, Depth, FrameList, Kept, Reader, Rgb
from trainables.data.hdf5 import checked_depth
from trainables.data.pairs import Absent, root_of
from trainables.data.pictures import MAX_PIXELS
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig

DEPTHS: Final[tuple[Literal["filled", "raw"], ...]] = ("filled",)
MARK: Final = "eigen_test_rgb.npy"
RGB: Final = "eigen_test_rgb.npy"
DEPTH: Final = "eigen_test_depth.npy"
CROP: Final = "eigen_test_crop.npy"
CROP_VALUES: Final = (20, 459, 24, 615)
_MAX_FRAMES: Final = 1 << 16


def open_split(data: DataConfig, split: Literal["train", "test"]) -> FrameList:
    """The test frames. Raises UserError for the train split, for missing or odd arrays, and for another crop."""
    if split == "train":
        raise Absent("data.source eigen holds test frames only; train on kaggle, bts, labeled, h5 or rooms")
    root = root_of(data, f"nyu_test.zip, or to the folder that holds {RGB}", DEPTHS, ())
    files: Files = FolderFiles(root, data.follow_links) if root.is_dir() else ZipFiles.open(root)
    if not files.has(RGB):
        raise Absent(f"{files.where(RGB)} is missing; data.root must hold {RGB} and {DEPTH}")
    rgb, depth = Stack.open(root, files, RGB, "u", 4), Stack.open(root, files, DEPTH, "f", 3)
    if rgb.shape[:3] != depth.shape or rgb.shape[3] != 3:
        raise UserError(f"{root}: {RGB} {rgb.shape} and {DEPTH} {depth.shape} do not fit (N, H, W, 3) and (N, H, W)")
    if files.has(CROP):
        crop = Stack.open(root, files, CROP, "iu", 1)
        values = np.frombuffer(crop.part(0, crop.size()), crop.dtype).tolist()
        if tuple(values) != CROP_VALUES:
            raise UserError(f"{files.where(CROP)} is {values} where {list(CROP_VALUES)} must be; download it again")
    ids = [f"eigen_test/{i:05d}" for i in range(rgb.shape[0])]
    return FrameList.of(ids, [None] * len(ids), EigenReader(rgb, depth, files), "filled", data.reach_m)


class Stack:
    """One .npy, in a folder or a zip, read by bytes; its file stays open per process, under a lock."""

    def __init__(self, root: Path, name: str, where: str) -> None:
        self.root, self.name, self.where = root, name, where
        self.shape: tuple[int, ...] = ()
        self.dtype = np.dtype(np.uint8)
        self.start = 0
        self._open: tuple[int, IO[bytes]] | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, root: Path, files: Files, name: str, kinds: str, dimensions: int) -> Stack:
        """Read the header; nothing in it is ever unpickled. Raises UserError."""
        if not files.has(name):
            raise UserError(f"{files.where(name)} is missing; data.root must hold {RGB} and {DEPTH}")
        stack = cls(root, name, files.where(name))
        try:
            file = stack._file()
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            stack.shape, columns_first, stack.dtype = read(file)
            stack.start = file.tell()
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{stack.where} is truncated or no .npy array ({_first_line(error)}); replace it") from None
        if stack.dtype.kind not in kinds or columns_first or len(stack.shape) != dimensions:
            raise UserError(f"{stack.where} holds {stack.dtype} {stack.shape}, not the published array; replace it")
        pixels = int(np.prod(stack.shape[1:3]))
        wide = kinds == "u" and stack.dtype != np.uint8
        if wide or not 0 < stack.shape[0] <= _MAX_FRAMES or not 0 < pixels <= MAX_PIXELS:
            raise UserError(f"{stack.where} claims {stack.dtype} {stack.shape}; refused, replace it")
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


@dataclass(frozen=True)
class EigenReader:
    """Frames by number."""

    colour: Stack
    depth: Stack
    files: Files

    def __len__(self) -> int:
        return self.colour.shape[0]

    def rgb(self, index: int) -> Rgb:
        return np.array(self.colour.frame(index))

    def depth_m(self, index: int) -> Depth:
        return checked_depth(self.depth.frame(index), f"{self.depth.where} frame {index}")

    def check(self, index: int, *, thorough: bool) -> None:
        if thorough and (self.colour.size() + self.depth.size()) * len(self) <= CONTENT_LIMIT:
            self.rgb(index)
            self.depth_m(index)

    def digest(self, indices: Sequence[int], *, content: bool = False) -> tuple[str, str]:
        return self.files.digest((RGB, DEPTH), content=content)

    def kept(self, indices: Sequence[int]) -> Kept:
        return self.files.kept((RGB, DEPTH, CROP), pixels=True)

    def kinds(self) -> tuple[Reader, ...]:
        return (self,)

    def steps(self) -> dict[int, float]:
        return {}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
