"""Probe of a training: a few steps on a small input, one of them a spike, as text that two settings can be compared by.

It shows in seconds whether a setting changes the training at all: which frames are trained on, every number of the step
trace, what the plateau schedule does when validation stalls, and a validation of the model. Settings that act only now
and then are made to act: the budget is the probe's own steps, so a schedule runs to its end; a step's gradients are
lengthened a million times, so a clip clips.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainables.data.dataset import TrainingData
from trainables.data.frames import FrameList
from trainables.data.loader import EvalLoader
from trainables.evaluation.evaluate import outputs
from trainables.models.backbone import STRIDE
from trainables.runtime.device import Process
from trainables.runtime.errors import Diverged
from trainables.settings.config import TrialConfig
from trainables.training.report import validate
from trainables.training.trainer import Training

SPIKE = 1e6  # by which one step's gradients are lengthened
STALLED = 200  # validations without improvement that the plateau schedule is shown
VALIDATED = 2  # frames
BATCH = 4
LEAST = 16  # rows and columns of an answer, into which the windows of a loss fit
VARYING = ("seconds",)  # of a step trace, what no two runs share


@dataclass(frozen=True)
class Extent:
    """How much a probe does: optimiser steps before the spike, and frames that it may see."""

    steps: int
    frames: int


def small(config: TrialConfig, input_hw: tuple[int, int], kept: Collection[str]) -> TrialConfig:
    """The training on a small input, by small batches, on one thread of a CPU; settings that are `kept` stay."""
    update: dict[str, Any] = {
        "input": input_hw, "batch_size": min(config.batch_size, BATCH), "accumulate": 1, "device": "cpu",
        "precision": "float32", "compile": False, "threads": 1, "trace": True, "snapshot_every_steps": 0,
        "start_from": None, "validate_structure": False,
    }  # fmt: skip
    changed = {path: value for path, value in update.items() if path not in kept}
    data = config.data.model_copy(update={"workers": 0, "cache": None})
    return config.model_copy(update=changed | {"data": data})


def small_input(configs: Collection[TrialConfig]) -> tuple[int, int]:
    """The least input that all of these take with two rows and columns left at the bottleneck, LEAST at the answer,
    and the same remainder as the first one's own, so that maps that do not fit a skip still do not.
    """
    reduced = math.lcm(*(_reduction(config) for config in configs))
    least = max(2 * reduced, 2 * LEAST * max(config.model.input_pool for config in configs))
    whole = reduced * -(-least // reduced)
    rows, columns = (min(side, whole + side % reduced) for side in next(iter(configs)).input)
    return rows, columns


def _reduction(config: TrialConfig) -> int:
    """How many times smaller than the input the bottleneck is."""
    encoder = 2**config.model.unet_levels if config.model.family == "unet" else STRIDE
    return encoder * config.model.input_pool


def probe(config: TrialConfig, data: TrainingData, extent: Extent) -> str:
    """Everything a short training shows, as text; equal texts are equal trainings, bit for bit.

    `config` is `small`. Raises UserError for settings that no training could be made of.
    """
    chosen = replace(data, train=_some(data.train, extent.frames), validation=_some(data.validation, VALIDATED))
    images = (extent.steps + 2) * config.batch_size * config.accumulate
    config = config.model_copy(update={"budget_images": images, "validate_every_images": images})
    process, rows = Process(own=False), list[dict[str, Any]]()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="probe-") as folder,
            contextlib.closing(Training(config, Path(folder), chosen)) as training,
        ):
            batches = iter(training.loader)
            shown: dict[str, Any] = {"frames": data.train.ids, "depth_of": data.train.depth_of}
            rows += _steps(training, batches, extent.steps)
            model, device = training.learner.model, training.learner.device
            shown["validation"] = validate(model, chosen.validation, config, device, {})
            # Beneath them, since so young a network's depths may all lie where they are clipped.
            found = outputs(model, EvalLoader(chosen.validation, config, config.batch_size), config, device)
            given = [y for batch in found for y in (batch.y, batch.y_mirrored) if y is not None]
            shown["outputs"] = [float(y.double().sum()) for y in given]
            with _lengthened(training):
                rows += _steps(training, batches, 1)
            rows += _steps(training, batches, 1)
            shown["plateau"] = _stalled(training)
    finally:
        process.swap()
    shown["trace"] = [{name: value for name, value in row.items() if name not in VARYING} for row in rows]
    return json.dumps(shown)


def _some(frames: FrameList, most: int) -> FrameList:
    """So many frames of a list, evenly spaced."""
    places = np.unique(np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int))
    return frames.subset([int(place) for place in places])


def _steps(training: Training, batches: Iterator[Any], count: int) -> list[dict[str, Any]]:
    """So many steps; after one that was not finite no other changes the weights, and the rows end with it."""
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        training.train_step(batches)
        found, divergence = training.log.flush()
        rows += found
        if isinstance(divergence, Diverged):
            break
    return rows


@contextlib.contextmanager
def _lengthened(training: Training) -> Iterator[None]:
    """Gradients a million times as long, for a block."""
    trained = [parameter for parameter in training.learner.model.parameters() if parameter.requires_grad]
    hooks: list[Any] = [p.register_hook(lambda gradient: gradient * SPIKE) for p in trained]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _stalled(training: Training) -> list[Any]:
    """States of the plateau schedule over validations without improvement; empty for other schedules."""
    optim, plateau = training.config.optim, training.progress.plateau
    states: list[Any] = []
    for _ in range(STALLED if optim.schedule == "plateau" else 0):
        plateau.update(optim.plateau, optim.lr, 1.0)
        states.append(asdict(plateau))
    return states
