"""Searched settings of a study: the resolved value of every trial, and named bins of values.

The resolved settings are used, not the sampler's parameters: the first trial is the recipe's own setting and may lie
outside the space, and conditional settings have a value in every trial.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.section import number
from analysis.tables import StudyTables

BINS = 3  # of a range, with equally many trials each


@dataclass(frozen=True)
class Dimension:
    """One searched setting: a range on its own scale, or choices (then low and high are 0)."""

    path: str
    low: float
    high: float
    log: bool
    choices: tuple[Any, ...]

    def of(self, rows: pd.DataFrame) -> list[Any]:
        """The setting of each row; None where a trial has none."""
        column = f"config.{self.path}"
        if column not in rows:
            return [None] * len(rows)
        return [None if _absent(v) else v for v in rows[column]]

    def places(self, rows: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Where in its range each row's value lies, 0 to 1 on the range's scale; choices by their order."""
        values = self.of(rows)
        if self.choices:
            names = [label(c) for c in self.choices]
            return np.array([names.index(label(v)) if label(v) in names else np.nan for v in values]) / max(
                1, len(names) - 1
            )
        scaled = np.array([np.nan if v is None else float(v) for v in values])
        low, high = self.low, self.high
        if self.log:
            scaled, low, high = np.log(scaled), float(np.log(low)), float(np.log(high))
        return np.asarray((scaled - low) / (high - low), dtype=np.float64)

    def binned(self, rows: pd.DataFrame) -> npt.NDArray[Any]:
        """The bin of each row, by name: the choice, or 'from .. to'; None where the trial has no value.

        Bounds are written with as many digits as keep the bins' names apart.
        """
        values = self.of(rows)
        if self.choices:
            names = [str(label(v)) if v is not None or None in self.choices else None for v in values]
            return np.array([n if n != "None" else "null" for n in names], dtype=object)
        numbers = np.array([np.nan if v is None else float(v) for v in values])
        known = numbers[np.isfinite(numbers)]
        result = np.full(len(values), None, dtype=object)
        if not len(known):
            return result
        edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1]))
        place = np.searchsorted(edges, numbers, side="left")
        members = [(place == bin_number) & np.isfinite(numbers) for bin_number in range(len(edges) + 1)]
        members = [inside for inside in members if inside.any()]
        bounds = [(float(numbers[inside].min()), float(numbers[inside].max())) for inside in members]
        written = [f"{number(low)} to {number(high)}" for low, high in bounds]
        if len(set(written)) < len(written):
            written = [f"{low!r} to {high!r}" for low, high in bounds]
        for inside, name in zip(members, written, strict=True):
            result[inside] = name
        return result


def dimensions_of(tables: StudyTables) -> list[Dimension]:
    """The study's search space, in its order; settings that no trial holds are left out."""
    space = (tables.study.get("search") or {}).get("space") or {}
    result = []
    for path, given in space.items():
        if f"config.{path}" not in tables.trials:
            continue
        if "choices" in given:
            result.append(Dimension(path, 0.0, 0.0, False, tuple(_frozen(c) for c in given["choices"])))
        else:
            result.append(Dimension(path, float(given["low"]), float(given["high"]), given.get("scale") == "log", ()))
    return result


def label(value: Any) -> Any:
    """A value as Optuna and a plot can keep it: scalars as they are, lists as JSON."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple, dict, np.ndarray)):
        return json.dumps(list(value) if isinstance(value, np.ndarray) else value)
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) >= 1 else value


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))
