"""Prepared samples against scikit-image and Pillow, holes by brute force, and the target spaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.transform import resize as keras_resize

from trainables.data.frames import BadFrame, Frame
from trainables.data.samples import INVALID_Y, prepare, prepare_target, resize_rgb
from trainables.data.target import depth_to_y, y_to_depth_m
from trainables.settings.config import TrialConfig

SIZES = [((48, 64), (24, 32)), ((60, 80), (24, 32)), ((47, 65), (20, 31)), ((20, 24), (33, 30))]


def some_depth(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.4, 9.6, (rows, columns)).astype(np.float32)


def with_holes(depth: np.ndarray) -> np.ndarray:
    depth = depth.copy()
    depth[:, :7] = 0
    depth[20:23, 30:41] = 0
    depth[35, 50] = 0
    return depth


@pytest.mark.parametrize(("have", "want"), SIZES)
@pytest.mark.parametrize("kind", ["inverse", "metric", "unit"])
def test_target_equals_the_libraries(
    have: tuple[int, int], want: tuple[int, int], kind: str, tiny_config: Callable[..., TrialConfig]
) -> None:
    depth = some_depth(*have)
    scale = {"inverse": lambda d: 10 / d, "metric": lambda d: d, "unit": lambda d: d / 10}[kind]
    keras = tiny_config(**{"target.kind": kind, "target.resize": "inverse_then_resize"})
    y, valid = prepare_target(depth, keras, want)
    expected = keras_resize(scale(depth), want, preserve_range=True, mode="reflect", anti_aliasing=True)
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=2e-6)  # float32 sums in another order
    assert valid.all()
    port = tiny_config(**{"target.kind": kind, "target.resize": "resize_then_inverse"})
    y, valid = prepare_target(depth, port, want)
    metres = np.asarray(Image.fromarray(depth).resize(want[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_allclose(y, scale(metres), rtol=2e-6)
    assert valid.all()


@pytest.mark.parametrize("way", ["inverse_then_resize", "resize_then_inverse"])
def test_masked_holes_have_no_weight(way: str, tiny_config: Callable[..., TrialConfig]) -> None:
    """R(y m) / R(m) with R from the libraries; valid where R(m) is at least one half."""
    depth, want = with_holes(some_depth(48, 64)), (24, 32)
    known = (depth > 0).astype(np.float32)
    y, valid = prepare_target(depth, tiny_config(**{"target.resize": way}), want)
    if way == "inverse_then_resize":
        inverse = np.divide(10, depth, out=np.zeros_like(depth), where=depth > 0)
        weight = keras_resize(known, want, preserve_range=True, mode="reflect", anti_aliasing=True)
        total = keras_resize(inverse, want, preserve_range=True, mode="reflect", anti_aliasing=True)
        expected = total / np.maximum(weight, 1e-9)
    else:
        weight, metres = (
            np.asarray(Image.fromarray(a).resize(want[::-1], Image.Resampling.BILINEAR)) for a in (known, depth)
        )
        expected = 10 / (metres / np.maximum(weight, 1e-9)).clip(0.1, 10)
    np.testing.assert_array_equal(valid, weight >= 0.5 - 1e-6)
    assert 0.05 < 1 - valid.mean() < 0.3
    np.testing.assert_allclose(y[valid], expected[valid], rtol=5e-6)
    assert (y[~valid] == INVALID_Y).all()


def test_what_a_hole_holds_is_inert(tiny_config: Callable[..., TrialConfig]) -> None:
    depth = with_holes(some_depth(48, 64))
    config = tiny_config()
    first, second = (prepare_target(d, config, (24, 32)) for d in (depth, np.where(depth > 0, depth, -7)))
    np.testing.assert_array_equal(first[0], second[0])


def test_clamped_and_inpainted_holes(tiny_config: Callable[..., TrialConfig]) -> None:
    depth = with_holes(some_depth(48, 64))
    clamped, valid = prepare_target(depth, tiny_config(**{"target.holes": "clamp"}), (24, 32))
    assert valid.all() and clamped[12, 0] == pytest.approx(100)  # 10 m / 0.1 m, the top of the range
    masked, known = prepare_target(depth, tiny_config(), (24, 32))
    filled, valid = prepare_target(depth, tiny_config(**{"target.holes": "inpaint"}), (24, 32))
    assert valid.all()
    np.testing.assert_array_equal(filled[known], masked[known])
    rows, columns = np.nonzero(known)
    for row, column in np.argwhere(~known):
        distance = (rows - row) ** 2 + (columns - column) ** 2
        nearest = distance == distance.min()
        assert filled[row, column] in masked[rows[nearest], columns[nearest]]


@pytest.mark.parametrize("holes", ["mask", "inpaint"])
def test_nothing_but_holes_is_nowhere_valid(holes: str, tiny_config: Callable[..., TrialConfig]) -> None:
    y, valid = prepare_target(np.zeros((48, 64), np.float32), tiny_config(**{"target.holes": holes}), (24, 32))
    assert not valid.any() and np.isfinite(y).all()


def test_colour_is_resized_as_pillow_does_or_not_at_all() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    same = resize_rgb(rgb, (60, 80))
    np.testing.assert_array_equal(same.permute(1, 2, 0).numpy(), rgb)
    for size in ((30, 40), (32, 48), (90, 120)):
        ours = resize_rgb(rgb, size).permute(1, 2, 0).numpy().astype(int)
        theirs = np.asarray(Image.fromarray(rgb).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(ours - theirs).max() <= 2  # coefficients of fewer bits
        assert abs((ours - theirs).mean()) < 0.1


def test_prepare_cuts_the_border_first(tiny_config: Callable[..., TrialConfig]) -> None:
    rng = np.random.default_rng(1)
    frame = Frame(rng.integers(0, 256, (60, 80, 3), np.uint8), some_depth(60, 80))
    inner = Frame(frame.rgb[4:-4, 4:-4], frame.depth_m[4:-4, 4:-4])
    cut, plain = prepare(frame, tiny_config(**{"data.crop_border_px": 4})), prepare(inner, tiny_config())
    for name in ("rgb", "target", "valid"):
        assert torch.equal(getattr(cut, name), getattr(plain, name))
    assert (cut.rgb.shape, cut.rgb.dtype) == ((3, 48, 64), torch.uint8)
    assert cut.target.shape == cut.valid.shape and cut.target.shape[0] == 1
    with pytest.raises(BadFrame, match="crop_border_px 30"):
        prepare(frame, tiny_config(**{"data.crop_border_px": 30}))


@pytest.mark.parametrize("kind", ["inverse", "metric", "unit"])
def test_target_space_and_back(kind: str, tiny_config: Callable[..., TrialConfig]) -> None:
    target = tiny_config(**{"target.kind": kind}).target
    depth = torch.tensor([[0.05, 0.1, 0.5, 2.0, 10.0, 30.0]])
    y = depth_to_y(depth, target)
    by_hand = {
        "inverse": [100, 100, 20, 5, 1, 1],
        "metric": [0.1, 0.1, 0.5, 2, 10, 10],
        "unit": [0.01, 0.01, 0.05, 0.2, 1, 1],
    }
    torch.testing.assert_close(y, torch.tensor([by_hand[kind]], dtype=torch.float32))
    torch.testing.assert_close(y_to_depth_m(y, target), depth.clamp(0.1, 10))
    beyond: dict[str, Any] = {
        "inverse": [[-1.0, 0.0, 0.374, 150.0]],
        "metric": [[11.0, 12.0, 13.0, -1.0]],
        "unit": [[2.0, 2.0, 2.0, 0.0]],
    }
    torch.testing.assert_close(
        y_to_depth_m(torch.tensor(beyond[kind]), target), torch.tensor([[10.0, 10.0, 10.0, 0.1]])
    )
    assert y_to_depth_m(torch.tensor([[torch.nan]]), target).isnan().all()


def test_relative_target_is_each_image_s_own(tiny_config: Callable[..., TrialConfig]) -> None:
    target = tiny_config(**{"target.kind": "relative"}).target
    depth = torch.tensor([[[[0.0, 2.0], [3.0, 6.0]]], [[[5.0, 5.0], [5.0, 0.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    y = depth_to_y(depth, target)
    torch.testing.assert_close(y[0, 0], torch.tensor([[0.0, 0.0], [0.25, 1.0]]))
    assert (y[1:] == 0).all()
    config = tiny_config(**{"target.kind": "relative"})
    prepared, valid = prepare_target(with_holes(some_depth(48, 64)), config, (48, 64))
    assert prepared[valid].min() == 0 and prepared[valid].max() == 1
