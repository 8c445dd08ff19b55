"""Protocols on maps made from the truth by known changes: values worked out by hand, and each alignment's optimum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from trainables.evaluation.alignment import least_absolute_line
from trainables.evaluation.evaluate import aggregate, score
from trainables.evaluation.protocols import FITTED, PROTOCOLS, Crop, Protocol

SIZE = (480, 640)
NEAR, FAR = 2.0, 4.0  # metres, left and right half of every frame


def halves(near: float = NEAR, far: float = FAR, border: int = 320) -> torch.Tensor:
    truth = torch.full((1, *SIZE), far)
    truth[:, :, :border] = near
    return truth


def value(protocol: str, metric: str, pred: torch.Tensor, truth: torch.Tensor, disparity: bool = False) -> float:
    chosen = PROTOCOLS[protocol]
    return aggregate(score(pred, truth, chosen, disparity=disparity), chosen)[metric]


def near_share(protocol: Protocol) -> float:
    """Share of the measured pixels that lie in the left half."""
    columns = protocol.crop_at(SIZE)[1]
    return (320 - columns.start) / (columns.stop - columns.start)


METRIC = [p for p in PROTOCOLS.values() if p.name != "structure"]
SCALED = {"median", "affine", "affine_disparity", "l1_scale", "l1_affine"}
SHIFTED = {"affine", "l1_affine"}


@pytest.mark.parametrize("protocol", METRIC, ids=lambda p: p.name)
def test_a_tenth_too_far(protocol: Protocol) -> None:
    """Factor 1.1: abs_rel 0.1, of swapped arguments 0.1 / 1.1; nothing where a scale is fitted."""
    expected = 0.0 if protocol.scaling in SCALED else 0.1 / 1.1 if protocol.arguments_swapped else 0.1
    assert value(protocol.name, "abs_rel", 1.1 * halves(), halves()) == pytest.approx(expected, abs=1e-6)
    assert value(protocol.name, "delta1", 1.1 * halves(), halves()) == 1.0
    if "rmse" in protocol.metrics:
        share = near_share(protocol)
        rmse = math.sqrt(share * (0.1 * NEAR) ** 2 + (1 - share) * (0.1 * FAR) ** 2)
        assert value(protocol.name, "rmse", 1.1 * halves(), halves()) == pytest.approx(
            0.0 if protocol.scaling in SCALED else rmse, abs=1e-6
        )
    if "silog" in protocol.metrics:
        assert value(protocol.name, "silog", 1.1 * halves(), halves()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("protocol", METRIC, ids=lambda p: p.name)
def test_shifted_by_a_fifth_of_a_metre(protocol: Protocol) -> None:
    """p = t + 0.2: rmse 0.2, abs_rel the mean of 0.2 / t. A median of 4 m fits 4 / 4.2 to all, as does an L1 scale of
    whichever half weighs more; a fit with a shift leaves nothing.
    """
    share = near_share(protocol)
    found = value(protocol.name, "abs_rel", halves() + 0.2, halves())
    if protocol.scaling in SHIFTED:
        assert found == pytest.approx(0, abs=1e-6)
    elif protocol.scaling == "none":
        down = 0.2 if protocol.arguments_swapped else 0.0
        assert found == pytest.approx(share * 0.2 / (NEAR + down) + (1 - share) * 0.2 / (FAR + down), rel=1e-5)
        assert value(protocol.name, "rmse", halves() + 0.2, halves()) == pytest.approx(0.2, rel=1e-5)
    elif protocol.scaling in ("median", "l1_scale"):
        assert share == 0.5 or protocol.name == "bts"
        near = abs(2.2 * (2 / 2.2) - 2) / 2, abs(4.2 * (2 / 2.2) - 4) / 4  # fitted to the left half
        far = abs(2.2 * (4 / 4.2) - 2) / 2, abs(4.2 * (4 / 4.2) - 4) / 4  # or to the right one
        fits = [share * a + (1 - share) * b for a, b in (near, far)]
        best = [fits[0]] if protocol.scaling == "median" else [min(fits)]  # the lower of two middle pixels
        assert found == pytest.approx(best[0], rel=1e-5)


def test_squared_and_inverse_maps() -> None:
    """p = t^2: 4 and 16 m, of which 10 remain after a clip; a relative error of 1 and 1.5. A line fits two values."""
    squared, inverse = halves(NEAR**2, FAR**2), halves(1 / NEAR, 1 / FAR)
    share = near_share(PROTOCOLS["densedepth"])
    assert share == 0.5
    assert value("densedepth", "abs_rel", squared, halves()) == pytest.approx(0.5 * 1 + 0.5 * 1.5)
    assert value("image_mean", "abs_rel", squared, halves()) == pytest.approx(0.5 * 1 + 0.5 * 3)  # no clip
    for name in ("densedepth_affine", "marigold", "moge_affine"):
        assert value(name, "abs_rel", squared, halves()) == pytest.approx(0, abs=1e-6)
        assert value(name, "abs_rel", inverse, halves()) == pytest.approx(0, abs=1e-6)  # a negative slope
    disparity = 3 * inverse + 0.4
    assert value("marigold_disparity", "abs_rel", disparity, halves(), disparity=True) == pytest.approx(0, abs=1e-6)
    assert value("densedepth", "abs_rel", inverse, halves()) == pytest.approx((1.5 / 2 + 3.75 / 4) / 2)


def test_three_depths_that_no_line_fits() -> None:
    """t = 1, 2, 3 m in equal parts and p = t^2: least squares gives t = p / 4 + 5 / 6 - ..., by NumPy's own fit."""
    truth = torch.ones((1, 480, 639))
    truth[:, :, 213:426], truth[:, :, 426:] = 2.0, 3.0
    flat = Protocol("flat", "", "", None, (0.0, math.inf), None, (1e-6, math.inf), scaling="affine")
    slope, shift = np.polyfit([1, 4, 9], [1, 2, 3], 1)
    errors = [abs(slope * p + shift - t) / t for p, t in ((1, 1), (4, 2), (9, 3))]
    assert score(truth**2, truth, flat)[0]["abs_rel"] == pytest.approx(np.mean(errors), rel=1e-9)


