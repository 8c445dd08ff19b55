"""Verdicts on claims: the rule on hand-computed pairs, planted truth in many drawn studies, what the report says."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import claims, runs, statistics
from analysis.sections import first_screen
from analysis.tables.tidy import read_table, write_table
from study.contract import QUANTITIES, Claim, Outcome
from tests.analysis.make_results import PLANTED, Training, claim, make_results, planted_study, planted_trace
from trainables.runtime.errors import UserError
from trainables.settings.registry import METRICS

SEEDS = (1000, 1001, 1002)
STUDIES = range(20)  # drawn seeds
LUCK = 0.02  # standard deviation of a stand-in's metric over seeds


def pair(values: dict[str, tuple[float, ...]], **more: Any) -> list[Training]:
    """Trainings of groups of densedepth, one per seed."""
    return [
        Training("claims", value, group=f"densedepth: {arm}", seed=seed, **more)
        for arm, members in values.items()
        for seed, value in zip(SEEDS, members, strict=False)
    ]


def answer(root: Path, trainings: list[Training], *asked: Claim) -> claims.ClaimAnswer:
    found = claims.answers(runs.load(make_results(root, trainings, claims=asked).root))
    assert len(found) == len(asked)
    return found[0]


# Three differences of mean 0.03 and standard deviation 0.01: error 0.01 / root 3 = 0.00577; t(2) is 4.303 for 95% and
# 2.920 for 90%, so the intervals are 0.03 +- 0.0248 and 0.03 +- 0.0169.
CLEAR = (0.02, 0.03, 0.04)
# Mean 0.001 and deviation 0.001: 0.001 +- 0.00248 and +- 0.00169.
SMALL = (0.0, 0.001, 0.002)


@pytest.mark.parametrize(
    ("differences", "expected", "margin", "words"),
    [
        (CLEAR, "a_better", None, "holds"),
        (CLEAR, "a_better", 0.1, "holds"),
        (CLEAR, "b_better", None, "does not hold"),
        (CLEAR, "open", None, "a better"),
        ([-d for d in CLEAR], "open", None, "b better"),
        ([-d for d in CLEAR], "a_better", None, "does not hold"),
        ([-d for d in CLEAR], "b_better", None, "holds"),
        (CLEAR, "no_difference", 0.047, "holds"),  # 0.03 + 0.0169 = 0.0469
        (CLEAR, "no_difference", 0.0051, "does not hold"),  # 0.03 - 0.0248 = 0.0052
        (CLEAR, "no_difference", 0.0053, "cannot be told (3 seeds; about 4 would do)"),
        (CLEAR, "a_not_better", 0.047, "holds"),
        (CLEAR, "a_not_better", 0.0051, "does not hold"),
        ([-d for d in CLEAR], "a_not_better", 0.0001, "holds"),
        (SMALL, "a_better", 0.0027, "no difference beyond the margin"),  # 0.001 + 0.00169 = 0.00269
        (SMALL, "open", 0.0027, "no difference beyond the margin"),
        (SMALL, "a_better", 0.0026, "cannot be told (3 seeds; about 5 would do)"),
        # mean = deviation: (1.960 + 0.842)^2 = 7.85 by the normal, and 1.96^2 / 2 = 1.9 more for Student's t
        (SMALL, "a_better", None, "cannot be told (3 seeds; about 10 would do)"),
        ((0.0, 0.0, 0.0), "a_better", None, "no difference beyond the margin"),
        ((-1.0, 1.0, 0.0), "a_better", None, "cannot be told (3 seeds; more than 1,000 would do)"),
        ((0.02, 0.03), "a_better", None, "cannot be told (2 seeds; about 3 would do)"),
        ((0.02,), "a_better", None, "cannot be told (1 seed; about 3 would do)"),
        ((), "open", None, "cannot be told (0 seeds; about 3 would do)"),
    ],
)
def test_the_rule_on_hand_computed_pairs(
    differences: list[float], expected: statistics.Direction, margin: float | None, words: str
) -> None:
    assert statistics.verdict(differences, expected, margin).words == words


def drawn(rng: np.random.Generator, effect: float, seeds: int = 3) -> list[float]:
    """A stand-in study's differences: two trainings of the same luck's spread, `a` better by `effect`."""
    return [float(effect + LUCK * (rng.standard_normal() - rng.standard_normal())) for _ in range(seeds)]


@pytest.mark.parametrize("margin", [None, 0.05])
@pytest.mark.parametrize("expected", ["a_better", "b_better"])
def test_equal_arms_under_another_name_hold_in_one_of_twenty_studies_at_most(
    expected: statistics.Direction, margin: float | None
) -> None:
    found = Counter(
        statistics.verdict(drawn(np.random.default_rng(s), 0.0), expected, margin).words.split(" (")[0] for s in STUDIES
    )
    assert len(STUDIES) - found["holds"] >= 19, found


@pytest.mark.parametrize(("seeds", "least"), [(3, 18), (5, 20)])
def test_a_planted_false_claim_never_holds_and_does_not_with_seeds_enough(seeds: int, least: int) -> None:
    """Random weights are better, says the claim; they are worse by 0.14 m, as measured by hand. Three seeds leave two
    of twenty studies untold.
    """
    found = [statistics.verdict(drawn(np.random.default_rng(s), -0.14, seeds), "a_better", None).words for s in STUDIES]
    assert found.count("holds") == 0 and found.count("does not hold") >= least, Counter(found)


def test_stand_in_trainings_of_equal_arms_and_of_a_false_claim_reach_their_verdicts(tmp_path: Path) -> None:
    """Twenty drawn pairs of arms that differ by name alone, and twenty of random weights, by the report's own way."""
    rows: list[Training] = []
    asked: list[Claim] = []
    for drawn_seed in STUDIES:
        rng = np.random.default_rng(drawn_seed)
        for kind, loss_m in (("equal", 0.0), ("false", 0.14)):
            a, b = f"{kind} {drawn_seed}", f"base {kind} {drawn_seed}"
            rows += pair({a: tuple(0.5 + loss_m + LUCK * rng.standard_normal(3))})
            rows += pair({b: tuple(0.5 + LUCK * rng.standard_normal(3))})
            asked.append(claim(f"{kind}-{drawn_seed}", a, b, expected="a_better", margin=0.05))
    found = claims.answers(runs.load(make_results(tmp_path / "s", rows, claims=asked).root))
    verdict_of = {
        kind: Counter(a.verdict.split(" (")[0] for a in found if a.id.startswith(kind)) for kind in ("equal", "false")
    }
    assert sum(verdict_of["equal"].values()) == 20 and verdict_of["equal"]["holds"] <= 1, verdict_of
    assert verdict_of["false"]["holds"] == 0 and verdict_of["false"]["does not hold"] >= 17, verdict_of


