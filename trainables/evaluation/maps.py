"""Depth maps that any model wrote, one per frame: a folder, zip or tar of files named like the frames, or one stack.

    npy, npz            one map, float or whole numbers; or all frames' in one array (N, H, W), in the list's order
    PNG of 16 bits      whole numbers, so many to the metre (`scale`)
    TIFF, EXR           floats; EXR where the package OpenEXR is installed

A map's name is a frame's where the paths agree, or the file names, or their numbers and words without those that say
what a file holds (rgb, colors, depth, pred ...): 00012_depth.npy belongs to data/nyu2_test/00012_colors.png. A map of
another size is resized later, so it must show the whole frame. Nothing is unpacked to disk, nothing unpickled, and no
header is trusted.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainables.data.files import MAX_BYTES, ZipFiles, safe_name
from trainables.data.frames import BadFrame
from trainables.data.npy import Stack, read_npy_header
from trainables.data.pictures import MAX_PIXELS
from trainables.runtime.errors import UserError

Map = npt.NDArray[np.float32]
SUFFIXES: Final = (".npy", ".npz", ".exr", ".tiff", ".tif", ".png")  # the most exact first: the others are then copies
ROLES: Final = frozenset(
    {"rgb", "color", "colors", "colour", "colours", "image", "img", "depth", "pred", "predicted", "prediction"}
    | {"disp", "disparity", "sync", "raw", "filled", "est", "out"}
)
MAX_FILES: Final = 1 << 17
NAMED: Final = 5  # of the names that a sentence lists
_JUNK: Final = ("__MACOSX", "._", ".DS_Store")
_TIFF_MODES: Final = ("F", "I;16", "I;16B", "I")


@dataclass(frozen=True)
class DepthMaps:
    """Maps in the order of their frames. `read` gives the numbers as they are stored; `where` names each map."""

    read: Callable[[int], npt.NDArray[Any]]
    where: tuple[str, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.where)

    def map(self, index: int, scale: float | None) -> npt.NDArray[Any]:
        """A map without axes of length 1, divided by `scale`. Raises BadFrame for what cannot be read."""
        values = self.read(index)
        while values.ndim > 2 and 1 in (values.shape[0], values.shape[-1]):
            values = values[0] if values.shape[0] == 1 else values[..., 0]
        return values if scale is None else values / np.float32(scale)

    def whole_numbers(self) -> bool:
        """Whether the first map holds whole numbers, whose unit has to be known."""
        return bool(self.read(0).dtype.kind in "iu")


def open_maps(path: Path, ids: Sequence[str], elsewhere: Callable[[], Iterable[str]] = tuple) -> DepthMaps:
    """The maps of frames `ids`, in their order. `elsewhere`: frames outside the list, whose maps may lie beside.

    Raises UserError where frames have no map or several, where maps belong to no frame, and for what cannot be read.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; name the folder, archive or array of your depth maps")
    ending = path.suffix.lower()
    if ending == ".npy" and path.is_file():
        return _stacked(Stack.open(path.parent, path.name, str(path)), ids)
    names, read, where = _opened(path)
    files = [name for name in names if name.lower().endswith(SUFFIXES) and not _junk(name)]
    if not files:
        raise UserError(f"{path} holds no depth maps; they end in {', '.join(SUFFIXES)}")
    one = files[0].lower() if len(files) == 1 else ""
    if one.endswith(".npy") and (ending == ".npz" or (len(ids) > 1 and ending != ".tar")):
        return _stacked(Stack.open(path, files[0], where(files[0])), ids)
    if one.endswith(".npz") and len(ids) > 1 and path.is_dir():
        return open_maps(path / files[0], ids, elsewhere)
    chosen, notes = _matched(str(path), files, ids, elsewhere)
    return DepthMaps(lambda i: decode(read(chosen[i]), where(chosen[i])), tuple(map(where, chosen)), tuple(notes))


def _stacked(stack: Stack, ids: Sequence[str]) -> DepthMaps:
    if len(stack.shape) < 3 or stack.shape[0] != len(ids):
        raise UserError(
            f"{stack.where} has shape {stack.shape}; one array of all frames is ({len(ids)}, rows, columns), in the "
            "list's order"
        )
    return DepthMaps(
        stack.frame, tuple(f"{stack.where} at {i} ({name})" for i, name in enumerate(ids)),
        (f"{stack.where}: the maps are taken in the order of the list of frames",),
    )  # fmt: skip