def test_half_size_and_half_a_pixel_off() -> None:
    """A ramp is the same at half its size, but for the border; half a pixel moves it by half a step."""
    step = 4 / 640
    x = torch.arange(640) * step + 2
    truth = x.expand(1, *SIZE).contiguous()
    half = ((x[0::2] + x[1::2]) / 2).expand(1, 240, 320).contiguous()
    assert value("bts", "rmse", half, truth) == pytest.approx(0, abs=1e-6)
    assert value("bts", "rmse", truth + step / 2, truth) == pytest.approx(step / 2, rel=1e-3)
    assert value("marigold", "rmse", truth + step / 2, truth) == pytest.approx(0, abs=1e-6)
    # The truth's nearest pixel is half a step nearer; after the fit to the median m an error of that times (m - t) / m.
    assert value("ultralytics", "rmse", half, truth) == pytest.approx(step / 2 * 4 / math.sqrt(12) / 4, rel=0.01)
    edge = torch.full((1, 240, 320), NEAR)
    edge[:, :, 160:] = FAR  # bilinear: 2.5 and 3.5 m beside the edge, that is 0.5 m off in two columns
    for name in ("densedepth", "image_mean"):
        columns = PROTOCOLS[name].crop_at(SIZE)[1]
        rmse = math.sqrt(2 * 0.5**2 / (columns.stop - columns.start))
        assert value(name, "rmse", edge, halves()) == pytest.approx(rmse, rel=1e-5)
    assert value("ultralytics", "rmse", edge, halves()) == 0.0  # the truth is resized, and its edge with it


