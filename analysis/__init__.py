"""What a study found: `load_study` gives its trainings and reports as tidy frames; each module is one question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainables.drawing import forget_unusable_backend

if TYPE_CHECKING:
    from pathlib import Path

    from analysis.tables.tidy import StudyTables

__all__ = ["load_study"]

forget_unusable_backend()  # before a module of this package imports matplotlib


def load_study(study: str | Path) -> StudyTables:
    """A study by its name, its results folder or a released .parquet file, finished or still running.

    `trials` of the result has a row per training and `reports` a row per validation; StudyTables says what a column
    means. Nothing is written. Raises UserError where there is no such study.

    >>> study = load_study("rooms")
    >>> finished = study.trials[study.trials["outcome"] == "complete"]
    >>> sorted(set(finished["phase"]))
    ['claims', 'confirm', 'reproduce', 'search']
    """
    from analysis.runs import named  # pandas, Optuna: only where a study is read

    return named(str(study))
