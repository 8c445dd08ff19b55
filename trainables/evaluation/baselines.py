"""Baselines for any model: a random guess, and the training set's mean depth per pixel.

Source: FACTS.md section 5 (random guess).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.evaluation.evaluate import resize_depth
from trainables.settings.registry import NYU_MAX_DEPTH_M


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
