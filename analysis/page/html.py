"""HTML page of a report: self-contained, without network, and no name in it can run code.

Every text passes Jinja's autoescaping; characters that would reorder or hide text are spelled out; the policy allows
the page's own style and script by hash, and pictures from `data:` only.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure as Canvas

from analysis.page import style
from analysis.page.section import Entry, Figure, Headline, Section, Table, missing, number

HERE = Path(__file__).parent
HIDDEN = [0x061C, 0x200B, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF, *range(0x202A, 0x202F), *range(0x2060, 0x206A)]
CONTROLS = [code for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\n\t"]
_SPELLED = {code: f"[U+{code:04X}]" for code in [*HIDDEN, *CONTROLS, *range(0xD800, 0xE000)]}
NOTHING = "–"
PHONE_IN, READABLE_IN = 4.3, 5.2  # inches at which a figure is drawn for phones, and up to which they need no copy
SHORT = 44  # characters of a cell that must not wrap


@dataclass(frozen=True)
class Picture:
    """A drawn figure: what the page holds and what the files hold."""

    name: str
    title: str
    caption: str
    kind: str  # lines | dense | dense moved (sideways, on a phone)
    picture: Markup
    csv: str  # data: address
    rows: int
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Cell:
    text: str
    style: str  # n: a number; s: short text that must not wrap; t: text that may
    value: str | None  # what a numeric column is sorted by
    href: str | None = None


@dataclass(frozen=True)
class Column:
    name: str
    unit: str
    numeric: bool


@dataclass(frozen=True)
class Grid:
    name: str
    title: str
    note: str
    count: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    csv: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Fold:
    """A training's entry: its curve as an SVG element, its preview as a `data:` address, its run's address."""

    entry: Entry
    curve: Markup
    preview: str
    href: str | None


@dataclass(frozen=True)
class Part:
    """A section ready for the page; `brief`: it has one sentence and nothing else."""

    key: str
    title: str
    answers: Sequence[str]
    figures: Sequence[Picture]
    tables: Sequence[Grid]
    folds: Sequence[Fold] = ()

    @property
    def brief(self) -> bool:
        return len(self.answers) <= 1 and not self.figures and not self.tables


@dataclass(frozen=True)
class Lead:
    """One entry of the first screen, after the question that it answers. The section of its key says more."""

    key: str
    asked: str
    sentences: Sequence[str]
    figures: Sequence[Picture]
    tables: Sequence[Grid]
    command: str
    warn: bool


def spelled(text: str) -> str:
    """Text with characters that hide or reorder what stands around them spelled out: [U+202E]."""
    return text.translate(_SPELLED)


def part(section: Section, links: Mapping[str, str], runs: Mapping[str, str]) -> Part:
    """A section with its figures drawn and its tables formatted, empty ones left out.

    links: training key -> where a table's row of it leads (see `anchors`); runs: its run in the MLflow UI.
    """
    folds = [_fold(entry, runs) for entry in section.entries]
    return Part(section.key, section.title, section.answers, *_drawn(section, links), folds)


def lead(key: str, asked: str, headline: Headline, links: Mapping[str, str]) -> Lead:
    """An entry of the first screen, as `part` makes a section."""
    return Lead(key, asked, headline.sentences, *_drawn(headline, links), headline.command, headline.warn)


def anchors(sections: Sequence[Section], links: Mapping[str, str]) -> dict[str, str]:
    """Training key -> where its rows lead: to its entry on the page, else to its run in the MLflow UI."""
    return dict(links) | {entry.key: f"#{anchor(entry.key)}" for section in sections for entry in section.entries}


def anchor(key: str) -> str:
    """The id of a training's entry."""
    return f"training-{key}"


def _fold(entry: Entry, runs: Mapping[str, str]) -> Fold:
    preview = style.data_uri("image/jpeg", entry.preview) if entry.preview is not None else ""
    return Fold(entry, _curve(entry), preview, runs.get(entry.key))


CURVE_W, CURVE_H = 320, 90  # of an entry's curve, in the SVG's own units


def _curve(entry: Entry) -> Markup:
    """A curve as a small SVG element: made of numbers alone, so nothing in it can be text."""
    if len(entry.curve) < 2:
        return Markup("")
    x, y = np.array(entry.curve, dtype=float).T
    across = (x - x.min()) / max(float(np.ptp(x)), 1e-12) * (CURVE_W - 8) + 4
    up = CURVE_H - 4 - (y - y.min()) / max(float(np.ptp(y)), 1e-12) * (CURVE_H - 8)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, up, strict=True))
    said = f"{number(float(y[0]))} at {x[0]:.0f} images, {number(float(y[-1]))} at {x[-1]:.0f}"
    return Markup(  # noqa: S704  (numbers alone)
        f'<svg viewBox="0 0 {CURVE_W} {CURVE_H}" role="img" aria-label="{said}">'
        f'<polyline fill="none" stroke="var(--c0)" stroke-width="1.5" points="{points}"/></svg>'
    )


def _drawn(shown: Section | Headline, links: Mapping[str, str]) -> tuple[list[Picture], list[Grid]]:
    figures = [picture(figure) for figure in shown.figures if len(figure.data)]
    return figures, [grid(table, links) for table in shown.tables if len(table.frame)]


