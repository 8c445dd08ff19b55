"""The Kaggle / DenseDepth layout (`nyu_data.zip`), as a folder or as the archive itself, read in place.

    data/nyu2_train.csv   lines `data/nyu2_train/SCENE_out/N.jpg,data/nyu2_train/SCENE_out/N.png`, no header
    data/nyu2_test.csv    lines `data/nyu2_test/NNNNN_colors.png,data/nyu2_test/NNNNN_depth.png`
    data/scenes.csv       optional, ours: lines `colour path,scene`

Where scenes.csv is absent, a training frame's scene is its folder's name without the take's letter: NYU's
bookstore_0001d_out and bookstore_0001e_out are one place. Test frames then have no scene, except where
nyu_depth_v2_labeled.mat lies beside `data`: NNNNN counts its frames.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from trainables.data.files import Files, FolderFiles, ZipFiles, safe_name
from trainables.data.formats.labeled import frame_scenes
from trainables.data.frames import BadFrame, Depth, FrameList, Kept, Reader, Rgb, scene_name
from trainables.data.pictures import (
    MAX_DEPTH_M,
    check_complete,
    check_depth,
    check_rgb,
    decode_depth,
    decode_rgb,
    read_header,
)
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig

ARCHIVE: Final = "nyu_data.zip"
LABELED: Final = "nyu_depth_v2_labeled.mat"
LISTS: Final = {"train": "data/nyu2_train.csv", "test": "data/nyu2_test.csv"}
SCENES: Final = "data/scenes.csv"
_PREFIXES: Final = ("", "nyu_data/")  # Kaggle's own archive has one more level
_TEST_NUMBER: Final = re.compile(r"(\d{5})_colors\.png$")


def open_split(data: DataConfig, split: Literal["train", "test"]) -> FrameList:
    """The list's frames. Raises UserError for a root without lists, a bad line or settings this form cannot meet."""
    if data.root is None:
        raise UserError("data.root is null; set it to the folder that holds data/nyu2_train.csv, or to nyu_data.zip")
    if data.depth != "filled" or data.split != "official":
        raise UserError(f"data.depth and data.split must be filled and official: {data.source} holds nothing else")
    return open_root(Path(data.root), split)


def open_root(root: Path, split: Literal["train", "test"]) -> FrameList:
    """The frames of a split below a folder, or in an archive."""
    files = open_files(root)
    name = LISTS[split]
    if not files.has(name):
        raise UserError(f"{files.where(name)} is missing; data.root must hold both data/nyu2_*.csv")
    pairs = _read_pairs(files, name)
    if not pairs:
        raise UserError(f"{files.where(name)} lists no frames; download the data again")
    ids = [rgb for rgb, _ in pairs]
    return FrameList.of(ids, _scenes(files, root, ids, split), KaggleReader(files, tuple(pairs)), "filled", MAX_DEPTH_M)


def open_files(root: Path) -> Files:
    """The files below the level that holds `data`. Raises UserError where there is none."""
    if root.is_dir():
        for prefix in _PREFIXES:
            if any((root / prefix / name).exists() for name in LISTS.values()):
                return FolderFiles(root / prefix)
        if not (root / ARCHIVE).is_file():
            raise UserError(
                f"{root} holds neither data/nyu2_train.csv nor {ARCHIVE}; set data.root to the folder of one"
            )
        root = root / ARCHIVE
    if not root.is_file():
        raise UserError(f"data.root {root} does not exist; set it to the data's folder or to nyu_data.zip")
    archive = ZipFiles.open(root)
    for prefix in _PREFIXES:
        if any(archive.below(prefix).has(name) for name in LISTS.values()):
            return archive.below(prefix)
    raise UserError(f"{root} holds no data/nyu2_train.csv; set data.root to the Kaggle archive of NYU Depth v2")


def scene_of(rgb: str) -> str:
    """The place a training frame was taken at, from its path."""
    return scene_name(rgb.rpartition("/")[0].rpartition("/")[2])


@dataclass(frozen=True)
class KaggleReader:
    """Pairs of pictures by number."""

    files: Files
    pairs: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def rgb(self, index: int) -> Rgb:
        name = self.pairs[index][0]
        return decode_rgb(self.files.read(name), self.files.where(name))

    def depth_m(self, index: int) -> Depth:
        name = self.pairs[index][1]
        return decode_depth(self.files.read(name), self.files.where(name))

    def check(self, index: int, *, thorough: bool) -> None:
        for name in self.pairs[index]:
            if not self.files.has(name):
                raise BadFrame(f"{self.files.where(name)} is listed but missing; restore it or exclude the frame")
        if not thorough:
            return
        sizes = []
        for name, is_rgb in zip(self.pairs[index], (True, False), strict=True):
            content, where = self.files.read(name), self.files.where(name)
            header = read_header(content, where)
            if is_rgb:
                check_rgb(header, where)
            else:
                check_depth(header, where)
            check_complete(header, content, where)
            sizes.append(f"{header.width}x{header.height}")
        if sizes[0] != sizes[1]:
            rgb, depth = (self.files.where(name) for name in self.pairs[index])
            raise BadFrame(f"{rgb} is {sizes[0]} pixels but {depth} is {sizes[1]}; they must be registered")

    def digest(self, indices: Sequence[int], *, content: bool = False) -> tuple[str, str]:
        return self.files.digest((name for index in indices for name in self.pairs[index]), content=content)

    def kept(self, indices: Sequence[int]) -> Kept:
        names = [name for index in indices for name in self.pairs[index]]
        return self.files.kept([*names, *LISTS.values(), SCENES], pixels=False)

    def kinds(self) -> tuple[Reader, ...]:
        return (self,)


def _read_rows(files: Files, name: str) -> list[tuple[str, str]]:
    """Lines of two fields. Raises UserError naming file and line."""
    where = files.where(name)
    try:
        text = files.read(name).decode("utf-8-sig")
        rows = [(number, row) for number, row in enumerate(csv.reader(io.StringIO(text), strict=True), 1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where} is not a list of `colour,depth` lines ({error}); download it again") from None
    for number, row in rows:
        if len(row) != 2 or not all(field.strip() for field in row):
            raise UserError(f"{where}:{number}: {','.join(row)[:80]!r} is not `colour,depth`; correct the line")
    return [(first.strip(), second.strip()) for _, (first, second) in rows]


def _read_pairs(files: Files, name: str) -> list[tuple[str, str]]:
    where = files.where(name)
    return [(safe_name(rgb, where), safe_name(depth, where)) for rgb, depth in _read_rows(files, name)]


def _scenes(files: Files, root: Path, ids: Sequence[str], split: Literal["train", "test"]) -> list[str | None]:
    if files.has(SCENES):
        known = dict(_read_rows(files, SCENES))
        return [known.get(rgb) for rgb in ids]
    if split == "train":
        return [scene_of(rgb) for rgb in ids]
    labeled = (root if root.is_dir() else root.parent) / LABELED
    if not labeled.is_file():
        return [None] * len(ids)
    by_number = frame_scenes(labeled)
    numbers = [int(match[1]) if (match := _TEST_NUMBER.search(rgb)) else -1 for rgb in ids]
    return [by_number[number] if 0 <= number < len(by_number) else None for number in numbers]
