"""Sanity check of a trained model: dependence on its input, against collapse and copied brightness.

Source: FACTS.md section 7, `relative_unet`, which described failures only in words: "all gray or noisy", "only learned
edges or colour hues". Three measurements, each of which a working model passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.evaluation.alignment import aligned
from trainables.evaluation.protocols import PROTOCOLS

CONSTANT_SHARE = 0.02  # a prediction whose spread is below this share of the truth's is one grey
NOT_BETTER_SHARE = 0.98  # an error above this share of the mean map's has learned nothing of the frame
LUMINANCE_EXCESS = 0.2  # correlation with luminance beyond the truth's own, from which brightness was copied
BT601 = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Diagnosis:
    """Measurements over all frames, and the verdicts that follow; no verdict: nothing speaks against having learned."""

    spread_ratio: float  # spread within predictions over the truth's, both as standard deviations of ln depth
    across_ratio: float  # spread of a pixel across frames, over the truth's
    error_ratio: float  # abs_rel over the mean map's
    luminance_correlation: float  # mean over frames of |correlation| of ln prediction with luminance
    luminance_of_truth: float  # the same of the truth
    depth_correlation: float  # mean over frames of the correlation of ln prediction with ln truth
    verdicts: tuple[str, ...]


def correlation(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Pearson's correlation of two maps (N, H, W) over each image's mask, (N,) float64; 0 where one is constant."""
    count = mask.sum((1, 2)).clamp_min(1)
    centred = []
    for maps in (first.double(), second.double()):
        kept = torch.where(mask, maps, 0.0)
        centred.append(torch.where(mask, kept - (kept.sum((1, 2)) / count)[:, None, None], 0.0))
    a, b = centred
    scale = (a.square().sum((1, 2)) * b.square().sum((1, 2))).sqrt()
    return torch.where(
        scale > 1e-9 * count, (a * b).sum((1, 2)) / scale.clamp_min(torch.finfo(torch.float64).tiny), 0.0
    )


def diagnose(pred_m: Tensor, truth_m: Tensor, images: Tensor, mean_map_m: Tensor, *, relative: bool) -> Diagnosis:
    """Diagnose predictions (N, H, W) in metres of N >= 2 frames: truth (N, H, W), 0 = hole; images (N, 3, H, W), 0..1.

    mean_map_m (1, H, W): the training set's mean depth per pixel (trainables.evaluation.baselines.mean_depth_map).
    relative: the prediction has no scale of its own; both it and the mean map are fitted to each frame before errors
    are compared.
    """
    mask = truth_m > 0
    compared = [pred_m, mean_map_m]
    if relative:
        protocol, truth = PROTOCOLS["densedepth_affine"], truth_m.double()
        fitted = (aligned(protocol, m.double().expand_as(truth), truth, mask) for m in compared)
        compared = [m.clamp(*protocol.clip_m) for m in fitted]
    log_pred = pred_m.double().clamp_min(1e-6).log()
    log_truth = torch.where(mask, truth_m.double(), 1.0).log()
    luminance = (images.double() * torch.tensor(BT601, dtype=torch.float64, device=images.device)[:, None, None]).sum(1)
    numbers = {
        "spread_ratio": _ratio(_spread(log_pred, mask, (1, 2)), _spread(log_truth, mask, (1, 2))),
        "across_ratio": _ratio(_spread(log_pred, mask, (0,)), _spread(log_truth, mask, (0,))),
        "error_ratio": _ratio(*(_abs_rel(m, truth_m, mask) for m in compared)),
        "luminance_correlation": float(correlation(log_pred, luminance, mask).abs().mean()),
        "luminance_of_truth": float(correlation(log_truth, luminance, mask).abs().mean()),
        "depth_correlation": float(correlation(log_pred, log_truth, mask).mean()),
    }
    return Diagnosis(**numbers, verdicts=tuple(_verdicts(**numbers)))


def _verdicts(
    spread_ratio: float,
    across_ratio: float,
    error_ratio: float,
    luminance_correlation: float,
    luminance_of_truth: float,
    depth_correlation: float,
) -> list[str]:
    verdicts = []
    if not spread_ratio >= CONSTANT_SHARE:  # NaN fails too
        verdicts.append(f"constant: the spread within predictions is {spread_ratio:.1%} of the truth's")
    elif not across_ratio >= CONSTANT_SHARE:
        verdicts.append(f"blind to its input: across frames predictions vary {across_ratio:.1%} as much as the truth")
    if not error_ratio < NOT_BETTER_SHARE:
        verdicts.append(f"no better than the training set's mean depth map: {error_ratio:.2f} times its abs_rel")
    excess = luminance_correlation - luminance_of_truth
    if excess > LUMINANCE_EXCESS and luminance_correlation > abs(depth_correlation):
        verdicts.append(
            f"follows brightness: correlation with luminance {luminance_correlation:.2f}, of the truth "
            f"{luminance_of_truth:.2f}, with depth {depth_correlation:.2f}"
        )
    return verdicts


def _spread(maps: Tensor, mask: Tensor, over: tuple[int, ...]) -> float:
    """Standard deviation over some dimensions, within the mask, pooled by squares over the others."""
    count = mask.sum(over, keepdim=True)
    kept = torch.where(mask, maps, 0.0)
    mean = kept.sum(over, keepdim=True) / count.clamp_min(1)
    deviation = torch.where(mask & (count > 1), maps - mean, 0.0)
    return float((deviation.square().sum() / mask.sum()).sqrt())


def _abs_rel(pred_m: Tensor, truth_m: Tensor, mask: Tensor) -> float:
    truth = torch.where(mask, truth_m.double(), 1.0)
    error = torch.where(mask, (pred_m.double() - truth).abs() / truth, 0.0)
    return float(error.sum() / mask.sum())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("inf")
