"""Alignments of a prediction with the truth, image by image, as each protocol's evaluator does them.

Every function takes predictions and truth (N, H, W), float64, and a mask, and returns the prediction in metres, not yet
clipped. Sources: the evaluators named in trainables/evaluation/protocols.py. Deviation: `l1_affine` finds its optimum
by descending from line to line (Wesolowsky 1981), where MoGe tries the lines through every pixel: the same minimum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache

import torch
from torch import Tensor

from trainables.evaluation.protocols import ALIGNED, Protocol
from trainables.settings.registry import bind

LEAST_DISPARITY = 1e-3  # per metre: where Marigold ends a fitted disparity
GRID = 64  # rows and columns of the pixels that MoGe fits on
ON_THE_LINE = 1e-9  # relative residual of a point that lies on a line
CONSTANT = 1e-13  # variance of a map over its mean square, below which it is rounding
MOST_TURNS = 200  # of the descent, which takes about ten


def aligned(protocol: Protocol, pred: Tensor, truth: Tensor, mask: Tensor, *, disparity: bool = False) -> Tensor:
    """The prediction (N, H, W) after the protocol's alignment with the truth, in metres, not yet clipped.

    disparity: the prediction is inverse depth of unknown scale and shift, which `affine_disparity` alone takes.
    """
    assert not disparity or protocol.scaling == "affine_disparity", protocol.name
    if protocol.scaling == "affine_disparity" and not disparity:
        pred = torch.where(pred > 0, 1 / pred, torch.zeros((), dtype=pred.dtype, device=pred.device))
    return _ALIGNMENTS[protocol.scaling](pred, truth, mask, protocol.clip_m[0])


def _none(pred: Tensor, truth: Tensor, mask: Tensor, least_m: float) -> Tensor:
    return pred


def _median(pred: Tensor, truth: Tensor, mask: Tensor, least_m: float) -> Tensor:
    """Medians over each mask; of an even number of pixels the lower one."""
    return torch.stack(
        [
            p * (_picked(t, m).median() / _picked(p, m).clamp_min(least_m).median()) if m.any() else p
            for p, t, m in zip(pred, truth, mask, strict=True)
        ]
    )


def _picked(values: Tensor, mask: Tensor) -> Tensor:
    """The values inside a mask, (n,). On a CPU NumPy picks them in a quarter of the time."""
    return torch.from_numpy(values.numpy()[mask.numpy()]) if values.device.type == "cpu" else values[mask]


def _affine(pred: Tensor, truth: Tensor, mask: Tensor, least_m: float) -> Tensor:
    """Least squares; a constant map can only be shifted."""
    zero = torch.zeros((), dtype=pred.dtype, device=pred.device)
    p, t = torch.where(mask, pred, zero), torch.where(mask, truth, zero)
    count = mask.sum((1, 2))
    mean_p, mean_t = p.sum((1, 2)) / count, t.sum((1, 2)) / count
    square = p.square().sum((1, 2)) / count
    variance = square - mean_p.square()
    slope = torch.where(variance > CONSTANT * square, ((p * t).sum((1, 2)) / count - mean_p * mean_t) / variance, zero)
    return pred * slope[:, None, None] + (mean_t - slope * mean_p)[:, None, None]


def _affine_disparity(pred: Tensor, truth: Tensor, mask: Tensor, least_m: float) -> Tensor:
    """Least squares of the inverse, where both are above 0."""
    mask = mask & (pred > 0) & (truth > 0)
    inverse = torch.where(mask, 1 / truth, torch.zeros((), dtype=pred.dtype, device=pred.device))
    return 1 / _affine(pred, inverse, mask, least_m).clamp_min(LEAST_DISPARITY)


def _l1_scale(pred: Tensor, truth: Tensor, mask: Tensor, least_m: float) -> Tensor:
    """The scale a that minimises sum |a p - t| / t over the pixels of the grid."""
    scaled = []
    for p, t, m in zip(pred, truth, mask, strict=True):
        x, y = _sampled(p, t, m)
        scaled.append(p * _weighted_ratio(x, y, 1 / y) if len(x) else p)
    return torch.stack(scaled)


def _l1_affine(pred: Tensor, truth: Tensor, mask: Tensor, least_m: float) -> Tensor:
    """The scale a and shift b that minimise sum |a p + b - t| / t over the pixels of the grid."""
    fitted = []
    for p, t, m in zip(pred, truth, mask, strict=True):
        x, y = _sampled(p, t, m)
        slope, shift = least_absolute_line(x, y, 1 / y) if len(x) else (1.0, 0.0)
        fitted.append(p * slope + shift)
    return torch.stack(fitted)


_ALIGNMENTS: Mapping[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = bind(
    ALIGNED,
    {
        "none": _none,
        "median": _median,
        "affine": _affine,
        "affine_disparity": _affine_disparity,
        "l1_scale": _l1_scale,
        "l1_affine": _l1_affine,
    },
)


def _sampled(pred: Tensor, truth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps (H, W) at the valid pixel nearest to the centre of each of GRID x GRID cells; empty cells are left out.

    A cell holds the pixels whose centres lie in it, its lower and right border included.
    """
    order, cell, nearest = (one.to(mask.device) for one in _by_cell(*mask.shape))
    chosen, valid = order[nearest], mask.flatten()
    if not valid[chosen].all():  # look further in every cell: ten times the time
        places = valid[order].nonzero()[:, 0]
        chosen = order[places[_firsts(cell[places])]]
    return pred.flatten()[chosen], truth.flatten()[chosen]


