"""Stand-ins for files: what is found in a file's place after a clone or a download that did not bring the file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_HEAD: Final = 512
_LFS: Final = b"version https://git-lfs.github.com/spec/"
_PAGES: Final = (b"<!doctype html", b"<html")
_MATLAB: Final = b"MATLAB 5.0 MAT-file"


def stand_in(content: bytes) -> str | None:
    """What a file's content shows it to be instead of the file, to be said after its name; None for anything else."""
    head = content[:_HEAD]
    if head.startswith(_LFS):
        return "is a Git LFS pointer and not the file itself (git lfs pull fetches that)"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        return "is a web page and not the file itself (a download that wants a login or a confirmation ends so)"
    if head.startswith(_MATLAB):
        return "is a MATLAB file of before version 7.3 (save it with -v7.3)"
    return None


def stand_in_at(path: Path) -> str | None:
    """The same of the file at a path; None for what is no file or cannot be read."""
    try:
        with path.open("rb") as file:
            return stand_in(file.read(_HEAD))
    except OSError:
        return None