STUDIES_DRAWN = 2000


def told(rng: np.random.Generator, effect: float, seeds: int, expected: statistics.Direction, margin: float) -> Counter:
    """Verdicts on so many drawn studies whose true difference is `effect`."""
    found: Counter = Counter()
    for own in effect + LUCK * math.sqrt(2) * rng.standard_normal((STUDIES_DRAWN, seeds)):
        found[statistics.rule(float(own.mean()), float(own.std(ddof=1)), seeds, expected, margin)] += 1
    return found


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_how_often_the_rule_errs_over_two_thousand_studies(seeds: int) -> None:
    """2.5% of claims of a direction hold, and as many do not, where both arms are alike; of claims of no difference 5%
    hold at most where the truth lies just at the margin or beyond, and 2.5% do not where there is none.
    """
    margin, rng = 0.03, np.random.default_rng(17)
    error = 3 * math.sqrt(0.05 * 0.95 / STUDIES_DRAWN)  # three standard errors
    alike = told(rng, 0.0, seeds, "a_better", margin)
    for word in ("holds", "does not hold"):
        assert abs(alike[word] / STUDIES_DRAWN - 0.025) < error
    for effect in (margin, 1.5 * margin):
        assert told(rng, effect, seeds, "no_difference", margin)["holds"] / STUDIES_DRAWN < 0.05 + error
        assert told(rng, effect, seeds, "a_not_better", margin)["holds"] / STUDIES_DRAWN < 0.05 + error
    same = told(rng, 0.0, seeds, "no_difference", margin)
    assert same["does not hold"] / STUDIES_DRAWN < 0.05
    assert told(rng, margin, seeds, "a_better", None)["does not hold"] / STUDIES_DRAWN < 0.05  # type: ignore[arg-type]


