"""`rooms`, the embedded data set: rendered once to disk in the Kaggle layout, then read like it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from trainables.data.formats import kaggle
from trainables.data.frames import FrameList
from trainables.settings.config import DataConfig

DEPTHS: Final = kaggle.DEPTHS
MARK: Final = "rendered where there is none"


def write(data: DataConfig) -> Path:
    """Render the set unless it is there, safely beside other processes that do the same; returns its folder."""
    from trainables.data.rooms.writer import write_rooms  # the renderer, which other forms never need

    root = folder_of(data)
    write_rooms(data.rooms, root)
    return root


def folder_of(data: DataConfig) -> Path:
    """Where the set lies, or will."""
    from trainables.data.rooms.writer import rooms_root

    return (Path(data.root) if data.root else rooms_root(data.rooms)).absolute()


def open_split(data: DataConfig, split: Literal["train", "test"]) -> FrameList:
    """The frames of a split, rendered first where needed."""
    return kaggle.open_split(data.model_copy(update={"root": str(write(data))}), split)
