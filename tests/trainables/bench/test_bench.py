"""The bench runs and its figures are of the right things; how fast anything is, no test says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainables.bench import limit, measurements

TINY = {
    "data.source": "kaggle", "model.family": "unet", "model.encoder": "null", "model.weights": "null",
    "model.unet_channels": "4", "model.unet_levels": "2", "input": "[48, 64]", "batch_size": "2", "threads": "1",
    "model.skips": "{s1: pre_pool, s2: pre_pool, s4: none, s8: none, s16: none, s32: none}", "device": "cpu",
}  # fmt: skip


def test_every_measurement_gives_its_ratio(
    tiny_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(limit.MATRIX_SIZES, "cpu", (256,))
    monkeypatch.setattr(limit, "MATRIX_SECONDS", 0.05)
    arguments = ["--json", "--pairs", "2", "--steps", "2", "--set", f"data.root={tiny_root}"]
    arguments += [part for path, value in TINY.items() for part in ("--set", f"{path}={value}")]
    assert measurements.main(arguments) == 0
    results = json.loads(capsys.readouterr().out)
    assert set(results) == {"step", "loader", "end_to_end", "evaluation", "trace", "profile"}
    assert 0 < results["step"]["share_of_limit"]["max"] <= 1
    assert results["evaluation"]["frames"] == 6
    assert any("convolution" in name and share > 0 for name, share in results["profile"].items() if "::" in name)
    for name, key in (("step", "ours_over_plain"), ("loader", "cached_over_plain"), ("trace", "traced_over_bare")):
        spread = results[name][key]
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
        assert spread["n"] == 2


@pytest.mark.slow
def test_two_at_once_are_measured_with_what_the_second_costs(
    tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = TINY | {"data.root": str(tiny_root), "threads": "2"}
    arguments = [part for path, value in settings.items() for part in ("--set", f"{path}={value}")]
    assert measurements.main(["together", "--json", "--pairs", "2", "--steps", "2", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)["together"]
    assert 0 < found["two_over_one"]["min"] <= found["two_over_one"]["max"]
    assert found["second_process_own_mib"] > 100


@pytest.mark.parametrize(
    ("layer", "places", "products"),  # places of one image that the filter is laid at, products at each of them
    [
        (nn.Conv2d(8, 4, 3, padding=1), 6 * 6, 4 * 8 * 9),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), 6 * 6, 8 * 9),  # depthwise: one input channel each
        (nn.Conv2d(8, 4, 3, padding=1, groups=2), 6 * 6, 4 * 4 * 9),
        (nn.Conv2d(8, 4, 3, stride=2, padding=1), 3 * 3, 4 * 8 * 9),
        (nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8), 3 * 3, 8 * 25),
        (nn.ConvTranspose2d(8, 4, 2, stride=2), 6 * 6, 8 * 4 * 4),  # laid at each pixel of the input
        (nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1, groups=2), 6 * 6, 8 * 2 * 16),
    ],
)
@pytest.mark.parametrize("to_input", [True, False])
def test_operations_are_those_counted_by_hand(layer: nn.Module, places: int, products: int, to_input: bool) -> None:
    counted = {torch.ops.aten.convolution_backward: limit.convolution_backward_flops}
    image = torch.rand(3, 8, 6, 6, requires_grad=to_input)
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        layer(image).sum().backward()
    passes = 3 if to_input else 2  # forward, gradient of the weight, gradient of the input
    assert counter.get_total_flops() == passes * 3 * places * 2 * products


def test_depthwise_convolutions_are_bound_by_memory() -> None:
    dense, depthwise = [[2, 8, 6, 6], [4, 8, 3, 3]], [[2, 8, 6, 6], [8, 1, 3, 3]]
    for name, (place, _) in limit.CONVOLUTIONS.items():
        before = [[2, 4, 6, 6]] * place
        assert limit.is_dense(name, before + dense) and not limit.is_dense(name, before + depthwise)
    assert limit.is_dense("aten::addmm", []) and not limit.is_dense("aten::add", [])
    assert limit.is_dense("aten::mkldnn_convolution", [[2, 1, 6, 6], [8, 1, 3, 3]])  # of a grey picture


def test_a_profile_says_which_share_is_bound_by_memory() -> None:
    image = torch.rand(2, 32, 48, 48)
    layers = {"dense": nn.Conv2d(32, 32, 3, groups=1), "depthwise": nn.Conv2d(32, 32, 3, groups=32)}
    shares = {
        name: limit.profile(lambda: layer(image), torch.device("cpu"))["memory_bound_share"]  # noqa: B023, called here
        for name, layer in layers.items()
    }
    assert 0 < shares["dense"] < 0.5 and shares["depthwise"] == 1


def test_a_share_above_the_limit_is_an_error() -> None:
    with pytest.raises(AssertionError, match="the limit or the count is wrong"):
        limit.share_of_limit([1.0], flops=2e9, rate=1e9)


def test_matrix_rate_counts_two_operations_per_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(limit.MATRIX_SIZES, "cpu", (64,))
    monkeypatch.setattr(limit, "MATRIX_SECONDS", 0.02)
    assert 1e6 < limit.matrix_rate(torch.device("cpu"), torch.float32) < 1e14