def test_the_p_value_of_two_one_sided_tests_by_hand() -> None:
    """SMALL has mean and deviation 0.001, so its error is 0.000577; against 0.0027, t(2) = 0.0017 / 0.000577 = 2.944,
    of which the upper tail is (1 - t / root(t^2 + 2)) / 2 = 0.0493.
    """
    t = 0.0017 / (0.001 / math.sqrt(3))
    assert statistics.tost(SMALL, 0.0027) == pytest.approx((1 - t / math.sqrt(t**2 + 2)) / 2)
    assert statistics.tost(SMALL, 0.0027) < 0.05 < statistics.tost(SMALL, 0.0026)  # as the 90% interval says
    assert (statistics.tost((0.0, 0.0, 0.0), 0.1), statistics.tost((0.2, 0.2, 0.2), 0.1)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("mean", "expected", "margin"),
    [(0.03, "a_better", None), (0.0, "no_difference", 0.03), (0.01, "no_difference", 0.03), (0.0, "a_not_better", 0.03),
     (0.05, "no_difference", 0.03), (0.0, "open", 0.03)],
)  # fmt: skip
def test_seeds_needed_are_within_half_as_many_again_of_the_truth(
    mean: float, expected: statistics.Direction, margin: float | None
) -> None:
    """Four of five drawn studies are told somewhere between n / 1.5 and 1.5 n seeds, and not below or above."""
    deviation = LUCK * math.sqrt(2)
    needed = statistics.seeds_needed(mean, deviation, expected, margin)
    assert needed is not None and needed > 4
    rng = np.random.default_rng(3)
    few, many = (
        1 - told(rng, mean, seeds, expected, margin)[None] / STUDIES_DRAWN  # type: ignore[arg-type]
        for seeds in (round(needed / 1.5), round(needed * 1.5))
    )
    assert few < statistics.POWER < many
    assert statistics.seeds_needed(0.0, deviation, "a_better", None) is None  # there is nothing to find


def test_planted_claims_are_answered_from_the_results(tmp_path: Path) -> None:
    layout, _ = planted_study(tmp_path / "planted", 1)
    tables = runs.load(layout.root)
    gradient, flip = claims.answers(tables)
    assert (gradient.verdict, gradient.n, gradient.measured, gradient.unit) == ("holds", 3, "rmse", "m")
    assert gradient.effect == pytest.approx(0.102) and gradient.low is not None and 0 < gradient.low < 0.102
    assert gradient.reason.startswith("a better by 0.102 m (95% interval 0.097 to 0.107, n = 3 paired seeds)")
    assert flip.verdict.startswith("cannot be told (3 seeds;") and flip.effect == pytest.approx(0.0, abs=1e-9)
    section = claims.analyse(tables)
    assert section.answers[0] == "Of 2 claims: 1 holds, 0 do not hold, 1 cannot be told."
    assert section.answers[1].startswith("gradient (the tests), gradient matters: holds, rmse a better by 0.102 m")
    assert "0.05" in section.answers[2]
    assert len(section.figures[0].data) == 6 and section.figures[0].render().axes
    assert list(section.tables[0].frame["verdict"]) == [gradient.verdict, flip.verdict]
    assert section.headline is not None and list(section.headline.sentences) == section.answers[:1]
    assert list(section.headline.tables[0].frame["verdict"]) == [gradient.verdict, flip.verdict]
    write_table(tables, tmp_path / "released.parquet")
    assert claims.answers(read_table(tmp_path / "released.parquet")) == [gradient, flip]


