"""Model and optimizer of a training on their device: built or restored, called for gradients, stepped, copied."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.models.depth_model import build_model
from trainables.runtime import device, parallel
from trainables.runtime.device import GraphedForward, chain_concatenations
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig
from trainables.training import checkpoint
from trainables.training.optim import GuardedStep, build_optimiser


class Learner:
    """What learns, seeded by the settings. Calling it predicts for a step; `update` takes the step."""

    def __init__(self, config: TrialConfig) -> None:
        self.config = config
        self.device = device.choose_device(config)
        self.dtype = device.choose_dtype(config, self.device)
        torch.manual_seed(config.seed)
        model = build_model(config.model, config.target.kind)
        if config.start_from is not None:
            checkpoint.start_from(model, Path(config.start_from))
        self.taps = dict(model.taps)
        if self.device.type == "cuda":
            chain_concatenations(model)  # a CPU's numbers stay as they were, to the bit
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.optimiser = build_optimiser(config.optim, self.model.parameters())
        self.update = GuardedStep(self.optimiser, config.optim.clip_norm, self.device)
        self.forward: Callable[[Tensor], Tensor] = self.model

    def restore(self, folder: Path) -> dict[str, Any]:
        """Continue from a checkpoint; its state. Raises UserError where other threads would change the numbers."""
        state = checkpoint.restore(folder, self.model, self.optimiser)
        if state["threads"] != torch.get_num_threads() and self.device.type == "cpu":
            raise UserError(
                f"{folder}: was trained with {state['threads']} threads and this process has "
                f"{torch.get_num_threads()}, which changes the numbers; set threads: {state['threads']}"
            )
        return state

    def prepare(self) -> None:
        """Compile or capture the forward pass, once the weights are those that the first step starts from."""
        config = self.config
        if config.compile:
            self.forward = torch.compile(self.model)
        # Where a step adds up several batches, the next replay would overwrite gradients that are still to be added to.
        if self.device.type == "cuda" and config.accumulate == 1:
            shape = (config.batch_size // parallel.size(), 3, *config.input)
            self.forward = GraphedForward(self.model, self.forward, shape, self.device, self.dtype)

    def set_mode(self, *, first_of_epoch: bool) -> None:
        """Train mode, or what `train_mode` says."""
        train = self.config.train_mode == "train" or first_of_epoch
        if self.model.training != train:  # visiting every module takes a part of a small step
            self.model.train(train)

    def __call__(self, images: Tensor) -> Tensor:
        """The model's output for a batch, in the training's precision."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.forward(images)

    def snapshot(self, state: Mapping[str, Any]) -> checkpoint.Snapshot:
        """A copy of all that a resumed training needs; `state`: of the rest of the training."""
        threads = {"threads": torch.get_num_threads()}
        return checkpoint.take_snapshot(self.model, self.optimiser, {**state, **threads})

    def close(self) -> None:
        """Let a captured graph go."""
        if isinstance(self.forward, GraphedForward):  # it refers to itself: its memory is free after a collection alone
            self.forward = self.model
            gc.collect()
