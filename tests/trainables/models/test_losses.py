"""Each loss by hand, with and without a hole; golden values; independent oracles; what a mask must not let through."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_msssim import ssim as msssim_ssim
from scipy import ndimage
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from trainables.models.losses import BERHU_SHARE, SSIM_WINDOW, TERMS, berhu_of, composite
from trainables.runtime.errors import UserError

GOLDEN = Path(__file__).parents[2] / "golden"
PRED = [[2.0, 2.0, 1.0], [3.0, 5.0, 3.0]]
TARGET = [[1.0, 2.0, 4.0], [3.0, 3.0, 3.0]]
HOLE = (0, 2)


def image(rows: list[list[float]] | np.ndarray) -> Tensor:
    return torch.tensor(np.asarray(rows), dtype=torch.float64)[None, None]


def value(name: str, pred: Tensor, target: Tensor, valid: Tensor | None = None, data_range: float = 10.0) -> float:
    valid = torch.ones_like(target, dtype=torch.bool) if valid is None else valid
    return composite(pred, target, valid, {name: 1.0}, data_range).total.item()


def log_error(*ratios: float) -> float:
    e = [math.log(ratio) for ratio in ratios]
    return sum(x * x for x in e) / len(e) - 0.5 * (sum(e) / len(e)) ** 2


@pytest.mark.parametrize(
    ("name", "whole", "holed"),
    [
        ("depth", 6 / 6, 3 / 5),
        ("mse", 14 / 6, 5 / 5),
        ("berhu", (1.36 / 1.2 + 9.36 / 1.2 + 4.36 / 1.2) / 6, (1.16 / 0.8 + 4.16 / 0.8) / 5),
        ("gradient", (1 + 2 + 3 + 1 + 3 + 2 + 2) / 6, (1 + 2 + 1 + 2 + 2) / 5),
        ("normal", 1 - (3 / math.sqrt(12) + 2 / math.sqrt(66)) / 2, 1 - 3 / math.sqrt(12)),
        ("silog", log_error(2, 1, 1 / 4, 1, 5 / 3, 1), log_error(2, 1, 1, 5 / 3, 1)),
    ],
)
def test_by_hand(name: str, whole: float, holed: float) -> None:
    pred, target = image(PRED), image(TARGET)
    valid = torch.ones_like(target, dtype=torch.bool)
    assert value(name, pred, target, valid) == pytest.approx(whole, rel=1e-12)
    valid[0, 0][HOLE] = False
    assert value(name, pred, target, valid) == pytest.approx(holed, rel=1e-12)


def test_sobel_by_hand() -> None:
    pred, target = image([[0, 0, 0], [0, 8, 0], [0, 0, 0]]), image(np.zeros((3, 3)))
    assert value("sobel", pred, target) == pytest.approx(16 / 9, rel=1e-6)
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[..., 0, 0] = False  # the four pixels around it drop out, the centre among them
    assert value("sobel", pred, target, valid) == pytest.approx(10 / 5, rel=1e-6)


def test_ssim_by_hand() -> None:
    """Constant images have no variance: SSIM is its luminance alone, and the holed column's window does not count."""
    pred, target = torch.full((1, 1, 11, 12), 2.0), torch.full((1, 1, 11, 12), 4.0)
    expected = (1 - (2 * 2 * 4 + 0.01) / (4 + 16 + 0.01)) / 2
    assert value("ssim", pred, target) == pytest.approx(expected, rel=1e-5)
    pred[..., 0], valid = 9.0, torch.ones_like(target, dtype=torch.bool)
    assert value("ssim", pred, target) != pytest.approx(expected, rel=1e-2)
    valid[..., 4, 0] = False
    assert value("ssim", pred, target, valid) == pytest.approx(expected, rel=1e-5)


def test_golden() -> None:
    """The Keras formula evaluated in TensorFlow, at 1e-5; the gradient of the total too."""
    arrays = np.load(GOLDEN / "densedepth_reference.npz")
    expected = json.loads((GOLDEN / "densedepth_reference.json").read_text())["loss"]
    target, pred = (torch.from_numpy(arrays[f"loss_{name}"].astype("f4"))[:, None] for name in ("target", "pred"))
    pred.requires_grad_()
    weights = {"ssim": 1.0, "gradient": 1.0, "depth": 0.1}
    result = composite(pred, target, torch.ones_like(target, dtype=torch.bool), weights, 100.0)
    result.total.backward()
    assert pred.grad is not None
    found = {name: term.item() for name, term in result.terms.items()}
    found |= {
        "depth_l1": found.pop("depth"),
        "total": result.total.item(),
        "grad_wrt_pred_norm": pred.grad.norm().item(),
    }
    assert found == pytest.approx(expected, rel=1e-5)