def test_claims_that_were_changed_after_their_trainings_are_told(tmp_path: Path) -> None:
    layout, _ = planted_study(tmp_path / "planted", 1)
    tables = runs.load(layout.root)
    assert tables.claims_unchanged
    changed = replace(tables, claims=[replace(PLANTED[0], expected="b_better"), PLANTED[1]])
    assert "The claims are not those hashed before the first training." in claims.analyse(changed).answers
    (state,) = [headline for key, _, headline in first_screen.headlines(changed, [], []) if key == "state"]
    assert state.warn and any("claims are not those hashed" in said for said in state.sentences)
    untestable = replace(tables, claims=[replace(PLANTED[0], untestable="no weights"), PLANTED[1]])
    assert untestable.claims_unchanged  # what a machine has is no part of what is claimed


def test_more_and_less_follow_the_value_and_better_the_quantity(tmp_path: Path) -> None:
    """a has 0.3 of its detail as a checkerboard, b 0.1; a's delta1 is lower, as it follows from the RMSE."""
    rows = pair({"x": (0.5, 0.51, 0.52)}, metrics={"val/checkerboard": 0.3})
    rows += pair({"base": (0.4, 0.41, 0.42)}, metrics={"val/checkerboard": 0.1})
    asked = [
        claim("more", "x", expected="a_more", measured=("checkerboard", "delta1")),
        claim("less", "x", expected="a_less", measured=("checkerboard",)),
        claim("delta", "x", expected="b_better", measured=("delta1",)),
        claim("swapped", "base", "x", expected="a_better", measured=("delta1",)),
    ]
    more, less, delta, swapped = claims.answers(runs.load(make_results(tmp_path / "s", rows, claims=asked).root))
    assert [a.verdict for a in (more, less, delta, swapped)] == ["holds", "does not hold", "holds", "holds"]
    assert more.effect == pytest.approx(-0.2) and more.reason.startswith("a more by 0.200 (95% interval 0.200 to 0.200")
    assert delta.effect == pytest.approx(-0.1 / 3) and swapped.effect == pytest.approx(0.1 / 3)
    assert more.also == (f"delta1: {delta.reason.rstrip('.')}",)


def test_trainings_that_did_not_complete_are_said_and_few_pairs_carry_no_interval(tmp_path: Path) -> None:
    base, x = pair({"base": (0.5, 0.5)}), pair({"x": (0.7, 0.7)})
    rows = [*base, x[0], replace(x[1], outcome=Outcome.DIVERGED)]
    found = answer(tmp_path / "s", rows, claim("x", "x", seeds=SEEDS[:2]))
    assert found.verdict == "cannot be told (1 seed; about 3 would do)" and found.low is None
    assert found.reason == (
        "a worse by 0.200 m (n = 1 paired seeds, no interval); a: 1 complete, 1 diverged, b: 2 complete."
    )
    lost = answer(tmp_path / "all", [*base, *(replace(t, outcome=Outcome.DIVERGED) for t in x)], claim("x", "x"))
    assert (lost.verdict, lost.effect, lost.n) == ("cannot be told (0 seeds; about 3 would do)", None, 0)
    assert lost.reason == "no pair of complete trainings shows rmse; a: 2 diverged, b: 2 complete, of 3 each."


def test_an_untestable_claim_says_why_and_nothing_else(tmp_path: Path) -> None:
    asked = claim("x", "x", untestable="the data have no holes", expected="no_difference", margin=0.02)
    tables = runs.load(make_results(tmp_path / "s", pair({"base": (0.5,)}), claims=[asked]).root)
    (found,) = claims.answers(tables)
    assert (found.verdict, found.n, found.effect) == ("not testable here: the data have no holes", 0, None)
    assert found.expected == "no difference (margin 0.02 m)"
    section = claims.analyse(tables)
    assert section.answers[0] == "Of 1 claim: 0 hold, 0 do not hold, 1 not testable here." and not section.figures


