"""The copy of NYU Depth v2 that BTS, AdaBins, ZoeDepth and the Monocular-Depth-Estimation-Toolbox read: raw depth.

    sync/SCENE/rgb_00045.jpg                  sync/SCENE/sync_depth_00045.png                   16-bit millimetres
    official_splits/test/TYPE/rgb_00045.jpg   official_splits/test/TYPE/sync_depth_00045.png
    nyudepthv2_train_files_with_gt.txt        lines `/SCENE/rgb_00045.jpg /SCENE/sync_depth_00045.png FOCAL`, also test

A hole is 0, so that the protocol `bts` is measured as published. The lists lie in BTS's repository (train_test_inputs)
and are copied into the root, or named by data.lists. A test frame's number counts the labelled frames from 0 and its
folder is a type of room: its scene is known where nyu_depth_v2_labeled.mat lies beside.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from trainables.data.depth_coding import DepthCoding
from trainables.data.formats.labeled import scenes_beside
from trainables.data.frames import FrameList, scene_name
from trainables.data.lists import Row, find_list, match
from trainables.data.pairs import Absent, PairReader, open_files, root_of
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig

LISTS: Final = {"train": "nyudepthv2_train_files_with_gt.txt", "test": "nyudepthv2_test_files_with_gt.txt"}
DEPTHS: Final[tuple[Literal["filled", "raw"], ...]] = ("raw",)
MARK: Final = "sync/SCENE/rgb_*.jpg, official_splits/test"
FOLDERS: Final = {"train": "sync", "test": "official_splits/test"}
_BESIDE: Final = ("", "train_test_inputs/")
_NAME: Final = re.compile(r"/?[^/]+/(rgb|sync_depth)_[0-9]+\.")  # FOLDER/FILE, as the published lists have it
_NUMBER: Final = re.compile(r"rgb_([0-9]+)\.[A-Za-z]+$")


def open_split(data: DataConfig, split: Literal["train", "test"]) -> FrameList:
    """The frames of the split's list; without the test list those of the test folder, which are the same. Raises
    UserError for a root without them and for a training split without its list, which is a choice of the folder's.
    """
    root = root_of(data, "the folder that holds sync and official_splits", DEPTHS,
                   ("lists", "depth_scale", "hole_values"))  # fmt: skip
    files = open_files(root, data)
    here = files.below(FOLDERS[split])
    if not here:
        raise Absent(f"{files.where(FOLDERS[split])} is missing; set data.root to the folder that holds sync and "
                     "official_splits")  # fmt: skip
    named = data.lists.train if split == "train" else data.lists.test
    found = find_list(files, named, [prefix + LISTS[split] for prefix in _BESIDE], f"data.lists.{split}")
    if found is None and split == "train":
        raise UserError(
            f"{files.where(LISTS['train'])} is missing; copy it from BTS's train_test_inputs, or name it in "
            "data.lists.train"
        )
    if found is None:
        colors = [path for path in here if _NUMBER.search(path)]
        pairs = tuple((path, _NUMBER.sub(r"sync_depth_\1.png", path)) for path in colors)
    else:
        listed = match(files, replace(found, rows=[_below(row, f"{FOLDERS[split]}/") for row in found.rows]))
        pairs = tuple(zip(listed.color, listed.depth, strict=True))
    ids = [color for color, _ in pairs]
    reader = PairReader(files, pairs, DepthCoding.of(data), (found.name,) if found and found.name else ())
    return FrameList.of(ids, scenes(ids, root, split), reader, "raw", data.reach_m)


def scenes(ids: Sequence[str], root: Path, split: Literal["train", "test"]) -> list[str | None]:
    """The places of frames by their paths: the training folder's name, or the labelled set's for a test number."""
    if split == "train":
        return [scene_name(path.rpartition("/")[0].rpartition("/")[2]) for path in ids]
    return scenes_beside(root, [int(found[1]) if (found := _NUMBER.search(path)) else None for path in ids])


def _below(row: Row, top: str) -> Row:
    """A line whose names, relative to sync or official_splits/test, are relative to the root."""
    return Row(row.number, [top + field.lstrip("/") if _NAME.match(field) else field for field in row.fields])
