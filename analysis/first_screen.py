"""First screen of the report: what was studied on what data, each section's headline, what to do next.

Headlines stand in the page's own order; a section without one is not on the first screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis import next_step
from analysis.published import NYU_TEST_FRAMES
from analysis.section import Headline, Section, counted
from analysis.tables import RUNNING, WAITING, StudyTables
from study.contract import Outcome


def headlines(
    tables: StudyTables, sections: Sequence[Section], verdicts: Sequence[tuple[str, str]]
) -> list[tuple[str, str, Headline]]:
    """(key, what it answers, headline) in order. `verdicts`: (id, verdict) of each claim, for the next step."""
    result = [("studied", "", Headline([studied(tables)]))]
    if warnings := _warnings(tables):
        result.append(("state", "", Headline(warnings, warn=True)))
    result += [(s.key, s.title, s.headline) for s in sections if s.headline is not None]
    return [*result, ("next", "What next?", next_step.headline(tables, verdicts))]


def studied(tables: StudyTables) -> str:
    """One sentence on the trainings and their data."""
    trials = tables.trials
    if trials.empty:
        return f"Nothing was trained yet; the data are {_data(tables)}."
    systems = ", ".join(dict.fromkeys(str(name) for name in trials["recipe"].dropna()))
    encoder, shape = _only(trials, "config.model.encoder"), _only(trials, "config.input")
    images = _only(trials, "config.budget_images")
    order = [*Outcome, RUNNING, WAITING]
    counts = trials["outcome"].value_counts()
    ended = ", ".join(f"{counts[o]} {str(o).replace('_', ' ')}" for o in order if o in counts)
    each = f" of {images:,} images each" if isinstance(images, int) else ""
    at = f" at {' x '.join(map(str, shape))}" if isinstance(shape, (list, tuple)) else ""
    return (
        f"{systems}{f' ({encoder})' if encoder else ''} on {_data(tables)}{at}: "
        f"{counted(len(trials), 'training')}{each} ({ended})."
    )


def _data(tables: StudyTables) -> str:
    """The data and how many frames of each split: 'rendered rooms (510 training, 60 validation, 180 test frames)'."""
    trials = tables.trials
    first = trials.iloc[0] if len(trials) else pd.Series(dtype=object)
    source = next_step.source(tables)
    test = tables.data.get("test_frames")
    named = "rendered rooms" if source == "rooms" else f"data of the form {source}"
    if source != "rooms" and test == NYU_TEST_FRAMES:
        named = "NYU Depth v2"
    counts = {"training": first.get("summary.train_frames"), "validation": first.get("summary.validation_frames")}
    known = [
        f"{int(n):,} {split}" for split, n in (counts | {"test": test}).items() if n is not None and not pd.isna(n)
    ]
    return f"{named} ({', '.join(known)} frames)" if known else named


def _only(trials: pd.DataFrame, column: str) -> Any:
    """The one value of a column, None where there are several or none."""
    values = trials[column].dropna() if column in trials else pd.Series(dtype=object)
    distinct = {str(v): v for v in values}
    value = next(iter(distinct.values())) if len(distinct) == 1 else None
    return int(value) if isinstance(value, float) and value.is_integer() else getattr(value, "item", lambda: value)()


def _warnings(tables: StudyTables) -> list[str]:
    """What a reader must know before believing the rest."""
    said = []
    if tables.trials.empty:
        said.append("This study has not begun: its ledger holds no training.")
    elif (tables.trials["outcome"] != Outcome.COMPLETE).all():
        said.append("No training of this study was completed.")
    if not tables.judge_unchanged and len(tables.trials):
        said.append("The judge's settings are not those hashed before the first training.")
    if not tables.claims_unchanged:
        said.append("The claims are not those hashed before the first training.")
    if unfinished := tables.unfinished():
        said.append(f"This study has not ended: {'; '.join(unfinished)}.")
    return said
