"""The bench runs and its figures are of the right things; how fast anything is, no test says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

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


def test_a_share_above_the_limit_is_an_error() -> None:
    with pytest.raises(AssertionError, match="the limit or the count is wrong"):
        limit.share_of_limit([1.0], flops=2e9, rate=1e9)


def test_matrix_rate_counts_two_operations_per_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(limit.MATRIX_SIZES, "cpu", (64,))
    monkeypatch.setattr(limit, "MATRIX_SECONDS", 0.02)
    assert 1e6 < limit.matrix_rate(torch.device("cpu"), torch.float32) < 1e14
