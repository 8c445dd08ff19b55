"""Loss terms, each one pure function, and their weighted sum.

Source: Alhashim and Wonka, arXiv 1812.11941, section 3.2, and ialhashim/DenseDepth@2e15107 loss.py (ssim, gradient,
depth); Laina et al. 2016 (berhu); Eigen et al. 2014 (silog); the Sobel and normal losses are Hu et al. 2019's.
Known deviation: how holes enter a term is published nowhere. Here a term counts only where it is fully valid, so a
masked pixel's prediction and target never matter: its gradient is exactly 0, whatever stands there.

Every term takes pred, target (N x 1 x H x W, target space) and valid (same shape, bool) and returns each sample's sum
and count, both (N,); a batch's value is the pooled sum over the pooled count, 0 where nothing counts. Nothing here
reads a value back to the host.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.runtime.errors import UserError
from trainables.settings.registry import LOSS_TERMS, bind

Sums = tuple[Tensor, Tensor]
Term = Callable[..., Sums]  # (pred, target, valid, data_range); one of a whole batch takes its `pool`, too

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K = (0.01, 0.03)
BERHU_SHARE = 0.2  # of the batch's largest error
SILOG_LAMBDA = 0.5  # Eigen's: 0 is the squared log error, 1 ignores scale entirely and would never learn it
LOG_FLOOR = 1e-3  # share of the data range below which the logarithm continues as its tangent


@dataclass(frozen=True)
class Pool:
    """How a number of a part of a batch becomes the whole batch's, where processes hold a part each."""

    total: Callable[[Tensor], Tensor]
    largest: Callable[[Tensor], Tensor]


ALONE = Pool(lambda values: values, lambda values: values)  # the part is the whole


@dataclass(frozen=True)
class LossResult:
    """The weighted total (scalar), each active term's unweighted value (scalars), and each sample's own total (N,).

    Of a part of a batch: what the part contributes to total and terms; the parts' contributions add up.
    """

    total: Tensor
    terms: dict[str, Tensor]
    per_sample: Tensor


def depth(pred: Tensor, target: Tensor, valid: Tensor, data_range: float) -> Sums:
    """L1: mean |pred - target| over valid pixels."""
    return _total(_error(pred, target, valid).abs()), _total(valid)


def mse(pred: Tensor, target: Tensor, valid: Tensor, data_range: float) -> Sums:
    """Mean (pred - target)^2 over valid pixels."""
    return _total(_error(pred, target, valid).square()), _total(valid)


def berhu(pred: Tensor, target: Tensor, valid: Tensor, data_range: float, pool: Pool = ALONE) -> Sums:
    """Mean of berHu with c = BERHU_SHARE * max |pred - target| over the batch's valid pixels.

    c is a constant to the gradient: differentiating it would push the batch's worst pixel further away.
    """
    error = _error(pred, target, valid).abs()
    return _total(berhu_of(error, BERHU_SHARE * pool.largest(error.detach().amax()))), _total(valid)


def berhu_of(error: Tensor, c: Tensor) -> Tensor:
    """|e| where |e| <= c, else (e^2 + c^2) / 2c, element by element; `error` is not negative."""
    c = c.clamp_min(torch.finfo(error.dtype).tiny ** 0.5)  # a perfect batch: 0, not 0 / 0
    return torch.where(error <= c, error, (error.square() + c.square()) / (2 * c))


def gradient(pred: Tensor, target: Tensor, valid: Tensor, data_range: float) -> Sums:
    """Mean of |dy pred - dy target| + |dx pred - dx target|, forward differences, over valid pixels.

    A difference counts where both its pixels are valid; as in the published code it is 0 in the last row or column,
    and the divisor is the number of all (valid) pixels.
    """
    error = _error(pred, target, valid)
    (dy, dy_valid), (dx, dx_valid) = _forward(error, valid)
    return _total(_only(dy.abs(), dy_valid)) + _total(_only(dx.abs(), dx_valid)), _total(valid)


