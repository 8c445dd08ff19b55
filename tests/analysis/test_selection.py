"""The judge's choice on planted studies: the planted best, two equal ones, a lucky seed, nothing to choose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis import runs, selection
from analysis.page.section import Section, number
from study.contract import Outcome
from tests.analysis.make_results import Training, make_results, planted_study


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_the_planted_best_is_named_and_the_lucky_seed_shows_in_the_gap(tmp_path: Path, seed: int) -> None:
    layout, truth = planted_study(tmp_path / "planted", seed)
    section = selection.analyse(runs.load(layout.root))
    assert section.data["group"] == truth.winner and section.data["champion"].startswith("confirm-")
    assert section.data["not_distinguishable_from"] == []
    gaps = {row["origin"]: row["gap"] for row in section.data["gaps"]}
    assert gaps[truth.lucky] == pytest.approx(0.12, abs=0.02) and gaps[truth.best] == pytest.approx(0.02, abs=0.02)
    assert any("Winner's curse" in answer and truth.lucky in answer for answer in section.answers)


def test_two_equal_settings_are_not_distinguishable_and_the_simpler_one_is_named(tmp_path: Path) -> None:
    layout, truth = planted_study(tmp_path / "planted", 4, twins=True)
    section = selection.analyse(runs.load(layout.root))
    other = truth.twin if section.data["group"] == truth.best else truth.best
    assert section.data["not_distinguishable_from"] == [other]
    assert any("not distinguishable from" in answer and "95% interval" in answer for answer in section.answers)


def test_the_simplest_setting_within_one_standard_error(tmp_path: Path) -> None:
    own, changed = {"optim.lr": 1e-4}, {"optim.lr": 2e-4, "loss.depth": 0.2}
    values = {"search-0000": (own, (0.50, 0.52, 0.54)), "search-0001": (changed, (0.49, 0.515, 0.54))}
    trainings = [Training("search", 0.5, own), Training("search", 0.49, changed)]
    trainings += [
        Training("confirm", v, {}, params, group=g, seed=i, origin=g)
        for g, (params, group) in values.items()
        for i, v in enumerate(group)
    ]
    section = selection.analyse(runs.load(make_results(tmp_path / "s", trainings).root))
    assert section.data["group"] == "search-0001"
    assert section.data["simplest_within_one_standard_error"] == "search-0000"


def test_one_seed_gives_no_interval_and_an_unconfirmed_best_says_so(tmp_path: Path) -> None:
    layout = make_results(tmp_path / "s", [Training("search", 0.5), Training("search", 0.4)])
    section = selection.analyse(runs.load(layout.root))
    assert section.data["champion"] == "search-0001" and not section.data["confirmed"]
    assert "not confirmed" in section.answers[0] and "n = 1 + 1 seeds, no interval" in section.answers[1]


def test_a_setting_with_a_failed_seed_does_not_win(tmp_path: Path) -> None:
    done, broken = Outcome.COMPLETE, Outcome.DIVERGED
    planted = {
        "a": ((0.30, done), (0.30, broken), (0.30, Outcome.FAILED)),
        "b": ((0.50, done), (0.51, done), (0.52, done)),
    }
    rows = [
        Training("confirm", value, group=group, seed=seed, origin=group, outcome=outcome)
        for group, members in planted.items()
        for seed, (value, outcome) in enumerate(members)
    ]
    section = selection.analyse(runs.load(make_results(tmp_path / "s", rows).root))
    assert section.data["champion"] == "confirm-0004"


def confirmed(root: Path, search: dict[str, float], fresh: dict[str, list[float | None]]) -> Section:
    """The section on a search and its confirmation; None: that fresh seed failed."""
    rows = [Training("search", value) for value in search.values()]
    rows += [
        Training("confirm", value or 0.0, group=key, seed=seed, origin=key,
                 outcome=Outcome.FAILED if value is None else Outcome.COMPLETE)
        for key, values in fresh.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    return selection.analyse(runs.load(make_results(root, rows).root))


def test_the_gap_to_the_search_has_its_sign_in_words(tmp_path: Path) -> None:
    kept = confirmed(tmp_path / "s", {"a": 0.5}, {"search-0000": [0.48, 0.48, 0.48]})
    (said,) = [answer for answer in kept.answers if "Winner's curse" in answer]
    assert said.endswith("fresh seeds are better by 0.02 m, at 0.480 m (n = 1 setting, no interval).")
    values = {f"search-000{i}": [0.5 + gap] * 3 for i, gap in enumerate((0.05, -0.06, 0.02))}
    unclear = confirmed(tmp_path / "unclear", dict.fromkeys("abc", 0.5), dict(values))
    assert any("not distinguishable from none; most for search-0000" in answer for answer in unclear.answers)


def test_failed_confirmations_are_no_number_and_no_waiting(tmp_path: Path) -> None:
    half = confirmed(tmp_path / "half", {"a": 0.5, "b": 0.5},
                     {"search-0000": [0.5, 0.5, 0.5], "search-0001": [0.4, None, None]})  # fmt: skip
    assert any("Half of the fresh seeds of search-0001, or more, have no value" in answer for answer in half.answers)
    assert not any("- m" in answer or "nan" in answer for answer in half.answers)
    json.dumps(half.data, allow_nan=False)
    worse = confirmed(tmp_path / "worse", {"a": 0.5}, {"search-0000": [0.4, 0.5, None, None, None]})
    assert "only 2 of its 5 fresh seeds were completed, so it has no median" in worse.answers[0]
    none = confirmed(tmp_path / "none", {"a": 0.5}, {"search-0000": [None, None, None]})
    assert "(none of the 3 trainings of the confirmation was completed with a value)" in none.answers[0]


def test_close_settings_are_two_and_recipes_are_no_simpler_settings(tmp_path: Path) -> None:
    rows = [Training("search", 0.5, {"optim.lr": lr}) for lr in (0.0014, 0.0010)]
    tables = runs.load(make_results(tmp_path / "s", rows).root)
    assert selection.settings_that_differ(tables, "search-0000", "search-0001") == {"optim.lr": (0.0014, 0.0010)}
    assert [number(0.0014), number(0.5), number(2400.0)] == ["0.0014", "0.500", "2400"]
    recipes = [Training("reproduce", 0.5 + 0.01 * seed, group=g, seed=seed) for g in ("a", "b") for seed in range(3)]
    section = selection.analyse(runs.load(make_results(tmp_path / "reproduced", recipes).root))
    assert not any("simple" in answer for answer in section.answers)


def test_nothing_to_choose_is_said_and_the_command_answers_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = make_results(tmp_path / "s", [Training("search", 1.0, outcome=Outcome.FAILED) for _ in range(3)])
    purpose = "test"
    assert runs.command("selection", purpose, selection.analyse, [str(layout.root), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["data"]["champion"] is None and "none of 3 ended trainings" in document["answers"][0]
    assert runs.command("selection", purpose, selection.analyse, [str(tmp_path / "no"), "--json"]) == 2


def test_every_figure_draws_from_its_data(tmp_path: Path) -> None:
    layout, _ = planted_study(tmp_path / "planted", 5)
    for figure in selection.analyse(runs.load(layout.root)).figures:
        canvas = figure.render()
        assert canvas.axes[0].get_ylabel().startswith("validation rmse (m)") and len(figure.data)


def test_relative_depth_never_wins_over_metres(tmp_path: Path) -> None:
    relative = Training("reproduce", 0.1, group="r", overrides={"target.kind": "relative"})
    metric = Training("reproduce", 0.5, group="m")
    both, alone = make_results(tmp_path / "both", [relative, metric]), make_results(tmp_path / "alone", [relative])
    chosen = [selection.choose(runs.load(layout.root)) for layout in (both, alone)]
    assert [c and c.group for c in chosen] == ["m", "r"]


def test_trainings_of_claims_alone_are_said_to_be_no_candidates(tmp_path: Path) -> None:
    pair = [Training("claims", 0.5, seed=1, group=f"densedepth: {arm}") for arm in ("base", "x")]
    section = selection.analyse(runs.load(make_results(tmp_path / "s", pair).root))
    assert section.data["champion"] is None
    assert "all trainings of this study test claims" in section.answers[0]
