"""Loss spikes in one step trace: robust detection, and a description from the trace alone.

A step spikes when the logarithm of its loss lies `deviations` scaled median absolute deviations above the median of the
steps before it, and the loss is at least `ratio` times that median. Steps up to recovery are one spike. A loss that is
not finite always is one. Everything is computed per training; nothing is compared between trainings here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from trainables.training.telemetry import COMPACTED, PARTS

Floats = npt.NDArray[np.float64]
SIGMA = 1.4826  # a normal distribution's standard deviation over its median absolute deviation
COMMON = {
    "step", "images", "epoch", "loss", "lr", "grad_norm", "clipped",
    "target_min", "target_max", "hole_share", "seconds",
}  # fmt: skip
LISTS = ("samples", "sample_losses")


@dataclass(frozen=True)
class Thresholds:
    """What counts as a spike. The report prints them."""

    window_steps: int  # trailing steps that say what is usual
    least_steps: int  # before that the loss still falls too fast
    deviations: float
    ratio: float
    spread_floor: float  # of log loss: a flat curve must not turn noise into spikes
    recovered_deviations: float  # back within so many deviations of the median from before
    recovered_steps: int  # the median of so many steps must be back


THRESHOLDS = Thresholds(100, 30, 6.0, 2.0, 0.03, 3.0, 3)


@dataclass(frozen=True)
class Steps:
    """A trace as arrays. `sample` and `own` are flat over the batches: batch i is offsets[i]:offsets[i + 1]."""

    step: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    epoch: npt.NDArray[np.int64]
    loss: Floats
    lr: Floats
    grad_norm: Floats
    clipped: npt.NDArray[np.bool_]
    target_min: Floats
    target_max: Floats
    hole_share: Floats
    terms: Mapping[str, Floats]
    names: list[str]
    sample: npt.NDArray[np.int64]
    own: Floats
    offsets: npt.NDArray[np.int64]

    def batch(self, row: int) -> slice:
        """Where a step's samples lie in `sample` and `own`."""
        return slice(int(self.offsets[row]), int(self.offsets[row + 1]))


@dataclass(frozen=True)
class Spike:
    """One spike. `row` indexes the trace; losses are totals; `recovery_steps` is None when it never recovered."""

    row: int
    step: int
    images: int
    epoch: int
    loss: float
    usual_loss: float
    deviations: float
    term: str  # the term that grew most, by its share of the rise
    term_share: float
    grad_norm: float
    usual_grad_norm: float
    clipped: bool
    lr: float
    recovery_steps: int | None
    sample: str  # the batch's sample furthest above what is usual
    sample_loss: float
    sample_share: float  # of the batch's rise that is this sample's
    others_deviations: float  # median of the batch's other samples, in deviations of sample losses; NaN: none
    hole_share: float
    target_min: float
    target_max: float


def read_steps(folder: Path, notes: list[str]) -> Steps | None:
    """A training's trace, compacted or in parts; None where it has none (a damaged file leaves a note)."""
    compacted = folder / COMPACTED
    paths = [compacted] if compacted.exists() else sorted((folder / PARTS).glob("part-*.parquet"))
    pieces = []
    for path in paths:
        try:
            pieces.append(pq.read_table(path, page_checksum_verification=True, use_threads=False))
        except (pa.ArrowException, OSError) as error:
            notes.append(f"{folder.name}: {path.name} cannot be read ({str(error).splitlines()[0]}) and is left out.")
    if not pieces:
        return None
    table = pa.concat_tables(pieces, promote_options="default").combine_chunks()
    return _arrays(table) if table.num_rows else None


def _arrays(table: pa.Table) -> Steps:
    columns = {name: _column(table, name) for name in table.column_names if name not in LISTS}
    names, sample, offsets = _samples(table["samples"])
    own = pa.concat_arrays([chunk.flatten() for chunk in table["sample_losses"].chunks]).to_numpy(zero_copy_only=False)
    terms = {name: values for name, values in columns.items() if name not in COMMON}
    return Steps(
        step=columns["step"].astype(np.int64),
        images=columns["images"].astype(np.int64),
        epoch=columns["epoch"].astype(np.int64),
        loss=columns["loss"],
        lr=columns["lr"],
        grad_norm=columns["grad_norm"],
        clipped=columns["clipped"].astype(bool),
        target_min=columns["target_min"],
        target_max=columns["target_max"],
        hole_share=columns["hole_share"],
        terms=terms,
        names=names,
        sample=sample,
        own=own.astype(np.float64),
        offsets=offsets,
    )


def _column(table: pa.Table, name: str) -> Floats:
    return np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=np.float64)


def _samples(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    lengths = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks])
    flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks])
    if not pa.types.is_dictionary(flat.type):
        flat = flat.dictionary_encode()
    whole = flat.unify_dictionaries().combine_chunks()
    whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return whole.dictionary.to_pylist(), whole.indices.to_numpy(zero_copy_only=False).astype(np.int64), offsets


