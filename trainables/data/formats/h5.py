"""One HDF5 file per frame, the layout of sparse-to-dense and fast-depth: in folders, or in Hugging Face's tar files.

    train/SCENE/00001.h5    `rgb` (3, 480, 640) uint8, `depth` (480, 640) float metres, in-painted
    val/official/00001.h5   the 654 test frames

Hugging Face's copy packs them: train-000000.tar, ... and val-000000.tar, ..., in the root or in data/ below it, which
are read in place. It is another sampling of the raw set than the Kaggle one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from trainables.data.files import CONTENT_LIMIT, FolderFiles
from trainables.data.frames import BadFrame, Depth, FrameList, Kept, Reader, Rgb, scene_name
from trainables.data.hdf5 import checked_depth, dataset, opened, unpacked
from trainables.data.pairs import Absent, root_of
from trainables.data.tar import TarFiles
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig

DEPTHS: Final[tuple[Literal["filled", "raw"], ...]] = ("filled",)
MARK: Final = "train/SCENE/*.h5 or train-*.tar"
FOLDERS: Final = {"train": "train", "test": "val"}
_SHARD: Final = {"train": re.compile(r"train-?[0-9]*\.tar"), "test": re.compile(r"(val|validation|test)-?[0-9]*\.tar")}
_SHARDS_IN: Final = ("", "data/")
_NO_PLACE: Final = frozenset(("official", "train", "val", "validation", "test", "data", ""))


def open_split(data: DataConfig, split: Literal["train", "test"]) -> FrameList:
    """The files of a split, sorted by name. Raises UserError for a root without them."""
    root = root_of(data, "the folder that holds train/ and val/, or the .tar files", DEPTHS, ())
    folder = FolderFiles(root, data.follow_links) if root.is_dir() else None
    if folder is None:
        raise Absent(f"{root} is no folder; set data.root to the folder that holds train/ and val/, or the .tar files")
    files, names = _names(folder, split)
    if not names:
        raise Absent(
            f"{root / FOLDERS[split]} holds no SCENE/*.h5, nor does a {FOLDERS[split]}-*.tar; correct data.root"
        )
    places = [name.rpartition("/")[0].rpartition("/")[2] for name in names]
    scenes = [scene_name(place) if split == "train" and place not in _NO_PLACE else None for place in places]
    return FrameList.of(names, scenes, H5Reader(files, tuple(names)), "filled", data.reach_m)


def _names(folder: FolderFiles, split: Literal["train", "test"]) -> tuple[FolderFiles | TarFiles, list[str]]:
    """Where the files are, and their names."""
    found = [name for name in folder.below(FOLDERS[split]) if name.endswith(".h5")]
    shards = [folder.root / at / name for at in _SHARDS_IN for name in folder.names(at.rstrip("/"))
              if _SHARD[split].fullmatch(name)]  # fmt: skip
    if found and shards:
        raise UserError(f"{folder.root} holds the {split} split twice, unpacked and in {shards[0].name}; remove one")
    if not shards:
        return folder, found
    packed = TarFiles.shards(shards[0].parent, shards)
    return packed, [name for name in packed.below("") if name.endswith(".h5")]


@dataclass(frozen=True)
class H5Reader:
    """Frames by number."""

    files: FolderFiles | TarFiles
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def rgb(self, index: int) -> Rgb:
        with self._opened(index) as (rgb, _):
            return np.ascontiguousarray(rgb[()].transpose(1, 2, 0))

    def depth_m(self, index: int) -> Depth:
        with self._opened(index) as (_, depth):
            return checked_depth(depth[()], f"{self.files.where(self.names[index])}: its depth")

    def check(self, index: int, *, thorough: bool) -> None:
        if not thorough:
            return
        with self._opened(index) as (rgb, depth):
            size = rgb.nbytes + depth.nbytes
        if size * len(self.names) <= CONTENT_LIMIT:
            self.rgb(index)
            self.depth_m(index)

    def digest(self, indices: Sequence[int], *, content: bool = False) -> tuple[str, str]:
        return self.files.digest((self.names[index] for index in indices), content=content)

    def kept(self, indices: Sequence[int]) -> Kept:
        return self.files.kept([self.names[index] for index in indices], pixels=True)

    def kinds(self) -> tuple[Reader, ...]:
        return (self,)

    def steps(self) -> dict[int, float]:
        return {}

    @contextmanager
    def _opened(self, index: int) -> Iterator[tuple[Any, Any]]:
        """The data sets of color and depth. Raises BadFrame."""
        name = self.names[index]
        where = self.files.where(name)
        source: AbstractContextManager[Any]
        if isinstance(self.files, FolderFiles):
            self.files.has(name)  # refuses a link that leads outside
            source = opened(Path(where))
        else:
            source = unpacked(self.files.read(name), where)
        with source as file:
            rgb = dataset(file, "rgb", "u1", (3, None, None), where)
            depth = dataset(file, "depth", "f", (None, None), where)
            if rgb.shape[1:] != depth.shape:
                raise BadFrame(f"{where}: its rgb {rgb.shape} and depth {depth.shape} differ in size; replace it")
            yield rgb, depth
