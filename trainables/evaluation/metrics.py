"""Depth metrics: pure functions in float64, one value per image, masked.

Source: FACTS.md section 5 (the definitions that Eigen et al. 2014, DenseDepth and BTS share); the structure metrics are
those of DenseDepth's section 4 and of the Michigan report, which state neither data range, crop, size nor holes.

Every function takes `pred` and `target` (N, H, W) in metres and `mask` (N, H, W) bool, and returns (N,) float64: NaN
where the mask leaves nothing to measure. What lies outside the mask, NaN and infinity included, changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from trainables.settings.registry import METRICS, bind

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K = (0.01, 0.03)
NYQUIST_BAND = 1 / 16  # cycles per pixel below half a cycle that still count as a pattern of period two


class Function(Protocol):
    """(pred, target, mask), each (N, H, W), to (N,) float64."""

    def __call__(self, *, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor: ...


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (N, H, W) over each image's mask, (N,) float64; NaN for an empty mask."""
    kept = torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))
    return kept.sum((1, 2), dtype=torch.float64) / mask.sum((1, 2))


def _doubles(pred: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps in float64, 1 m outside the mask: inert in every quotient and logarithm."""
    one = torch.ones((), dtype=torch.float64, device=pred.device)
    return torch.where(mask, pred.double(), one), torch.where(mask, target.double(), one)


def abs_rel(*, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """mean(|p - t| / t)."""
    p, t = _doubles(pred, target, mask)
    return masked_mean((p - t).abs() / t, mask)


def sq_rel(*, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """mean((p - t)^2 / t), metres."""
    p, t = _doubles(pred, target, mask)
    return masked_mean((p - t).square() / t, mask)


def rmse(*, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """sqrt(mean((p - t)^2)), metres."""
    p, t = _doubles(pred, target, mask)
    return masked_mean((p - t).square(), mask).sqrt()


def rmse_log(*, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """sqrt(mean((ln p - ln t)^2))."""
    p, t = _doubles(pred, target, mask)
    return masked_mean((p.log() - t.log()).square(), mask).sqrt()


def log10(*, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """mean |log10 p - log10 t|."""
    p, t = _doubles(pred, target, mask)
    return masked_mean((p.log() - t.log()).abs(), mask) / math.log(10)


def delta(power: int, *, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Share of pixels with max(p / t, t / p) < 1.25^power, 0 to 1."""
    p, t = _doubles(pred, target, mask)
    return masked_mean((torch.maximum(p / t, t / p) < 1.25**power).double(), mask)


def silog(*, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """sqrt(E[e^2] - E[e]^2) of e = ln p - ln t; not multiplied by 100.

    Computed as the spread about the mean, which cannot turn negative by rounding.
    """
    p, t = _doubles(pred, target, mask)
    error = p.log() - t.log()
    return masked_mean((error - masked_mean(error, mask)[:, None, None]).square(), mask).sqrt()


def _gaussian_filter(maps: Tensor) -> Tensor:
    """(N, H, W) to (N, H - 10, W - 10): SSIM's Gaussian window over positions where it fits entirely.

    A sum of shifted maps: in float64 a convolution of one channel takes fifteen times as long on a CPU.
    """
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    weights = (window / window.sum()).tolist()
    height, width = (side - SSIM_WINDOW + 1 for side in maps.shape[1:])
    rows, result = torch.zeros_like(maps[:, :height]), torch.zeros_like(maps[:, :height, :width])
    for k, weight in enumerate(weights):
        rows.add_(maps[:, k : k + height], alpha=weight)
    for k, weight in enumerate(weights):
        result.add_(rows[:, :, k : k + width], alpha=weight)
    return result


def mssim(data_range: float, *, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean SSIM of the depth maps over the windows that lie wholly inside the mask, -1 to 1.

    Gaussian windows as in SSIM's paper. The data range decides the number: the constants that keep SSIM stable grow
    with its square (FACTS.md section 5).
    """
    if min(mask.shape[1:]) < SSIM_WINDOW:
        return torch.full((len(mask),), math.nan, dtype=torch.float64, device=mask.device)
    p, t = _doubles(pred, target, mask)
    c1, c2 = ((k * data_range) ** 2 for k in SSIM_K)
    mean_p, mean_t = _gaussian_filter(p), _gaussian_filter(t)
    var_p = _gaussian_filter(p * p) - mean_p.square()
    var_t = _gaussian_filter(t * t) - mean_t.square()
    covariance = _gaussian_filter(p * t) - mean_p * mean_t
    luminance = (2 * mean_p * mean_t + c1) / (mean_p.square() + mean_t.square() + c1)
    structure = (2 * covariance + c2) / (var_p + var_t + c2)
    whole = torch.ones_like(structure, dtype=torch.bool)
    if not mask.all():  # or the search for holes takes as long as a filter
        holes = functional.max_pool2d((~mask)[:, None].float(), (SSIM_WINDOW, 1), stride=1)  # one side, then the other
        whole = functional.max_pool2d(holes, (1, SSIM_WINDOW), stride=1)[:, 0] == 0
    return masked_mean(luminance * structure, whole)


def edge_magnitude(depth_m: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """kornia's Sobel magnitude (kernel / 8, replicated border) and where its 3 x 3 neighbourhood is all valid."""
    from kornia.filters import sobel  # a second to import, and only these metrics need it

    inside = torch.where(mask, depth_m.double(), torch.ones((), dtype=torch.float64, device=depth_m.device))
    magnitude: Tensor = sobel(inside[:, None])[:, 0]
    if mask.all():
        return magnitude, mask
    return magnitude, functional.max_pool2d((~mask)[:, None].float(), 3, stride=1, padding=1)[:, 0] == 0


def edge_f1(threshold: float, *, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """F1 of the edge maps (Sobel magnitude above the threshold), 0 to 1; NaN where neither map has an edge."""
    magnitude_p, valid = edge_magnitude(pred, mask)
    magnitude_t, _ = edge_magnitude(target, mask)
    edges_p, edges_t = (magnitude_p > threshold) & valid, (magnitude_t > threshold) & valid
    hits = (edges_p & edges_t).sum((1, 2), dtype=torch.float64)
    return 2 * hits / (edges_p.sum((1, 2)) + edges_t.sum((1, 2)))


def edge_share(depth_m: Tensor, mask: Tensor, thresholds: list[float]) -> Tensor:
    """The curve behind the choice of a threshold: (N, T) share of pixels whose Sobel magnitude exceeds each of them."""
    magnitude, valid = edge_magnitude(depth_m, mask)
    return torch.stack([masked_mean((magnitude > t).double(), valid) for t in thresholds], dim=1)


def checkerboard(maps: Tensor) -> Tensor:
    """Share of the energy of each map's gradient that lies at the finest frequencies of rows or columns: (N, H, W) of
    finite values to (N,) float64, 0 to 1.

    Upsampling by transposed convolutions leaves a pattern of period two, which lies there (Odena et al. 2016,
    "Deconvolution and Checkerboard Artifacts"). E = |FFT of the map, mean removed, under a Hann window|^2 times the
    squared response of forward differences; the share counts E within NYQUIST_BAND of half a cycle per pixel. 1 for a
    checkerboard or a comb of lines, near 0 for a smooth map; the gradient of a clean edge is white, so that it counts
    with the band's width. 0 for a constant map. No mask: meant for what a network gives, at the size it gives it.
    """
    height, width = maps.shape[1:]
    centred = maps.double() - maps.double().mean((1, 2), keepdim=True)
    windows = [torch.hann_window(n, periodic=False, dtype=torch.float64, device=maps.device) for n in (height, width)]
    power = torch.fft.fft2(centred * windows[0][:, None] * windows[1]).abs().square()
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64, device=maps.device).abs() for n in (height, width))
    energy = power * ((math.pi * rows).sin().square()[:, None] + (math.pi * columns).sin().square())
    fine = (rows >= 0.5 - NYQUIST_BAND)[:, None] | (columns >= 0.5 - NYQUIST_BAND)
    total = energy.sum((1, 2))
    spread = centred.square().mean((1, 2)).sqrt()
    constant = spread <= 1e-6 * maps.double().abs().mean((1, 2))  # float32's own rounding is not a pattern
    return torch.where(constant, 0.0, (energy * fine).sum((1, 2)) / total)


FUNCTIONS: Mapping[str, Function] = bind(
    METRICS,
    {
        "abs_rel": abs_rel,
        "sq_rel": sq_rel,
        "rmse": rmse,
        "rmse_log": rmse_log,
        "log10": log10,
        "delta1": partial(delta, 1),
        "delta2": partial(delta, 2),
        "delta3": partial(delta, 3),
        "silog": silog,
        "mssim_10": partial(mssim, 10.0),
        "mssim_255": partial(mssim, 255.0),
        "edge_f1_0.5": partial(edge_f1, 0.5),
        "edge_f1_0.2": partial(edge_f1, 0.2),
        "edge_f1_0.05": partial(edge_f1, 0.05),  # for networks so small or so little trained that no slope is steeper
    },
)
