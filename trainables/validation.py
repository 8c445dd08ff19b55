"""Validation in the course of a training: the loss on prepared targets, and the metrics of the judge's protocol."""

from __future__ import annotations

import torch
from torch import nn

from trainables.config import TrialConfig
from trainables.data.frames import FrameList
from trainables.data.samples import prepare
from trainables.evaluate import evaluate
from trainables.losses import composite
from trainables.target import DATA_RANGE


def validate(
    model: nn.Module, frames: FrameList, config: TrialConfig, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """{'val/loss': ..., 'val/<metric>': ...} over all validation frames; the model's mode is restored."""
    result = {"val/loss": validation_loss(model, frames, config, device, dtype)}
    evaluation = evaluate(
        model, frames, config, protocols=[config.protocol], device=device, batch_size=config.batch_size
    )
    (summary,) = evaluation.summary.values()
    return result | {f"val/{name}": float(value) for name, value in summary.items()}


def validation_loss(
    model: nn.Module, frames: FrameList, config: TrialConfig, device: torch.device, dtype: torch.dtype
) -> float:
    """The training loss in eval mode, frame by frame and so independent of the batch size, averaged."""
    training = model.training
    model.eval()
    total = torch.zeros((), device=device)
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for start in range(0, len(frames), config.batch_size):
            samples = [
                prepare(frames.read(i), config) for i in range(start, min(start + config.batch_size, len(frames)))
            ]
            images = torch.stack([s.rgb for s in samples]).to(device).float().div_(255)
            target = torch.stack([s.target for s in samples]).to(device)
            valid = torch.stack([s.valid for s in samples]).to(device)
            pred = model(images.contiguous(memory_format=torch.channels_last))
            result = composite(pred, target, valid, config.loss, DATA_RANGE[config.target.kind])
            total += result.per_sample.sum()
    model.train(training)
    return float(total) / len(frames)
