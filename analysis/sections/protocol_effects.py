"""Effect of protocols on a number, measured on one set of predictions (FACTS.md sections 5 and 6).

Three published puzzles: the repository's pooled RMSE and swapped arguments, Michigan's mixed comparison row, and a
structural similarity "higher than the paper's" whose data range nobody states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as Canvas

from analysis.page.section import Figure, Table, number
from analysis.page.style import INK
from analysis.tables.published import MICHIGAN_GUESS, MIXED, PAPER, SCALED, STRUCTURE, on_nyu
from analysis.tables.tidy import StudyTables

Row = dict[str, Any]
MEANINGLESS_SSIM = 0.5  # a similarity that a random guess exceeds says nothing of a model


def explained(entries: Mapping[str, Row], champion: str | None) -> list[str]:
    """A sentence for each puzzle that the stored scores can measure; published values stand in it on NYU alone."""
    if champion is None or champion not in entries:
        return []
    entry = entries[champion]
    paper, repo, scaled = (_measured(entry, name) for name in ("densedepth", "densedepth_repo", "densedepth_scaled"))
    texts = []
    if paper and repo:
        texts.append(
            f"The protocol alone: on the same predictions of {champion}, the repository's evaluator (one RMSE over all "
            f"pixels, arguments swapped) prints rmse {number(repo['rmse'])} m and abs_rel {number(repo['abs_rel'])}, "
            f"where the paper's way gives {number(paper['rmse'])} m and {number(paper['abs_rel'])}."
        )
    if paper and scaled:
        values = (
            f" (delta1 {MIXED.metrics['delta1']} against rmse {SCALED.metrics['rmse']} m, unscaled "
            f"{PAPER.metrics['rmse']} m)"
        )
        texts.append(
            "Michigan's comparison row is mixed: its delta1 is the paper's, the rest are median-scaled"
            f"{values if on_nyu(entry) else ''}. Here scaling alone moves "
            f"rmse from {number(paper['rmse'])} to {number(scaled['rmse'])} m and delta1 from "
            f"{number(paper['delta1'])} to {number(scaled['delta1'])}."
        )
    guess, own = _measured(entries.get("random guess"), "structure"), _measured(entry, "structure")
    if guess and own:
        printed = f" (Michigan prints {STRUCTURE[MICHIGAN_GUESS.who]['mssim']})"
        lesson = ": at 255 a high value says nothing" if guess["mssim_255"] > MEANINGLESS_SSIM else ""
        texts.append(
            f"mSSIM depends on a data range nobody states: a random guess gets {number(guess['mssim_10'])} at 10 m "
            f"and {number(guess['mssim_255'])} at 255{printed if on_nyu(entry) else ''}, the champion "
            f"{number(own['mssim_10'])} and {number(own['mssim_255'])}{lesson}."
        )
    return texts


def _measured(entry: Row | None, protocol: str) -> dict[str, float] | None:
    if entry is None:
        return None
    summary: dict[str, float] | None = entry["summary"].get(entry["protocols"][protocol]["name"])
    return summary if summary and all(v is not None for v in summary.values()) else None


def structure_table(entries: Mapping[str, Row]) -> Table:
    """Structural similarity and edge F1, published and measured on NYU Depth v2."""
    rows: list[Row] = [{"who": who, "kind": "published, nothing stated", **values} for who, values in STRUCTURE.items()]
    for entry in entries.values():
        measured = entry["summary"][entry["protocols"]["structure"]["name"]]
        rows.append({"who": entry["name"], "kind": entry["protocols"]["structure"]["note"], **measured})
    return Table("reproduction-structure", "Structure metrics", pd.DataFrame(rows), "mssim_R: data range R metres.")


def edge_figure(tables: StudyTables, entries: Mapping[str, Row]) -> list[Figure]:
    """The share of pixels that are edges, by threshold; no figure where nothing is scored."""
    rows = [{"entry": name, **edge} for name, entry in entries.items() for edge in entry["edges"]]
    if not rows:
        return []

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        first = data[data["entry"] == data["entry"].iloc[0]]
        axes.plot(first["threshold"], first["truth"], color=INK, linewidth=2.2, label="truth")
        for name, shares in data.groupby("entry", sort=False):
            axes.plot(shares["threshold"], shares["prediction"], marker="o", label=str(name))
        axes.set(xlabel="threshold of the Sobel magnitude (m per pixel)", ylabel="share of pixels that are edges")
        axes.set_xscale("log")
        axes.legend()

    return [
        Figure(
            "edge-share", "Edges by threshold",
            "Share of pixels counted as edges against the threshold, for the true depth and each prediction.",
            f"Mean over the test frames at their own size; edge F1 is published at 0.5 and 0.2. {tables.name}.",
            draw, pd.DataFrame(rows),
        )
    ]  # fmt: skip