def _opened(path: Path) -> tuple[list[str], Callable[[str], bytes], Callable[[str], str]]:
    """Names of the files below a folder or in an archive, and their reader; nothing outside it is ever read."""
    if path.is_dir():
        return _below(path), lambda name: _content(path / name), lambda name: str(path / name)
    ending = path.name.lower()
    if ending.endswith((".zip", ".npz")):
        archive = ZipFiles.open(path)
        return sorted(archive.entries), archive.read, archive.where
    if ending.endswith(".tar"):
        return _tar(path)
    if ".tar." in ending or ending.endswith((".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")):
        raise UserError(f"{path} is compressed as a whole; unpack it, or pack a .zip or a plain .tar")
    raise UserError(f"{path} is neither a folder nor .zip, .tar, .npy or .npz; name the depth maps")


def _below(root: Path) -> list[str]:
    """Files at any depth. Raises UserError for a link that leads outside."""
    home, found = root.resolve(), []
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder, name)
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise UserError(f"{path} is a link that leads outside {root}; replace it by the files")
        found += [Path(folder, name).relative_to(root).as_posix() for name in files]
        if len(found) > MAX_FILES:
            raise UserError(f"{root} holds more than {MAX_FILES:,} files; name the folder of the depth maps alone")
    return sorted(found)


def _content(path: Path) -> bytes:
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise BadFrame(f"{path} is no file, or larger than {MAX_BYTES:,} bytes; refused")
        return path.read_bytes()
    except OSError as error:
        raise BadFrame(f"{path} cannot be read ({error.strerror}); restore it") from None


def _tar(path: Path) -> tuple[list[str], Callable[[str], bytes], Callable[[str], str]]:
    """A plain tar's files, read in place. Raises UserError for links, devices and names that lead outside."""
    members: dict[str, tuple[int, int]] = {}
    length = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                name = safe_name(member.name.removeprefix("./"), str(path))
                if not member.isreg() or member.issparse():
                    raise UserError(f"{path}: its member {name} is a link or no plain file; refused, pack the file")
                if name in members or len(members) >= MAX_FILES:
                    raise UserError(f"{path} holds {name} twice, or more than {MAX_FILES:,} files; pack it again")
                if member.size > MAX_BYTES or member.offset_data + member.size > length:
                    raise UserError(f"{path}: its member {name} claims {member.size} bytes; refused, pack it again")
                members[name] = member.offset_data, member.size
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a readable .tar ({error}); pack it again") from None

    def read(name: str) -> bytes:
        start, size = members[name]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    return sorted(members), read, lambda name: f"{path}:{name}"


def _junk(name: str) -> bool:
    return any(part.startswith(_JUNK) for part in name.split("/"))


def _stem(name: str) -> str:
    """A path without its ending; an id without one keeps its dots."""
    return re.sub(r"\.(npy|npz|exr|tiff?|png|jpe?g|h5)$", "", name, flags=re.IGNORECASE)


def _words(name: str) -> tuple[str, ...]:
    """A path's numbers and words, those left out that say what a file holds."""
    return tuple(w for w in re.split(r"[/_\-. ]+", _stem(name).lower()) if w and w not in ROLES)


def _last_words(count: int, name: str) -> tuple[str, ...]:
    return _words(name)[-count:]


def _keys(ids: Sequence[str]) -> list[Callable[[str], Any]]:
    """Ways to compare a map's name with a frame's, the strictest first: each leaves the frames' names different."""
    ways: list[Callable[[str], Any]] = [_stem, lambda name: _stem(name).rpartition("/")[2]]
    longest = max((len(_words(name)) for name in ids), default=0)
    for count in range(1, longest + 1):
        if len({_words(name)[-count:] for name in ids}) == len(set(ids)):
            ways.append(partial(_last_words, count))
            break
    return [way for way in ways if len({way(name) for name in ids}) == len(set(ids))]


