"""Members of uncompressed tar archives by name, read in place: one archive, or several shards as one set of files."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from trainables.data.files import MAX_BYTES, is_litter, safe_name
from trainables.data.frames import BadFrame, Kept
from trainables.runtime.errors import UserError

_MAX_MEMBERS: Final = 1 << 20


class Member(NamedTuple):
    """Where a member lies: number of its archive, offset of its bytes, how many."""

    archive: int
    offset: int
    size: int


@dataclass(frozen=True)
class TarFiles:
    """Members of tar archives; their index is read once and travels with the value. place: the archive, or the folder
    of the shards.
    """

    place: Path
    paths: tuple[Path, ...]
    members: dict[str, Member] = field(repr=False, hash=False)

    @classmethod
    def open(cls, path: Path) -> TarFiles:
        """One archive. Raises UserError as `shards` does."""
        return cls.shards(path, [path])

    @classmethod
    def shards(cls, place: Path, paths: Sequence[Path]) -> TarFiles:
        """Archives in a folder as one set of files; their index is read. Raises UserError for a compressed or damaged
        archive, and for links or names that lead outside.
        """
        members: dict[str, Member] = {}
        for number, path in enumerate(paths):
            try:
                status = path.stat()
            except OSError as error:
                raise UserError(f"{path} cannot be read ({error.strerror}); correct data.root") from None
            for name, (offset, size) in _index(path, status.st_size, status.st_mtime_ns).items():
                if name in members:
                    other = paths[members[name].archive]
                    raise UserError(f"{path} holds {name}, which {other} holds, too; remove one of them")
                members[name] = Member(number, offset, size)
        return cls(place, tuple(paths), members)

    def has(self, name: str) -> bool:
        return name in self.members

    def below(self, folder: str) -> list[str]:
        start = f"{folder}/" if folder else ""
        return sorted(name for name in self.members if name.startswith(start) and not is_litter(name))

    def read(self, name: str) -> bytes:
        where, member = self.where(name), self.members.get(name)
        if member is None:
            raise BadFrame(f"{where} is missing; pack it again or exclude the frame")
        if member.size > MAX_BYTES:
            raise BadFrame(f"{where} claims {member.size} bytes; refused, pack it again")
        try:
            with self.paths[member.archive].open("rb") as file:
                file.seek(member.offset)
                content = file.read(member.size)
        except OSError as error:
            raise BadFrame(f"{where} cannot be read ({error.strerror}); check the disk") from None
        if len(content) < member.size:
            raise BadFrame(f"{where} is truncated; download the archive again")
        return content

    def where(self, name: str) -> str:
        member = self.members.get(name)
        return f"{self.paths[member.archive if member else 0]}:{name}"

    def digest(self, names: Iterable[str], *, content: bool) -> tuple[str, str]:
        digest = hashlib.sha256()
        for name in names:
            if name in self.members:
                known = hashlib.sha256(self.read(name)).hexdigest() if content else str(self.members[name].size)
                digest.update(f"{name} {known}\n".encode(errors="surrogateescape"))
        return digest.hexdigest(), "content" if content else "names and sizes in the archive"

    def kept(self, names: Iterable[str], *, pixels: bool) -> Kept:
        files = tuple(path.name for path in self.paths)
        return Kept(self.place, files, () if pixels else tuple(names), self.read, pixels)


@lru_cache(maxsize=64)
def _index(path: Path, size: int, mtime_ns: int) -> dict[str, tuple[int, int]]:
    """Name -> offset and size of an archive's files. Raises UserError."""
    found: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                if len(found) >= _MAX_MEMBERS:
                    raise UserError(f"{path} holds more than {_MAX_MEMBERS} files; pack it as several archives")
                if member.isdir():
                    continue
                name = safe_name(member.name, str(path))
                if not member.isreg() or member.issparse():
                    raise UserError(
                        f"{path}: its member {name} is a link or no plain file; refused, pack the file itself"
                    )
                if name in found:
                    raise UserError(f"{path} holds {name} twice; pack it again")
                if member.offset_data + member.size > size:
                    raise UserError(f"{path} ends within its member {name}; download the archive again")
                found[name] = (member.offset_data, member.size)
    except (OSError, tarfile.TarError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable tar archive ({_first_line(error)}); unpack a compressed one, or load it anew"
        ) from None
    return found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
