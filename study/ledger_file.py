"""File of a sqlite ledger: damage check before it is opened, seal, backup.

SQLite keeps no checksums. A study that ends by itself seals the file with its SHA-256, which finds any change; of one
that was killed SQLite's own check finds what breaks the structure, and reading finds what no ledger can hold.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from study.contract import Layout
from trainables.runtime.durable import sha256, sync_file, sync_folder, write_bytes
from trainables.runtime.errors import UserError, refused_by_disk

EMPTY = "it is empty"
BUSY_S = 30.0  # how long a write waits for a reader of the same sqlite file


def backup(layout: Layout) -> None:
    """Copy the ledger to ledger.backup.db, whole or not at all."""
    final, temporary = _copy(layout), layout.root / ".ledger.backup.tmp"
    temporary.unlink(missing_ok=True)
    with closing(sqlite3.connect(layout.ledger)) as source, closing(sqlite3.connect(temporary)) as target:
        source.backup(target)
    sync_file(temporary)
    temporary.replace(final)
    sync_folder(layout.root)


def seal(layout: Layout) -> None:
    """Keep the SHA-256 of a ledger that nobody has open, and of the copy that may be put in its place."""
    files = [path for path in (layout.ledger, _copy(layout)) if path.exists()]
    write_bytes(_seal(layout), "\n".join(sha256(path) for path in files).encode())


def check(layout: Layout) -> None:
    """Break the seal of a ledger that is whole. Raises UserError for one that is damaged or has changed since it was
    sealed, or is missing beside trainings that it should list.
    """
    path, sealed = layout.ledger, _seal(layout)
    begun = layout.trials.is_dir() and any(layout.trials.iterdir())
    if not path.exists():
        if begun:
            raise UserError(f"{path}: the ledger is missing, but there are trainings beside it; {advice(layout)}")
        return
    if sealed.exists() and sha256(path).encode() not in sealed.read_bytes().splitlines():
        raise UserError(
            f"{path}: the ledger has changed since its study ended (SHA-256 differs); {advice(layout)}, "
            f"or remove {sealed} if you changed it yourself"
        )
    found = damage(path, mode="rw")  # a journal that a kill left in the middle of a write has to be rolled back
    if found == EMPTY and not begun:  # killed while it was made, before the first training
        path.unlink()
        return
    if found is not None:
        raise damaged(layout, found)
    sealed.unlink(missing_ok=True)


def damage(path: Path, mode: str = "ro") -> str | None:
    """What SQLite says is wrong with a ledger, in a few words."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=BUSY_S)) as connection:
            found = connection.execute("PRAGMA integrity_check").fetchone()[0]
            made = "SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'"
            tables = connection.execute(made).fetchone()[0]
    except sqlite3.DatabaseError as error:
        return str(error)
    if found != "ok":
        return " ".join(str(found).split())  # SQLite writes a line for each thing it finds
    return None if tables else EMPTY


@contextmanager
def readable(layout: Layout) -> Iterator[None]:
    """Report impossible content of a ledger's file as damage; a full disk or a file in use is not damage."""
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (LookupError, OptunaError, RuntimeError, SQLAlchemyError, TypeError, ValueError) as error:
        if not layout.ledger.exists() or refused_by_disk(error) or "database is locked" in str(error):
            raise
        raise damaged(layout, f"{type(error).__name__}: {error}") from error


def damaged(layout: Layout, problem: str) -> UserError:
    """The error for a damaged ledger."""
    return UserError(f"{layout.ledger}: the ledger is damaged ({problem.splitlines()[0][:200]}); {advice(layout)}")


def advice(layout: Layout) -> str:
    """The cure for a damaged ledger, in words."""
    copy = _copy(layout)
    there = copy.exists()
    return f"put {copy} in its place, then --resume" if there else f"move {layout.root} away and start again"


def _copy(layout: Layout) -> Path:
    return layout.root / "ledger.backup.db"


def _seal(layout: Layout) -> Path:
    return layout.root / "ledger.db.sha256"
