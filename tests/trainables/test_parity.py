"""Agreement with the reference code's golden numbers, and what the command does with bad files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from trainables.parity import largest_difference, main, parity

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = {"evaluation": 1e-4, "loss": 1e-5}  # the reference upsamples with scikit-image


@pytest.mark.parametrize("name", ["densedepth_reference", "densedepth_extremes"])
def test_golden_numbers(name: str) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    ours = parity(GOLDEN / f"{name}.npz")
    assert ours.keys() == golden.keys()
    for part, numbers in golden.items():
        assert numbers.keys() <= ours[part].keys()
        for key, theirs in numbers.items():
            assert not isinstance(theirs, dict) or theirs.keys() == ours[part][key].keys()
        difference, where = largest_difference(ours[part], numbers)
        assert difference < TOLERANCE[part], where


def test_difference_sees_a_single_changed_number() -> None:
    golden = {"a": {"x": 1.0, "y": 2.0}, "b": 3.0, "text": "1.0"}
    assert largest_difference(golden, golden)[0] == 0
    difference, key = largest_difference({"a": {"x": 1.0, "y": 2.2}, "b": 3.0, "text": "1.0"}, golden)
    assert (difference, key) == (pytest.approx(0.1), "a.y")
    assert largest_difference(golden | {"text": "1.1"}, golden) == (float("inf"), "text")


def test_command_prints_one_document_for_what_the_arrays_allow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(GOLDEN / "densedepth_reference.npz") as arrays:
        np.savez(tmp_path / "loss.npz", loss_target=arrays["loss_target"], loss_pred=arrays["loss_pred"])
    assert main(["--json", str(tmp_path / "loss.npz")]) == 0
    as_json = capsys.readouterr().out
    assert main([str(tmp_path / "loss.npz")]) == 0
    assert json.loads(as_json) == json.loads(capsys.readouterr().out)
    assert json.loads(as_json).keys() == {"loss"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"no archive", "cannot be read as .npz"),
        ({"net_output": np.ones((1, 4, 4))}, "holds net_output without net_output_mirrored, target_depth_m"),
        ({"other": np.ones(3)}, "holds none of"),
        (
            {"loss_pred": np.ones((1, 12, 12)), "loss_target": np.ones((12, 12))},
            "loss_target is float64 of shape (12, 12)",
        ),
        ({"loss_pred": np.ones((1, 12, 12)), "loss_target": np.ones((1, 12, 13))}, "differ in shape"),
        ({"loss_pred": np.full((1, 12, 12), np.nan), "loss_target": np.ones((1, 12, 12))}, "holds NaN"),
    ],
)
def test_bad_files(
    content: bytes | dict[str, np.ndarray], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert sentence in error
    assert error.count("\n") == 1


def test_truncated_and_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.npz"
    shutil.copy(GOLDEN / "densedepth_extremes.npz", path)
    path.write_bytes(path.read_bytes()[:-300_000])
    assert main([str(path)]) == 2
    assert main([str(tmp_path / "absent.npz")]) == 2
    error = capsys.readouterr().err
    assert ("cannot be read as .npz" in error, "absent.npz: no such file" in error) == (True, True)
