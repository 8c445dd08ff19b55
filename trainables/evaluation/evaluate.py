"""Evaluation: predictions to metres as in the reference code, rows and means of frames under protocols.

Source: FACTS.md section 5; ialhashim/DenseDepth@2e15107 (utils.py, Tensorflow/evaluate.py); cleinc/bts@5e3406b
(pytorch/bts_eval.py). Deviation: upsampling is PyTorch's bilinear, where the reference uses scikit-image's; and clipped
depths are averaged before they are upsampled: the same number, since bilinear resizing is linear and symmetric.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.data.frames import Depth, FrameList
from trainables.data.loader import EvalLoader
from trainables.data.target import y_to_depth_m
from trainables.evaluation.alignment import aligned
from trainables.evaluation.metrics import FUNCTIONS, Comparison
from trainables.evaluation.protocols import PREDICTION_RANGE_M, PROTOCOLS, Protocol, Resolved, Truth, resolve
from trainables.settings.config import TargetConfig, TrialConfig
from trainables.settings.registry import METRICS

Row = dict[str, Any]  # id, scene, requested, protocol, pixels, then metrics: float, or None where nothing was measured


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


def score(pred: Tensor, truth_depth_m: Tensor, protocol: Protocol, *, disparity: bool = False) -> list[Row]:
    """One row {pixels, metric: value} per image of predictions (N, h, w) and truth (N, H, W), of any sizes.

    Predictions are metres, or with `disparity` inverse depth of unknown scale and shift; the truth is metres, 0 is a
    hole. A value is None where there was nothing to measure, and NaN where the prediction was.
    """
    if protocol.resize == "prediction":
        pred = resize_depth(pred, (truth_depth_m.shape[1], truth_depth_m.shape[2]))
    elif truth_depth_m.shape[1:] != pred.shape[1:]:
        truth_depth_m = functional.interpolate(truth_depth_m[:, None], pred.shape[1:], mode="nearest")[:, 0]
    rows, columns = protocol.crop_at((truth_depth_m.shape[1], truth_depth_m.shape[2]))
    pred, truth = pred[:, rows, columns].double(), truth_depth_m[:, rows, columns].double()
    mask = truth > protocol.valid_m[0]
    if math.isfinite(protocol.valid_m[1]):
        mask &= truth < protocol.valid_m[1]
    pred = aligned(protocol, pred, truth, mask, disparity=disparity).clamp(*protocol.clip_m)
    first, second = (truth, pred) if protocol.arguments_swapped else (pred, truth)
    compared = Comparison(pred=first, target=second, mask=mask)
    values = torch.stack([FUNCTIONS[name](compared) for name in protocol.metrics])
    measured = compared.maps[1 if protocol.arguments_swapped else 0].sum((1, 2)).isfinite()
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
    """The protocol's average of its rows, metric by metric; NaN when no row has a value."""
    result = {}
    for name in protocol.metrics:
        kept = [r for r in rows if r[name] is not None]
        values = np.array([r[name] for r in kept], dtype=np.float64)
        if not kept:
            result[name] = math.nan
        elif protocol.average == "per_image":
            result[name] = float(values.mean())
        elif protocol.average == "image_median":
            result[name] = float(np.median(values))
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
    """Gathers rows batch by batch and names the protocols when all truth has been seen.

    truth: the kind that a protocol gets which asks for none, or for one that is not given.
    """

    def __init__(self, protocols: Sequence[Protocol], truth: Truth, *, disparity: bool = False) -> None:
        self._protocols = list(protocols)
        self._truth: Truth = truth
        self._disparity = disparity
        self._rows: dict[str, list[Row]] = {p.name: [] for p in protocols}
        self._holes = dict.fromkeys(self._rows, False)
        self._kinds: dict[str, Truth] = dict.fromkeys(self._rows, truth)
        self._sizes: set[tuple[int, int]] = set()

    def measure(
        self, ids: Sequence[str], scenes: Sequence[str | None], pred: Tensor, truths: Mapping[Truth, Tensor]
    ) -> Measured:
        """Score predictions (N, h, w) against the truth (N, H, W) of each kind that there is, all on one device.

        Nothing is gathered, so that several threads may measure beside each other; `add` gathers.
        """
        some = truths[self._truth]
        size = (some.shape[1], some.shape[2])
        resized, pred = resize_depth(pred, size).double(), pred.double()  # once, not for every protocol
        given = {kind: truth_m.double() for kind, truth_m in truths.items()}
        holed = {kind: bool((truth_m <= 0).any()) for kind, truth_m in given.items()}
        shared: dict[tuple[object, ...], list[Row]] = {}
        rows: dict[str, list[Row]] = {}
        holes: dict[str, bool] = {}
        for protocol in self._protocols:
            kind = self._kind(protocol, truths)
            inside = given[kind][(slice(None), *protocol.crop_at(size))]
            holes[protocol.name] = holed[kind] and bool((inside <= 0).any())
            if protocol.measured not in shared:
                asked = [n for p in self._protocols if p.measured == protocol.measured for n in p.metrics]
                whole = replace(protocol, metrics=tuple(dict.fromkeys(asked)))
                maps = resized if protocol.resize == "prediction" else pred
                shared[protocol.measured] = score(maps, given[kind], whole, disparity=self._disparity)
            rows[protocol.name] = [
                {"id": sample, "scene": scene, "requested": protocol.name, "pixels": row["pixels"]}
                | {name: row[name] for name in protocol.metrics}
                for sample, scene, row in zip(ids, scenes, shared[protocol.measured], strict=True)
            ]
        return Measured(rows, holes, {p.name: self._kind(p, truths) for p in self._protocols}, size)

    def add(
        self, ids: Sequence[str], scenes: Sequence[str | None], pred: Tensor, truths: Mapping[Truth, Tensor]
    ) -> None:
        """Measure and gather."""
        self.gather(self.measure(ids, scenes, pred, truths))

    def gather(self, measured: Measured) -> None:
        """Take what `measure` gave, in the order of the frames."""
        self._sizes.add(measured.size)
        for name, members in measured.rows.items():
            self._rows[name] += members
            self._holes[name] |= measured.holes[name]
            self._kinds[name] = measured.kinds[name]

    def _kind(self, protocol: Protocol, truths: Mapping[Truth, Tensor]) -> Truth:
        return protocol.truth if protocol.truth is not None and protocol.truth in truths else self._truth

    def finish(self) -> Evaluation:
        """The rows, named by what the truth allowed, and their means."""
        size = self._sizes.pop() if len(self._sizes) == 1 else None
        resolved = {
            p.name: resolve(p, has_holes=self._holes[p.name], truth=self._kinds[p.name], size=size)
            for p in self._protocols
        }
        rows = [
            {**row, "protocol": resolved[name].name_as_run} for name, members in self._rows.items() for row in members
        ]
        summary = {resolved[p.name].name_as_run: aggregate(self._rows[p.name], p) for p in self._protocols}
        return Evaluation(rows, summary, resolved)