def sobel(pred: Tensor, target: Tensor, valid: Tensor, data_range: float) -> Sums:
    """Mean of |Sx e| + |Sy e|, e = pred - target, S kornia's Sobel (divided by 8, border replicated).

    Counts pixels whose 3 x 3 neighbourhood holds no hole.
    """
    from kornia.filters import spatial_gradient  # here, because importing kornia takes seconds

    slopes: Tensor = spatial_gradient(_error(pred, target, valid), mode="sobel", order=1, normalized=True)
    whole = F.max_pool2d((~valid).to(pred.dtype), 3, stride=1, padding=1) == 0
    return _total(_only(slopes.abs().sum(2), whole)), _total(whole)


def normal(pred: Tensor, target: Tensor, valid: Tensor, data_range: float) -> Sums:
    """Mean of 1 - cosine of the angle between the surface normals (-dx, -dy, 1) of pred and target.

    Forward differences; counts pixels that are valid together with their right and lower neighbours.
    """
    pred, target = _only(pred, valid), _only(target, valid)
    (py, y_valid), (px, x_valid) = _forward(pred, valid)
    (ty, _), (tx, _) = _forward(target, valid)
    py, ty, px, tx = py[..., :-1], ty[..., :-1], px[..., :-1, :], tx[..., :-1, :]
    both = y_valid[..., :-1] & x_valid[..., :-1, :]
    lengths = (px.square() + py.square() + 1) * (tx.square() + ty.square() + 1)
    cosine = (px * tx + py * ty + 1) * lengths.rsqrt()
    return _total(_only(1 - cosine, both)), _total(both)


def ssim(pred: Tensor, target: Tensor, valid: Tensor, data_range: float) -> Sums:
    """clip((1 - SSIM) / 2, 0, 1) of each sample; SSIM is the mean over windows that lie inside and hold no hole.

    Equal to pytorch_msssim.ssim where there is no hole. Raises UserError where no window fits into the output.
    """
    rows, columns = pred.shape[-2:]
    if min(rows, columns) < SSIM_WINDOW:
        raise UserError(
            f"loss.ssim: its {SSIM_WINDOW} x {SSIM_WINDOW} window does not fit into an output of {rows} x {columns}; "
            "enlarge input, lower model.input_pool, or set loss.ssim to 0"
        )
    pred, target = _only(pred, valid), _only(target, valid)
    # As channels of one contiguous tensor the five maps take the depthwise kernel, which never rounds to TF32.
    maps = torch.cat([pred, target, pred.square(), target.square(), pred * target], dim=1).contiguous()
    across = _window(maps.device, maps.dtype).expand(maps.shape[1], 1, 1, SSIM_WINDOW)
    blurred = F.conv2d(maps, across.transpose(2, 3), groups=maps.shape[1])
    blurred = F.conv2d(blurred, across, groups=maps.shape[1])
    mean_p, mean_t, pp, tt, pt = torch.split(blurred, 1, dim=1)
    c1, c2 = ((k * data_range) ** 2 for k in SSIM_K)
    luminance = (2 * mean_p * mean_t + c1) / (mean_p.square() + mean_t.square() + c1)
    variances = (pp - mean_p.square()) + (tt - mean_t.square())
    structure = (2 * (pt - mean_p * mean_t) + c2) / (variances + c2)
    holes = F.max_pool2d(
        (~valid).to(pred.dtype), (SSIM_WINDOW, 1), stride=1
    )  # a side after the other: 22 reads, not 121
    whole = F.max_pool2d(holes, (1, SSIM_WINDOW), stride=1) == 0
    count = _total(whole)
    mean = _total(_only(luminance * structure, whole)) / count.clamp_min(1)
    return ((1 - mean) / 2).clamp(0, 1) * count, count