def test_one_frame_swapped_moves_each_average_as_it_must() -> None:
    """Three frames of 1, 2 and 4 m, the last two predictions exchanged: abs_rel 0, 1 and 0.5."""
    truth = torch.tensor([1.0, 2.0, 4.0])[:, None, None].expand(3, *SIZE)
    rows = {name: score(truth[[0, 2, 1]], truth, PROTOCOLS[name]) for name in ("image_mean", "densedepth_scaled")}
    for name, expected in (("image_mean", 0.5), ("image_median", 0.5), ("pixel_pool", 0.5)):
        assert aggregate(rows["image_mean"], PROTOCOLS[name])["abs_rel"] == pytest.approx(expected)
    assert aggregate(rows["image_mean"], PROTOCOLS["image_mean"])["rmse"] == pytest.approx((0 + 2 + 2) / 3)
    assert aggregate(rows["image_mean"], PROTOCOLS["image_median"])["rmse"] == 2.0
    assert aggregate(rows["image_mean"], PROTOCOLS["pixel_pool"])["rmse"] == pytest.approx(math.sqrt(8 / 3))
    assert aggregate(rows["densedepth_scaled"], PROTOCOLS["densedepth_scaled"])["abs_rel"] == 0  # constant frames


def test_crops_of_kitti_are_shares_cut_to_whole_pixels() -> None:
    """On 375 x 1242, BTS's own int(): Garg 153 to 371 and 44 to 1197, Eigen 124 to 342 and 44 to 1197."""
    found = {n: PROTOCOLS[n].crop_at((375, 1242)) for n in ("kitti_garg", "kitti_eigen")}
    assert found["kitti_garg"] == (slice(153, 371), slice(44, 1197))
    assert found["kitti_eigen"] == (slice(124, 342), slice(44, 1197))
    assert Crop((45, 471, 41, 601), SIZE).at((240, 320)) == (slice(22, 236), slice(20, 300))


def test_the_truth_beyond_the_largest_depth_is_left_out() -> None:
    truth = halves(2.0, 30.0)
    pixels = {name: score(truth, truth, PROTOCOLS[name])[0]["pixels"] for name in PROTOCOLS}
    assert pixels["bts"] == 426 * (320 - 41) and pixels["marigold"] == pixels["bts"]
    assert pixels["ultralytics"] == pixels["image_mean"] == 480 * 640
    assert pixels["densedepth"] == 440 * 592


@pytest.mark.parametrize("seed", range(4))
def test_least_absolute_line_is_the_optimum_of_linear_programming(seed: int) -> None:
    """min sum w e with e >= +-(a x + b - y), by scipy; whole numbers make many points lie on one line."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 5, 60), rng.uniform(1, 6, 60)
    if seed % 2:
        x, y = x.round(), y.round()
    w = 1 / y
    cost = np.concatenate([[0, 0], w])
    one = np.stack([x, np.ones(60)], axis=1)
    bounds = np.block([[one, -np.eye(60)], [-one, -np.eye(60)]])
    best = linprog(cost, bounds, np.concatenate([y, -y]), bounds=[(None, None)] * 2 + [(0, None)] * 60)
    slope, shift = least_absolute_line(*(torch.from_numpy(v) for v in (x, y, w)))
    assert float((w * np.abs(slope * x + shift - y)).sum()) == pytest.approx(best.fun, rel=1e-9)


def test_a_kind_of_map_is_measured_by_fits_that_give_it_a_scale() -> None:
    fitted = {kind: {p.name for p in PROTOCOLS.values() if p.fits(kind)} for kind in FITTED}
    assert fitted["metric"] == fitted["inverse"] == set(PROTOCOLS)
    assert fitted["disparity"] == {"marigold_disparity"}
    assert fitted["relative"] == {"densedepth_affine", "marigold", "moge_affine"}


def test_every_protocol_says_where_it_is_from_and_when_it_may_be_called_so() -> None:
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name and protocol.source and protocol.conditions
