"""What matters, on planted searches: the setting that matters is named, the others are not, few trials say nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import dimensions, importance, runs
from analysis.page.section import Section
from analysis.spikes import causes
from study.contract import Judge, Outcome
from tests.analysis.make_results import PAPER, Training, make_results, planted_study, planted_trace

LR = dimensions.Dimension("optim.lr", 1e-5, 1e-3, True, ())


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


def _pruned_search(folder: Path, early: Callable[[float, np.random.Generator], float]) -> Section:
    """The section of a search of 30 trials, the worse half pruned at the first report, whose error is `early`'s."""
    rng, settings = np.random.default_rng(5), []
    for _ in range(30):
        rate = float(10 ** rng.uniform(-5, -2.6))
        settings.append((rate, early(rate, rng), str(rng.choice(["post_pool", "none"]))))
    middle = sorted(error for _, error, _ in settings)[15]
    trainings = [
        Training("search", 0.5 if error < middle else error, PAPER | {"optim.lr": rate, "model.skips.s4": skip},
                 outcome=Outcome.COMPLETE if error < middle else Outcome.PRUNED,
                 history=[error, 0.5 + 0.001 * rng.standard_normal()] if error < middle else [error])
        for rate, error, skip in settings
    ]  # fmt: skip
    return importance.analyse(runs.load(make_results(folder, trainings).root))


def test_a_setting_that_the_pruner_hides_is_named_at_the_first_report(tmp_path: Path) -> None:
    """Low rates have three times the error at the first report; among the survivors nothing differs."""
    section = _pruned_search(tmp_path / "s", lambda rate, rng: (2.4 if rate < 3e-4 else 0.8) * rng.lognormal(0, 0.2))
    assert not any(row["distinguishable"] for row in section.data["effects"])
    early = {row["setting"]: row for row in section.data["early_effects"]}
    assert early["optim.lr"]["distinguishable"] and early["optim.lr"]["low"] > 1
    assert early["optim.lr"]["low"] < 3 < early["optim.lr"]["high"]
    assert not early["model.skips.s4"]["distinguishable"]
    assert "optim.lr" in next(answer for answer in section.answers if answer.startswith("At the first report"))
    assert section.headline is not None and list(section.headline.tables[0].frame["setting"]) == ["optim.lr"]


def test_a_pruned_search_of_noise_names_nothing(tmp_path: Path) -> None:
    section = _pruned_search(tmp_path / "s", lambda rate, rng: float(rng.lognormal(0, 0.5)))
    assert not any(row["distinguishable"] for row in section.data["early_effects"])


