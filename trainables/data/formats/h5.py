"""One HDF5 file per frame, the layout of sparse-to-dense and fast-depth.

    train/SCENE/00001.h5    `rgb` (3, 480, 640) uint8, `depth` (480, 640) float metres, in-painted
    val/official/00001.h5   the 654 test frames

It is another sampling of the raw set than the Kaggle one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import numpy as np

from trainables.data.files import CONTENT_LIMIT, FolderFiles
from trainables.data.frames import BadFrame, Depth, FrameList, Kept, Reader, Rgb, scene_name
from trainables.data.hdf5 import checked_depth, dataset, opened
from trainables.data.pictures import MAX_DEPTH_M
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig

FOLDERS: Final = {"train": "train", "test": "val"}


def open_split(data: DataConfig, split: Literal["train", "test"]) -> FrameList:
    """The files of a split, sorted by name. Raises UserError for a root without them."""
    if data.root is None:
        raise UserError("data.root is null; set it to the folder that holds train/ and val/")
    if data.depth != "filled" or data.split != "official":
        raise UserError("data.depth and data.split must be filled and official: h5 holds nothing else")
    files = FolderFiles(Path(data.root))
    top = files.root / FOLDERS[split]
    if not top.is_dir():
        raise UserError(f"{top} is missing; data.root must hold train/SCENE/*.h5 and val/official/*.h5")
    scenes = sorted(folder.name for folder in top.iterdir() if folder.is_dir())
    folders = [f"{FOLDERS[split]}/{scene}" for scene in scenes]
    names = [f"{folder}/{name}" for folder in folders for name in files.names(folder) if name.endswith(".h5")]
    if not names:
        raise UserError(f"{top} holds no SCENE/*.h5; download the data again")
    places = [scene_name(PurePosixPath(name).parent.name) if split == "train" else None for name in names]
    return FrameList.of(names, places, H5Reader(files, tuple(names)), "filled", MAX_DEPTH_M)


@dataclass(frozen=True)
class H5Reader:
    """Frames by number."""

    files: FolderFiles
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def rgb(self, index: int) -> Rgb:
        with opened(self._path(index)) as file:
            return np.ascontiguousarray(self._pair(file)[0][()].transpose(1, 2, 0))

    def depth_m(self, index: int) -> Depth:
        with opened(self._path(index)) as file:
            return checked_depth(self._pair(file)[1][()], f"{self._path(index)}: its depth")

    def check(self, index: int, *, thorough: bool) -> None:
        if not thorough:
            return
        path = self._path(index)
        with opened(path) as file:
            self._pair(file)
        if path.stat().st_size * len(self.names) <= CONTENT_LIMIT:
            self.rgb(index)
            self.depth_m(index)

    def digest(self, indices: Sequence[int], *, content: bool = False) -> tuple[str, str]:
        return self.files.digest((self.names[index] for index in indices), content=content)

    def kept(self, indices: Sequence[int]) -> Kept:
        return self.files.kept([self.names[index] for index in indices], pixels=True)

    def kinds(self) -> tuple[Reader, ...]:
        return (self,)

    def _path(self, index: int) -> Path:
        return self.files.root / self.names[index]

    @staticmethod
    def _pair(file: Any) -> tuple[Any, Any]:
        rgb = dataset(file, "rgb", "u1", (3, None, None))
        depth = dataset(file, "depth", "f", (None, None))
        if rgb.shape[1:] != depth.shape:
            raise BadFrame(f"{file.filename}: its rgb {rgb.shape} and depth {depth.shape} differ in size; replace it")
        return rgb, depth
