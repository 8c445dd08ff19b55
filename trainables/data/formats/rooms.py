"""`rooms`, the embedded data set: rendered once to disk in the Kaggle layout, then read like it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from trainables.data.formats import kaggle
from trainables.data.frames import FrameList
from trainables.data.pairs import root_of
from trainables.data.split import held_out
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


def check(data: DataConfig) -> None:
    """Raise UserError for settings that could not be rendered, or not be split by scene; nothing is written."""
    from trainables.data.rooms.writer import check_rooms

    root_of(data.model_copy(update={"root": str(Path())}), "the folder of the rooms", DEPTHS)
    check_rooms(data.rooms)
    scenes = [str(n) for n in range(data.rooms.train_scenes) for _ in range(data.rooms.frames_per_scene)]
    if data.overfit is None:
        held_out(scenes, data.validation.by, data.validation.share, data.validation.seed, "data.validation")


def open_split(data: DataConfig, split: Literal["train", "test"]) -> FrameList:
    """The frames of a split, rendered first where needed."""
    return kaggle.open_split(data.model_copy(update={"root": str(write(data))}), split)
