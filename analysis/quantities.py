"""Quantities that claims measure of a training (study.contract.QUANTITIES): functions of a study to {key: value}.

validation metrics      of the report that the judge takes: the best by its own metric, or the last
overfit_gap             the last report's validation loss minus its training loss, which is one with augmentation
spikes_per_1000_steps   loss spikes of the step trace (analysis/traces.py) per 1,000 steps
damage_after_spikes     how much worse the judged metric is at the validation after spikes than at the one before
                        them, summed over such spans of a training; a span without worsening is 0, no spike is 0
seconds, images_per_s, peak_memory_mib   what the training took, by its own summary
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from analysis import spikes
from analysis.selection import unit_of
from analysis.tables import StudyTables
from study.contract import QUANTITIES

Values = dict[str, float]


def values(tables: StudyTables, name: str) -> Values:
    """The quantity of every training that has it."""
    return OTHERS[name](tables) if name in OTHERS else _validated(tables, name)


def unit(tables: StudyTables, name: str) -> str:
    """The quantity's unit; damage is in the judged metric's."""
    if name == "damage_after_spikes" and tables.judge is not None:
        return unit_of(tables.judge.metric)
    return QUANTITIES[name].unit


def _validated(tables: StudyTables, name: str) -> Values:
    """A validation metric at the report that is judged, so that all of a training's metrics are of the same weights."""
    judge, column = tables.judge, f"val/{name}"
    judged = "" if judge is None else f"val/{judge.metric}"
    if judge is None or not {column, judged} <= set(tables.reports):
        return {}
    rows = tables.reports.dropna(subset=[judged]).sort_values(["key", "images"]).reset_index(drop=True)
    by_key = rows.groupby("key")
    if judge.report == "last":
        chosen = rows.loc[by_key["images"].idxmax()]
    else:
        chosen = rows.loc[by_key[judged].idxmin() if judge.minimise else by_key[judged].idxmax()]
    return _known(chosen.set_index("key")[column])


def _overfit_gap(tables: StudyTables) -> Values:
    if not {"val/loss", "train/loss"} <= set(tables.reports):
        return {}
    last = tables.reports.sort_values(["key", "images"]).groupby("key").tail(1).set_index("key")
    return _known(last["val/loss"] - last["train/loss"])


def _spikes(tables: StudyTables) -> Values:
    found = spikes.collect(tables).trainings
    return {} if found.empty else _known((1000 * found["spikes"] / found["steps"]).set_axis(found["key"]))


def _damage(tables: StudyTables) -> Values:
    found = spikes.collect(tables)
    if found.trainings.empty:
        return {}
    none = {str(key): 0.0 for key in found.trainings["key"]}
    if found.spikes.empty:
        return none
    spans = found.spikes.drop_duplicates(["key", "validation_before", "validation_after"])
    return none | _known(spans["damage"].clip(lower=0.0).groupby(spans["key"]).sum())


def _of_trials(column: str) -> Callable[[StudyTables], Values]:
    def read(tables: StudyTables) -> Values:
        return _known(tables.trials.set_index("key")[column]) if column in tables.trials else {}

    return read


def _known(column: pd.Series[float]) -> Values:
    numbers = pd.to_numeric(column).dropna()
    return {str(key): float(value) for key, value in numbers.items()}


OTHERS: dict[str, Callable[[StudyTables], Values]] = {
    "overfit_gap": _overfit_gap,
    "spikes_per_1000_steps": _spikes,
    "damage_after_spikes": _damage,
    "seconds": _of_trials("seconds"),
    "images_per_s": _of_trials("summary.images_per_s"),
    "peak_memory_mib": _of_trials("summary.peak_memory_mib"),
}
