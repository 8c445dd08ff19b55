"""Depth metrics: pure functions in float64, one value per image, masked.

Source: FACTS.md section 5 (the definitions that Eigen et al. 2014, DenseDepth and BTS share); the structure metrics are
those of DenseDepth's section 4 and of the Michigan report, which state neither data range, crop, size nor holes.

Every function takes a `Comparison` of N images and returns (N,) float64: NaN where the mask leaves nothing to measure.
What lies outside the mask, NaN and infinity included, changes nothing. What several metrics need (errors, logarithms,
filtered maps) is computed once per comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainables.settings.registry import METRICS, bind

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K = (0.01, 0.03)
SOBEL_EPSILON = 1e-6  # under kornia's root
NYQUIST_BAND = 1 / 16  # cycles per pixel below half a cycle that still count as a pattern of period two


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (N, H, W) over each image's mask, (N,) float64; NaN for an empty mask."""
    kept = torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))
    return kept.sum((1, 2), dtype=torch.float64) / mask.sum((1, 2))


class Comparison:
    """Predictions and targets (N, H, W) in metres, and where they are compared, (N, H, W) bool."""

    def __init__(self, *, pred: Tensor, target: Tensor, mask: Tensor) -> None:
        self.mask = mask
        self._given = pred, target

    @cached_property
    def whole(self) -> bool:
        """Whether nothing is masked."""
        return int(self.count.sum()) == self.mask.numel()

    @cached_property
    def maps(self) -> tuple[Tensor, Tensor]:
        """Both maps in float64, 1 m outside the mask: no error there, inert in every quotient and logarithm."""
        pred, target = (one.double() for one in self._given)
        if self.whole:
            return pred, target
        one = torch.ones((), dtype=torch.float64, device=pred.device)
        return torch.where(self.mask, pred, one), torch.where(self.mask, target, one)

    @cached_property
    def count(self) -> Tensor:
        """Pixels that are compared, (N,)."""
        return self.mask.sum((1, 2))

    @cached_property
    def distance(self) -> Tensor:
        """|p - t|, 0 outside the mask."""
        return (self.maps[0] - self.maps[1]).abs_()

    @cached_property
    def square(self) -> Tensor:
        """(p - t)^2, 0 outside the mask."""
        return self.distance.square()

    @cached_property
    def ratio(self) -> Tensor:
        """p / t, 1 outside the mask."""
        return self.maps[0] / self.maps[1]

    @cached_property
    def log_ratio(self) -> Tensor:
        """ln p - ln t, 0 outside the mask."""
        return self.ratio.log()

    @cached_property
    def factor(self) -> Tensor:
        """max(p / t, t / p), 1 outside the mask."""
        return torch.maximum(self.ratio, self.maps[1] / self.maps[0])

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the mask of values that are 0 outside it."""
        return values.sum((1, 2)) / self.count

    @cached_property
    def filtered(self) -> tuple[Tensor, ...]:
        """Means of p and t, variances of p and t, and covariance, under SSIM's window where it fits entirely."""
        p, t = self.maps
        mean_p, mean_t = _gaussian_filter(p), _gaussian_filter(t)
        var_p = _gaussian_filter(p * p) - mean_p.square()
        var_t = _gaussian_filter(t * t) - mean_t.square()
        return mean_p, mean_t, var_p, var_t, _gaussian_filter(p * t) - mean_p * mean_t

    @cached_property
    def windows(self) -> Tensor:
        """Where SSIM's window lies wholly inside the mask."""
        if self.whole:
            return torch.ones_like(self.filtered[0], dtype=torch.bool)
        return _windows_inside(self.mask, SSIM_WINDOW)

    @cached_property
    def slopes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sobel magnitudes of p and t, and where both are valid."""
        (pred, valid), (target, _) = (edge_magnitude(one, self.mask) for one in self.maps)
        return pred, target, valid


Function = Callable[[Comparison], Tensor]  # a comparison of N images to (N,) float64


def abs_rel(c: Comparison) -> Tensor:
    """mean(|p - t| / t)."""
    return c.mean(c.distance / c.maps[1])


def sq_rel(c: Comparison) -> Tensor:
    """mean((p - t)^2 / t), metres."""
    return c.mean(c.square / c.maps[1])


def rmse(c: Comparison) -> Tensor:
    """sqrt(mean((p - t)^2)), metres."""
    return c.mean(c.square).sqrt()


def rmse_log(c: Comparison) -> Tensor:
    """sqrt(mean((ln p - ln t)^2))."""
    return c.mean(c.log_ratio.square()).sqrt()


def log10(c: Comparison) -> Tensor:
    """mean |log10 p - log10 t|."""
    return c.mean(c.log_ratio.abs()) / math.log(10)


def delta(power: int, c: Comparison) -> Tensor:
    """Share of pixels with max(p / t, t / p) < 1.25^power, 0 to 1."""
    outside = c.mask[0].numel() - c.count  # where the factor is 1
    within = _below(c.factor, 1.25**power) - outside
    return within.double() / c.count


def _below(values: Tensor, threshold: float) -> Tensor:
    """How many of each (H, W) lie below a threshold, (N,). On a CPU NumPy compares in a third of the time."""
    if values.device.type != "cpu":
        return (values < threshold).sum((1, 2))
    return torch.tensor([np.count_nonzero(one < threshold) for one in values.numpy()])


def silog(c: Comparison) -> Tensor:
    """sqrt(E[e^2] - E[e]^2) of e = ln p - ln t; not multiplied by 100.

    Computed as the spread about the mean, which cannot turn negative by rounding.
    """
    spread = (c.log_ratio - c.mean(c.log_ratio)[:, None, None]).square_()
    return (c.mean(spread) if c.whole else masked_mean(spread, c.mask)).sqrt()


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


def mssim(data_range: float, c: Comparison) -> Tensor:
    """Mean SSIM of the depth maps over the windows that lie wholly inside the mask, -1 to 1.

    Gaussian windows as in SSIM's paper. The data range decides the number: the constants that keep SSIM stable grow
    with its square (FACTS.md section 5).
    """
    if min(c.mask.shape[1:]) < SSIM_WINDOW:
        return torch.full((len(c.mask),), math.nan, dtype=torch.float64, device=c.mask.device)
    c1, c2 = ((k * data_range) ** 2 for k in SSIM_K)
    mean_p, mean_t, var_p, var_t, covariance = c.filtered
    luminance = (2 * mean_p * mean_t + c1) / (mean_p.square() + mean_t.square() + c1)
    structure = (2 * covariance + c2) / (var_p + var_t + c2)
    return masked_mean(luminance * structure, c.windows)


def _windows_inside(mask: Tensor, side: int) -> Tensor:
    """Where square windows lie wholly inside (N, H, W): (N, H - side + 1, W - side + 1). Pooling takes ten times as
    long.
    """
    height, width = (length - side + 1 for length in mask.shape[1:])
    rows = torch.ones_like(mask[:, :height])
    for k in range(side):
        rows &= mask[:, k : k + height]
    inside = torch.ones_like(rows[:, :, :width])
    for k in range(side):
        inside &= rows[:, :, k : k + width]
    return inside


def edge_magnitude(depth_m: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """kornia's Sobel magnitude (kernel / 8, replicated border) and where its 3 x 3 neighbourhood is all valid.

    Sums of shifted maps: kornia's convolution in float64 takes ten times as long on a CPU.
    """
    inside = torch.where(mask, depth_m.double(), torch.ones((), dtype=torch.float64, device=depth_m.device))
    wide = functional.pad(inside[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    down = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]  # smoothed along the columns, then the difference across
    across = wide[:, :, :-2] + 2 * wide[:, :, 1:-1] + wide[:, :, 2:]
    slope_x, slope_y = (down[:, :, 2:] - down[:, :, :-2]) / 8, (across[:, 2:] - across[:, :-2]) / 8
    magnitude = (slope_x.square_() + slope_y.square_() + SOBEL_EPSILON).sqrt_()
    if mask.all():
        return magnitude, mask
    beyond = functional.pad(mask, (1, 1, 1, 1), value=True)
    return magnitude, _windows_inside(beyond, 3)


def edge_f1(threshold: float, c: Comparison) -> Tensor:
    """F1 of the edge maps (Sobel magnitude above the threshold), 0 to 1; NaN where neither map has an edge."""
    pred, target, valid = c.slopes
    edges_p, edges_t = (pred > threshold) & valid, (target > threshold) & valid
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
