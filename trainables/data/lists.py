"""Lists of frames as people have them: any usual text coding and separator, header lines, index columns, foreign paths.

A name in a list is matched with the files that are there: backslashes become slashes, and what stands before the data
root on another machine (`/kaggle/input/nyu/`, `D:\\data\\`, one more `nyu_data/`) is cut off. The first line whose file
is found decides what is cut off, for the whole column; no line is ever matched by itself.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from trainables.data.files import MAX_BYTES, Files, is_litter, safe_name
from trainables.runtime.errors import UserError
from trainables.settings.config import Column

PICTURES: Final = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".npy")
_NAMES: Final[dict[str, Column]] = {
    **dict.fromkeys(("color", "colour", "rgb", "image", "img", "images", "input"), "color"),
    **dict.fromkeys(("depth", "depth_map", "gt", "label", "target", "truth"), "depth"),
    **dict.fromkeys(("scene", "place"), "scene"),
}
_BOMS: Final = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_DRIVE: Final = re.compile(r"[A-Za-z]:/")
# Where data lie on machines that lists come from. Another absolute path may mean other files: it is not guessed at.
_PLACES: Final = frozenset(
    (
        "content",
        "data",
        "datasets",
        "home",
        "kaggle",
        "media",
        "mnt",
        "root",
        "scratch",
        "users",
        "volumes",
        "workspace",
    )
)
_TRIED: Final = 50  # lines whose files are looked for before a list is taken as it is


class Row(NamedTuple):
    """A line of a list: its number, counted from 1, and its fields."""

    number: int
    fields: list[str]


@dataclass(frozen=True)
class Listed:
    """Frames of a list, with their scenes where a column names them; names as the files have them."""

    color: tuple[str, ...]
    depth: tuple[str, ...]
    scenes: tuple[str | None, ...]


@dataclass(frozen=True)
class ListFile:
    """A list's lines, its name to show, and its name below the root where it lies there."""

    rows: list[Row]
    where: str
    name: str | None


def find_list(files: Files, named: str | None, usual: Sequence[str], key: str) -> ListFile | None:
    """The list that a setting names, below the root or anywhere, or the first usual one below the root; None without
    any. Raises UserError where the named one is missing; key: the setting, for the sentence.
    """
    name = next((name for name in ([named] if named else usual) if _below_root(name) and files.has(name)), None)
    if name is not None:
        return ListFile(read_rows(files.read(name), files.where(name)), files.where(name), name)
    if named is None:
        return None
    path = Path(named)
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise UserError(f"{key}: {named} is no list below {files.where('')} nor here; correct it")
    return ListFile(read_rows(path.read_bytes(), named), named, None)


