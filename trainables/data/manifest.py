"""Manifest of a data set: SHA-256 of all its files or frames, against which later reads are checked.

    {"sha256": total, "files": {path: digest}, "members": {name: digest}, "arrays": {id: [rgb, depth, raw depth]}}

`files` are whole files, relative to the folder that holds the manifest; `members` those of a zip archive; `arrays` the
pixels of frames in forms without lossy coding. It lies in the data's folder, or beside its file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from trainables.data.files import Files
from trainables.data.frames import BadFrame, Depth, FrameList, Kept, Reader, Rgb
from trainables.runtime import durable
from trainables.runtime.errors import UserError

MANIFEST: Final = "manifest.sha256.json"
Kind = Literal["files", "members", "arrays"]
Step = Callable[[], None]


def manifest_path(reader: Reader) -> Path:
    """Where the manifest of a reader's data lies."""
    place = reader.kept(()).place
    return place / MANIFEST if place.is_dir() else place.with_name(f"{place.name}.{MANIFEST}")


def total(manifest: Mapping[str, Any]) -> str:
    """The digest of a manifest's digests."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(manifest["files"].items())]
    lines += [f"{digest}  {name}\n" for name, digest in sorted(manifest.get("members", {}).items())]
    lines += [f"{' '.join(digests)}  {name}\n" for name, digests in sorted(manifest.get("arrays", {}).items())]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def load(path: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is none. Raises UserError for a damaged one."""
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        intact = manifest["sha256"] == total(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise UserError(f"{path} is damaged; remove it and run python -m trainables.data.doctor again")
    return {"members": {}, "arrays": {}} | manifest  # that of rooms lists files alone


def whole_files(splits: Sequence[FrameList]) -> tuple[Path, list[str]]:
    """The folder and the names of the files that these frames lie in, lists included."""
    folder = manifest_path(splits[0].reader).parent
    names = {name for frames in splits for name in frames.reader.kept(frames.rgb_of).files}
    return folder, sorted(name for name in names if (folder / name).is_file())


def steps(splits: Sequence[FrameList]) -> int:
    """How often `build` calls its `step`."""
    kept = [(frames, frames.reader.kept(frames.rgb_of)) for frames in splits]
    return len(whole_files(splits)[1]) + sum(len(k.members) + (len(f) if k.pixels else 0) for f, k in kept)


def build(splits: Sequence[FrameList], step: Step) -> dict[str, Any]:
    """The manifest of all splits of a data set; `step` follows each file or frame. Unreadable ones are left out."""
    folder, names = whole_files(splits)
    manifest: dict[str, Any] = {"sha256": "", "files": {}, "members": {}, "arrays": {}}
    for name in names:
        manifest["files"][name] = durable.sha256(folder / name)
        step()
    for frames in splits:
        kept = frames.reader.kept(frames.rgb_of)
        for name in kept.members:
            digest = _member(kept, name)
            if digest:
                manifest["members"][name] = digest
            step()
        for identity, number in zip(frames.ids, frames.rgb_of, strict=True) if kept.pixels else ():
            digests = _pixels(frames.reader, number)
            if digests:
                manifest["arrays"][identity] = digests
            step()
    manifest["sha256"] = total(manifest)
    return manifest


def _member(kept: Kept, name: str) -> str | None:
    """The digest of an archive's member; None where it cannot be read, which the examination of the frames reports."""
    assert kept.read is not None
    try:
        return hashlib.sha256(kept.read(name)).hexdigest()
    except BadFrame:
        return None


def _pixels(reader: Reader, number: int) -> list[str] | None:
    """Digests of colour, filled depth and, where the form has both, raw depth; None as for `_member`."""
    try:
        return [array_digest(reader.rgb(number)), *(array_digest(one.depth_m(number)) for one in reader.kinds())]
    except BadFrame:
        return None


def array_digest(array: np.ndarray[Any, Any]) -> str:
    """SHA-256 of an array's shape, type and content."""
    head = f"{array.shape} {array.dtype.str}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def changed_files(path: Path, manifest: Mapping[str, Any], step: Step) -> list[tuple[str, str]]:
    """(name, what happened) of the files that are not what the manifest says."""
    found = []
    for name, digest in manifest["files"].items():
        file = path.parent / name
        if not file.is_file():
            found.append((name, "is missing"))
        elif durable.sha256(file) != digest:
            found.append((name, "is not the file that the manifest was made of"))
        step()
    return found


def guarded(frames: FrameList) -> FrameList:
    """The same frames, every read of them checked against the manifest where there is one."""
    reader = frames.reader
    path = manifest_path(reader)
    manifest = load(path)
    if manifest is None:
        return frames
    if not reader.kept(()).pixels:
        coded: Any = reader
        checked = CheckedFiles(coded.files, manifest["files"] | manifest["members"], str(path))
        return replace(frames, reader=replace(coded, files=checked))
    known = manifest["arrays"]
    own = 1 + reader.kinds().index(reader)
    by_number = {n: (known[i][0], known[i][own]) for i, n in zip(frames.ids, frames.rgb_of, strict=True) if i in known}
    return replace(frames, reader=CheckedReader(reader, by_number, str(path)))


@dataclass(frozen=True)
class CheckedFiles:
    """Files whose content is compared with a manifest's digests at every read."""

    files: Files
    digests: Mapping[str, str] = field(hash=False)
    manifest: str

    def has(self, name: str) -> bool:
        return self.files.has(name)

    def below(self, folder: str) -> list[str]:
        return self.files.below(folder)

    def where(self, name: str) -> str:
        return self.files.where(name)

    def digest(self, names: Iterable[str], *, content: bool) -> tuple[str, str]:
        return self.files.digest(names, content=content)

    def kept(self, names: Iterable[str], *, pixels: bool) -> Kept:
        return self.files.kept(names, pixels=pixels)

    def read(self, name: str) -> bytes:
        content = self.files.read(name)
        if self.digests.get(name) != hashlib.sha256(content).hexdigest():
            raise BadFrame(_sentence(self.where(name), name in self.digests, self.manifest))
        return content


@dataclass(frozen=True)
class CheckedReader:
    """Frames whose pixels are compared with a manifest's digests at every read."""

    reader: Reader
    digests: Mapping[int, tuple[str, str]] = field(hash=False)
    manifest: str

    def __len__(self) -> int:
        return len(self.reader)

    def rgb(self, index: int) -> Rgb:
        rgb = self.reader.rgb(index)
        self._compare(index, 0, array_digest(rgb))
        return rgb

    def depth_m(self, index: int) -> Depth:
        depth_m = self.reader.depth_m(index)
        self._compare(index, 1, array_digest(depth_m))
        return depth_m

    def _compare(self, index: int, part: int, digest: str) -> None:
        known = self.digests.get(index)
        if known is None or known[part] != digest:
            raise BadFrame(_sentence(f"frame {index} beside {self.manifest}", known is not None, self.manifest))

    def check(self, index: int, *, thorough: bool) -> None:
        self.reader.check(index, thorough=thorough)

    def digest(self, indices: Sequence[int], *, content: bool = False) -> tuple[str, str]:
        return self.reader.digest(indices, content=content)

    def kept(self, indices: Sequence[int]) -> Kept:
        return self.reader.kept(indices)

    def kinds(self) -> tuple[Reader, ...]:
        return self.reader.kinds()

    def steps(self) -> dict[int, float]:
        return self.reader.steps()


def _sentence(where: str, known: bool, manifest: str) -> str:
    what = "changed since the manifest was made" if known else f"is not in {manifest}"
    return f"{where} {what}; restore it, or run python -m trainables.data.doctor with --renew if that was meant"
