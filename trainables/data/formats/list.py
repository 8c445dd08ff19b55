"""Any data set of color and depth files: by list files, or by folders of pictures.

    data.lists.train: train.txt      lines `rgb depth`; with a header or data.columns others, too (see data/lists.py)
    data.lists.train: images/train   a folder: depth/train/X.png (or .npy, .tif) belongs to images/train/X.jpg

Read like this: Ultralytics' depth sets (images, depth), mmseg's and the Toolbox's (images, annotations), and a user's
own. Without data.lists the usual names below the root are tried. Units are data.depth_scale, data.max_depth_m and
data.hole_values; data.depth says which kind of truth it is, for the protocols.

A frame's scene is the list's column of scenes; or the folder it lies in, unless that only says split or content; or,
as the Toolbox names files, the room before its number (bathroom_0001_12.jpg).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal

from trainables.data.depth_coding import DepthCoding
from trainables.data.files import Files, FolderFiles
from trainables.data.frames import FrameList, scene_name
from trainables.data.lists import Listed, find_list, match
from trainables.data.pairs import Absent, PairReader, open_files, root_of
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig

DEPTHS: Final[tuple[Literal["filled", "raw"], ...]] = ("filled", "raw")
MARK: Final = "train.txt, train.csv or images/train"
LISTS: Final = {
    "train": ("train.txt", "train.csv", "images/train", "train/images", "train/rgb"),
    "test": ("test.txt", "test.csv", "images/test", "images/val", "test/images", "test/rgb", "val.txt", "val.csv"),
}
_COLOR_FOLDERS: Final = ("images", "image", "rgb", "color", "colour", "img")
_DEPTH_FOLDERS: Final = ("depth", "depths", "annotations", "gt", "depth_gt")
_COLOR_WORDS: Final = ("colors", "color", "rgb", "image")  # in a file's name, where depth stands in its depth's
_SUFFIXES: Final = (".png", ".npy", ".tif", ".tiff")
_PICTURES: Final = (".jpg", ".jpeg", ".png")
# Folders that say split or content, and no place.
_GENERIC: Final = frozenset((*_COLOR_FOLDERS, "train", "test", "val", "validation", "data", "official", "raw", "sync"))
_ROOM: Final = re.compile(r"(.*_[0-9]{4}[a-z]?)_.*[0-9]")


def open_split(data: DataConfig, split: Literal["train", "test"]) -> FrameList:
    """The frames of a list or folder. Raises UserError naming file and line."""
    root = root_of(data, "the folder or archive of the data", DEPTHS,
                   ("lists", "columns", "depth_scale", "hole_values"))  # fmt: skip
    files = open_files(root, data)
    named = data.lists.train if split == "train" else data.lists.test
    folder = next((name for name in ([named] if named else LISTS[split]) if _pictures(files, name)), None)
    found = None if folder and named else find_list(files, named, LISTS[split], f"data.lists.{split}")
    if found is None and folder is None:
        raise Absent(f"{files.where('')} holds none of {', '.join(LISTS[split])}; name the list or folder of the "
                     f"{split} split in data.lists.{split}")  # fmt: skip
    listed = match(files, found, data.columns) if found is not None else _paired(files, str(folder))
    pairs = tuple(zip(listed.color, listed.depth, strict=True))
    reader = PairReader(files, pairs, DepthCoding.of(data), (found.name,) if found and found.name else ())
    known = zip(listed.color, listed.scenes, strict=True)
    scenes = [place_of(color) if scene is None else scene for color, scene in known]
    return FrameList.of(listed.color, scenes, reader, data.depth, data.reach_m)


def place_of(color: str) -> str | None:
    """The scene that a picture's path says; None where it says none."""
    *folders, name = color.split("/")
    for folder in reversed(folders):
        if folder.lower() not in _GENERIC:
            return scene_name(folder)
    found = _ROOM.match(name)
    return scene_name(found[1]) if found else None


def _pictures(files: Files, folder: str) -> list[str]:
    """Pictures below a folder that are no depth maps."""
    if folder.startswith("/") or ".." in folder.split("/"):
        return []
    if isinstance(files, FolderFiles) and not (files.root / folder).is_dir():
        return []
    names = [name for name in files.below(folder.strip("/")) if name.lower().endswith(_PICTURES)]
    return [name for name in names if "depth" not in name.rpartition("/")[2].lower()]


def _paired(files: Files, folder: str) -> Listed:
    """The pictures of a folder and the depth maps that their names lead to. Raises UserError where none is there."""
    folder = folder.strip("/")
    colors = _pictures(files, folder)
    depths = [_partner(files, color) for color in colors]
    if not any(depths):
        raise UserError(
            f"{files.where(colors[0])} and the others of {folder} have no depth map beside them, nor in a folder "
            f"{', '.join(_DEPTH_FOLDERS)} instead of {folder.split('/')[0]}; name a list in data.lists"
        )
    missing = [color for color, depth in zip(colors, depths, strict=True) if depth is None]
    if missing:
        raise UserError(f"{files.where(missing[0])} has no depth map ({len(missing)} of {len(colors)} pictures of "
                        f"{folder} have none); remove them, or name a list in data.lists")  # fmt: skip
    return Listed(tuple(colors), tuple(d for d in depths if d is not None), (None,) * len(colors))


def _partner(files: Files, color: str) -> str | None:
    """The depth map of a picture: in the parallel folder, or beside it."""
    *folders, name = color.split("/")
    stem = name.rpartition(".")[0]
    for i, folder in enumerate(folders):
        if folder in _COLOR_FOLDERS:
            places = ["/".join([*folders[:i], other, *folders[i + 1 :], stem]) for other in _DEPTH_FOLDERS]
            if (found := _first(files, places)) is not None:
                return found
    words = [stem.replace(word, "depth") for word in _COLOR_WORDS if word in stem]
    return _first(files, ["/".join([*folders, other]) for other in (*words, f"{stem}_depth", f"sync_{words[0]}")
                          ] if words else ["/".join([*folders, f"{stem}_depth"])])  # fmt: skip


def _first(files: Files, stems: Sequence[str]) -> str | None:
    return next((stem + suffix for stem in stems for suffix in _SUFFIXES if files.has(stem + suffix)), None)
