"""The step trace: parts that a kill cannot lose, dropped and checked on resume; and what names a divergence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from trainables.runtime.errors import Blocked
from trainables.training.telemetry import COMPACTED, StepLog, TraceWriter, target_extremes

TERMS = ("depth", "ssim")


def row(step: int) -> dict[str, Any]:
    values = dict.fromkeys(("loss", *TERMS, "lr", "grad_norm", "target_min", "target_max", "hole_share"), 0.5)
    counts = {"step": step, "images": 2 * step + 2, "epoch": 0, "clipped": False, "seconds": float(step)}
    return values | counts | {"samples": ["a", "b"], "sample_losses": [0.25, 0.75]}


def written(folder: Path, steps: range, first: int = 0) -> TraceWriter:
    """A trace with a part for every two of these steps."""
    trace = TraceWriter(folder, TERMS, first)
    for step in steps:
        trace.append(row(step))
        if step % 2:
            trace.flush()
    return trace


def steps(folder: Path) -> list[int]:
    found: list[int] = pq.read_table(folder / COMPACTED)["step"].to_pylist()
    return found


def test_a_resume_keeps_the_steps_before_its_checkpoint_and_trains_the_rest_again(tmp_path: Path) -> None:
    written(tmp_path, range(6))  # and is killed
    written(tmp_path, range(4, 8), first=4).close()
    assert steps(tmp_path) == list(range(8)) and not (tmp_path / "trace").exists()
    written(tmp_path, range(2, 5), first=2).close()  # compacted before
    assert steps(tmp_path) == list(range(5))


def test_a_trace_that_lacks_steps_or_has_changed_is_refused(tmp_path: Path) -> None:
    written(tmp_path, range(6))
    with pytest.raises(Blocked, match="lacks steps before step 8 of the checkpoint"):
        TraceWriter(tmp_path, TERMS, 8)
    part = tmp_path / "trace" / "part-000000000002.parquet"
    content = bytearray(part.read_bytes())
    content[20] ^= 1
    part.write_bytes(content)
    with pytest.raises(Blocked, match=r"part-000000000002\.parquet has changed since it was written"):
        TraceWriter(tmp_path, TERMS, 6)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"loss": math.nan, "ssim": math.nan}, "the loss is nan (term ssim; samples b, a)"),
        ({"grad_norm": math.inf}, "the gradient norm is inf at a loss of 0.5 (samples b, a)"),
    ],
)
def test_rows_end_with_the_first_step_that_was_not_finite(bad: dict[str, float], reason: str) -> None:
    log = StepLog(TERMS)
    for step in range(4):
        values = dict.fromkeys(("loss", *TERMS, "grad_norm"), 0.5) | {"clipped": step == 1, "failed": 0.0}
        values |= {**bad, "failed": 1.0} if step >= 2 else {}
        scalars = {name: torch.tensor(float(value)) for name, value in values.items()}
        log.add({"step": step, "samples": ["a", "b"], "places": [1, 0]}, scalars, [torch.tensor([0.1, step])])
    rows, divergence = log.flush()
    assert [r["step"] for r in rows] == [0, 1, 2] and [r["clipped"] for r in rows] == [False, True, False]
    assert rows[1]["samples"] == ["b", "a"] and rows[1]["sample_losses"] == pytest.approx([1.0, 0.1])
    assert divergence is not None and (divergence.step, divergence.reason) == (2, reason)
    assert log.flush() == ([], None)


def test_extremes_are_of_valid_pixels_and_holes_of_all_samples() -> None:
    target = torch.tensor([[1.0, 2.0], [3.0, 9.0]])
    valid = torch.tensor([[True, True], [True, False]])
    found = target_extremes([(target, valid, 3), (target + 1, torch.ones_like(valid), 1)])
    assert {name: float(value) for name, value in found.items()} == {
        "target_min": 1.0, "target_max": 10.0, "hole_share": pytest.approx(0.25 * 3 / 4),
    }  # fmt: skip
