"""Searched settings of a study: the resolved value of every trial, named bins of values, and the effect of each.

The resolved settings are used, not the sampler's parameters: the first trial is the recipe's own setting and may lie
outside the space, and conditional settings have a value in every trial.

An effect compares bin against bin, with an interval and a permutation test. Every setting is asked about, and its best
and worst bins are picked after a look at their means. Both are paid for: p values are corrected over settings (Holm),
an interval is widened over pairs of bins (Bonferroni).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis import statistics
from analysis.page.section import number
from analysis.tables.tidy import StudyTables
from study.contract import Judge

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


MIN_BIN = statistics.MIN_SEEDS  # trials of a bin that is compared: fewer carry no interval
PERMUTATIONS = 2000
SEED = 0
Row = dict[str, Any]


def effect(complete: pd.DataFrame, dimension: Dimension, judge: Judge) -> Row | None:
    """Worst against best bin of one setting: difference, interval, the permutation test's p; None: too few trials.

    The two bins are picked after a look at their means, so the interval holds for all pairs of bins at once.
    """
    bins = dimension.binned(complete)
    values = complete["value"].to_numpy(float) * (1.0 if judge.minimise else -1.0)
    names = [name for name in dict.fromkeys(bins) if name is not None and (bins == name).sum() >= MIN_BIN]
    kept = np.array([name in names for name in bins])
    if len(names) < 2:
        return None
    values, bins = values[kept], bins[kept]
    means = {name: float(values[bins == name].mean()) for name in names}
    best, worst = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    a, b = values[bins == worst], values[bins == best]
    found = statistics.unpaired(a.tolist(), b.tolist(), "trials", pairs=math.comb(len(names), 2))
    return {
        "setting": dimension.path, "best": best, "worst": worst, "difference": found.value,
        "low": found.low, "high": found.high, "n_best": len(b), "n_worst": len(a), "n": len(values),
        "p": permutation(values, bins, names),
    }  # fmt: skip


def permutation(values: np.ndarray, bins: np.ndarray, names: Sequence[str]) -> float:
    """How often a shuffled setting explains as much variance between its bins as the real one."""
    rng = np.random.default_rng(SEED)
    ranks = pd.Series(values).rank().to_numpy()  # ranks: one wild value must not decide
    member = np.stack([bins == name for name in names]).astype(float)
    counts = member.sum(1)
    real = float((((member @ ranks) / counts - ranks.mean()) ** 2 * counts).sum())
    shuffled = rng.permuted(np.tile(ranks, (PERMUTATIONS, 1)), axis=1)
    between = ((((shuffled @ member.T) / counts) - ranks.mean()) ** 2 * counts).sum(1)
    return float((1 + (between >= real - 1e-9).sum()) / (1 + PERMUTATIONS))


def holm(tested: list[Row]) -> None:
    """Correct the p values for having asked of every setting, in place."""
    highest = 0.0
    for place, row in enumerate(sorted(tested, key=lambda r: float(r["p"]))):
        highest = max(highest, min(1.0, row["p"] * (len(tested) - place)))
        row["p"] = highest