def picture(figure: Figure) -> Picture:
    """Draw a figure as inline SVG, and again narrower where a phone could not read it; also as files with its data.

    One with columns of axes, which a narrow copy would crush, is moved sideways there.
    """
    table = style.csv_text(figure.data).encode()
    alt = html.escape(spelled(figure.alt), quote=True)
    with style.style(figure.name):
        canvas = style.drawn(figure)
        document = spelled(style.to_svg(canvas))
        element = style.inline_svg(document, alt)
        wide = figure.size_in[0] > READABLE_IN
        if wide and not side_by_side(canvas):
            narrow = _for_phones(figure, alt)
            element = f'<div class="wide">{element}</div><div class="narrow">{narrow}</div>'
    files = {f"{figure.name}.svg": style.on_paper(document).encode(), f"{figure.name}.csv": table}
    kind = ("dense moved" if side_by_side(canvas) else "dense") if wide else "lines"
    # The element is made of escaped text by matplotlib and html.escape; nothing else reaches it.
    shown = Markup(element)  # noqa: S704
    address = style.data_uri("text/csv;charset=utf-8", table)
    return Picture(figure.name, figure.title, figure.caption, kind, shown, address, len(figure.data), files)


def side_by_side(canvas: Canvas) -> bool:
    """Whether a figure has columns of axes, which a narrow copy would crush."""
    specs = [axes.get_subplotspec() for axes in canvas.axes]
    return any(spec is not None and spec.get_gridspec().ncols > 1 for spec in specs)


def _for_phones(figure: Figure, alt: str) -> str:
    """The same figure drawn narrower, so that its text stays readable on a phone."""
    with style.style(f"{figure.name}-narrow"):
        width, height = figure.size_in
        narrow = replace(figure, size_in=(PHONE_IN, height if height > width else max(height * 0.85, 2.0)))
        return style.inline_svg(spelled(style.to_svg(style.drawn(narrow))), alt)


def grid(table: Table, links: Mapping[str, str]) -> Grid:
    """A table's cells as text, numbers with what they are sorted by; a column `key` leads to the trainings' runs."""
    frame = table.frame
    content = style.csv_text(frame.rename(columns={c: f"{c} ({u})" for c, u in table.units.items() if u})).encode()
    numeric = [_numeric(frame.iloc[:, place]) for place in range(frame.shape[1])]
    columns = [
        Column(heading(str(c)), str(table.units.get(str(c), "")), n)
        for c, n in zip(frame.columns, numeric, strict=True)
    ]
    linked = [links if name == "key" else {} for name in frame.columns]
    rows = [
        [replace(cell(v, n), href=of.get(v) if of else None) for v, n, of in zip(row, numeric, linked, strict=True)]
        for row in frame.itertuples(index=False, name=None)
    ]
    address = style.data_uri("text/csv;charset=utf-8", content)
    count = f"{len(rows):,} row{'' if len(rows) == 1 else 's'}"
    return Grid(table.name, table.title, table.note, count, columns, rows, address, {f"{table.name}.csv": content})


def heading(column: str) -> str:
    """A column's name for readers; a path of settings stays as it is written."""
    return column if "." in column else column.replace("_", " ")


def _numeric(column: pd.Series[Any]) -> bool:
    if pd.api.types.is_bool_dtype(column):
        return False
    if pd.api.types.is_numeric_dtype(column):
        return True
    known = [v for v in column if not missing(v)]
    return bool(known) and all(
        isinstance(v, (int, float, np.number)) and not isinstance(v, (bool, np.bool_)) for v in known
    )


def cell(value: Any, numeric: bool) -> Cell:
    """One value as a reader sees it."""
    if missing(value):
        return Cell(NOTHING, "n" if numeric else "", None)
    if isinstance(value, (bool, np.bool_)):
        return Cell("yes" if value else "no", "s", None)
    if isinstance(value, (int, np.integer)):
        text = f"{int(value):,}" if abs(int(value)) >= 10_000 else str(int(value))
        return Cell(text, "n" if numeric else "s", str(int(value)) if numeric else None)
    if isinstance(value, (float, np.floating)):
        as_float = float(value)
        text = number(as_float) if math.isfinite(as_float) else "∞" if as_float > 0 else "-∞"
        key = repr(as_float).replace("inf", "Infinity")
        return Cell(text, "n" if numeric else "s", key if numeric else None)
    if isinstance(value, pd.Timestamp):
        return Cell(value.strftime("%Y-%m-%d %H:%M:%S"), "s", None)
    text = str(value)
    return Cell(text, "s" if len(text) <= SHORT else "t", None)


def render(title: str, leads: Sequence[Lead], parts: Sequence[Part], footer: str) -> str:
    """The page as text."""
    css, script = ((HERE / f"report.{kind}").read_text(encoding="utf-8").strip() for kind in ("css", "js"))
    policy = (
        f"default-src 'none'; style-src '{_hash(css)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    text = environment.get_template("report.html.j2").render(
        title=title,
        leads=leads,
        keys={one.key for one in parts},
        sections=parts,
        footer=footer,
        policy=Markup(policy),  # noqa: S704  (hashes only; quotes must stay quotes)
        css=Markup(css),  # noqa: S704  (this project's own file)
        script=Markup(script),  # noqa: S704  (this project's own file)
    )
    return spelled(text)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