def _below_root(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")


def match(files: Files, listed: ListFile, columns: Sequence[Column] | None = None) -> Listed:
    """The frames of a list. columns: what the fields are; None: found out. Lines whose depth is None, as KITTI's lists
    say for missing truth, are left out. Raises UserError naming file and line.
    """
    where = listed.where
    rows, columns = _without_header(listed.rows, columns)
    if not rows:
        raise UserError(f"{where} lists no frames; download the data again")
    columns = columns or _columns(rows[0])
    if columns.count("color") != 1 or columns.count("depth") != 1 or columns.count("scene") > 1:
        raise UserError(f"{_said(where, rows[0])}; correct the line, or say in data.columns what its fields are")
    for row in rows:
        if len(row.fields) != len(columns) or not all(
            row.fields[i] for i, what in enumerate(columns) if what in ("color", "depth")
        ):
            raise UserError(f"{_said(where, row)}; correct the line")
    picture, truth = columns.index("color"), columns.index("depth")
    scene = columns.index("scene") if "scene" in columns else None
    rows = [row for row in rows if row.fields[truth] != "None" and not is_litter(row.fields[picture])]
    base = (listed.name or "").rpartition("/")[0]
    color, depth = (_matched(files, [(r.number, r.fields[i]) for r in rows], where, base) for i in (picture, truth))
    scenes = tuple(row.fields[scene] or None if scene is not None else None for row in rows)
    return Listed(tuple(color), tuple(depth), scenes)


def read_rows(content: bytes, where: str) -> list[Row]:
    """Lines that are not empty, split at tabs, commas, semicolons or blanks, whichever the first one has.

    Raises UserError for what is no text.
    """
    coding = next((name for mark, name in _BOMS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(coding).replace("\r\n", "\n").replace("\r", "\n")
        if "\0" in text:
            raise ValueError("it has zero bytes")
        lines = text.split("\n")
        first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
        mark = next((mark for mark in "\t,;" if mark in first), None)
        if mark is None:
            split = [line.split() for line in lines]
        else:  # a field in quotation marks never spans lines: a name has none
            split = [
                next(csv.reader([line], delimiter=mark, strict=True), []) if '"' in line else line.split(mark)
                for line in lines
            ]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{where} is not a list of `colour,depth` lines ({error}); download it again") from None
    rows = [Row(number, [field.strip() for field in fields]) for number, fields in enumerate(split, 1)]
    return [row for row in rows if any(row.fields) and not row.fields[0].startswith("#")]


def _said(where: str, row: Row) -> str:
    return f"{where}:{row.number}: {','.join(row.fields)[:80]!r} is not `colour,depth`"


def _is_picture(field: str) -> bool:
    return field.lower().endswith(PICTURES)


def _without_header(rows: Sequence[Row], columns: Sequence[Column] | None) -> tuple[list[Row], list[Column] | None]:
    """The lines below the header, and the columns that it names."""
    if not rows or len(rows) < 2 or any(_is_picture(f) for f in rows[0].fields):
        return list(rows), list(columns) if columns else None
    if not any(_is_picture(field) for field in rows[1].fields):
        return list(rows), list(columns) if columns else None
    named: list[Column] = [_NAMES.get(field.lower(), "skip") for field in rows[0].fields]
    complete = named.count("color") == 1 and named.count("depth") == 1
    return list(rows[1:]), list(columns) if columns else named if complete else None


def _columns(row: Row) -> list[Column]:
    """The first two pictures of a line are color and depth; an index, a focal length, filled depth are skipped."""
    places = [i for i, field in enumerate(row.fields) if _is_picture(field) or field == "None"]
    if len(places) < 2:
        places = [0, 1] if len(row.fields) == 2 else []
    roles: dict[int, Column] = dict(zip(places, ("color", "depth"), strict=False))
    return [roles.get(i, "skip") for i in range(len(row.fields))]


def _matched(files: Files, names: Sequence[tuple[int, str]], where: str, base: str) -> list[str]:
    """The names as the files have them. Raises UserError for one that leads outside the root."""
    plain = [(number, name.replace("\\", "/")) for number, name in names]
    cut, add = _prefixes(files, plain, where, base)
    result = []
    for number, name in plain:
        if cut and name.startswith(cut):
            name = name[len(cut) :]
        name = safe_name(add + name, f"{where}:{number}")
        result.append(name if name.isascii() else _in_form(files, name))
    return result


def _prefixes(files: Files, names: Sequence[tuple[int, str]], where: str, base: str) -> tuple[str, str]:
    """What is cut off a column's names, and what is put before them."""
    for number, name in names[:_TRIED]:
        if ".." in name.split("/"):
            continue
        parts = [part for part in name.split("/") if part not in ("", ".")]
        foreign = name.startswith("/") or bool(_DRIVE.match(name))
        if not foreign and _there(files, "/".join(parts)):
            return "", ""
        if base and not foreign and _there(files, f"{base}/{'/'.join(parts)}"):
            return "", f"{base}/"
        for count in range(len(parts)):
            if not _there(files, "/".join(parts[count:])):
                continue
            start = name[: name.index(parts[count], len("/".join(parts[:count])))]
            known = count == 0 or bool(_DRIVE.match(name)) or parts[0].lower() in _PLACES
            if foreign and not known:
                raise UserError(
                    f"{where}:{number}: {name!r} leads outside the data root; cut {start!r} off the lines if the files "
                    "are those below the root"
                )
            return start, ""
    return "", ""


def _there(files: Files, name: str) -> bool:
    return files.has(name) or (not name.isascii() and files.has(_in_form(files, name)))


def _in_form(files: Files, name: str) -> str:
    """The name in the Unicode form (composed, as Linux and Windows write it; or not, as macOS) that is there."""
    forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return next((form for form in forms if files.has(form)), name)
