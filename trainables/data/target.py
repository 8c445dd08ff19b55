"""Target space: depth to the network's target (`target.kind`), and back to metres.

inverse   y = far / depth, so 1 to 100 for 0.1 to 10 m (DenseDepth, paper section 3.2)
metric    y = depth in metres
unit      y = depth / far
relative  y = (depth - nearest) / (farthest - nearest) of each image's valid pixels: 0 near, 1 far, no scale

far is target.max_depth_m, the largest depth of the data: 10 m for NYU Depth v2, 80 m for the authors' KITTI.
"""

from __future__ import annotations

import torch

from trainables.settings.config import TargetConfig


def data_range(target: TargetConfig) -> float:
    """SSIM's data range of a target: its largest value, as in the authors' loss (maxDepthVal)."""
    far = target.max_depth_m
    return {"inverse": far / target.min_depth_m, "metric": far, "unit": 1.0, "relative": 1.0}[target.kind]


def depth_to_y(depth_m: torch.Tensor, target: TargetConfig) -> torch.Tensor:
    """Target of the same shape (..., H, W) and float32, of depth clipped to min_depth_m..max_depth_m.

    A hole (0) is clipped like any other depth: mask it. `relative` measures each image over its pixels above 0; an
    image of one depth, or of holes alone, is 0 everywhere.
    """
    depth = depth_m.float()
    clipped = depth.clamp(target.min_depth_m, target.max_depth_m)
    if target.kind == "inverse":
        return target.max_depth_m / clipped
    if target.kind == "metric":
        return clipped
    if target.kind == "unit":
        return clipped / target.max_depth_m
    hole = depth <= 0
    near = clipped.masked_fill(hole, torch.inf).amin((-2, -1), keepdim=True)
    far = clipped.masked_fill(hole, -torch.inf).amax((-2, -1), keepdim=True)
    spread = far - near
    return torch.where(spread > 0, ((clipped - near) / spread).clamp(0, 1), torch.zeros_like(clipped))


def y_to_depth_m(y: torch.Tensor, target: TargetConfig) -> torch.Tensor:
    """Depth in metres of the same shape, float32, within min_depth_m..max_depth_m; NaN stays NaN.

    An inverse depth of 0 or below means as far as can be, not, as in the reference code, as near. `relative` has no
    scale of its own: it is spread over the whole range, and only affine-aligned scores of it mean anything.
    """
    y = y.float()
    near, far = target.min_depth_m, target.max_depth_m
    if target.kind == "inverse":
        return (far / y.clamp(1.0, far / near)).clamp(near, far)
    if target.kind == "metric":
        return y.clamp(near, far)
    if target.kind == "unit":
        return (y * far).clamp(near, far)
    return (near + y * (far - near)).clamp(near, far)
