"""Progress of a training: through JSON and back, means since the last report, and the best report."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainables.settings.config import PlateauConfig
from trainables.training.progress import Progress, Report


def row(loss: float, *, clipped: bool) -> dict[str, Any]:
    return {"loss": loss, "depth": 2 * loss, "grad_norm": 1.0, "clipped": clipped, "lr": loss / 10, "samples": ["a"]}


def test_what_goes_through_json_comes_back(tiny_plateau: PlateauConfig) -> None:
    fresh = Progress()
    assert Progress.from_state(json.loads(json.dumps(fresh.to_state(), allow_nan=False))).plateau == fresh.plateau
    progress = Progress(step=3, images=12)
    progress.add([row(1.0, clipped=True)], ["depth"])
    progress.history.append(Report(3, 12, 0.5, 1.7e9, {"val/rmse": 0.5}, final=False))
    progress.plateau.update(tiny_plateau, 1.0, 0.5)
    assert progress.is_best("rmse", 0.5)
    seconds = progress.seconds
    again = Progress.from_state(json.loads(json.dumps(progress.to_state(), allow_nan=False)))
    for name in ("step", "images", "clipped", "best", "sums", "plateau", "history"):
        assert getattr(again, name) == getattr(progress, name), name
    assert again.seconds >= seconds


@pytest.fixture
def tiny_plateau() -> PlateauConfig:
    return PlateauConfig(factor=0.5, patience=1, min_lr=0.0)


def test_means_are_over_the_steps_since_the_last_report() -> None:
    progress = Progress()
    progress.add([row(1.0, clipped=True), row(2.0, clipped=False)], ["depth"])
    progress.add([row(6.0, clipped=False)], ["depth"])
    assert progress.training_metrics(["depth"]) == pytest.approx({
        "train/loss": 3.0, "train/depth": 6.0, "optim/lr": 0.6, "optim/grad_norm": 1.0, "optim/clipped_share": 1 / 3,
    })  # fmt: skip
    assert progress.sums["images"] == 3 and progress.clipped == 1


@pytest.mark.parametrize(
    ("metric", "values", "best"), [("rmse", [3, 1, 1, 2], [1, 1, 0, 0]), ("delta1", [1, 3, 3, 2], [1, 1, 0, 0])]
)
def test_the_first_of_equal_values_is_the_best_in_the_metrics_direction(
    metric: str, values: list[float], best: list[int]
) -> None:
    progress = Progress()
    assert [progress.is_best(metric, value) for value in values] == [bool(one) for one in best]