def silog(pred: Tensor, target: Tensor, valid: Tensor, data_range: float) -> Sums:
    """Scale-invariant log error of each sample: E[e^2] - SILOG_LAMBDA E[e]^2, e = ln pred - ln target, valid pixels.

    Below LOG_FLOOR * data_range the logarithm continues as its tangent, so that a prediction of 0 or less still learns.
    """
    floor = LOG_FLOOR * data_range
    error = _only(_log(_filled(pred, valid, floor), floor) - _log(_filled(target, valid, floor), floor), valid)
    count = _total(valid)
    mean, square = _total(error) / count.clamp_min(1), _total(error.square())
    return square - SILOG_LAMBDA * mean.square() * count, count


TERMS: Mapping[str, Term] = bind(
    LOSS_TERMS,
    {
        "depth": depth,
        "mse": mse,
        "berhu": berhu,
        "gradient": gradient,
        "sobel": sobel,
        "normal": normal,
        "ssim": ssim,
        "silog": silog,
    },
)


def composite(
    pred: Tensor, target: Tensor, valid: Tensor, weights: Mapping[str, float], data_range: float, pool: Pool = ALONE
) -> LossResult:
    """The weighted sum of TERMS, in float32 whatever autocast says (float64 stays); terms of weight 0 are left out.

    pred, target: N x 1 x H x W in target space; valid: same shape, bool; data_range: trainables.data.target.data_range;
    pool: of processes that hold a part of the batch each.
    """
    with torch.autocast(pred.device.type, enabled=False):
        dtype = torch.promote_types(pred.dtype, torch.float32)
        pred, target = pred.to(dtype), target.to(dtype)
        total, per_sample = pred.new_zeros(()), pred.new_zeros(pred.shape[0])
        parts = {name: _sums(name, pred, target, valid, data_range, pool) for name, w in weights.items() if w != 0}
        wholes = pool.total(torch.stack([counts.sum() for _, counts in parts.values()])).clamp_min(1).unbind()
        terms = {}
        for (name, (sums, counts)), whole in zip(parts.items(), wholes, strict=True):
            terms[name] = sums.sum() / whole
            total = total + weights[name] * terms[name]
            per_sample = per_sample + weights[name] * (sums / counts.clamp_min(1))
    return LossResult(total, terms, per_sample)


def _sums(name: str, pred: Tensor, target: Tensor, valid: Tensor, data_range: float, pool: Pool) -> Sums:
    whole = {"pool": pool} if LOSS_TERMS[name].whole_batch else {}
    return TERMS[name](pred, target, valid, data_range, **whole)


def _filled(values: Tensor, valid: Tensor, value: float) -> Tensor:
    """Selection, not multiplication: a NaN behind the mask must not come through, neither forwards nor backwards."""
    return torch.where(valid, values, values.new_full((), value))


def _only(values: Tensor, valid: Tensor) -> Tensor:
    return _filled(values, valid, 0.0)


def _error(pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    return _only(pred, valid) - _only(target, valid)


def _total(values: Tensor) -> Tensor:
    """Each sample's sum, (N,); a mask's sum is counted in float32, exact for any image."""
    values = values.float() if values.dtype == torch.bool else values
    return values.flatten(1).sum(1)


def _forward(values: Tensor, valid: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((dy, where both pixels are valid), (dx, where both pixels are valid)); one row or column less than the image."""
    dy, dx = values[..., 1:, :] - values[..., :-1, :], values[..., 1:] - values[..., :-1]
    return (dy, valid[..., 1:, :] & valid[..., :-1, :]), (dx, valid[..., 1:] & valid[..., :-1])


def _log(values: Tensor, floor: float) -> Tensor:
    return torch.where(values > floor, values.clamp_min(floor).log(), math.log(floor) + (values - floor) / floor)


@functools.cache
def _window(device: torch.device, dtype: torch.dtype) -> Tensor:
    """SSIM's Gaussian of sum 1, (SSIM_WINDOW,); kept on the device, because copying it there waits for it.

    Made in float32 as pytorch_msssim does, whatever the dtype, so that its SSIM is ours to the bit.
    """
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float32) - SSIM_WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    return (weights / weights.sum()).to(device, dtype)
