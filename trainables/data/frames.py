"""Frames and lists of frames: the common form of every published form of the data.

Colour is uint8 RGB, depth float32 metres with 0 for a hole. Whatever is wrong with one frame is a `BadFrame`, one
sentence naming file and cause, so that `data.on_bad_frame: skip` can distinguish it from a mistake in the settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from trainables.runtime.errors import UserError

_TAKE = re.compile(r"(?<=_\d{4})[a-z]$")
Rgb = npt.NDArray[np.uint8]
Depth = npt.NDArray[np.float32]


def scene_name(folder: str) -> str:
    """The place that a folder of the raw set shows: NYU's bookstore_0001d and bookstore_0001e are takes of one."""
    return _TAKE.sub("", folder.removesuffix("_out"))


class BadFrame(UserError):
    """One frame that cannot be read or makes no sense."""


@dataclass(frozen=True)
class Frame:
    """One picture: `rgb` uint8 (H, W, 3) and `depth_m` float32 (H, W), metres, 0 = hole."""

    rgb: Rgb
    depth_m: Depth


@dataclass(frozen=True)
class Kept:
    """What frames are kept in, for a manifest: `files` are whole files, relative to the folder that `place` is or lies
    in, `members` those of an archive. `pixels`: frames are compared by their pixels; else by the content of the files
    that they are coded in, and their reader is a dataclass that reads through its `files`.
    """

    place: Path
    files: tuple[str, ...]
    members: tuple[str, ...]
    read: Callable[[str], bytes] | None  # a member's content
    pixels: bool


class Reader(Protocol):
    """Access to the frames of one published form by number; picklable, usable from threads and forked processes."""

    def __len__(self) -> int:
        """Number of frames."""

    def rgb(self, index: int) -> Rgb:
        """Colour of a frame. Raises BadFrame."""

    def depth_m(self, index: int) -> Depth:
        """Depth of a frame in metres, 0 = hole. Raises BadFrame."""

    def check(self, index: int, *, thorough: bool) -> None:
        """Raise BadFrame for what shows without decoding: by name alone or, `thorough`, from the files' headers."""

    def digest(self, indices: Sequence[int], *, content: bool = False) -> tuple[str, str]:
        """Hex SHA-256 that changes when these frames change, and what it was made of ("content", "names and sizes").

        `content`: made of every byte of the files, however many; a packed set then gives what the unpacked one gives.
        """

    def kept(self, indices: Sequence[int]) -> Kept:
        """What these frames and the lists that name them are kept in."""

    def kinds(self) -> tuple[Reader, ...]:
        """A reader of each kind of depth that the form holds: filled, then raw."""

    def steps(self) -> dict[int, float]:
        """Steps per metre of stored depth by its bits; empty for floating point."""


@dataclass(frozen=True)
class FrameList:
    """Frames in the order of their published list. `ids` are stable: the colour path of the list's line, or the like.

    `scenes` are None where unknown; `truth` is the kind of depth; `max_depth_m` is the largest depth of the data.
    Where `depth_of` differs from `rgb_of`, images meet another frame's depth (a control).
    """

    ids: tuple[str, ...]
    scenes: tuple[str | None, ...]
    truth: Literal["filled", "raw"]
    max_depth_m: float
    reader: Reader
    rgb_of: tuple[int, ...]  # numbers of the reader
    depth_of: tuple[int, ...]

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        scenes: Sequence[str | None],
        reader: Reader,
        truth: Literal["filled", "raw"],
        max_depth_m: float,
    ) -> FrameList:
        """All frames of a reader, matched."""
        numbers = tuple(range(len(ids)))
        return cls(tuple(ids), tuple(scenes), truth, max_depth_m, reader, numbers, numbers)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def published_digest(self) -> str:
        """Hex SHA-256 of all frames of the reader, also of those that are not in this list."""
        return self.reader.digest(range(len(self.reader)))[0]

    def read(self, i: int) -> Frame:
        """Decode frame `i`. Raises BadFrame."""
        rgb, depth_m = self.reader.rgb(self.rgb_of[i]), self.reader.depth_m(self.depth_of[i])
        if rgb.shape[:2] != depth_m.shape and self.rgb_of[i] == self.depth_of[i]:
            raise BadFrame(
                f"{self.ids[i]} is {rgb.shape[1]}x{rgb.shape[0]} pixels but its depth map is "
                f"{depth_m.shape[1]}x{depth_m.shape[0]}; they must be registered to each other"
            )
        return Frame(rgb, depth_m)

    def subset(self, indices: Sequence[int]) -> FrameList:
        """These frames, in this order."""

        def pick(values: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(values[i] for i in indices)

        return replace(
            self,
            ids=pick(self.ids),
            scenes=pick(self.scenes),
            rgb_of=pick(self.rgb_of),
            depth_of=pick(self.depth_of),
        )