@dataclass(frozen=True)
class Measured:
    """Rows, holes inside the crop and kind of truth by protocol, of frames of one size."""

    rows: dict[str, list[Row]]
    holes: dict[str, bool]
    kinds: dict[str, Truth]
    size: tuple[int, int]


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


class Outputs(NamedTuple):
    """A network's outputs for a batch of frames: their places in the list, their depth as it is stored, in metres, 0
    for a hole, and the outputs (N, 1, h, w), of the mirrored images where the settings average with them.
    """

    indices: list[int]
    depths_m: list[Depth]
    y: Tensor
    y_mirrored: Tensor | None

    def in_metres(self, config: TrialConfig) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Places with predicted and true depth in metres (N, H, W), for frames of one stored size after another.

        Predictions are resized to the truth's size. Where the training cuts a border off its images, the depth at the
        cut is continued outwards, so that every pixel of a protocol is answered.
        """
        for size, group in groupby(range(len(self.indices)), key=lambda k: self.depths_m[k].shape):
            members = list(group)
            truth = torch.from_numpy(np.stack([self.depths_m[k] for k in members])).to(self.y.device)
            border = config.data.crop_border_px
            inner = (size[0] - 2 * border, size[1] - 2 * border)
            mirrored = None if self.y_mirrored is None else self.y_mirrored[members]
            pred = depth_from_outputs(self.y[members], mirrored, config.target, inner)
            if border:
                pred = functional.pad(pred[:, None], (border,) * 4, mode="replicate")[:, 0]
            yield [self.indices[k] for k in members], pred, truth


def outputs(model: nn.Module, loader: EvalLoader, config: TrialConfig, device: torch.device) -> Iterator[Outputs]:
    """A network's outputs, on `device`, batch by batch; in float32 whatever the training's precision."""
    with evaluation_mode(model):
        for _, images, depths_m, indices in loader:
            with torch.inference_mode():
                inputs = images.to(device, non_blocking=True).float().div_(255.0)
                inputs = inputs.contiguous(memory_format=torch.channels_last)  # as in training
                y_mirrored = model(inputs.flip(-1)) if config.mirrored else None
                y = model(inputs)
            yield Outputs(indices, depths_m, y, y_mirrored)


def predictions(
    model: nn.Module, frames: FrameList, config: TrialConfig, device: torch.device, batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Frame indices with predicted and true depth in metres (N, H, W), on `device`, as `Outputs.in_metres` gives them;
    truth of 0 is a hole.
    """
    for batch in outputs(model, EvalLoader(frames, config, batch_size), config, device):
        yield from batch.in_metres(config)


def scorer_of(frames: FrameList, protocols: Sequence[str]) -> Scorer:
    """What scores these frames under protocols by name."""
    return Scorer([PROTOCOLS[name].reaching(frames.max_depth_m) for name in protocols], frames.truth)


def evaluate(
    model: nn.Module,
    frames: FrameList,
    config: TrialConfig,
    protocols: Sequence[str],
    device: torch.device,
    batch_size: int,
) -> Evaluation:
    """Score a model, already on `device`, on every one of the frames, the last partial batch included."""
    scorer = scorer_of(frames, protocols)
    for indices, pred, truth in predictions(model, frames, config, device, batch_size):
        ids, scenes = [frames.ids[i] for i in indices], [frames.scenes[i] for i in indices]
        scorer.add(ids, scenes, pred, {frames.truth: truth})
    return scorer.finish()
