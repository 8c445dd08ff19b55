"""Evaluation: protocols as values, predictions to metres as in the reference code, rows and means of frames.

Source: FACTS.md section 5; ialhashim/DenseDepth@2e15107 (utils.py, Tensorflow/evaluate.py); cleinc/bts@5e3406b
(pytorch/bts_eval.py). Deviation: upsampling is PyTorch's bilinear, where the reference uses scikit-image's; and clipped
depths are averaged before they are upsampled: the same number, since bilinear resizing is linear and symmetric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.data.frames import FrameList
from trainables.data.loader import EvalLoader
from trainables.data.target import y_to_depth_m
from trainables.evaluation.metrics import FUNCTIONS
from trainables.settings.config import TargetConfig, TrialConfig
from trainables.settings.registry import (
    METRICS,
    NYU_MAX_DEPTH_M,
    PREDICTION_RANGE_M,
    PROTOCOLS,
    REFERENCE_SIZE,
    Protocol,
)

Row = dict[str, Any]  # id, scene, requested, protocol, pixels, then metrics: float, or None where nothing was measured
Watch = Callable[[list[int], Tensor, Tensor], None]  # given each batch: indices, predicted and true depth as scored


@dataclass(frozen=True)
class Resolved:
    """A protocol as it was run: another name and not comparable where the data lack what it needs."""

    protocol: Protocol
    name_as_run: str
    comparable: bool
    note: str  # one sentence per condition; empty for the protocol as published


def resolve(
    protocol: Protocol, *, has_holes: bool, truth: Literal["filled", "raw"], size: tuple[int, int] | None
) -> Resolved:
    """The name of a protocol on given truth (holes inside its crop, kind, rows and columns; None: mixed sizes)."""
    name, notes = protocol.name, []
    if protocol.truth == "raw" and truth == "filled":
        name = f"{protocol.name} crop, in-painted truth"
        notes.append("the truth is in-painted where the protocol scores measured depth")
    elif protocol.truth == "filled" and (has_holes or truth == "raw"):
        name = f"{protocol.name}+mask" if has_holes else f"{protocol.name} crop, raw truth"
        if has_holes:
            notes.append("pixels without truth are left out; the published evaluation has none")
        if truth == "raw":
            notes.append("the truth is measured where the protocol scores in-painted depth")
    if protocol.crop is not None and size != REFERENCE_SIZE:
        rows, columns = REFERENCE_SIZE
        found = "several sizes" if size is None else f"{size[0]} x {size[1]}"
        notes.append(f"the crop's edges are scaled from {rows} x {columns} to frames of {found}")
    published = PROTOCOLS[protocol.name]
    if (protocol.valid_m, protocol.clip_m) != (published.valid_m, published.clip_m):
        name = f"{name}, to {protocol.clip_m[1]:g} m"
        notes.append(
            f"depth counts to {protocol.clip_m[1]:g} m, the largest of the data, not {published.clip_m[1]:g} m"
        )
    if protocol.diagnostic:
        notes.append(f"diagnostic: {protocol.diagnostic}")
        if protocol.crop is None and size is not None:
            notes.append(f"frames of {size[0]} x {size[1]}")
    comparable = not notes or (protocol.scaling == "median" and len(notes) == 1)  # its published row is scaled too
    return Resolved(protocol, name, comparable, "; ".join(notes))


def depth_from_outputs(
    y: Tensor, y_mirrored: Tensor | None, target: TargetConfig, size: tuple[int, int] | None
) -> Tensor:
    """Metres (N, H, W) of a network's outputs (N, 1, h, w) for the images and, if given, for the mirrored images.

    To metres, clip, mean in depth with the mirrored image's (mirrored back), bilinear with half-pixel centres to
    `size`; None: twice the network's size, as the reference code does. Reducing is anti-aliased.
    """
    nearest_m = PREDICTION_RANGE_M[0]
    depth = y_to_depth_m(y.float(), target).clamp(min=nearest_m)
    if y_mirrored is not None:
        depth_mirrored = y_to_depth_m(y_mirrored.float(), target).clamp(min=nearest_m)
        depth = 0.5 * depth + 0.5 * depth_mirrored.flip(-1)
    height, width = depth.shape[-2:]
    return resize_depth(depth[:, 0], size if size is not None else (2 * height, 2 * width))


def resize_depth(depth_m: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, h, w) to (N, *size), bilinear with half-pixel centres; anti-aliased where it shrinks."""
    if depth_m.shape[-2:] == size:
        return depth_m
    shrinks = size[0] < depth_m.shape[-2] or size[1] < depth_m.shape[-1]
    resized = functional.interpolate(depth_m[:, None], size, mode="bilinear", align_corners=False, antialias=shrinks)
    return resized[:, 0]


