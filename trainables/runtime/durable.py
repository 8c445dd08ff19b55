"""Durable files (DESIGN.md, house rule 10): temporary file, fsync, rename, fsync of the folder.

Some file systems (SMB, 9p as in WSL, FUSE) cannot flush a folder, or keep no permissions. What they cannot do is left
out, as PostgreSQL does (src/common/file_utils.c, fsync_fname); what fails for another reason is an error.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainables.runtime import locks
from trainables.runtime.errors import UserError

NO_FLUSH = (errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # fsync where the file system has none
NO_FOLDERS = (errno.EACCES, errno.EISDIR)  # opening a folder where the system cannot, or may not read it


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to an error of writing, as Python does only for an error of opening."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def check_folder(folder: Path, *names: str) -> None:
    """Raise UserError where files of these names could not be written to a folder that is there, or is yet to be made.

    Nothing is written: what a command would fail at in the end, it refuses in the beginning.
    """
    whole = folder.absolute()
    for place in (whole, *whole.parents):
        try:
            mode = place.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            if place.is_symlink():
                raise UserError(f"{folder}: {place} is a link to nothing; choose another folder") from None
            continue
        except OSError as error:
            raise UserError(f"{folder}: {error.strerror}; choose another folder") from error
        if not stat.S_ISDIR(mode):
            raise UserError(f"{folder}: {place} is a file where a folder must be; choose another folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(f"{folder}: {place} cannot be written to; choose another folder")
        limit = os.pathconf(place, "PC_NAME_MAX")
        for name in (*whole.relative_to(place).parts, *names):
            if len(os.fsencode(name)) > limit:
                raise UserError(f"{folder}: the name {name} is longer than {limit} bytes; choose a shorter one")
        return


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file so that a reader, or a kill at any point, sees the old content or the new, never less."""
    path.parent.mkdir(parents=True, exist_ok=True)
    short = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]  # a name may be as long as a file system allows
    temporary = path.with_name(f".{short}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            file.write(content)
            file.flush()
            flush(file.fileno())
        locks.confirm()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Durably replace a JSON file; NaN and infinity are refused (JSON has neither)."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a crash of the machine, where its file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in NO_FOLDERS:
            raise
        return
    try:
        with naming(folder):
            flush(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flush a file that something else wrote."""
    with naming(path), path.open("rb+") as file:
        flush(file.fileno())


def flush(descriptor: int) -> None:
    """Write an open file or folder through to the disk, where its file system can. Raises OSError where that fails."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FLUSH:
            raise


def make_private(path: Path) -> str | None:
    """Close a file or folder to other users; where it stays open to them, a sentence that says why."""
    wanted = 0o700 if path.is_dir() else 0o600
    refusal: OSError | None = None
    try:
        path.chmod(wanted)
    except OSError as error:  # exFAT, SMB, drvfs without metadata, a folder of another user
        refusal = error
    if not stat.S_IMODE(path.stat().st_mode) & 0o077:
        return None
    why = "its file system keeps no permissions" if refusal is None else os.strerror(refusal.errno or 0)
    return f"{path}: other users of this machine may read it and cannot be kept out ({why})"


def replace_folder(temporary: Path, final: Path) -> None:
    """Put a complete folder in place of `final`; a kill between the renames leaves `final.old`, which readers heal."""
    old = final.with_name(final.name + ".old")
    for path in sorted(temporary.rglob("*")):
        sync_folder(path) if path.is_dir() else sync_file(path)
    sync_folder(temporary)
    locks.confirm()
    if old.exists() and final.exists():
        shutil.rmtree(old)
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    sync_folder(final.parent)
    if old.exists():
        shutil.rmtree(old)


def remove_unfinished(folder: Path) -> None:
    """Remove what writes that a kill ended have left under a folder that nobody else writes to."""
    for path in list(folder.rglob(".*.tmp")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
