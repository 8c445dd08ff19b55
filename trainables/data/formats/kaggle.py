"""The Kaggle / DenseDepth layout (`nyu_data.zip`), as a folder or as the archive itself, read in place.

    data/nyu2_train.csv   lines `data/nyu2_train/SCENE_out/N.jpg,data/nyu2_train/SCENE_out/N.png`, no header
    data/nyu2_test.csv    lines `data/nyu2_test/NNNNN_colors.png,data/nyu2_test/NNNNN_depth.png`
    data/scenes.csv       optional, ours: lines `colour path,scene`

Where scenes.csv is absent, a training frame's scene is its folder's name without the take's letter: NYU's
bookstore_0001d_out and bookstore_0001e_out are one place. Test frames then have no scene, except where
nyu_depth_v2_labeled.mat lies beside `data`: NNNNN counts its frames.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from trainables.data.depth_coding import DepthCoding
from trainables.data.files import Files, FolderFiles, ZipFiles
from trainables.data.formats.labeled import scenes_beside
from trainables.data.frames import FrameList, scene_name
from trainables.data.lists import find_list, match, read_rows
from trainables.data.pairs import Absent, PairReader, open_files, root_of
from trainables.settings.config import DataConfig

DEPTHS: Final[tuple[Literal["filled", "raw"], ...]] = ("filled",)
MARK: Final = "data/nyu2_train.csv"
ARCHIVE: Final = "nyu_data.zip"
LISTS: Final = {"train": "data/nyu2_train.csv", "test": "data/nyu2_test.csv"}
SCENES: Final = "data/scenes.csv"
_PREFIXES: Final = ("", "nyu_data/")  # Kaggle's own archive has one more level
_TEST_NUMBER: Final = re.compile(r"([0-9]{5})_colors\.png$")


def open_split(data: DataConfig, split: Literal["train", "test"]) -> FrameList:
    """The list's frames. Raises UserError for a root without lists, a bad line or settings this form cannot meet."""
    root = root_of(data, "the folder that holds data/nyu2_train.csv, or to nyu_data.zip", DEPTHS)
    files = _below_the_top(root, data)
    name = LISTS[split]
    found = find_list(files, None, [name], "")
    if found is None:
        raise Absent(f"{files.where(name)} is missing; data.root must hold both data/nyu2_*.csv")
    listed = match(files, found)
    reader = PairReader(files, tuple(zip(listed.color, listed.depth, strict=True)), DepthCoding.of(data),
                        (*LISTS.values(), SCENES))  # fmt: skip
    return FrameList.of(listed.color, _scenes(files, root, listed.color, split), reader, "filled", data.reach_m)


def _below_the_top(root: Path, data: DataConfig) -> Files:
    """The files below the level that holds `data`. Raises UserError where there is none."""
    if root.is_dir() and not any((root / prefix / name).exists() for prefix in _PREFIXES for name in LISTS.values()):
        if not (root / ARCHIVE).is_file():
            raise Absent(f"{root} holds neither data/nyu2_train.csv nor {ARCHIVE}; set data.root to the folder of one")
        root = root / ARCHIVE
    files = open_files(root, data)
    for prefix in _PREFIXES:
        if any(files.has(prefix + name) for name in LISTS.values()):
            if isinstance(files, ZipFiles):
                return files.within(prefix)
            return FolderFiles(root / prefix, data.follow_links) if root.is_dir() else files
    raise Absent(f"{root} holds no data/nyu2_train.csv; set data.root to the Kaggle archive of NYU Depth v2")


def scene_of(rgb: str) -> str:
    """The place a training frame was taken at, from its path."""
    return scene_name(rgb.rpartition("/")[0].rpartition("/")[2])


def _scenes(files: Files, root: Path, ids: Sequence[str], split: Literal["train", "test"]) -> list[str | None]:
    if files.has(SCENES):
        known = {rgb: scene for _, (rgb, scene) in read_rows(files.read(SCENES), files.where(SCENES))}
        return [known.get(rgb) for rgb in ids]
    if split == "train":
        return [scene_of(rgb) for rgb in ids]
    return scenes_beside(root, [int(found[1]) if (found := _TEST_NUMBER.search(rgb)) else None for rgb in ids])
