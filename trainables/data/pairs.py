"""Pairs of a color picture and a depth map, by number: the reader of every form whose frames are files of their own."""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainables.data.depth_coding import DepthCoding
from trainables.data.files import Files, FolderFiles, ZipFiles
from trainables.data.frames import BadFrame, Depth, Kept, Reader, Rgb
from trainables.data.pictures import check_complete, check_rgb, decode_rgb, read_header
from trainables.data.stand_in import stand_in_at
from trainables.data.tar import TarFiles
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig

SETTINGS = ("lists", "columns", "depth_scale", "hole_values")  # that not every form has a use for
_ZIP = b"PK"


class Absent(UserError):
    """A root that holds nothing of a form, or not this split: no defect of what is there."""


def root_of(
    data: DataConfig,
    what: str,
    depths: Collection[Literal["filled", "raw"]],
    settings: Collection[str] = ("depth_scale", "hole_values"),
) -> Path:
    """data.root, checked: it exists, and the form holds the depth and has a use for the settings that are set.

    what: what the root must be, for a sentence. Raises UserError.
    """
    if data.root is None:
        raise UserError(f"data.root is null; set it to {what}")
    if data.depth not in depths or data.split != "official":
        raise UserError(
            f"data.depth and data.split must be {' or '.join(depths)} and official: {data.source} holds nothing else"
        )
    unset = DataConfig.model_construct(lists=None, columns=None, depth_scale=None, hole_values=())
    for name in SETTINGS:
        value = getattr(data, name)
        value = None if name == "lists" and value.train is None and value.test is None else value
        if name not in settings and value != getattr(unset, name):
            raise UserError(f"data.{name} has no meaning for data.source {data.source}; remove it")
    root = Path(data.root)
    if not root.exists():
        raise UserError(f"data.root {root} does not exist; set it to {what}")
    if (other := stand_in_at(root)) is not None:
        raise UserError(f"data.root {root} {other}; set it to {what}")
    return root


def open_files(root: Path, data: DataConfig) -> Files:
    """The files below a folder, or of a zip or tar archive, which are told apart by content. Raises UserError."""
    if root.is_dir():
        return FolderFiles(root, data.follow_links)
    try:
        with root.open("rb") as file:
            start = file.read(2)
        if start == _ZIP:
            return ZipFiles.open(root)
        if tarfile.is_tarfile(root):
            return TarFiles.open(root)
    except OSError as error:
        raise UserError(f"{root} cannot be read ({error.strerror}); correct data.root") from None
    raise Absent(f"{root} is no folder, zip or tar archive; correct data.root")


@dataclass(frozen=True)
class PairReader:
    """Pairs of files by number. lists: the files that name them. others: each pair's other kind of depth, if any."""

    files: Files
    pairs: tuple[tuple[str, str], ...]
    coding: DepthCoding
    lists: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)

    def rgb(self, index: int) -> Rgb:
        name = self.pairs[index][0]
        return decode_rgb(self.files.read(name), self.files.where(name))

    def depth_m(self, index: int) -> Depth:
        name = self.pairs[index][1]
        return self.coding.decode(self.files.read(name), self.files.where(name))

    def check(self, index: int, *, thorough: bool) -> None:
        for name in self.pairs[index]:
            if not self.files.has(name):
                raise BadFrame(f"{self.files.where(name)} is listed but missing; restore it or exclude the frame")
        if not thorough:
            return
        rgb, depth = self.pairs[index]
        content, where = self.files.read(rgb), self.files.where(rgb)
        header = read_header(content, where)
        check_rgb(header, where)
        check_complete(header, content, where)
        size = (header.width, header.height)
        other = self.coding.check(self.files.read(depth), self.files.where(depth))
        if size != other:
            raise BadFrame(
                f"{where} is {size[0]}x{size[1]} pixels but {self.files.where(depth)} is {other[0]}x{other[1]}; "
                "they must be registered"
            )

    def digest(self, indices: Sequence[int], *, content: bool = False) -> tuple[str, str]:
        return self.files.digest((name for index in indices for name in self.pairs[index]), content=content)

    def kept(self, indices: Sequence[int]) -> Kept:
        names = [name for index in indices for name in self.pairs[index]]
        others = [self.others[index] for index in indices] if self.others else []
        return self.files.kept([*names, *others, *self.lists], pixels=False)

    def kinds(self) -> tuple[Reader, ...]:
        return (self,)

    def steps(self) -> dict[int, float]:
        return self.coding.steps()