def _matched(
    path: str, files: Sequence[str], ids: Sequence[str], elsewhere: Callable[[], Iterable[str]]
) -> tuple[list[str], list[str]]:
    """The file of each frame, and what to say of the others. Raises UserError."""
    ways = _keys(ids)
    best: tuple[int, Callable[[str], Any], str] = (-1, ways[0], "")
    for way in ways:
        wanted = {way(name) for name in ids}
        for ending in SUFFIXES:
            score = len(wanted & {way(name) for name in files if name.lower().endswith(ending)})
            best = max(best, (score, way, ending), key=lambda one: one[0])
    _, way, ending = best
    same = [name for name in files if name.lower().endswith(ending)]
    by_key: dict[Any, list[str]] = {}
    for name in same:
        by_key.setdefault(way(name), []).append(name)
    missing = [name for name in ids if way(name) not in by_key]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(ids)} frames have no depth map ({_some(missing)}); nothing is scored on "
            f"fewer frames: write a map named like each, for example {_stem(missing[0])}{ending}"
        )
    frames = {way(name): name for name in ids}
    twice = [names for key, names in by_key.items() if key in frames and len(names) > 1]
    if twice:
        raise UserError(f"{path}: several maps are named like one frame ({_some(twice[0])}); keep one of them")
    surplus = [names[0] for key, names in by_key.items() if key not in frames]
    notes = []
    if surplus:
        others = {way(name) for name in elsewhere()}
        strange = [name for name in surplus if way(name) not in others]
        if strange:
            raise UserError(
                f"{path}: {len(strange)} maps are named like no frame of the list ({_some(strange)}); remove them, or "
                "name the list that they belong to"
            )
        notes.append(f"{len(surplus)} maps of frames outside the test list are not read")
    if len(same) < len(files):
        notes.append(f"{len(files) - len(same)} files beside the {ending} maps, of other endings, are not read")
    return [by_key[way(name)][0] for name in ids], notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def decode(content: bytes, where: str) -> npt.NDArray[Any]:
    """The numbers of one file, as they are stored. Raises BadFrame for damage, bombs and anything but plain numbers."""
    ending = where.lower().rpartition(".")[2]
    try:
        return _DECODERS[ending](content, where)
    except (OSError, ValueError, SyntaxError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadFrame(f"{where} is damaged or no .{ending} file ({reason}); write it again") from None


def _npy(content: bytes, where: str) -> npt.NDArray[Any]:
    file = io.BytesIO(content)
    shape, columns_first, dtype = read_npy_header(file)
    if dtype.kind not in "fiu":
        held = "Python objects, which are never unpickled" if dtype.hasobject else str(dtype)
        raise BadFrame(f"{where} holds {held}; store plain numbers")
    rest = content[file.tell() :]
    if int(np.prod(shape, dtype=object)) * dtype.itemsize != len(rest):
        raise BadFrame(f"{where} claims {dtype} {shape}, but holds {len(rest)} bytes; write it again")
    values: npt.NDArray[Any] = np.frombuffer(rest, dtype).reshape(shape, order="F" if columns_first else "C")
    return values


def _npz(content: bytes, where: str) -> npt.NDArray[Any]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        if len(names) != 1:
            raise BadFrame(f"{where} holds {len(names)} arrays ({_some(names)}); store the depth map alone")
        claimed = archive.getinfo(names[0]).file_size
        if claimed > MAX_BYTES:
            raise BadFrame(f"{where} claims {claimed} bytes; refused")
        with archive.open(names[0]) as file:
            return _npy(file.read(claimed + 1), where)


def _picture(content: bytes, where: str) -> npt.NDArray[Any]:
    with Image.open(io.BytesIO(content), formats=["PNG", "TIFF"]) as image:
        if image.width * image.height > MAX_PIXELS:
            raise BadFrame(f"{where} claims {image.width} x {image.height} pixels; refused")
        if image.mode not in _TIFF_MODES or getattr(image, "n_frames", 1) != 1:
            raise BadFrame(f"{where} has {image.mode} pixels where one channel of 16 bits or floats must be")
        return np.array(image)


def _exr(content: bytes, where: str) -> npt.NDArray[Any]:
    try:
        library: Any = importlib.import_module("OpenEXR")
    except ImportError:
        raise UserError(f"{where}: EXR needs the package OpenEXR (pip install OpenEXR), or write .npy") from None
    with tempfile.NamedTemporaryFile(suffix=".exr") as file:  # the library reads files alone
        file.write(content)
        file.flush()
        try:
            with library.File(file.name, header_only=True) as picture:  # what it holds is gone when it closes
                low, high = (tuple(map(int, corner)) for corner in picture.header()["dataWindow"])
                channels = [str(one.name) for one in picture.header()["channels"]]
            if (high[0] - low[0] + 1) * (high[1] - low[1] + 1) > MAX_PIXELS or len(channels) != 1:
                raise BadFrame(f"{where} claims {low} to {high}, channels {_some(channels)}; store one depth map")
            with library.File(file.name) as picture:
                values: npt.NDArray[Any] = np.array(picture.channels()[channels[0]].pixels)
        except (RuntimeError, KeyError, TypeError) as error:
            raise BadFrame(f"{where} is damaged or no EXR file ({error}); write it again") from None
    return values


_DECODERS: Final[Mapping[str, Callable[[bytes, str], npt.NDArray[Any]]]] = {
    "npy": _npy, "npz": _npz, "png": _picture, "tif": _picture, "tiff": _picture, "exr": _exr,
}  # fmt: skip