def predict_depth_m(
    model: nn.Module, images: Tensor, config: TrialConfig, mirrored: bool, size: tuple[int, int] | None = None
) -> Tensor:
    """Depth in metres, float32 (N, *size), of images (N, 3, h, w) in 0..1; size None: twice the network's output.

    The caller sets the model's mode and switches gradients off.
    """
    y_mirrored = model(images.flip(-1)) if mirrored else None
    return depth_from_outputs(model(images), y_mirrored, config.target, size)


def aligned(protocol: Protocol, pred: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """The prediction (N, H, W) after the protocol's alignment with the truth, not yet clipped."""
    if protocol.scaling == "none":
        return pred
    if protocol.scaling == "median":
        hidden = torch.full((), math.nan, dtype=pred.dtype, device=pred.device)
        medians = [torch.where(mask, m, hidden).flatten(1).nanmedian(1).values for m in (truth, pred)]
        return pred * (medians[0] / medians[1])[:, None, None]
    count = mask.sum((1, 2))
    zero = torch.zeros((), dtype=pred.dtype, device=pred.device)
    mean_p = torch.where(mask, pred, zero).sum((1, 2)) / count
    mean_t = torch.where(mask, truth, zero).sum((1, 2)) / count
    p, t = (torch.where(mask, m - mean[:, None, None], zero) for m, mean in ((pred, mean_p), (truth, mean_t)))
    variance = p.square().sum((1, 2))
    slope = torch.where(variance > 0, (p * t).sum((1, 2)) / variance, zero)  # a constant map can only be shifted
    return (pred - mean_p[:, None, None]) * slope[:, None, None] + mean_t[:, None, None]


def score(pred_depth_m: Tensor, truth_depth_m: Tensor, protocol: Protocol) -> list[Row]:
    """One row {pixels, metric: value} per image of predictions and truth (N, H, W) in metres; a truth of 0 is a hole.

    A value is None where there was nothing to measure, and NaN where the prediction was.
    """
    rows, columns = protocol.crop_at((truth_depth_m.shape[1], truth_depth_m.shape[2]))
    pred, truth = pred_depth_m[:, rows, columns].double(), truth_depth_m[:, rows, columns].double()
    mask = (truth > protocol.valid_m[0]) & (truth < protocol.valid_m[1])
    pred = aligned(protocol, pred, truth, mask).clamp(*protocol.clip_m)
    first, second = (truth, pred) if protocol.arguments_swapped else (pred, truth)
    values = torch.stack([FUNCTIONS[name](pred=first, target=second, mask=mask) for name in protocol.metrics])
    measured = torch.where(mask, pred, torch.ones_like(pred)).isfinite().all(2).all(1)
    table = torch.cat([mask.sum((1, 2))[None], measured[None], values]).T.tolist()  # one transfer from the device
    return [
        {
            "pixels": int(pixels),
            **{
                name: None if math.isnan(value) and finite else value
                for name, value in zip(protocol.metrics, image, strict=True)
            },
        }
        for pixels, finite, *image in table
    ]


def aggregate(rows: Sequence[Row], protocol: Protocol) -> dict[str, float]:
    """The protocol's mean of its rows, metric by metric; NaN when no row has a value."""
    result = {}
    for name in protocol.metrics:
        kept = [r for r in rows if r[name] is not None]
        values = np.array([r[name] for r in kept], dtype=np.float64)
        if not kept:
            result[name] = math.nan
        elif protocol.average == "per_image":
            result[name] = float(values.mean())
        else:
            power = 2 if METRICS[name].root else 1
            pooled = np.average(values**power, weights=[r["pixels"] for r in kept])
            result[name] = float(pooled ** (1 / power))
    return result


@dataclass(frozen=True)
class Evaluation:
    """Rows per image and protocol; means by the protocol's name as run, in the order asked for; how each was run."""

    rows: list[Row]
    summary: dict[str, dict[str, float]]
    resolved: dict[str, Resolved]  # by the name asked for


class Scorer:
    """Gathers rows batch by batch and names the protocols when all truth has been seen."""

    def __init__(
        self, protocols: Sequence[str], truth: Literal["filled", "raw"], max_depth_m: float = NYU_MAX_DEPTH_M
    ) -> None:
        self._protocols = [PROTOCOLS[name].reaching(max_depth_m) for name in protocols]
        self._truth = truth
        self._rows: dict[str, list[Row]] = {name: [] for name in protocols}
        self._holes = dict.fromkeys(protocols, False)
        self._sizes: set[tuple[int, int]] = set()

    def add(self, ids: Sequence[str], scenes: Sequence[str | None], pred_m: Tensor, truth_m: Tensor) -> None:
        """Score predictions (N, H, W) against truth of the same size, both on one device."""
        size = (truth_m.shape[1], truth_m.shape[2])
        self._sizes.add(size)
        for protocol in self._protocols:
            self._holes[protocol.name] |= bool((truth_m[(slice(None), *protocol.crop_at(size))] <= 0).any())
            for sample, scene, row in zip(ids, scenes, score(pred_m, truth_m, protocol), strict=True):
                self._rows[protocol.name].append({"id": sample, "scene": scene, "requested": protocol.name, **row})

    def finish(self) -> Evaluation:
        """The rows, named by what the truth allowed, and their means."""
        size = self._sizes.pop() if len(self._sizes) == 1 else None
        resolved = {
            p.name: resolve(p, has_holes=self._holes[p.name], truth=self._truth, size=size) for p in self._protocols
        }
        rows = [
            {**row, "protocol": resolved[name].name_as_run} for name, members in self._rows.items() for row in members
        ]
        summary = {resolved[p.name].name_as_run: aggregate(self._rows[p.name], p) for p in self._protocols}
        return Evaluation(rows, summary, resolved)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode; afterwards each module is back in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def predictions(
    model: nn.Module, frames: FrameList, config: TrialConfig, device: torch.device, batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Frame indices with predicted and true depth in metres (N, H, W), on `device`; truth of 0 is a hole.

    In float32 whatever the training's precision. Predictions are resized to the truth's size. Where the training cuts a
    border off its images, the depth at the cut is continued outwards, so that every pixel of a protocol is answered.
    """
    with evaluation_mode(model):
        for _, images, depths_m, indices in EvalLoader(frames, config, batch_size):
            with torch.inference_mode():
                inputs = images.to(device, non_blocking=True).float().div_(255.0)
                inputs = inputs.contiguous(memory_format=torch.channels_last)  # as in training
                y_mirrored = model(inputs.flip(-1)) if config.mirrored else None
                y = model(inputs)
            for size, group in groupby(range(len(indices)), key=lambda k: depths_m[k].shape):
                members = list(group)
                truth = torch.from_numpy(np.stack([depths_m[k] for k in members])).to(device)
                border = config.data.crop_border_px
                inner = (size[0] - 2 * border, size[1] - 2 * border)
                mirrored = None if y_mirrored is None else y_mirrored[members]
                pred = depth_from_outputs(y[members], mirrored, config.target, inner)
                if border:
                    pred = functional.pad(pred[:, None], (border,) * 4, mode="replicate")[:, 0]
                yield [indices[k] for k in members], pred, truth


def evaluate(
    model: nn.Module,
    frames: FrameList,
    config: TrialConfig,
    protocols: Sequence[str],
    device: torch.device,
    batch_size: int,
    watch: Watch | None = None,
) -> Evaluation:
    """Score a model, already on `device`, on every one of the frames, the last partial batch included.

    watch: called with each batch as `predictions` yields it.
    """
    scorer = Scorer(protocols, frames.truth, frames.max_depth_m)
    for indices, pred, truth in predictions(model, frames, config, device, batch_size):
        scorer.add([frames.ids[i] for i in indices], [frames.scenes[i] for i in indices], pred, truth)
        if watch is not None:
            watch(indices, pred, truth)
    return scorer.finish()
