"""What matters, on planted searches: the setting that matters is named, the others are not, too few says so."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from analysis import importance, runs
from study.contract import Outcome
from tests.analysis.make_results import PAPER, Training, make_results, planted_study


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_planted_setting_matters_and_the_inert_ones_do_not(tmp_path: Path, seed: int) -> None:
    layout, _ = planted_study(tmp_path / "planted", seed, trials=45)
    section = importance.analyse(runs.load(layout.root))
    effects = {row["setting"]: row for row in section.data["effects"]}
    assert section.data["effects"][0]["setting"] == "optim.lr" and effects["optim.lr"]["distinguishable"]
    assert effects["optim.lr"]["ped_anova"] > 0.4 and effects["optim.lr"]["fanova"] > 0.4
    assert effects["optim.lr"]["low"] > 0
    inert = ("loss.depth", "batch_size", "model.skips.s8")
    assert not any(effects[name]["distinguishable"] for name in inert)
    assert any(a.startswith("optim.lr matters") and "95% interval" in a for a in section.answers)
    assert any("Not distinguishable from no effect" in a and "batch_size" in a for a in section.answers)
    for figure in section.figures:
        assert figure.render().axes and len(figure.data)


def test_a_search_of_noise_finds_nothing(tmp_path: Path) -> None:
    found = 0
    for seed in range(2):
        rng = np.random.default_rng(seed)
        trainings = [
            Training("search", 0.5 + 0.01 * rng.standard_normal(), PAPER | {
                "optim.lr": float(10 ** rng.uniform(-5, -2.6)), "batch_size": int(rng.choice([2, 4, 8, 16])),
                "model.skips.s4": str(rng.choice(["post_pool", "pre_pool", "none"]))})
            for _ in range(30)
        ]  # fmt: skip
        section = importance.analyse(runs.load(make_results(tmp_path / f"s{seed}", trainings).root))
        found += sum(row["distinguishable"] for row in section.data["effects"])
    assert found <= 1


def test_too_few_trials_are_called_that(tmp_path: Path) -> None:
    trainings = [Training("search", 0.5 + 0.1 * i, PAPER | {"optim.lr": 1e-4 * (i + 1)}) for i in range(8)]
    section = importance.analyse(runs.load(make_results(tmp_path / "s", trainings).root))
    assert section.answers[0].startswith(
        "Too few trials: 8 of 8 are complete, and 6 searched settings need at least 18"
    )
    assert section.data["effects"] == []


def test_divergence_is_an_outcome_of_its_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    trainings = []
    for _ in range(40):
        lr = float(10 ** rng.uniform(-5, math.log10(3e-3)))
        outcome = Outcome.DIVERGED if lr > 1e-3 else Outcome.COMPLETE
        params = PAPER | {"optim.lr": lr, "batch_size": int(rng.choice([2, 4, 8, 16]))}
        trainings.append(Training("search", 0.5, params, outcome=outcome))
    section = importance.analyse(runs.load(make_results(tmp_path / "s", trainings).root))
    fanova = section.data["divergence"]["fanova"]
    assert max(fanova, key=fanova.get) == "optim.lr"
    assert any("diverged, most by optim.lr" in answer for answer in section.answers)


def test_the_end_of_a_range_is_warned_of_and_clipping_is_described(tmp_path: Path) -> None:
    trainings = [
        Training("search", 1.0 - 0.2 * i, PAPER | {"optim.lr": lr, "optim.clip_norm": clip})
        for i, lr in enumerate((1e-5, 1e-4, 1e-3, 2.9e-3, 2.95e-3))
        for clip in (None, 0.1, 10.0)
    ]
    section = importance.analyse(runs.load(make_results(tmp_path / "s", trainings).root))
    assert any("upper end of optim.lr" in warning for warning in section.data["boundaries"])
    assert [row["clip_norm"] for row in section.data["clipping"]] == ["0.1", "10", "none"]
    assert any("Clip norm 0.1 clips nearly every step" in answer for answer in section.answers)


def test_empty_and_all_failed_searches_are_answered(tmp_path: Path) -> None:
    failed = [Training("search", 1.0, PAPER, outcome=Outcome.FAILED) for _ in range(4)]
    assert importance.analyse(runs.load(make_results(tmp_path / "failed", failed).root)).answers
    none = make_results(tmp_path / "none", [Training("reproduce", 0.5)])
    assert "Nothing was searched" in importance.analyse(runs.load(none.root)).answers[0]
