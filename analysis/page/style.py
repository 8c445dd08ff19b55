"""Figure style and export: inline SVG in the page's light or dark ink, files, CSV.

Colours are Okabe and Ito's (safe for colour-blind readers), in their order here. Inline SVG carries presentation
attributes only: the page's Content-Security-Policy forbids style attributes. What a name contains is text: TeX
marks are not interpreted, and a cell that a spreadsheet would run as a formula is defused.
"""

from __future__ import annotations

import base64
import csv
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import matplotlib.rcsetup
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogFormatter, LogLocator, NullFormatter

from analysis.page.section import Figure
from trainables.drawing import own_settings

INK, FAINT, PAPER = "#20211f", "#8b8f8a", "#ffffff"
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY = (
    "#0072b2", "#d55e00", "#009e73", "#b5568e", "#c98a00", "#3a9fdc", "#7f8480",
)  # fmt: skip
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY)
PHASE_COLOUR = {"reproduce": GREEN, "claims": PURPLE, "search": BLUE, "confirm": VERMILION}
OUTCOME_COLOUR = {
    "complete": BLUE, "pruned": GREY, "diverged": VERMILION, "failed": PURPLE, "out_of_memory": ORANGE, "running": SKY,
}  # fmt: skip
OUTCOME_MARKER = {"complete": "o", "pruned": "|", "diverged": "x", "failed": "P", "out_of_memory": "s", "running": "."}

_THEME = {INK: "currentColor", FAINT: "var(--faint)", PAPER: "var(--paper)"} | {
    colour: f"var(--c{place})" for place, colour in enumerate(CYCLE)
}
_RC: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 9, "axes.titlesize": 9.5, "axes.titlelocation": "left",
    "axes.labelsize": 9, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "axes.linewidth": 0.7, "axes.facecolor": "none",
    "figure.facecolor": "none", "savefig.facecolor": "none", "savefig.edgecolor": "none", "xtick.color": FAINT,
    "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "xtick.major.width": 0.7,
    "ytick.major.width": 0.7, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": False,
    "lines.linewidth": 1.3, "lines.markersize": 4.5, "axes.prop_cycle": mpl.rcsetup.cycler(color=list(CYCLE)),
    "svg.fonttype": "none", "text.parse_math": False, "image.cmap": "viridis", "patch.linewidth": 0.6,
    "axes.unicode_minus": False, "boxplot.flierprops.markersize": 3,
}  # fmt: skip


@contextmanager
def style(salt: str) -> Iterator[None]:
    """The look of the report, for whatever is drawn inside. `salt` keeps the ids of two inline figures apart."""
    with own_settings(), mpl.rc_context(_RC | {"svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Glyph .* missing from font.*")
        yield


def tick(value: float, _position: int | None = None) -> str:
    """A tick on a logarithmic axis without TeX: 0.001, 1000, otherwise 1e-5."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _plain_ticks(axis: Axis) -> None:
    if not isinstance(axis.get_major_formatter(), LogFormatter):
        return
    low, high = sorted(float(abs(edge)) for edge in axis.get_view_interval())
    if low > 0 and high / low < 30:  # less than a decade and a half: powers of ten alone would leave one tick
        axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(tick))
    axis.set_minor_formatter(NullFormatter())


def drawn(figure: Figure) -> Canvas:
    """The figure on its canvas; call inside `style`."""
    canvas = figure.render()
    for axes in canvas.axes:
        _plain_ticks(axes.xaxis)
        _plain_ticks(axes.yaxis)
    return canvas


def empty(axes: Axes, sentence: str) -> None:
    """An axes that says why it shows nothing."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, sentence, ha="center", va="center", transform=axes.transAxes, color=FAINT)


def to_svg(canvas: Canvas) -> str:
    """The canvas as a complete SVG document, for a file. Paper is transparent."""
    out = io.StringIO()
    canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG on paper."""
    out = io.BytesIO()
    with style(figure.name):
        drawn(figure).savefig(out, format="png", dpi=150, facecolor=PAPER)
    return out.getvalue()


def on_paper(document: str) -> str:
    """An SVG document with white paper behind it, for viewers that show nothing there."""
    head = document.index(">", document.index("<svg")) + 1
    return f'{document[:head]}<rect width="100%" height="100%" fill="{PAPER}"/>{document[head:]}'


_TAG = re.compile(r"<[^>]*>")  # "<" and ">" of a text or an attribute are written as entities
_STYLE = re.compile(r' style="([^"]*)"')
_GROUP_ID = re.compile(r'<g id="[^"]*"')
_FONT = re.compile(r"(?:\w+ )*?([\d.]+)px ")


def inline_svg(document: str, alt: str) -> str:
    """An SVG document as an element of the page: themed colours, no style attributes, no dimensions but the view box.

    `alt` must be escaped by the caller: it becomes the accessible name as it stands.
    """
    body = document[document.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.S)
    body = _GROUP_ID.sub("<g", body)
    body = _TAG.sub(lambda match: _themed(match.group()), body)
    body = re.sub(r'(<svg[^>]*?) (?:width|height)="[\d.]+pt"', r"\1", body)
    body = re.sub(r'(<svg[^>]*?) (?:width|height)="[\d.]+pt"', r"\1", body)
    return body.replace("<svg", f'<svg role="img" aria-label="{alt}" fill="#000" stroke-linejoin="round"', 1)


def _themed(tag: str) -> str:
    """A tag with attributes for its style, in the page's colours."""
    tag = _STYLE.sub(lambda match: _attributes(match.group(1)), tag)
    for colour, themed in _THEME.items():
        tag = re.sub(f'(fill|stroke|stop-color)="{colour}"', rf'\1="{themed}"', tag, flags=re.I)
    return tag


def _attributes(css: str) -> str:
    """CSS declarations as presentation attributes; a `font` shorthand keeps its size, weight is lost to the page."""
    parts = []
    for declaration in css.split(";"):
        name, _, value = (piece.strip() for piece in declaration.partition(":"))
        if name == "font":
            size = _FONT.search(value)
            if size:
                parts.append(f'font-size="{size.group(1)}"')
            if "bold" in value or re.search(r"\b[6-9]00\b", value):
                parts.append('font-weight="600"')
        elif name and value and name != "image-rendering":
            parts.append(f'{name}="{value}"')
        elif name == "image-rendering":
            parts.append('image-rendering="auto"')
    return " " + " ".join(parts) if parts else ""


def data_uri(media_type: str, content: bytes) -> str:
    """Content as a `data:` address, so that the page needs no other file."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV; text that a spreadsheet would run as a formula starts with an apostrophe."""
    columns = [frame.iloc[:, place] for place in range(frame.shape[1])]
    safe = pd.DataFrame({place: column.map(_defused) for place, column in enumerate(columns)})
    heads = [str(_defused(str(c))) for c in frame.columns]
    return str(safe.to_csv(index=False, header=heads, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC))


def _defused(value: object) -> object:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r", "\n"):
        return "'" + value
    return value


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Indices (ascending) that keep a curve's extremes: the least and greatest of each of most / 2 equal stretches."""
    count = len(values)
    if count <= most:
        return np.arange(count)
    edges = np.linspace(0, count, most // 2 + 1).astype(int)
    filled = np.where(np.isfinite(values), values, -np.inf)
    keep = [edge + pick(filled[edge:end]) for edge, end in pairwise(edges) for pick in (np.argmin, np.argmax)]
    return np.unique(np.asarray([0, *keep, count - 1]))
