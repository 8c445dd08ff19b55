"""Two objectives: which trials of the search no other one beats in both, the judged metric and what a training takes.

The front says what there is to choose from; the judge still ranks by its metric alone (study/contract.py).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure as Canvas

from analysis.plots import FAINT, VERMILION, empty
from analysis.section import Figure, Table, number
from analysis.selection import unit_of
from study.contract import DEVICE_SECONDS, Outcome

SECONDS = "s"


def found(search: pd.DataFrame, metric: str, *, minimise: bool) -> list[tuple[str, Figure, Table]]:
    """The front in a sentence, a picture and a table; nothing where the search had one objective."""
    complete = search[
        (search["outcome"] == Outcome.COMPLETE) & search["value"].notna() & search[DEVICE_SECONDS].notna()
    ]
    if complete.empty:
        return []
    params = [c for c in search.columns if c.startswith("param.") and search[c].notna().any()]
    frame = complete[["key", "value", DEVICE_SECONDS, *params]].sort_values([DEVICE_SECONDS, "value", "key"])
    frame = frame.assign(
        front=on_front(frame["value"].to_numpy(float), frame[DEVICE_SECONDS].to_numpy(float), minimise)
    )
    unit = unit_of(metric)
    front = frame[frame["front"]].drop(columns="front").rename(columns={c: c.removeprefix("param.") for c in params})
    note = f"{len(front)} of {len(frame)} complete trials, the cheapest first; value: the judged validation {metric}."
    table = Table("search-pareto", "Pareto front", front, note, {"value": unit or metric, DEVICE_SECONDS: SECONDS})
    return [(_sentence(front, len(frame), metric, unit), _figure(frame, metric, unit), table)]


def on_front(values: npt.NDArray[np.float64], costs: npt.NDArray[np.float64], minimise: bool) -> npt.NDArray[np.bool_]:
    """Which points no other one beats: as good in both and better in one."""
    points = np.stack([values if minimise else -values, costs], axis=1)
    return np.array([not ((points <= p).all(1) & (points < p).any(1)).any() for p in points], dtype=bool)


def _sentence(front: pd.DataFrame, count: int, metric: str, unit: str) -> str:
    def ends(row: pd.Series) -> str:
        value = f"{number(row['value'])} {unit}".strip()
        return f"{row['key']} ({value}, {number(row[DEVICE_SECONDS])} device-seconds)"

    cheapest, best = front.iloc[0], front.iloc[-1]
    spans = f"it is {ends(best)} alone" if len(front) == 1 else f"from {ends(cheapest)} to {ends(best)}"
    return (
        f"{len(front)} of {count} complete trials lie on the Pareto front of validation {metric} and device-seconds, "
        f"where no other trial is better in one and as good in the other: {spans}. The judge ranks by {metric} alone."
    )


def _figure(frame: pd.DataFrame, metric: str, unit: str) -> Figure:
    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        if data.empty:
            empty(axes, "no trial is complete")
            return
        front = data[data["front"]]
        others = data[~data["front"]]
        axes.scatter(others[DEVICE_SECONDS], others["value"], s=18, color=FAINT, label=f"beaten (n = {len(others)})")
        axes.step(front[DEVICE_SECONDS], front["value"], where="post", color=VERMILION, linewidth=1.0)
        label = f"Pareto front (n = {len(front)})"
        axes.scatter(front[DEVICE_SECONDS], front["value"], s=26, color=VERMILION, label=label, zorder=3)
        axes.set(
            xlabel="training time times devices (s)", ylabel=f"validation {metric}" + (f" ({unit})" if unit else "")
        )
        axes.legend()

    return Figure(
        "search-pareto", "Pareto front of the search",
        f"Validation {metric} of {len(frame)} complete search trials against each training's cost, with the front.",
        f"One mark per complete trial (n = {len(frame)}); validation split. The cost of a training: its own seconds "
        "times its devices; the time between a kill and its resume is not in it.",
        draw, frame[["key", "value", DEVICE_SECONDS, "front"]],
    )  # fmt: skip
