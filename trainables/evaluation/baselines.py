"""Baselines for any model: a random guess, exactly and by Monte Carlo, and the training set's mean depth per pixel.

Source: FACTS.md section 5 (random guess); its formulas hold for truth within the guess's range, these also beyond.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.evaluation.evaluate import resize_depth
from trainables.settings.registry import NYU_MAX_DEPTH_M


def random_guess_expectation(truth_m: Tensor, mask: Tensor, max_depth_m: float = NYU_MAX_DEPTH_M) -> dict[str, Tensor]:
    """The exact expectation, pixel by pixel averaged, of the metrics of a guess uniform on 0 to `max_depth_m`: name to
    (N,) float64.

    truth_m (N, H, W) in metres, mask (N, H, W) bool; NaN for an empty mask. For rmse it is the root of the expected
    mean square, which the rmse of a frame of many pixels equals to within its own noise.
    """
    top = max_depth_m
    t = torch.where(mask, truth_m.double(), torch.ones((), dtype=torch.float64, device=truth_m.device))
    inside = t.clamp(max=top)
    distance = torch.where(t <= top, (t.square() + (top - t).square()) / (2 * top), t - top / 2)
    square = ((top - t) ** 3 + t**3) / (3 * top)
    log_distance = (2 * inside - top) / top + (top / t).log()  # E |ln guess - ln t|
    log_distance = torch.where(t <= top, log_distance, (t / top).log() + 1)
    per_pixel = {"abs_rel": distance / t, "sq_rel": square / t, "rmse": square, "log10": log_distance / math.log(10)}
    for power in (1, 2, 3):
        ratio = 1.25**power
        per_pixel[f"delta{power}"] = ((t * ratio).clamp(max=top) - t / ratio).clamp(min=0) / top
    count = mask.sum((1, 2))
    means = {name: torch.where(mask, v, 0.0).sum((1, 2)) / count for name, v in per_pixel.items()}
    return means | {"rmse": means["rmse"].sqrt()}


def random_guess(shape: tuple[int, ...], seed: int, max_depth_m: float = NYU_MAX_DEPTH_M) -> Tensor:
    """A guess in metres, float32, uniform on (0, max_depth_m): the same for the same seed, on any device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator).clamp_min(torch.finfo(torch.float32).tiny) * max_depth_m


def mean_depth_map(depths_m: Iterable[NDArray[np.float32]], size: tuple[int, int]) -> Tensor:
    """Each pixel's mean depth over training frames, float32 (1, *size) in metres; holes (0) are left out.

    Frames of another size are resized, holes and all, by weights: a pixel gets the mean of its valid support. A pixel
    that no frame measured gets the mean of the others. Raises ValueError where nothing at all was measured.
    """
    total = torch.zeros((1, *size), dtype=torch.float64)
    weight = torch.zeros_like(total)
    for depth_m in depths_m:
        depth = torch.from_numpy(np.ascontiguousarray(depth_m, dtype=np.float64))[None]
        valid = (depth > 0).double()
        total += resize_depth(depth * valid, size)
        weight += resize_depth(valid, size)
    if not bool(weight.any()):
        raise ValueError("mean_depth_map: no frame holds any depth")
    overall = total.sum() / weight.sum()
    return torch.where(weight > 0, total / weight.clamp_min(torch.finfo(torch.float64).tiny), overall).float()
