"""Replay of a loss spike from the snapshot before it: the same steps again, and once more without some samples.

On a CPU with the same number of threads the first run repeats the training's losses bit for bit. In the second one the
place of each sample left out is taken by another of its batch (or of the batch before), so that batch sizes, positions
and learning rates stay as they were.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainables.data.batches import TENSORS, Batch
from trainables.data.dataset import TrainingData
from trainables.evaluation.evaluate import predictions
from trainables.runtime.device import keep_freed_memory
from trainables.runtime.errors import UserError
from trainables.training import checkpoint
from trainables.training.trainer import Training


@dataclass(frozen=True)
class Replay:
    """What a replay shows. Losses are one per step from `first_step` on, fewer where the replay diverged.

    rgb: uint8 (H, W, 3); truth_m, prediction_m: float32 (H, W) metres of the first sample left out, 0 = hole, as the
    network saw it before the spike. target_min, target_max (target space), hole_share: of the spike's batch.
    """

    first_step: int
    spike_step: int
    left_out: tuple[str, ...]
    as_it_was: tuple[float, ...]
    without: tuple[float, ...]
    target_min: float | None
    target_max: float | None
    hole_share: float | None
    rgb: npt.NDArray[np.uint8]
    truth_m: npt.NDArray[np.float32]
    prediction_m: npt.NDArray[np.float32]


def replay(snapshot: Path, left_out: Collection[str], steps_after: int, data: TrainingData | None = None) -> Replay:
    """Replay a snapshot (checkpoints/spikes/step-N) until `steps_after` steps after its spike.

    Raises UserError for a damaged snapshot, data that cannot be read, or a sample that the spike's batch did not hold.
    """
    state = checkpoint.read_state(snapshot)
    first, spike = int(state["step"]), int(state["spike_step"])
    named = [name for name in state["spike_samples"] if name in left_out]
    if not named:
        raise UserError(f"{snapshot}: the spike's batch held none of {', '.join(left_out)}; name one of its samples")
    threads = torch.get_num_threads()
    torch.set_num_threads(int(state["threads"]))
    keep_freed_memory()  # as in a training of its own process
    try:
        with _resumed(snapshot, data) as training:
            batches = iter(training.loader)
            rows = _steps(training, batches, spike - first)
            shown = _look(training, named[0])
            rows += _steps(training, batches, 1 + steps_after)
        with _resumed(snapshot, data) as training:
            others = _steps(training, _without(training.loader, left_out), spike - first + 1 + steps_after)
    finally:
        torch.set_num_threads(threads)
    at = next((row for row in rows if row["step"] == spike), {})
    return Replay(
        first, spike, tuple(named),
        tuple(float(row["loss"]) for row in rows), tuple(float(row["loss"]) for row in others),
        at.get("target_min"), at.get("target_max"), at.get("hole_share"), *shown,
    )  # fmt: skip


@contextlib.contextmanager
def _resumed(snapshot: Path, data: TrainingData | None) -> Iterator[Training]:
    """The training as it stood at the snapshot, in a folder of its own that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="replay-") as scratch:
        shutil.copytree(snapshot, Path(scratch) / "checkpoints" / checkpoint.LATEST)
        config = checkpoint.read_config(snapshot)
        with contextlib.closing(Training(config, Path(scratch), data, replay=True)) as training:
            yield training


def _steps(training: Training, batches: Iterator[Batch], count: int) -> list[dict[str, Any]]:
    """So many steps, or as many as there are before the training ends or diverges."""
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        if training.progress.images >= training.config.budget_images:
            break
        training.train_step(batches)
        found, divergence = training.log.flush()
        rows += found
        if divergence is not None:
            break
    return rows


def _without(batches: Iterable[Batch], left_out: Collection[str]) -> Iterator[Batch]:
    before: Batch | None = None
    for batch in batches:
        kept = [place for place, name in enumerate(batch.ids) if name not in left_out]
        source = batch if kept else before
        if source is None:
            raise UserError(f"all of the snapshot's first batch ({', '.join(batch.ids)}) is left out; keep one")
        spare = kept or range(len(source.ids))
        places = [
            place if source is batch and place in kept else spare[place % len(spare)] for place in range(len(batch.ids))
        ]
        before = _rows(source, places)
        yield before


def _rows(batch: Batch, places: list[int]) -> Batch:
    tensors: dict[str, Any] = {name: getattr(batch, name)[places] for name in TENSORS}
    ids = tuple(batch.ids[place] for place in places)
    return replace(batch, ids=ids, index=[batch.index[place] for place in places], **tensors)


def _look(
    training: Training, name: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """A training frame: colour, depth and what the network makes of it now."""
    frames = training.data.train
    frames = frames.subset([frames.ids.index(name)])
    _, pred, truth = next(predictions(training.learner.model, frames, training.config, training.learner.device, 1))
    return frames.read(0).rgb, truth[0].float().cpu().numpy(), pred[0].float().cpu().numpy()
