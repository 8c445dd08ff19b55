"""Hugging Face's parquet copy of NYU Depth v2: a row per frame, encoded pictures in columns `image` and `depth_map`.

    train-00000-of-00012.parquet, ...   validation-00000-of-00001.parquet, ...   in the root, or in data/ below it

The same frames as the h5 form: depth in-painted, TIFF of floats in metres (or 16-bit PNG). A parquet file is read by
groups of rows: one frame costs its whole group, so that data.cache pays for a shuffled training. Rows carry no scene.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from trainables.data.depth_coding import DepthCoding
from trainables.data.files import CONTENT_LIMIT, FolderFiles
from trainables.data.frames import BadFrame, Depth, FrameList, Kept, Reader, Rgb
from trainables.data.pairs import Absent, root_of
from trainables.data.pictures import decode_rgb
from trainables.data.stand_in import stand_in_at
from trainables.runtime.durable import sha256
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig

DEPTHS: Final[tuple[Literal["filled", "raw"], ...]] = ("filled",)
MARK: Final = "train-*.parquet"
COLUMNS: Final = {"color": ("image", "rgb"), "depth": ("depth_map", "depth")}
_SHARDS: Final = {"train": re.compile(r"train.*\.parquet"), "test": re.compile(r"(val|validation|test).*\.parquet")}
_FOLDERS: Final = ("", "data/")
MAX_GROUP: Final = 1 << 31  # bytes of a group of rows, unpacked


class Group(NamedTuple):
    """A group of rows: its file, its place in it, the number of its first frame."""

    file: str
    group: int
    first: int


def open_split(data: DataConfig, split: Literal["train", "test"]) -> FrameList:
    """The rows of a split's files, in order. Raises UserError."""
    root = root_of(data, "the folder of the .parquet files", DEPTHS)
    files = FolderFiles(root, data.follow_links)
    shards = [folder + name for folder in _FOLDERS for name in files.names(folder.rstrip("/"))
              if _SHARDS[split].fullmatch(name)]  # fmt: skip
    if not shards:
        raise Absent(f"{root} holds no {split} .parquet file; set data.root to the folder of the downloaded files")
    groups: list[Group] = []
    names: list[tuple[str, str]] = []
    count = 0
    for shard in shards:
        opened = _opened(root / shard)
        schema = set(opened.schema_arrow.names)
        names.append(tuple(_column(root / shard, schema, kind) for kind in ("color", "depth")))  # type: ignore[arg-type]
        for group in range(opened.num_row_groups):
            meta = opened.metadata.row_group(group)
            if meta.total_byte_size > MAX_GROUP:
                raise UserError(f"{root / shard} claims {meta.total_byte_size} bytes for one group of rows; refused")
            groups.append(Group(shard, group, count))
            count += meta.num_rows
    if not count:
        raise UserError(f"{root / shards[0]} holds no rows; download it again")
    if len(set(names)) > 1:
        raise UserError(f"{root}: its files name their columns differently ({sorted(set(names))}); download them again")
    reader = ParquetReader(files, tuple(groups), count, names[0], DepthCoding.of(data))
    ids = [f"{split}/{i:06d}" for i in range(count)]
    return FrameList.of(ids, [None] * count, reader, "filled", data.reach_m)


@dataclass(frozen=True)
class ParquetReader:
    """Frames by number."""

    files: FolderFiles
    groups: tuple[Group, ...]
    count: int
    columns: tuple[str, str]
    coding: DepthCoding

    def __len__(self) -> int:
        return self.count

    def rgb(self, index: int) -> Rgb:
        return decode_rgb(*self._cell(index, self.columns[0]))

    def depth_m(self, index: int) -> Depth:
        return self.coding.decode(*self._cell(index, self.columns[1]))

    def _cell(self, index: int, column: str) -> tuple[bytes, str]:
        """A picture's content and its name to show."""
        group = self.groups[bisect_right([g.first for g in self.groups], index) - 1]
        where = f"{self.files.where(group.file)}: {column} of row {index}"
        cells = _cells(self.files.root / group.file, group.group, column)
        cell = cells[index - group.first].as_py()
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise BadFrame(f"{where} holds no picture; download the file again")
        return content, where

    def check(self, index: int, *, thorough: bool) -> None:
        if thorough and sum((self.files.root / f).stat().st_size for f in self._shards()) <= CONTENT_LIMIT:
            self.rgb(index)
            self.depth_m(index)

    def _shards(self) -> list[str]:
        return list(dict.fromkeys(group.file for group in self.groups))

    def digest(self, indices: Sequence[int], *, content: bool = False) -> tuple[str, str]:
        paths = [self.files.root / shard for shard in self._shards()]
        whole = content or sum(path.stat().st_size for path in paths) <= CONTENT_LIMIT
        known = [(path.name, sha256(path) if whole else path.stat().st_size) for path in paths]
        text = repr((known, self.columns, tuple(indices)))
        return hashlib.sha256(text.encode()).hexdigest(), "content" if whole else "names and sizes"

    def kept(self, indices: Sequence[int]) -> Kept:
        return self.files.kept(self._shards(), pixels=True)

    def kinds(self) -> tuple[Reader, ...]:
        return (self,)

    def steps(self) -> dict[int, float]:
        return self.coding.steps()


def _opened(path: Path) -> Any:
    try:
        return parquet.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        what = stand_in_at(path) or f"is not a readable parquet file ({_first_line(error)})"
        raise UserError(f"{path} {what}; download it again") from None


@lru_cache(maxsize=4)
def _cells(path: Path, group: int, column: str) -> Any:
    """A column of a group of rows; kept, because the next frame is likely to lie in the same one."""
    try:
        return parquet.ParquetFile(path).read_row_group(group, columns=[column]).column(column)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise BadFrame(f"{path} is damaged ({_first_line(error)}); download it again") from None


def _column(path: Path, schema: set[str], kind: str) -> str:
    name = next((name for name in COLUMNS[kind] if name in schema), None)
    if name is None:
        raise UserError(f"{path} has no column {' or '.join(COLUMNS[kind])}, but {', '.join(sorted(schema))[:80]}")
    return name


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
