"""The variance split, on planted trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis import claims, runs, variance
from tests.analysis.make_results import Training, make_results


def seeded(seed: int, value: float, **overrides: Any) -> Training:
    return Training("reproduce", value, group="g", seed=seed, overrides=overrides)


def test_variance_is_split_by_what_differed(tmp_path: Path) -> None:
    plain = {"augment.flip": 0.0, "augment.channel_swap": 0.0, "data.order": "listed"}
    rows = [seeded(0, 0.50), seeded(0, 0.52), seeded(1, 0.60), seeded(0, 0.7, **plain), seeded(1, 0.7, **plain)]
    section = variance.analyse(runs.load(make_results(tmp_path / "s", rows).root))
    split = {row["source"]: row for row in section.data["split"]}
    assert split["hardware"]["deviation"] == pytest.approx(0.02 / 2**0.5)
    assert split["initialisation, order and augmentation"]["deviation"] == pytest.approx(0.10 / 2**0.5)
    assert split["initialisation"]["deviation"] == 0
    assert section.data["not_measured"] == ["initialisation and order", "initialisation and augmentation"]


def test_without_pairs_nothing_is_claimed(tmp_path: Path) -> None:
    tables = runs.load(make_results(tmp_path / "s", [Training("search", 0.5)]).root)
    assert "No setting was trained twice" in variance.analyse(tables).answers[0]
    assert "tests no claim" in claims.analyse(tables).answers[0]
