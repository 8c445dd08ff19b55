"""Files of a data set by name, read from a folder or in place from a zip archive, never outside either.

Nothing is extracted, and nothing stays open: every read opens the folder's file or the archive by itself, so that both
kinds can be pickled, forked and shared by threads. Links that lead out, absolute and `..` names are refused.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from trainables.data.frames import BadFrame, Kept
from trainables.runtime.durable import sha256
from trainables.runtime.errors import UserError

MAX_BYTES: Final = 1 << 27  # of one unpacked file in an archive, lists included
CONTENT_LIMIT: Final = 1 << 28  # bytes up to which a folder is hashed by content
_LOCAL_HEADER: Final = 30
_ENCRYPTED: Final = 0x1


class Files(Protocol):
    """Named files; names are relative, with forward slashes."""

    def read(self, name: str) -> bytes:
        """The whole file. Raises BadFrame, and UserError for a name that leads outside."""

    def has(self, name: str) -> bool:
        """Whether it is there. Raises UserError for a name that leads outside."""

    def below(self, folder: str) -> list[str]:
        """Sorted names of all files below a folder ("": all), without those that a system left there (`is_litter`)."""

    def where(self, name: str) -> str:
        """The name to show to the user."""

    def digest(self, names: Iterable[str], *, content: bool) -> tuple[str, str]:
        """SHA-256 over these files and what it was made of. `content`: every byte, whatever their size, so that packed
        and unpacked files give the same. Raises BadFrame.
        """

    def kept(self, names: Iterable[str], *, pixels: bool) -> Kept:
        """What frames are kept in whose files these are."""


def safe_name(name: str, where: str) -> str:
    """The name itself. Raises UserError, naming `where` it was read, unless it stays inside its root."""
    parts = name.split("/")  # by hand: pathlib takes seconds for the real set's 200,000 names
    if ".." in parts or not parts[0] or parts[0].endswith(":") or "\\" in name or "\0" in name:
        raise UserError(f"{where}: {name!r} leads outside the data root; correct the line")
    return name if "" not in parts and "." not in parts else "/".join(part for part in parts if part not in ("", "."))


def is_litter(name: str) -> bool:
    """Whether a file is none of the data: hidden, or macOS's copy of its attributes."""
    parts = name.split("/")
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in parts)


