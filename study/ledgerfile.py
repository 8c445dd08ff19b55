"""The ledger's sqlite file: where its copy lies, and whether it is whole."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from study.contract import Layout
from trainables.errors import UserError

EMPTY = "it is empty"
BUSY_S = 30.0  # how long a write waits for a reader of the same sqlite file


def backup_file(layout: Layout) -> Path:
    """Where the ledger's copy lies."""
    return layout.root / "ledger.backup.db"


def check_file(layout: Layout, url: str | None) -> None:
    """Raise UserError for a sqlite ledger that is damaged, or missing beside trainings that it should list."""
    if url is not None:
        return
    path, copy = layout.ledger, backup_file(layout)
    advice = f"put {copy} in its place, then --resume" if copy.exists() else f"move {layout.root} away and start again"
    begun = layout.trials.is_dir() and any(layout.trials.iterdir())
    if not path.exists():
        if begun:
            raise UserError(f"{path}: the ledger is missing, but there are trainings beside it; {advice}")
        return
    found = damage(path)
    if found == EMPTY and not begun:  # killed while it was made, before the first training
        path.unlink()
    elif found is not None:
        raise UserError(f"{path}: the ledger is damaged ({found}); {advice}")


def damage(path: Path) -> str | None:
    """What is wrong with a sqlite ledger, in a few words."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_S)) as connection:
            found = connection.execute("PRAGMA quick_check").fetchone()[0]
            made = "SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'"
            tables = connection.execute(made).fetchone()[0]
    except sqlite3.DatabaseError as error:
        return str(error)
    if found != "ok":
        return " ".join(str(found).split())  # SQLite writes a line for each thing it finds
    return None if tables else EMPTY
