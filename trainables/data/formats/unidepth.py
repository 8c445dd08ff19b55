"""UniDepth's `nyuv2.hdf5`: encoded files, and the lists that name them, as data sets of bytes in one HDF5 file.

    nyu_train.txt, nyu_test.txt   uint8 text, lines `image depth focal`; image and depth name data sets of the same file

Depth is raw, 16-bit millimetres. A training frame's scene is its folder; test frames are numbered as in BTS's copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import h5py
import numpy as np

from trainables.data.depth_coding import DepthCoding
from trainables.data.files import MAX_BYTES, is_litter
from trainables.data.formats.bts import scenes
from trainables.data.frames import BadFrame, FrameList, Kept
from trainables.data.hdf5 import opened
from trainables.data.lists import find_list, match
from trainables.data.pairs import Absent, PairReader, root_of
from trainables.settings.config import DataConfig

DEPTHS: Final[tuple[Literal["filled", "raw"], ...]] = ("raw",)
MARK: Final = "nyuv2.hdf5"
FILE: Final = "nyuv2.hdf5"
LISTS: Final = {"train": "nyu_train.txt", "test": "nyu_test.txt"}
_SUFFIXES: Final = (".hdf5", ".h5")


def open_split(data: DataConfig, split: Literal["train", "test"]) -> FrameList:
    """The frames of the list in the file. Raises UserError."""
    root = root_of(data, f"{FILE} or its folder", DEPTHS, ("lists", "depth_scale", "hole_values"))
    path = root / FILE if root.is_dir() else root
    if not path.is_file() or path.suffix not in _SUFFIXES:
        raise Absent(f"{path} is missing or no HDF5 file; set data.root to {FILE} or its folder")
    files = Hdf5Files.open(path)
    named = data.lists.train if split == "train" else data.lists.test
    found = find_list(files, named, [LISTS[split]], f"data.lists.{split}")
    if found is None:
        raise Absent(f"{files.where(LISTS[split])} is missing; set data.root to UniDepth's {FILE}")
    listed = match(files, found)
    pairs = tuple(zip(listed.color, listed.depth, strict=True))
    reader = PairReader(files, pairs, DepthCoding.of(data), (found.name,) if found.name else ())
    return FrameList.of(listed.color, scenes(listed.color, path, split), reader, "raw", data.reach_m)


@dataclass(frozen=True)
class Hdf5Files:
    """Data sets of bytes of one HDF5 file as files by name; links of any kind, and data outside of it, are refused."""

    path: Path
    sizes: dict[str, int] = field(repr=False, hash=False)

    @classmethod
    def open(cls, path: Path) -> Hdf5Files:
        """Read the names. Raises BadFrame for a damaged file."""
        status = path.stat()
        return cls(path, _sizes(path, status.st_size, status.st_mtime_ns))

    def has(self, name: str) -> bool:
        return name in self.sizes

    def below(self, folder: str) -> list[str]:
        start = f"{folder}/" if folder else ""
        return sorted(name for name in self.sizes if name.startswith(start) and not is_litter(name))

    def read(self, name: str) -> bytes:
        where, size = self.where(name), self.sizes.get(name)
        if size is None:
            raise BadFrame(f"{where} is missing or no data set of bytes in the file itself; exclude the frame")
        if size > MAX_BYTES:
            raise BadFrame(f"{where} claims {size} bytes; refused")
        with opened(self.path) as file:
            return np.asarray(file[name][()], np.uint8).tobytes().rstrip(b"\0" if name.endswith(".txt") else b"")

    def where(self, name: str) -> str:
        return f"{self.path}:{name}"

    def digest(self, names: Iterable[str], *, content: bool) -> tuple[str, str]:
        digest = hashlib.sha256()
        for name in names:
            if self.has(name):
                known = hashlib.sha256(self.read(name)).hexdigest() if content else str(self.sizes[name])
                digest.update(f"{name} {known}\n".encode(errors="surrogateescape"))
        return digest.hexdigest(), "content" if content else "names and sizes in the file"

    def kept(self, names: Iterable[str], *, pixels: bool) -> Kept:
        return Kept(self.path, (self.path.name,), () if pixels else tuple(names), self.read, pixels)


@lru_cache(maxsize=2)
def _sizes(path: Path, size: int, mtime_ns: int) -> dict[str, int]:
    """Name -> bytes of the plain data sets. Links are not followed: a hard link is the only way to one."""
    found: dict[str, int] = {}

    def note(name: str, node: Any) -> None:
        plain = isinstance(node, h5py.Dataset) and not node.external and not node.is_virtual
        if plain and node.dtype == np.uint8 and node.ndim == 1:
            found[name] = int(node.size)

    with opened(path) as file:
        file.visititems(note)
    return found
