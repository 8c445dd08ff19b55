"""Expectation of a random guess, worked out exactly: what the drawn baseline is compared with.

Source: FACTS.md section 5; its formulas hold for truth within the guess's range, these also beyond.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
