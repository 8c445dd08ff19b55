"""Data types of a report section: answers in sentences, figures, tables, headline.

A figure carries its data apart from its drawing: `draw(figure, data)` sees nothing else that is a number, so the CSV
beside a picture is the picture. Nothing here reads a study; names and settings are text and are escaped by the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

Draw = Callable[[Canvas, pd.DataFrame], None]


@dataclass(frozen=True)
class Figure:
    """One picture. `draw` fills an empty matplotlib figure of `size_in` inches (width, height) from `data`.

    name: file stem, unique in a report. alt: what a reader who cannot see it needs to know. caption: runs, split,
    spread and n.
    """

    name: str
    title: str
    alt: str
    caption: str
    draw: Draw
    data: pd.DataFrame
    size_in: tuple[float, float] = (7.0, 4.0)

    def render(self) -> Canvas:
        """The drawn figure, with its own canvas: no global state of pyplot is touched."""
        canvas = Canvas(figsize=self.size_in, layout="constrained")
        self.draw(canvas, self.data)
        return canvas


@dataclass(frozen=True)
class Table:
    """One table. `units` gives a column's unit (m, s, images, share ...) where it has one."""

    name: str
    title: str
    frame: pd.DataFrame
    note: str = ""
    units: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Headline:
    """What a section says on the page's first screen; its figures and tables stand there instead of below.

    warn: what a reader must know before believing the rest. command: what to run next, as it stands.
    """

    sentences: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    command: str = ""
    warn: bool = False


@dataclass(frozen=True)
class Entry:
    """One training, folded up until it is asked for.

    title: how it ended. words: sentences. command: what repeats it. settings: (path, value) of those of its own.
    curve: (images, value) per report of what `measured` names with its unit. preview: a JPEG. folder: relative to the
    page, empty where it is not there.
    """

    key: str
    title: str
    words: Sequence[str]
    command: str
    settings: Sequence[tuple[str, str]]
    measured: str
    curve: Sequence[tuple[float, float]]
    preview: bytes | None
    folder: str


@dataclass(frozen=True)
class Section:
    """The answer to one question. `answers` are sentences, the most important first; `data` is plain JSON.

    headline: its part of the first screen, None where it has none. entries: the trainings that it lists one by one.
    """

    key: str
    title: str
    answers: Sequence[str]
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    headline: Headline | None = None
    entries: Sequence[Entry] = ()

    def text(self) -> str:
        """The section for a terminal."""
        parts = [self.title, "=" * len(self.title), *self.answers]
        listed = [*(self.headline.tables if self.headline is not None else ()), *self.tables]
        for table in (one for one in listed if len(one.frame)):
            heads = {c: f"{c} ({u})" for c, u in table.units.items() if u}
            body = table.frame.rename(columns=heads).to_string(index=False, float_format=number, na_rep="-")
            parts += ["", table.title, body, *([table.note] if table.note else [])]
        return "\n".join(parts)


def number(value: float | None) -> str:
    """A number for a sentence: three significant digits, and whole ones from 100 to 10,000."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    if 0.1 <= abs(value) < 1:
        return f"{value:.3f}"  # 0.500 beside 0.512
    return f"{value:.0f}" if 100 <= abs(value) < 10_000 else f"{value:.3g}"


def counted(n: int, what: str) -> str:
    """'1 trial', '2 trials': `what` in the singular; its first word takes the s ('setting', 'training of a phase')."""
    first, space, rest = what.partition(" ")
    return f"{n} {first}{'' if n == 1 else 's'}{space}{rest}"


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame's rows as mappings by column name, missing values as None."""
    return [{str(k): None if missing(v) else v for k, v in row.items()} for row in frame.to_dict(orient="records")]


def missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, NaT or NA."""
    return value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def plain(value: Any) -> Any:
    """A value as strict JSON types: numpy and pandas scalars unwrapped, NaN and infinity as null, frames as records."""
    if isinstance(value, pd.DataFrame):
        return [plain(row) for row in value.to_dict(orient="records")]
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, np.ndarray, pd.Series)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, int, bool)):
        return value
    return str(value)
