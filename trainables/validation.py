"""Validation during a training: the loss on prepared targets, and the metrics of the judge's protocol."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trainables.config import AugmentConfig, TrialConfig
from trainables.data.frames import FrameList
from trainables.data.loader import TrainLoader, augment
from trainables.evaluate import evaluate, evaluation_mode
from trainables.losses import composite
from trainables.metrics import checkerboard
from trainables.registry import STRUCTURE_METRICS
from trainables.target import DATA_RANGE


def validate(
    model: nn.Module,
    frames: FrameList,
    config: TrialConfig,
    device: torch.device,
    dtype: torch.dtype,
    skipped: dict[str, str],
) -> dict[str, float]:
    """{'val/loss': ..., 'val/<metric>': ...} over all validation frames; the model's mode is restored.

    'val/checkerboard' is measured on the network's own outputs, before anything resizes them. With validate_structure
    the metrics of protocol `structure` are added, those that no frame had anything to measure of (edges) left out.
    Bad frames that were left out are added to `skipped`, id -> reason.
    """
    result = {"val/loss": validation_loss(model, frames, config, device, dtype, skipped)}
    patterns: list[Tensor] = []
    hook = model.register_forward_hook(lambda _, __, y: patterns.append(checkerboard(y[:, 0])))
    protocols = list(dict.fromkeys([config.protocol, *(["structure"] if config.validate_structure else [])]))
    try:
        evaluation = evaluate(model, frames, config, protocols=protocols, device=device, batch_size=config.batch_size)
    finally:
        hook.remove()
    for found in evaluation.summary.values():
        for name, value in found.items():
            if math.isfinite(value) or name not in STRUCTURE_METRICS or name == config.best_metric:
                result[f"val/{name}"] = float(value)
    return result | {"val/checkerboard": float(torch.cat(patterns).mean())}


def validation_loss(
    model: nn.Module,
    frames: FrameList,
    config: TrialConfig,
    device: torch.device,
    dtype: torch.dtype,
    skipped: dict[str, str],
) -> float:
    """The training loss in eval mode, without augmentation, averaged over the frames' own losses."""
    plain = config.model_copy(
        update={
            "data": config.data.model_copy(update={"order": "listed"}),
            "augment": AugmentConfig(flip=0.0, channel_swap=0.0),
        }
    )
    total = torch.zeros((), device=device)
    loader = TrainLoader(frames, plain, 0)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    with evaluation_mode(model), torch.inference_mode(), autocast:
        for batch in loader:
            images, target, valid = augment(batch, device)
            result = composite(model(images), target, valid, config.loss, DATA_RANGE[config.target.kind])
            total += result.per_sample.sum()
            if batch.position + len(batch.ids) >= len(frames):
                break
    skipped.update(loader.skipped)
    return float(total) / len(frames)
