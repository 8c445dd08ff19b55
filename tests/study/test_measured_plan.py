"""The measured plan: trainings beside each other against one with their threads together, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study import estimate
from study.resources import share_of
from tests.study.test_config import TEXT, plan_of
from trainables.bench import measurements
from trainables.data import dataset

DEFAULT = Path(__file__).resolve().parents[2] / "study.yaml"


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (1.1, 1.3, "trial.threads: 1 is the faster choice here"),
        (0.7, 0.9, "trial.threads: 2 is faster here"),
        (0.9, 1.1, "no difference that could be told"),
    ],
)
def test_the_advice_follows_the_whole_range(low: float, high: float, sentence: str) -> None:
    spread = {"median": (low + high) / 2, "min": low, "max": high, "n": 3}
    said = estimate._advice({"threads": 1, "two_over_one": spread})
    assert said.endswith(sentence) and f"min {low:.2f}, max {high:.2f}, n = 3" in said


def test_two_trainings_are_measured_against_one_with_all_their_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(measurements, "bench_together", lambda config, *_: asked.append(config) or {"two_over_one": 1})
    monkeypatch.setattr(dataset, "prepare_data", lambda data: data)
    plan = plan_of(tmp_path, TEXT, "trial.threads=3", "trial.device=cpu")
    for cores, measured in ((6, True), (5, False)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        found = estimate._beside(plan)
        assert (found is not None) == measured
    assert [config.threads for config in asked] == [6] and found is None


@pytest.mark.parametrize("cores", [4, 8])
def test_the_default_study_trains_one_per_core(cores: int, tmp_path: Path) -> None:
    machine = [{"CPU": float(cores)}]
    share = share_of(plan_of(tmp_path, DEFAULT.read_text(encoding="utf-8")), machine)
    assert (share.cpus, share.fits(machine)) == (1, cores)