def _firsts(cells: Tensor) -> Tensor:
    """Where a sorted row of cells has each cell's first entry."""
    first = torch.ones_like(cells, dtype=torch.bool)
    first[1:] = cells[1:] != cells[:-1]
    return first


@lru_cache(maxsize=4)
def _by_cell(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """All pixels by cell, each cell's nearest to its centre first (of equals the first in the order of rows); their
    cells; and where each cell begins.
    """
    (row_cell, down), (column_cell, across) = _cells(rows), _cells(columns)
    cell = (row_cell[:, None] * GRID + column_cell).flatten()
    near = (down.square()[:, None] + across.square()).flatten().argsort(stable=True)
    order = near[cell[near].argsort(stable=True)]
    cells = cell[order]
    return order, cells, _firsts(cells).nonzero()[:, 0]


def _cells(side: int) -> tuple[Tensor, Tensor]:
    """The cell of each row or column, and how far its centre lies from the cell's, in pixels, float32 as in MoGe."""
    centre = torch.arange(side, dtype=torch.float32) + 0.5
    edge = torch.finfo(torch.float32).eps * side
    cell = torch.ceil((centre - edge) / (side / GRID)).long().sub_(1).clamp_(0, GRID - 1)
    return cell, centre - (cell.float() + 0.5) / GRID * side


def _weighted_ratio(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """The a that minimises sum weight |a x - y|: the median of y / x under the weights weight |x|."""
    usable = x != 0
    ratio, order = (y[usable] / x[usable]).sort()
    if not len(ratio):
        return torch.zeros((), dtype=y.dtype, device=y.device)
    mass = (weight[usable] * x[usable].abs())[order].cumsum(0)
    place = torch.searchsorted(2 * mass, mass[-1:])
    return ratio[place.clamp_max(len(ratio) - 1)][0]


def least_absolute_line(x: Tensor, y: Tensor, weight: Tensor) -> tuple[float, float]:
    """Slope and shift that minimise sum weight |slope x + shift - y| over points (n,), n >= 1.

    From a point the best line through it leads to a second point, whose best line is no worse; where none of the points
    on the line leads on, the line is the optimum, because the sum is convex.
    """

    def loss(slope: float, shift: float) -> float:
        return float((weight * (slope * x + shift - y).abs()).sum())

    @cache
    def through(place: int) -> tuple[float, float, float]:
        slope = float(_weighted_ratio(x - x[place], y - y[place], weight))
        shift = float(y[place] - slope * x[place])
        return loss(slope, shift), slope, shift

    start = float(_weighted_ratio(x, y, weight))
    best = through(int((start * x - y).abs().argmin()))
    for _ in range(MOST_TURNS):
        residual = (best[1] * x + best[2] - y).abs()
        corners = (residual <= ON_THE_LINE * y.abs().max()).nonzero()[:, 0]
        turned = min((through(int(place)) for place in corners[:GRID]), default=best)
        if not turned[0] < best[0] * (1 - 1e-12):
            break
        best = turned
    return best[1], best[2]
