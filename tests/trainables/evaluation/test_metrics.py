"""Metrics against hand-computed cases, independent libraries and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.metrics import structural_similarity
from sklearn.metrics import f1_score, mean_absolute_error, mean_absolute_percentage_error, root_mean_squared_error

from trainables.evaluation.metrics import FUNCTIONS, Comparison, checkerboard, edge_share
from trainables.settings.registry import DEPTH_METRICS, STRUCTURE_METRICS

LN2, LN125 = math.log(2), math.log(1.25)
PRED = torch.tensor([[[1.0, 2.0], [4.0, 5.0]]])
TARGET = torch.tensor([[[2.0, 2.0], [2.0, 4.0]]])
ALL = torch.ones_like(PRED, dtype=torch.bool)
LAST_HIDDEN = torch.tensor([[[True, True], [True, False]]])


def value(name: str, pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> float:
    (result,) = FUNCTIONS[name](Comparison(pred=pred, target=target, mask=mask))
    assert result.dtype == torch.float64
    return float(result)


@pytest.mark.parametrize(
    ("name", "whole", "masked"),
    [
        ("abs_rel", (0.5 + 0 + 1 + 0.25) / 4, 1.5 / 3),
        ("sq_rel", (0.5 + 0 + 2 + 0.25) / 4, 2.5 / 3),
        ("rmse", math.sqrt((1 + 0 + 4 + 1) / 4), math.sqrt(5 / 3)),
        ("rmse_log", math.sqrt((2 * LN2**2 + LN125**2) / 4), math.sqrt(2 * LN2**2 / 3)),
        ("log10", (2 * math.log10(2) + math.log10(1.25)) / 4, 2 * math.log10(2) / 3),
        ("delta1", 1 / 4, 1 / 3),  # 5 / 4 is 1.25, not below it
        ("delta2", 2 / 4, 1 / 3),
        ("delta3", 2 / 4, 1 / 3),  # 2 is above 1.25^3
        ("silog", math.sqrt((2 * LN2**2 + LN125**2) / 4 - (LN125 / 4) ** 2), math.sqrt(2 * LN2**2 / 3)),
    ],
)
def test_depth_metric_by_hand(name: str, whole: float, masked: float) -> None:
    assert value(name, PRED, TARGET, ALL) == pytest.approx(whole, rel=1e-12)
    assert value(name, PRED, TARGET, LAST_HIDDEN) == pytest.approx(masked, rel=1e-12)


def test_every_metric_has_a_case_here() -> None:
    assert {"abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "delta1", "delta2", "delta3", "silog"} == set(
        DEPTH_METRICS
    )
    assert {"mssim_10", "mssim_255", "edge_f1_0.5", "edge_f1_0.2", "edge_f1_0.05"} == set(STRUCTURE_METRICS)


@pytest.mark.parametrize(("name", "data_range"), [("mssim_10", 10.0), ("mssim_255", 255.0)])
def test_mssim_of_two_constant_maps_by_hand(name: str, data_range: float) -> None:
    c1 = (0.01 * data_range) ** 2
    flat = torch.ones(1, 11, 11)
    expected = (2 * 2 * 4 + c1) / (2**2 + 4**2 + c1)  # the structure term is 1
    assert value(name, 2 * flat, 4 * flat, flat > 0) == pytest.approx(expected, rel=1e-12)
    assert math.isnan(value(name, flat[:, :10], flat[:, :10], flat[:, :10] > 0))  # no window fits


def test_edges_by_hand() -> None:
    """A step of s metres between two columns has the slope s / 2 at both: (1 + 2 + 1) s / 8."""
    step = torch.tensor([[[1.0, 2.0], [1.0, 2.0]]])
    flat = torch.ones_like(step)
    assert value("edge_f1_0.2", step, 3 * step, ALL) == 1.0  # 0.5 and 1.5 m
    assert value("edge_f1_0.05", 0.11 * step, 3 * step, ALL) == 1.0  # 0.055 m
    assert value("edge_f1_0.05", 0.09 * step, 3 * step, ALL) == 0.0  # 0.045 m
    assert value("edge_f1_0.5", 0.9 * step, 3 * step, ALL) == 0.0  # 0.45 m against 1.5 m
    assert math.isnan(value("edge_f1_0.5", flat, 0.9 * step, ALL))  # no edge anywhere
    assert edge_share(2 * step, ALL, [0.5, 0.9, 1.1]).tolist() == [[1.0, 1.0, 0.0]]
    wide = torch.tensor([[[1.0, 1.0, 1.0, 1.0, 2.0, 2.0]] * 3])
    half_right = torch.tensor([[[1.0, 1.0, 1.0, 2.0, 2.0, 2.0]] * 3])  # edges at 2, 3 against 3, 4: half of each is hit
    assert value("edge_f1_0.2", half_right, wide, torch.ones_like(wide, dtype=torch.bool)) == 0.5


def random_maps(seed: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.3, 9, shape), rng.uniform(0.3, 9, shape)


@pytest.mark.parametrize("data_range", [10, 255])
def test_mssim_equals_scikit_image(data_range: int) -> None:
    pred, target = random_maps(1, (31, 40))
    _, windows = structural_similarity(
        target, pred, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=data_range, full=True
    )
    ours = value(f"mssim_{data_range}", *map(torch.from_numpy, (pred[None], target[None])), torch.ones(1, 31, 40) > 0)
    assert ours == pytest.approx(windows[5:-5, 5:-5].mean(), rel=1e-9)  # both in float64
    mask = np.ones((31, 40), bool)
    mask[3, 7] = mask[20, 30] = False
    touched = ndimage.maximum_filter(~mask, 11)
    ours = value(f"mssim_{data_range}", *map(torch.from_numpy, (pred[None], target[None], mask[None])))
    assert ours == pytest.approx(windows[5:-5, 5:-5][~touched[5:-5, 5:-5]].mean(), rel=1e-9)


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_edge_f1_equals_scikit_learn(threshold: float) -> None:
    pred, target = (ndimage.gaussian_filter(m, 1) for m in random_maps(2, (40, 50)))
    mask = np.ones((40, 50), bool)
    mask[10:14, 20:30] = False
    inside = ~ndimage.maximum_filter(~mask, 3)
    edges = [np.hypot(ndimage.sobel(m, 0), ndimage.sobel(m, 1)) / 8 > threshold for m in (target, pred)]
    expected = f1_score(*(e[inside] for e in edges))
    assert 0.1 < expected < 0.9
    assert value(
        f"edge_f1_{threshold}", *map(torch.from_numpy, (pred[None], target[None], mask[None]))
    ) == pytest.approx(expected, rel=1e-9)


def test_depth_metrics_equal_scikit_learn() -> None:
    pred, target = random_maps(3, (17, 23))
    mask = np.random.default_rng(4).random((17, 23)) < 0.7
    p, t = pred[mask], target[mask]
    ratio = np.maximum(p / t, t / p)
    expected = {
        "abs_rel": mean_absolute_percentage_error(t, p),
        "sq_rel": np.average((p - t) ** 2, weights=1 / t) * (1 / t).mean(),
        "rmse": root_mean_squared_error(t, p),
        "rmse_log": root_mean_squared_error(np.log(t), np.log(p)),
        "log10": mean_absolute_error(np.log10(t), np.log10(p)),
        **{f"delta{k}": (ratio < 1.25**k).mean() for k in (1, 2, 3)},
        "silog": np.log(p / t).std(),
    }
    tensors = [torch.from_numpy(a[None]) for a in (pred, target, mask)]
    ours = {name: value(name, *tensors) for name in DEPTH_METRICS}
    assert ours == pytest.approx(expected, rel=1e-9)


@given(seed=st.integers(0, 2**32 - 1), junk=st.sampled_from([0.0, -3.0, math.inf, math.nan, 1e30]))
@settings(max_examples=25, deadline=None)
def test_masked_pixels_are_inert(seed: int, junk: float) -> None:
    pred, target = (torch.from_numpy(m[None]) for m in random_maps(seed, (14, 15)))
    mask = torch.from_numpy(np.random.default_rng(seed).random((1, 14, 15)) < 0.98)
    spoilt_pred, spoilt_target = (torch.where(mask, m, junk) for m in (pred, target))
    for name, metric in FUNCTIONS.items():
        clean = metric(Comparison(pred=pred, target=target, mask=mask))
        assert torch.equal(
            metric(Comparison(pred=spoilt_pred, target=spoilt_target, mask=mask)).nan_to_num(-1), clean.nan_to_num(-1)
        ), name


@given(seed=st.integers(0, 2**32 - 1), factor=st.floats(0.2, 5))
@settings(max_examples=25, deadline=None)
def test_scale_behaviour(seed: int, factor: float) -> None:
    pred, target = (torch.from_numpy(m[None]) for m in random_maps(seed, (6, 7)))
    mask = torch.ones_like(pred, dtype=torch.bool)

    def both(p: torch.Tensor, t: torch.Tensor) -> dict[str, float]:
        return {name: value(name, p, t, mask) for name in DEPTH_METRICS}

    before, scaled = both(pred, target), both(factor * pred, factor * target)
    for name in DEPTH_METRICS:  # metres scale, ratios do not
        grows = factor if name in ("rmse", "sq_rel") else 1.0
        assert scaled[name] == pytest.approx(grows * before[name], rel=1e-9), name
    assert both(factor * pred, target)["silog"] == pytest.approx(before["silog"], rel=1e-9)
    swapped = both(target, pred)
    for name in ("rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3"):
        assert swapped[name] == pytest.approx(before[name], rel=1e-12), name
    assert both(target, target) == dict.fromkeys(DEPTH_METRICS, 0.0) | {"delta1": 1.0, "delta2": 1.0, "delta3": 1.0}


def test_images_are_measured_apart_and_an_empty_mask_is_nan() -> None:
    pred, target, mask = torch.cat([PRED, 2 * PRED]), torch.cat([TARGET, TARGET]), torch.cat([ALL, ~ALL])
    for name in DEPTH_METRICS:
        first, second = FUNCTIONS[name](Comparison(pred=pred, target=target, mask=mask)).tolist()
        assert first == value(name, PRED, TARGET, ALL)
        assert math.isnan(second)


def test_checkerboard_finds_a_pattern_of_period_two_and_nothing_else() -> None:
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    smooth = 3 + y / 20 + torch.sin(x / 9)
    board, comb = (-1.0) ** (x + y), (-1.0) ** x
    maps = torch.stack([smooth, 3 + board, 3 + comb, smooth + 0.02 * board, smooth + 0.2 * board * y / 48])
    share = checkerboard(maps).tolist()
    assert share[0] < 1e-4 and share[1] > 0.999 and share[2] > 0.999
    assert 0.01 < share[3] < share[4] < 1
    edge = checkerboard(torch.where(x < 30, 1.0, 4.0)[None])  # a white gradient: the band's share of the spectrum
    assert edge.item() == pytest.approx(2 * 1 / 16, rel=0.25)
    assert checkerboard(torch.full((2, 48, 64), 2.7)).tolist() == [0.0, 0.0]
    assert checkerboard(100 * maps).tolist() == pytest.approx(share, abs=1e-6)