def scene(*, holes: bool, rows: int = 13, columns: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Two samples of smooth depth and a noisy prediction in float64; the second sample has more holes."""
    rng = np.random.default_rng(3)
    target = ndimage.gaussian_filter(rng.uniform(1, 9, (2, 1, rows, columns)), (0, 0, 2, 2)) * 2 - 5
    pred = target + rng.normal(0, 0.4, target.shape)
    valid = np.ones(target.shape, bool)
    if holes:
        valid[0, 0, 2, 3], valid[1, 0, :2, :4] = False, False
    return torch.from_numpy(pred), torch.from_numpy(target), torch.from_numpy(valid)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("name", sorted(TERMS.keys() - {"berhu"}))
def test_gradcheck(name: str, holes: bool) -> None:
    pred, target, valid = scene(holes=holes)
    pred.requires_grad_()
    # kornia keeps its Sobel kernel in float32, exact but for its last bits
    torch.autograd.gradcheck(lambda p: composite(p, target, valid, {name: 1.0}, 10.0).total, pred, atol=1e-6)


def test_berhu_gradient() -> None:
    """Gradcheck with the threshold held fixed, and the term's gradient is that one."""
    pred, target, valid = scene(holes=True)
    pred.requires_grad_()
    c = BERHU_SHARE * (pred - target)[valid].detach().abs().max()

    def fixed(p: Tensor) -> Tensor:
        return berhu_of((p - target)[valid].abs(), c).mean()

    torch.autograd.gradcheck(fixed, pred)
    (expected,) = torch.autograd.grad(fixed(pred), pred)
    (found,) = torch.autograd.grad(composite(pred, target, valid, {"berhu": 1.0}, 10.0).total, pred)
    torch.testing.assert_close(found, expected)


def test_ssim_against_pytorch_msssim() -> None:
    pred, target, valid = (x.float() if x.is_floating_point() else x for x in scene(holes=False, rows=24, columns=31))
    expected = (1 - msssim_ssim(pred, target, data_range=10.0)) / 2
    assert value("ssim", pred, target, valid) == pytest.approx(expected.item(), abs=1e-7)


def test_ssim_with_holes_against_each_window() -> None:
    """Every window without a hole, one after the other, in NumPy."""
    pred, target, valid = scene(holes=True, rows=17, columns=20)
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    g = np.exp(-(offsets**2) / (2 * 1.5**2))
    w = np.outer(g, g) / g.sum() ** 2
    c1, c2 = (0.01 * 10) ** 2, (0.03 * 10) ** 2
    sums, counts = TERMS["ssim"](pred, target, valid, 10.0)
    for n in range(2):
        scores = []
        for i in range(17 - SSIM_WINDOW + 1):
            for j in range(20 - SSIM_WINDOW + 1):
                at = np.s_[n, 0, i : i + SSIM_WINDOW, j : j + SSIM_WINDOW]
                if valid[at].all():
                    p, t = pred[at].numpy(), target[at].numpy()
                    mp, mt = (w * p).sum(), (w * t).sum()
                    vp, vt = (w * (p - mp) ** 2).sum(), (w * (t - mt) ** 2).sum()
                    cov = (w * (p - mp) * (t - mt)).sum()
                    luminance = (2 * mp * mt + c1) / (mp**2 + mt**2 + c1)
                    scores.append(luminance * (2 * cov + c2) / (vp + vt + c2))
        assert 0 < len(scores) < 70 == (17 - 10) * (20 - 10)
        assert counts[n] == len(scores)
        assert sums[n].item() / len(scores) == pytest.approx((1 - np.mean(scores)) / 2, rel=1e-5)


def test_sobel_against_scipy() -> None:
    pred, target, valid = scene(holes=False)
    errors = (pred - target)[:, 0].numpy()
    slopes = [np.abs(ndimage.sobel(error, axis, mode="nearest") / 8) for error in errors for axis in (0, 1)]
    assert value("sobel", pred, target, valid) == pytest.approx(sum(s.mean() for s in slopes) / 2, rel=1e-6)


def test_normals_of_planes() -> None:
    """The angle between two planes is known; a plane against itself costs nothing, whatever its distance."""
    y, x = np.mgrid[0:6, 0:7].astype(float)
    steep, flat = image(2 * x), image(np.full_like(x, 3.0))
    assert value("normal", steep, flat) == pytest.approx(1 - math.cos(math.atan(2)), rel=1e-12)
    assert value("normal", image(y), image(x)) == pytest.approx(1 - 1 / 2, rel=1e-12)
    assert value("normal", steep + 5, steep) == pytest.approx(0, abs=1e-12)


def test_silog_learns_from_predictions_below_zero() -> None:
    target = torch.full((1, 1, 2, 2), 2.0)
    pred = torch.full_like(target, -1.0).requires_grad_()
    composite(pred, target, torch.ones_like(target, dtype=torch.bool), {"silog": 1.0}, 10.0).total.backward()
    assert pred.grad is not None and (pred.grad < 0).all()


@pytest.mark.parametrize("name", sorted(TERMS))
@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_masked_pixels_are_inert(name: str, garbage: float) -> None:
    """Not in the value, not in the gradient, whatever stands behind the mask; a sample of holes alone costs nothing."""
    pred, target, valid = scene(holes=True)
    valid[1] = False
    results = []
    for filling in (0.5, garbage):
        p = torch.where(valid, pred, filling).requires_grad_()
        result = composite(p, torch.where(valid, target, filling), valid, {name: 1.0}, 10.0)
        (gradient,) = torch.autograd.grad(result.total, p)
        assert (gradient[~valid] == 0).all() and gradient.isfinite().all() and (gradient[valid] != 0).any()
        results.append((result.total, result.per_sample, gradient))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert results[0][0] > 0 and results[0][1][1] == 0
    everything_masked = composite(pred, target, torch.zeros_like(valid), {name: 1.0}, 10.0)
    assert everything_masked.total == 0


def test_weights_terms_and_samples() -> None:
    """The total is the weighted sum; pooled by pixel; a sample's own total is what it would be alone."""
    pred, target, valid = scene(holes=True)
    valid[1, :, 6:] = False
    weights = {"depth": 0.1, "mse": 2.0, "ssim": 0.0}
    result = composite(pred, target, valid, weights, 10.0)
    assert list(result.terms) == ["depth", "mse"]
    assert result.terms["mse"].item() == pytest.approx((pred - target)[valid].square().mean().item())
    expected = 0.1 * result.terms["depth"] + 2.0 * result.terms["mse"]
    torch.testing.assert_close(result.total, expected)
    for n in range(2):
        alone = composite(pred[n : n + 1], target[n : n + 1], valid[n : n + 1], weights, 10.0)
        torch.testing.assert_close(result.per_sample[n], alone.total)
    assert result.total.item() != pytest.approx(result.per_sample.mean().item(), rel=1e-3)


def test_float32_under_autocast() -> None:
    pred, target, valid = (x.float() if x.is_floating_point() else x for x in scene(holes=True))
    weights = dict.fromkeys(TERMS, 1.0)
    plain = composite(pred.bfloat16(), target, valid, weights, 10.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = composite(pred.bfloat16(), target, valid, weights, 10.0)
    assert inside.total.dtype == torch.float32
    torch.testing.assert_close((inside.total, inside.terms), (plain.total, plain.terms), rtol=0, atol=0)


def test_nothing_is_read_back_to_the_host() -> None:
    """Fake tensors have no data: an item(), a bool() or an index by mask would raise."""
    pred, target, valid = (x.float() if x.is_floating_point() else x for x in scene(holes=True))
    composite(pred, target, valid, {"ssim": 1.0}, 10.0)  # the window is made, once per device
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(x) for x in (pred, target, valid)]
        fake[0].requires_grad_()
        result = composite(fake[0], fake[1], fake[2], dict.fromkeys(TERMS, 1.0), 10.0)
        result.total.backward()
        assert result.per_sample.shape == (2,)


def test_an_output_smaller_than_the_window_is_refused() -> None:
    pred = torch.ones(1, 1, 10, 40)
    with pytest.raises(
        UserError,
        match=r"loss\.ssim: its 11 x 11 window does not fit into an output of 10 x 40; .* set loss\.ssim to 0",
    ):
        composite(pred, pred, torch.ones_like(pred, dtype=torch.bool), {"ssim": 1.0}, 10.0)
