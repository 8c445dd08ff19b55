"""Optimisers, learning-rate schedules and the guarded step.

The step never synchronises with the device: a finite flag stays there, masks the update through the fused kernels'
`found_inf`, and is sticky, so that nothing after the first non-finite step reaches the weights before it is noticed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainables.settings.config import OptimConfig, PlateauConfig

ONE_CYCLE_WARMUP = 0.3  # torch.optim.lr_scheduler.OneCycleLR's defaults, cosine both ways, momentum fixed
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1 / 25e4


def build_optimiser(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser over the trainable parameters, with its fused implementation."""
    trainable = [p for p in parameters if p.requires_grad]
    if config.name == "sgd":
        return torch.optim.SGD(
            trainable, lr=config.lr, momentum=config.beta1, weight_decay=config.weight_decay, fused=True
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(
        trainable,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        amsgrad=config.amsgrad,
        fused=True,
    )


def scheduled_lr(config: OptimConfig, share: float) -> float:
    """The learning rate at a share (0 to 1) of the image budget; for `plateau` the rate it starts from.

    A pure function of the position, so that a resumed training needs no schedule state and batch size changes nothing.
    """
    share = min(max(share, 0.0), 1.0)
    if config.schedule == "step":
        return config.lr * (config.step.factor if share >= config.step.at else 1.0)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * share))
    if config.schedule == "one_cycle":
        if share < ONE_CYCLE_WARMUP:
            return _cosine(config.lr * ONE_CYCLE_START, config.lr, share / ONE_CYCLE_WARMUP)
        return _cosine(config.lr, config.lr * ONE_CYCLE_END, (share - ONE_CYCLE_WARMUP) / (1 - ONE_CYCLE_WARMUP))
    return config.lr


@dataclass
class Plateau:
    """ReduceLROnPlateau (relative threshold 1e-4, as Keras and torch): state of the `plateau` schedule."""

    scale: float = 1.0
    best: float = math.inf
    waited: int = 0

    def update(self, config: PlateauConfig, lr: float, value: float) -> None:
        """Take one validation loss into account."""
        if value < self.best * (1 - 1e-4):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited > config.patience:
            self.scale = max(self.scale * config.factor, min(config.min_lr / lr, self.scale))
            self.waited = 0


class GuardedStep:
    """Clips by the global norm and steps the optimiser, unless a loss or gradient was ever non-finite.

    `failed` is a device scalar, 0.0 or 1.0. Clipping rides on the fused kernels' `grad_scale`, so gradients are read
    once; the update equals torch.nn.utils.clip_grad_norm_ followed by a step.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, clip_norm: float | None, device: torch.device) -> None:
        self._optimiser = optimiser
        self._clip_norm = clip_norm
        self._parameters = [p for group in optimiser.param_groups for p in group["params"]]
        self.failed = torch.zeros((), device=device)

    def __call__(self, loss: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Step at a learning rate. Returns device scalars: gradient norm before clipping, and clipped (0 or 1)."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self.failed = torch.maximum(self.failed, 1.0 - (torch.isfinite(norm) & torch.isfinite(loss)).float())
        if self._clip_norm is None:
            clipped = torch.zeros_like(norm)
        else:
            excess = (norm + 1e-6) / self._clip_norm
            clipped = (excess > 1.0).float()
            self._optimiser.grad_scale = torch.nan_to_num(excess.clamp(min=1.0))  # type: ignore[attr-defined]
        self._optimiser.found_inf = self.failed  # type: ignore[attr-defined]
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return norm, clipped


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
