"""Paired effects and the variance split, on planted trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis import ablation, report, runs, variance
from study.contract import Outcome
from tests.analysis.make_results import Training, make_results, planted_study


def test_a_planted_effect_is_named_and_none_is_not_distinguishable(tmp_path: Path) -> None:
    layout, _ = planted_study(tmp_path / "planted", 1)
    section = ablation.analyse(runs.load(layout.root))
    effects = {row["question"]: row for row in section.data["effects"]}
    gradient, flip = effects["loss.gradient=0.0"], effects["augment.flip=0.0"]
    assert gradient["effect"] == pytest.approx(0.102) and gradient["distinguishable"] and gradient["pairs"] == 3
    assert flip["effect"] == pytest.approx(0.0, abs=1e-9) and not flip["distinguishable"]
    assert "makes rmse worse by 0.102 m (95% interval" in section.answers[0] and "3 paired seeds" in section.answers[0]
    assert "not distinguishable from no effect" in section.answers[1]
    assert section.figures[0].render().axes and len(section.figures[0].data) == 6


def test_the_page_begins_with_the_ablations_where_there_are_some(tmp_path: Path) -> None:
    layout, _ = planted_study(tmp_path / "planted", 1)
    tables = runs.load(layout.root)
    section = ablation.analyse(tables)
    assert [lead.text for lead in report.lead(tables, [section])] == section.answers[:1]
    without = replace(tables, trials=tables.trials[tables.trials["phase"] != "ablate"])
    assert all(lead.warn for lead in report.lead(without, [section]))


def test_pairs_that_did_not_complete_and_few_pairs_are_said(tmp_path: Path) -> None:
    def arm(question: str, seed: int, value: float, outcome: Outcome = Outcome.COMPLETE) -> Training:
        origin = {"question": question, "arm": "base" if question == "base" else "flipped", "recipe": "densedepth"}
        return Training("ablate", value, seed=seed, origin=origin, outcome=outcome, group=f"densedepth: {question}")

    rows = [arm("base", 1, 0.5), arm("a", 1, 0.7), arm("b", 1, 0.5, Outcome.DIVERGED)]
    section = ablation.analyse(runs.load(make_results(tmp_path / "s", rows).root))
    assert "0.200 m (n = 1 paired seeds, no interval)" in section.answers[0]
    assert "no pair of complete trainings (with the flip 1 diverged, without it 1 complete)" in section.answers[1]
    rows = [
        arm(name, s, 0.5, Outcome.DIVERGED if name == "base" else Outcome.COMPLETE)
        for s in (1, 2)
        for name in ("base", "a")
    ]
    section = ablation.analyse(runs.load(make_results(tmp_path / "base diverges", rows).root))
    assert "(with the flip 2 complete, without it 2 diverged)" in section.answers[0]


def test_the_checkerboard_stands_beside_the_judged_metric(tmp_path: Path) -> None:
    rows = [
        Training("ablate", 0.5, seed=seed, group=f"densedepth: {question}",
                 metrics={"val/checkerboard": share + seed / 100},
                 origin={"question": question, "arm": arm, "recipe": "densedepth"})
        for seed in range(2)
        for question, arm, share in (("base", "base", 0.02), ("model.upsampling=transposed", "flipped", 0.3),
                                     ("mirrored=True", "flipped", 0.02))
    ]  # fmt: skip
    section = ablation.analyse(runs.load(make_results(tmp_path / "s", rows).root))
    effect = section.data["effects"][0]
    assert effect["checkerboard"] == pytest.approx(0.305) and effect["checkerboard_unflipped"] == pytest.approx(0.025)
    said = [answer for answer in section.answers if "checkerboard" in answer]
    assert len(said) == 1 and "30.5% of its detail is a checkerboard, against 2.5% without" in said[0]
    assert any("trains the same network" in answer for answer in section.answers)
    assert not any("two rulers" in answer for answer in section.answers)


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
    assert "flips no setting" in ablation.analyse(tables).answers[0]