@dataclass(frozen=True)
class FolderFiles:
    """Files below a folder. follow_links: those behind links that lead out of it, too."""

    root: Path
    follow_links: bool = False
    _listings: dict[str, frozenset[str]] = field(default_factory=dict, compare=False, repr=False)

    def has(self, name: str) -> bool:
        folder, _, last = name.rpartition("/")
        return last in self._names(folder)

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files in a sub-folder. Raises UserError for links that lead outside."""
        return sorted(self._names(folder))

    def below(self, folder: str) -> list[str]:
        found: list[str] = []
        seen: set[Path] = set()  # a link can lead into a folder above it
        waiting = [folder]
        while waiting:
            here = waiting.pop()
            place = (self.root / here).resolve()
            if place in seen or not place.is_dir():
                continue
            seen.add(place)
            prefix = f"{here}/" if here else ""
            found += [prefix + name for name in self._names(here) if not is_litter(name)]
            waiting += [prefix + e.name for e in os.scandir(place) if e.is_dir() and not is_litter(e.name)]
        return sorted(found)

    def _names(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            self._listings[folder] = self._list(folder)
        return self._listings[folder]

    def _list(self, folder: str) -> frozenset[str]:
        """Names of the regular files in a sub-folder; one listing instead of thousands of look-ups."""
        path, home = self.root / folder, self.root.resolve()
        if not path.is_dir():
            return frozenset()
        self._inside(path, home)
        found = set()
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_symlink():
                    self._inside(Path(entry.path), home)
                if entry.is_file():
                    found.add(entry.name)
        return frozenset(found)

    def _inside(self, path: Path, home: Path) -> None:
        if not self.follow_links and not path.resolve().is_relative_to(home):
            raise UserError(f"{path} is a link that leads outside the data root {self.root}; set data.follow_links: "
                            "true if it is meant to, or replace it by the files")  # fmt: skip

    def read(self, name: str) -> bytes:
        self.has(name)  # refuses a link that leads outside, whoever reads
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise BadFrame(f"{self.root / name} cannot be read ({error.strerror}); restore or exclude it") from None

    def where(self, name: str) -> str:
        return str(self.root / name)

    def digest(self, names: Iterable[str], *, content: bool) -> tuple[str, str]:
        present = [name for name in names if self.has(name)]
        root = str(self.root)
        sizes = [os.stat(f"{root}/{name}").st_size for name in present]  # noqa: PTH116  Path takes twice as long
        if sum(sizes) > CONTENT_LIMIT and not content:
            return _sha(f"{name} {size}" for name, size in zip(present, sizes, strict=True)), "names and sizes"
        return _sha(f"{name} {self._sha256(name)}" for name in present), "content"

    def kept(self, names: Iterable[str], *, pixels: bool) -> Kept:
        return Kept(self.root, tuple(names), (), None, pixels)

    def _sha256(self, name: str) -> str:
        try:
            return sha256(self.root / name)
        except OSError as error:
            raise BadFrame(f"{self.root / name} cannot be read ({error.strerror}); restore or exclude it") from None


class Entry(NamedTuple):
    """Where a zip member lies: offset of its local header, bytes packed and unpacked, CRC-32, deflated or stored."""

    offset: int
    packed: int
    size: int
    crc: int
    deflated: bool


@dataclass(frozen=True)
class ZipFiles:
    """Members of a zip archive below `prefix`; its index is read once and travels with the value."""

    path: Path
    prefix: str
    entries: dict[str, Entry] = field(repr=False, hash=False)

    @classmethod
    def open(cls, path: Path) -> ZipFiles:
        """Read the index. Raises UserError for a damaged archive, and for members that lead outside or are links."""
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); correct data.root") from None
        return cls(path, "", _index(path, status.st_size, status.st_mtime_ns))

    def within(self, prefix: str) -> ZipFiles:
        """The same archive, seen from a folder in it."""
        return ZipFiles(self.path, prefix, self.entries)

    def below(self, folder: str) -> list[str]:
        start = self.prefix + (f"{folder}/" if folder else "")
        names = (name.removeprefix(self.prefix) for name in self.entries if name.startswith(start))
        return sorted(name for name in names if not is_litter(name))

    def has(self, name: str) -> bool:
        return self.prefix + name in self.entries

    def read(self, name: str) -> bytes:
        where = self.where(name)
        entry = self.entries.get(self.prefix + name)
        if entry is None:
            raise BadFrame(f"{where} is missing; pack it again or exclude the frame")
        if entry.size > MAX_BYTES or entry.packed > MAX_BYTES:
            raise BadFrame(f"{where} claims {max(entry.size, entry.packed)} bytes; refused, pack it again")
        try:
            with self.path.open("rb") as file:
                file.seek(entry.offset)
                header = file.read(_LOCAL_HEADER)
                name_and_extra = (header[26:28], header[28:30])  # their lengths differ from the index's
                file.seek(sum(int.from_bytes(length, "little") for length in name_and_extra), os.SEEK_CUR)
                content = file.read(entry.packed)
        except OSError as error:
            raise BadFrame(f"{where} cannot be read ({error.strerror}); check the disk") from None
        if entry.deflated:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, entry.size + 1)
            except zlib.error as error:
                raise BadFrame(f"{where} is damaged ({error}); download the archive again") from None
        if len(content) != entry.size or zlib.crc32(content) != entry.crc:
            raise BadFrame(f"{where} is damaged (size or checksum is wrong); download the archive again")
        return content

    def where(self, name: str) -> str:
        return f"{self.path}:{self.prefix}{name}"

    def digest(self, names: Iterable[str], *, content: bool) -> tuple[str, str]:
        if content:
            return self._content([name for name in names if self.has(name)]), "content"
        found = ((name, self.entries.get(self.prefix + name)) for name in names)
        return _sha(f"{name} {e.size} {e.crc}" for name, e in found if e), "names, sizes and checksums of the archive"

    def kept(self, names: Iterable[str], *, pixels: bool) -> Kept:
        return Kept(self.path, (self.path.name,), () if pixels else tuple(names), self.read, pixels)

    def _content(self, names: Sequence[str]) -> str:
        lines = []
        try:
            with zipfile.ZipFile(self.path) as archive:
                for name in names:
                    digest = hashlib.sha256()
                    with archive.open(self.prefix + name) as file:
                        while block := file.read(1 << 20):
                            digest.update(block)
                    lines.append(f"{name} {digest.hexdigest()}")
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise BadFrame(f"{self.path} is damaged ({error}); download the archive again") from None
        return _sha(lines)


@lru_cache(maxsize=2)
def _index(path: Path, size: int, mtime_ns: int) -> dict[str, Entry]:
    """The archive's members; kept, because the real set's 100,000 take seconds. Raises UserError."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        said = f"{path} is not a readable zip archive ({error}); see whether you may read it, else download it again"
        raise UserError(said) from None
    entries: dict[str, Entry] = {}
    for info in infos:
        if info.is_dir():
            continue
        name = safe_name(info.filename.replace("\\", "/"), str(path))  # as Windows packs them
        if stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(f"{path}: its member {name} is a link; refused, pack the file itself")
        if name in entries:
            raise UserError(f"{path} holds {name} twice; pack it again")
        if info.flag_bits & _ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{path}: its member {name} is encrypted or packed in a rare way; pack it with deflate")
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        entries[name] = Entry(info.header_offset, info.compress_size, info.file_size, info.CRC, deflated)
    return entries


def _sha(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()