def trailing(values: Floats, window: int, least: int) -> tuple[Floats, Floats]:
    """Median and scaled MAD of up to `window` values before each one; NaN before `least` values. NaNs are ignored.

    They are refreshed every window / 20 values: the window then ends that many values earlier at most.
    """
    count, stride = len(values), max(1, window // 20)
    middle, spread = np.full(count, np.nan), np.full(count, np.nan)
    starts = np.arange(least, count, stride)
    if not len(starts):
        return middle, spread
    early, late = starts[starts < window], starts[starts >= window]
    blocks = []
    if len(early):
        blocks.append(np.array([_centre(values[:end]) for end in early]))
    if len(late):
        views = np.lib.stride_tricks.sliding_window_view(values, window)[late - window]
        blocks.append(_centres(views))
    centres = np.repeat(np.concatenate(blocks), stride, axis=0)[: count - least]
    middle[least:], spread[least:] = centres[:, 0], centres[:, 1]
    return middle, spread


def _centre(values: Floats) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return math.nan, math.nan
    middle = float(np.median(known))
    return middle, SIGMA * float(np.median(np.abs(known - middle)))


def _centres(views: Floats) -> Floats:
    if np.isfinite(views).all():
        middle = np.median(views, axis=1)
        return np.stack([middle, SIGMA * np.median(np.abs(views - middle[:, None]), axis=1)], axis=1)
    return np.array([_centre(view) for view in views])


def find_spikes(steps: Steps, weights: Mapping[str, float], limits: Thresholds) -> list[Spike]:
    """The spikes of one trace in order; `weights` are the loss weights of its terms."""
    finite = np.isfinite(steps.loss)
    logs = np.full(len(steps.loss), np.nan)
    logs[finite] = np.log(np.maximum(steps.loss[finite], 1e-12))
    middle, spread = trailing(logs, limits.window_steps, limits.least_steps)
    spread = np.maximum(spread, limits.spread_floor)
    with np.errstate(invalid="ignore"):
        height = (logs - middle) / spread
        high = (height > limits.deviations) & (logs - middle > math.log(limits.ratio))
    found, after = [], 0
    for row in np.flatnonzero(high | ~finite):
        if row < after:
            continue
        level = float(middle[row] + limits.recovered_deviations * spread[row])
        end = _recovered(logs, int(row), level, limits.recovered_steps)
        after = min(len(logs) if end is None else end, int(row) + limits.window_steps)  # by then it is the new usual
        peak = int(row + np.nanargmax(np.where(finite[row:after], logs[row:after], np.inf)))
        found.append(_describe(steps, int(row), peak, float(middle[row]), float(height[peak]), end, weights, limits))
    return found


def _recovered(logs: Floats, row: int, level: float, steps: int) -> int | None:
    """The first row after a spike from which the median of `steps` losses is back below the level."""
    rest = logs[row + 1 :]
    if len(rest) < steps or not math.isfinite(level):
        return None
    back = np.median(np.lib.stride_tricks.sliding_window_view(rest, steps), axis=1) <= level
    place = int(np.argmax(back))
    return row + 1 + place if back[place] else None


def _describe(
    steps: Steps,
    row: int,
    peak: int,
    middle: float,
    height: float,
    end: int | None,
    weights: Mapping[str, float],
    limits: Thresholds,
) -> Spike:
    before = slice(max(0, row - limits.window_steps), row)
    usual = math.exp(middle) if math.isfinite(middle) else math.nan
    rises = {name: weights.get(name, 1.0) * (own[row] - _median(own[before])) for name, own in steps.terms.items()}
    grown = {name: rise for name, rise in rises.items() if rise > 0}
    term = max(rises, key=lambda name: (not math.isfinite(rises[name]), rises[name])) if rises else "loss"
    total = sum(grown.values())
    worst = _worst_sample(steps, row, before)
    return Spike(
        row=row,
        step=int(steps.step[row]),
        images=int(steps.images[row]),
        epoch=int(steps.epoch[row]),
        loss=float(steps.loss[peak]),
        usual_loss=usual,
        deviations=height,
        term=term,
        term_share=grown.get(term, math.nan) / total if 0 < total < math.inf else math.nan,
        grad_norm=float(steps.grad_norm[row]),
        usual_grad_norm=_median(steps.grad_norm[before]),
        clipped=bool(steps.clipped[row]),
        lr=float(steps.lr[row]),
        recovery_steps=None if end is None else end - row,
        hole_share=float(steps.hole_share[row]),
        target_min=float(steps.target_min[row]),
        target_max=float(steps.target_max[row]),
        sample=worst.sample,
        sample_loss=worst.loss,
        sample_share=worst.share,
        others_deviations=worst.others_deviations,
    )


class _Worst(NamedTuple):
    sample: str
    loss: float
    share: float
    others_deviations: float


def _worst_sample(steps: Steps, row: int, before: slice) -> _Worst:
    """The sample furthest above what is usual, its share of the batch's rise, and where the others stand."""
    batch = steps.batch(row)
    own = steps.own[batch]
    past = steps.own[int(steps.offsets[before.start]) : batch.start]
    logs = np.log(np.maximum(past[np.isfinite(past)], 1e-12))
    if not len(own) or not len(logs):
        return _Worst("", math.nan, math.nan, math.nan)
    middle, spread = _centre(logs)
    place = int(np.argmax(np.where(np.isfinite(own), own, np.inf)))
    others = np.delete(own, place)
    rises = np.maximum(own - math.exp(middle), 0.0)
    total = float(rises.sum())
    aside = (np.log(np.maximum(others, 1e-12)) - middle) / max(spread, 0.03) if len(others) else np.array([math.nan])
    share = float(rises[place] / total) if 0 < total < math.inf else math.nan
    return _Worst(steps.names[int(steps.sample[batch][place])], float(own[place]), share, float(np.median(aside)))


def _median(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan
