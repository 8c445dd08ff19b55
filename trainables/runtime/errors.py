"""Errors: a user's mistake, a training that diverged, memory that ran out, a request to stop.

A bug is none of these and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sqlite3

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
NO_PLACE = (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)  # a file, or a link, where a folder must be


class UserError(Exception):
    """A mistake of the user; its text is one sentence naming file and key and what to do (exit code 2)."""


class Blocked(UserError):
    """An obstacle on the disk, not a fault of the training, which resumes where it was once the obstacle is removed."""


class Diverged(Exception):
    """A loss or gradient stopped being finite. `step` is the optimiser step (0-based) and `reason` says what."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step = step
        self.reason = reason


class Stopped(Exception):
    """A stop on request, at a checkpoint from which the training resumes."""


class PeerLost(Exception):
    """The end of one of the processes that train together; its own error says why, if it could report one."""


class OutOfMemory(Exception):
    """The device or the host had no memory left for the training."""


def refused_by_disk(error: BaseException | None) -> str | None:
    """One sentence where the disk (full, not to be written to, or a path through a file) is behind an error, else None.
    The first of several errors that name a file counts, which is the last in their chain.
    """
    sentence = None
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM + NO_PLACE and (error.filename or sentence is None):
            where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            sentence = f"{where}{os.strerror(error.errno)}; make room or choose another folder"
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            sentence = f"{error}; make room or choose another folder"
        error = error.__cause__ or error.__context__
    return sentence
