"""Marigold's `nyu_labeled_extracted.tar`, which GenPercept and Lotus read too: in place, or unpacked in a folder.

    test/kitchen_0004/rgb_0001.png   depth_0001.png (raw)   filled_0001.png (in-painted), 16-bit millimetres

Numbers count the labelled frames from 1. data.lists may name Marigold's lists (lines `rgb depth filled`); without them
a split's frames are those of its folder, by number.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal

from trainables.data.depth_coding import DepthCoding
from trainables.data.files import Files
from trainables.data.frames import FrameList, scene_name
from trainables.data.lists import find_list, match
from trainables.data.pairs import Absent, PairReader, open_files, root_of
from trainables.settings.config import DataConfig

DEPTHS: Final[tuple[Literal["filled", "raw"], ...]] = ("filled", "raw")
MARK: Final = "nyu_labeled_extracted.tar or test/SCENE/rgb_*.png"
ARCHIVE: Final = "nyu_labeled_extracted.tar"
_COLOR: Final = re.compile(r"(train|test)/([^/]+)/rgb_([0-9]+)\.png")
_KINDS: Final = {"raw": "depth", "filled": "filled"}


def open_split(data: DataConfig, split: Literal["train", "test"]) -> FrameList:
    """The frames of a split. Raises UserError."""
    root = root_of(data, f"{ARCHIVE} or its unpacked folder", DEPTHS,
                   ("lists", "depth_scale", "hole_values"))  # fmt: skip
    files = _open(root, data)
    named = data.lists.train if split == "train" else data.lists.test
    listed = find_list(files, named, [], f"data.lists.{split}")
    colors = list(match(files, listed).color) if listed is not None else _numbered(files, split)
    if not colors:
        raise Absent(f"{files.where(split)} holds no SCENE/rgb_NNNN.png; set data.root to {ARCHIVE} or its folder")
    pairs = tuple((color, _depth_of(color, data.depth)) for color in colors)
    scenes = [scene_name(color.rpartition("/")[0].rpartition("/")[2]) for color in colors]
    other: Literal["filled", "raw"] = "raw" if data.depth == "filled" else "filled"
    reader = PairReader(files, pairs, DepthCoding.of(data), others=tuple(_depth_of(color, other) for color in colors))
    return FrameList.of(colors, scenes, reader, data.depth, data.reach_m)


def _open(root: Path, data: DataConfig) -> Files:
    return open_files(root / ARCHIVE if (root / ARCHIVE).is_file() else root, data)


def _numbered(files: Files, split: str) -> list[str]:
    """Pictures of a split with both depths, sorted by the labelled frame's number."""
    found = [(int(m[3]), name) for name in files.below(split) if (m := _COLOR.fullmatch(name))]
    return [name for _, name in sorted(found) if files.has(_depth_of(name, "raw"))]


def _depth_of(color: str, kind: Literal["filled", "raw"]) -> str:
    folder, _, name = color.rpartition("/")
    return f"{folder}/{name.replace('rgb', _KINDS[kind], 1)}"
