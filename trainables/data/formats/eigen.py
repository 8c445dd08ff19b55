"""DenseDepth's `nyu_test.zip`: the 654 test frames as arrays, in the archive or unpacked in a folder. Test split only.

    eigen_test_rgb.npy (N, 480, 640, 3) uint8   eigen_test_depth.npy (N, 480, 640) float metres, in-painted
    eigen_test_crop.npy [20, 459, 24, 615]      rows and columns of the protocol's crop, both ends included

Frames are read one at a time; a packed array is unpacked as far as the frame, so read them in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from trainables.data.files import CONTENT_LIMIT, Files, FolderFiles, ZipFiles
from trainables.data.frames import Depth, FrameList, Kept, Reader, Rgb
from trainables.data.hdf5 import checked_depth
from trainables.data.npy import Stack
from trainables.data.pairs import Absent, root_of
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig

DEPTHS: Final[tuple[Literal["filled", "raw"], ...]] = ("filled",)
MARK: Final = "eigen_test_rgb.npy"
RGB: Final = "eigen_test_rgb.npy"
DEPTH: Final = "eigen_test_depth.npy"
CROP: Final = "eigen_test_crop.npy"
CROP_VALUES: Final = (20, 459, 24, 615)


def open_split(data: DataConfig, split: Literal["train", "test"]) -> FrameList:
    """The test frames. Raises UserError for the train split, for missing or odd arrays, and for another crop."""
    if split == "train":
        raise Absent("data.source eigen holds test frames only; train on kaggle, bts, labeled, h5 or rooms")
    root = root_of(data, f"nyu_test.zip, or to the folder that holds {RGB}", DEPTHS, ())
    files: Files = FolderFiles(root, data.follow_links) if root.is_dir() else ZipFiles.open(root)
    if not files.has(RGB):
        raise Absent(f"{files.where(RGB)} is missing; data.root must hold {RGB} and {DEPTH}")
    rgb, depth = _opened(root, files, RGB, "u", 4), _opened(root, files, DEPTH, "f", 3)
    if rgb.shape[:3] != depth.shape or rgb.shape[3] != 3:
        raise UserError(f"{root}: {RGB} {rgb.shape} and {DEPTH} {depth.shape} do not fit (N, H, W, 3) and (N, H, W)")
    if files.has(CROP):
        crop = _opened(root, files, CROP, "iu", 1)
        values = np.frombuffer(crop.part(0, crop.size()), crop.dtype).tolist()
        if tuple(values) != CROP_VALUES:
            raise UserError(f"{files.where(CROP)} is {values} where {list(CROP_VALUES)} must be; download it again")
    ids = [f"eigen_test/{i:05d}" for i in range(rgb.shape[0])]
    return FrameList.of(ids, [None] * len(ids), EigenReader(rgb, depth, files), "filled", data.reach_m)


def _opened(root: Path, files: Files, name: str, kinds: str, dimensions: int) -> Stack:
    """One of the published arrays. Raises UserError where it is missing or another."""
    if not files.has(name):
        raise UserError(f"{files.where(name)} is missing; data.root must hold {RGB} and {DEPTH}")
    stack = Stack.open(root, name, files.where(name))
    if stack.dtype.kind not in kinds or len(stack.shape) != dimensions or (kinds == "u" and stack.dtype != np.uint8):
        raise UserError(f"{stack.where} holds {stack.dtype} {stack.shape}, not the published array; replace it")
    return stack


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