def test_an_arm_of_stages_is_judged_by_its_last_and_a_shared_one_on_its_claims_own_seeds(tmp_path: Path) -> None:
    rows = pair({"base": (0.5, 0.5, 0.5)})
    for stage, value in ((0, 0.9), (1, 0.3)):
        rows += [replace(t, overrides={"stage": stage}) for t in pair({"x": (value, value, value + stage / 100)})]
    staged = claim("x", "x", seeds=SEEDS[:2])
    found = answer(tmp_path / "s", rows, replace(staged, a=replace(staged.a, stage=1)))
    assert found.n == 2 and found.effect == pytest.approx(0.2)


def test_metrics_are_taken_where_the_judge_looks(tmp_path: Path) -> None:
    """rmse is best at the first report; abs_rel, a quarter of it, follows; the gap of the losses is the last one's."""
    rows = [Training("claims", 0, group="densedepth: base", history=[0.4, 0.6, 0.8])]
    tables = runs.load(make_results(tmp_path / "s", rows).root)
    assert claims.measured_values(tables, "abs_rel") == {"claims-0000": pytest.approx(0.1)}
    assert claims.measured_values(tables, "overfit_gap") == {"claims-0000": pytest.approx(0.08)}
    assert tables.judge is not None
    last = replace(tables, judge=replace(tables.judge, report="last"))
    assert claims.measured_values(last, "abs_rel") == {"claims-0000": pytest.approx(0.2)}
    assert claims.measured_values(tables, "silog") == {} and claims.measured_values(tables, "seconds") == {
        "claims-0000": 50.0
    }
    assert claims.measured_values(tables, "peak_memory_mib") == {"claims-0000": 900.0}


def test_spikes_are_counted_in_the_trace_and_their_damage_in_the_validation(tmp_path: Path) -> None:
    """Planted: one spike in 400 steps, after which the RMSE rises from 0.5 to 0.7; the calm arm has none, and one arm a
    spike after which it falls.
    """
    ids = [f"data/nyu2_train/room{i // 8}_out/{i % 8}.jpg" for i in range(200)]
    rows = []
    for arm, spikes, history in (
        ("x", {250: 30.0}, [0.6, 0.5, 0.7, 0.6]),
        ("base", {}, [0.6, 0.5, 0.45, 0.4]),
        ("y", {250: 30.0}, [0.6, 0.5, 0.4, 0.3]),
    ):
        for seed in SEEDS:
            trace = planted_trace(
                np.random.default_rng(seed), steps=400, batch_size=6, samples=ids, spikes=spikes, noise=0.05
            )
            rows.append(Training("claims", 0, group=f"densedepth: {arm}", seed=seed, history=history, trace=trace))
    asked = [
        claim("rate", "x", expected="a_more", measured=("spikes_per_1000_steps", "damage_after_spikes")),
        claim("damage", "base", "x", expected="a_less", measured=("damage_after_spikes",)),
    ]
    asked.append(claim("harmless", "base", "y", expected="a_less", measured=("damage_after_spikes",)))
    rate, damage, harmless = claims.answers(runs.load(make_results(tmp_path / "s", rows, claims=asked).root))
    assert (rate.verdict, rate.effect, rate.unit) == ("holds", pytest.approx(-2.5), "spikes per 1,000 steps")
    assert (damage.verdict, damage.effect, damage.unit) == ("holds", pytest.approx(0.2), "m")
    assert rate.also[0].startswith("damage_after_spikes: a worse by 0.200 m")
    assert (harmless.effect, harmless.verdict) == (0.0, "no difference beyond the margin")


def test_every_quantity_is_known_on_both_sides() -> None:
    assert set(claims.OTHERS) | set(METRICS) | {"checkerboard"} == set(QUANTITIES)
    assert all(METRICS[name] for name in QUANTITIES if name in METRICS)


def test_a_ledger_with_ablations_is_refused_in_a_sentence(tmp_path: Path) -> None:
    layout = make_results(tmp_path / "s", [Training("ablate", 0.5)])
    with pytest.raises(UserError, match="holds trainings of the phase ablate, of a version before claims"):
        runs.load(layout.root)