def test_the_interval_of_a_setting_without_an_effect_rarely_leaves_out_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Picked after a look, best and worst bin differ in 19% of such studies for an interval that does not know."""
    monkeypatch.setattr(dimensions, "PERMUTATIONS", 1)
    rng, judge = np.random.default_rng(7), Judge("rmse", "densedepth", "best", {})
    studies = (
        pd.DataFrame({"value": rng.standard_normal(30), "config.optim.lr": 10 ** rng.uniform(-5, -3, 30)})
        for _ in range(400)
    )
    found = [dimensions.effect(study, LR, judge) for study in studies]
    assert 0.01 <= np.mean([row is not None and row["low"] > 0 for row in found]) <= 0.08
    few = pd.DataFrame({"value": [0.1, 0.2, 0.8, 0.9], "config.optim.lr": [1e-5, 2e-5, 5e-4, 6e-4]})
    assert dimensions.effect(few, LR, judge) is None


def test_bins_have_names_of_their_own() -> None:
    rates = [0.001 + 1e-7 * place for place in range(9)]
    names = LR.binned(pd.DataFrame({"config.optim.lr": rates}))
    assert [list(names).count(name) for name in dict.fromkeys(names)] == [3, 3, 3]
    assert LR.binned(pd.DataFrame({"config.optim.lr": [0.0014, 0.0018, 0.0094]}))[0] == "0.0014 to 0.0014"


def test_before_enough_trials_are_complete_one_line_says_so(tmp_path: Path) -> None:
    trainings = [Training("search", 0.5 + 0.1 * i, PAPER | {"optim.lr": 1e-4 * (i + 1)}) for i in range(8)]
    section = importance.analyse(runs.load(make_results(tmp_path / "s", trainings).root))
    assert section.answers == ["n = 8 of 8 trials complete: to say which of 6 settings matter takes at least 18."]
    assert section.data["effects"] == [] and not section.figures and not section.tables


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
    assert section.data["divergence"]["p"]["optim.lr"] < 0.01 < 0.05 < section.data["divergence"]["p"]["batch_size"]


def test_divergences_by_chance_name_no_setting(tmp_path: Path) -> None:
    """3 of 20, one in each third of the learning rates."""
    trainings = [
        Training("search", 0.5, PAPER | {"optim.lr": 1e-5 * 1.3**i},
                 outcome=Outcome.DIVERGED if i in (2, 9, 16) else Outcome.COMPLETE)
        for i in range(20)
    ]  # fmt: skip
    section = importance.analyse(runs.load(make_results(tmp_path / "s", trainings).root))
    (said,) = [answer for answer in section.answers if "diverged" in answer]
    assert said == "3 of 20 trials diverged; which setting does it is not distinguishable from chance."


def test_spikes_by_clip_norm_are_rates_of_the_trials_that_left_a_trace(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def clipped(clip: float | None, spiked: dict[int, float], steps: int) -> Training:
        trace = planted_trace(rng, steps=steps, batch_size=4, samples=[f"s/{i}.jpg" for i in range(40)],
                              noise=0.1, spikes=spiked)  # fmt: skip
        return Training("search", 0.5, PAPER | {"optim.clip_norm": clip}, trace=trace)

    trainings = [clipped(None, {250: 20.0, 350: 20.0}, 400), clipped(None, {}, 600), clipped(0.1, {}, 400)]
    trainings += [Training("search", 0.5, PAPER) for _ in range(8)]  # without a trace
    tables = runs.load(make_results(tmp_path / "s", trainings).root)
    causes.collect(tables)
    section = importance.analyse(tables)
    rows = {
        row["clip_norm"]: (row["spikes_per_1000_steps"], row["traced"], row["n"]) for row in section.data["clipping"]
    }
    assert rows == {"none": (pytest.approx(2.0), 2, 10), "0.1": (0.0, 1, 1)}
    (figure,) = [figure for figure in section.figures if figure.name == "importance-clipping"]
    assert figure.render().axes[-1].get_ylabel() == "spikes per 1,000 steps"


def test_the_end_of_a_range_is_warned_of_and_clipping_is_described(tmp_path: Path) -> None:
    trainings = [
        Training("search", 1.0 - 0.2 * i, PAPER | {"optim.lr": lr, "optim.clip_norm": clip})
        for i, lr in enumerate((1e-5, 1e-4, 1e-3, 2.9e-3, 2.95e-3))
        for clip in (None, 0.1, 10.0)
    ]
    section = importance.analyse(runs.load(make_results(tmp_path / "s", trainings).root))
    assert any("upper end of optim.lr" in warning for warning in section.data["boundaries"])
    assert [row["clip_norm"] for row in section.data["clipping"]] == ["0.1", "10", "none"]
    assert any("Clip norm 0.1 (n = 5 trials) clips nearly every step" in answer for answer in section.answers)


def test_empty_and_all_failed_searches_are_answered(tmp_path: Path) -> None:
    failed = [Training("search", 1.0, PAPER, outcome=Outcome.FAILED) for _ in range(4)]
    assert importance.analyse(runs.load(make_results(tmp_path / "failed", failed).root)).answers
    none = make_results(tmp_path / "none", [Training("reproduce", 0.5)])
    assert "Nothing was searched" in importance.analyse(runs.load(none.root)).answers[0]
