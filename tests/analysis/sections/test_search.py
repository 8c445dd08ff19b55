"""Sections on a search, its budget, pruning, frames and time: planted truth is said, and too little is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import runs, surrogate
from analysis.dimensions import dimensions_of
from analysis.page.section import Section
from analysis.sections import frames, pruning, search_budget, search_space, timeline
from analysis.tables.tidy import StudyTables
from study.contract import Outcome
from tests.analysis.make_results import PAPER, Training, make_results, planted_study


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> StudyTables:
    """A search of 40 trials in which the learning rate matters much, and little else at all."""
    layout, _ = planted_study(tmp_path_factory.mktemp("planted") / "planted", 3, trials=40)
    return runs.load(layout.root)


def drawn(section: Section) -> dict[str, pd.DataFrame]:
    """The section's figures by name, each drawn once."""
    for figure in section.figures:
        assert figure.render().axes and ("n = " in figure.caption or "test frames" in figure.caption)
    return {figure.name: figure.data for figure in section.figures}


def few(root: Path) -> StudyTables:
    return runs.load(make_results(root, [Training("search", 0.5 + i / 10, PAPER) for i in range(4)]).root)


def test_the_planted_setting_is_what_the_forest_expects_most_of(
    planted: StudyTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surrogate, "RESAMPLES", 10)
    section = search_space.analyse(planted)
    assert section.data["strongest"][0] == "optim.lr" and section.data["score"] > 0.5
    shown = drawn(section)
    own = shown["space-dependence"].query("setting == 'optim.lr'").set_index("place")
    best = own["expected"].idxmin()
    assert 0.45 < best < 0.9 and own["expected"].max() > 2 * own["expected"].min()  # 4e-4 of 1e-5 to 3e-3: 0.65
    assert (own["low"] <= own["high"]).all()
    counts = shown["space-footprint"]
    assert counts.groupby("setting")["trials"].sum().to_dict() == {d.path: 40 for d in dimensions_of(planted)}
    path = shown["space-ablation"]
    assert path["flip"].iloc[0] == "the recipe's own setting" and "optim.lr" in path["flip"].iloc[1]
    assert path["expected"].iloc[-1] < path["expected"].iloc[0]
    assert set(shown["space-contour"].columns) == {"x", "y", "expected", "half_band"}


def test_partial_dependence_is_the_mean_over_the_trials(planted: StudyTables) -> None:
    search = planted.phase("search")
    complete = search[(search["outcome"] == Outcome.COMPLETE) & search["value"].notna()]
    found = surrogate.fit(complete, dimensions_of(planted), complete["value"].to_numpy(float))
    one = surrogate.dependence(found, "optim.lr")
    by_hand = []
    for place in one.places:
        moved = found.places.copy()
        moved[:, 0] = place
        by_hand.append(found.whole.predict(moved).mean())
    assert np.corrcoef(one.mean, by_hand)[0, 1] > 0.99  # scikit-learn weighs by the trees' own trials


def test_a_search_of_noise_shows_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "RESAMPLES", 5)
    rng = np.random.default_rng(0)
    noise = [
        Training("search", 0.5 + 0.01 * rng.standard_normal(), PAPER | {"optim.lr": float(10 ** rng.uniform(-5, -2.6))})
        for _ in range(30)
    ]
    section = search_space.analyse(runs.load(make_results(tmp_path / "s", noise).root))
    assert [figure.name for figure in section.figures] == ["space-footprint"]
    assert "does not predict those that it has not seen" in section.answers[-1]


def test_too_few_trials_are_a_sentence(tmp_path: Path) -> None:
    tables = few(tmp_path / "s")
    assert not search_space.analyse(tables).figures
    assert search_space.analyse(tables).answers == [
        "n = 4 trials: to show what of the space a search covered takes 10."
    ]
    pruned = [Training("search", 0.5, PAPER, outcome=Outcome.PRUNED) for _ in range(12)]
    covered = search_space.analyse(runs.load(make_results(tmp_path / "pruned", pruned).root))
    assert [f.name for f in covered.figures] == ["space-footprint"]
    assert covered.answers[-1].startswith("n = 0 trials complete: to show what a model")
    assert search_budget.analyse(tables).answers == [
        "n = 4 trials of the search ended: to say what more or fewer trials would have found takes at least 8."
    ]
    assert pruning.analyse(tables).answers[-1].startswith("n = 4 trials complete with an earlier report")
    assert frames.analyse(tables).answers == ["The test set is still sealed, so no frames can be compared."]
    none = runs.load(make_results(tmp_path / "none", [Training("reproduce", 0.5)]).root)
    assert search_space.analyse(none).answers == ["Nothing was searched."]
    assert pruning.analyse(none).answers == ["Nothing was searched, so nothing was pruned."]
    assert "no timeline yet" in timeline.analyse(none).answers[0]


def test_what_the_budget_bought(planted: StudyTables) -> None:
    section = search_budget.analyse(planted)
    curve = drawn(section)["budget-expected"]
    assert len(curve) == 40 and curve["low"].notna().sum() == 8 and curve["expected"].is_monotonic_decreasing
    values = planted.phase("search").dropna(subset=["value"])
    assert curve["expected"].iloc[-1] < values["value"].quantile(0.1)
    assert section.data["own"] == pytest.approx(float(values["value"].iloc[0]))
    assert section.data["reached"] == int((values["value"].iloc[1:] <= section.data["own"]).sum())
    assert "of the other" in section.answers[-1] and "the recipe's own setting" in section.answers[1]


def test_two_searches_are_compared_by_device_hours(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    studies = [
        runs.load(make_results(tmp_path / name, [
            Training("search", middle * float(rng.lognormal(0, spread)), PAPER) for _ in range(60)
        ]).root)
        for name, middle, spread in (("steady", 1.0, 0.03), ("wild", 1.6, 0.8))
    ]  # fmt: skip
    (said,), (figure,) = search_budget.versus(("steady", studies[0]), ("wild", studies[1]))
    assert said.startswith("The search of steady is expected to be ahead up to") and figure.render().axes
    assert search_budget.versus(("steady", studies[0]), ("few", few(tmp_path / "few"))) == ([], [])


def test_was_pruning_right(tmp_path: Path) -> None:
    """The order at the first report is the order at the end; the pruned could not have become the best."""
    done = [Training("search", 0.5 + i / 50, PAPER, history=[1.0 + i / 50, 0.5 + i / 50]) for i in range(12)]
    lost = [Training("search", 2.0, PAPER, outcome=Outcome.PRUNED, history=[2.0]) for _ in range(6)]
    tables = runs.load(make_results(tmp_path / "s", [*done, *lost]).root)
    section = pruning.analyse(tables)
    (rung,) = section.data["rungs"]
    assert (rung["images"], rung["n"]) == (600, 12) and rung["tau"] == pytest.approx(1.0)
    hours = pytest.approx(6 * 1800 / 600 * 50 / 3600)
    assert section.data["saved"] == {"trials": 6, "images": 6 * 1800, "hours": hours,
                                     "spent_images": 12 * 1200 + 6 * 600}  # fmt: skip
    assert section.data["regret"] == {"missed": 0.0, "loss": 0.0, "pruned": 6}
    assert "foretold the order" in section.answers[0] and drawn(section)["pruning-rungs"]["final"].notna().all()


def test_the_timeline_counts_what_ran_at_once(planted: StudyTables) -> None:
    """Trainings of a phase start a minute apart and take 55 s, and the phases begin together."""
    section = timeline.analyse(planted)
    data = drawn(section)["timeline"]
    assert section.data["trainings"] == len(data) and section.data["most_at_once"] == data["lane"].max() + 1 == 4
    assert 0 < section.data["idle_share"] < 0.2


def stored(seeds: int) -> tuple[dict[str, Any], pd.DataFrame]:
    """Scores of a champion's seeds at 0.4, a recipe's at 0.5 and a baseline at 0.9, on 40 scenes of two frames."""
    rng, rows = np.random.default_rng(0), []
    entries = [(f"confirm-{s:04d}", ["champion" if s == 0 else "confirmation seed"], 0.4) for s in range(seeds)]
    entries += [
        (f"reproduce-{s:04d}", ["recipe r" if s == 0 else "another seed of recipe r"], 0.5) for s in range(seeds)
    ]
    entries += [("training mean", ["baseline"], 0.9)]
    rooms = 0.05 * rng.standard_normal(40)
    for name, _, level in entries:
        values = level + np.repeat(rooms, 2) + 0.02 * rng.standard_normal(80)
        rows += [{"entry": name, "requested": "densedepth", "failed": False, "id": f"f{i}", "scene": f"r{i // 2}",
                  "rmse": float(v)} for i, v in enumerate(values)]  # fmt: skip
    document = {
        "judge": {"metric": "rmse", "protocol": "densedepth"}, "champion": "confirm-0000",
        "entries": [{"name": n, "roles": roles, "same_test_data": True, "frames": 80} for n, roles, _ in entries],
    }  # fmt: skip
    return document, pd.DataFrame(rows)


def test_configurations_are_compared_over_their_seeds(planted: StudyTables, tmp_path: Path) -> None:
    tables = few(tmp_path / "s")
    document, tables.extras["scores"] = stored(5)
    tables.evaluation.update(document)
    section = frames.analyse(tables)
    champion, recipe, mean = section.data["configurations"]
    assert [r["configuration"] for r in (champion, recipe, mean)] == ["champion", "recipe r", "training mean"]
    assert (champion["seeds"], recipe["seeds"], mean["seeds"]) == (5, 5, 1)
    assert champion["mean_low"] < 0.4 < champion["mean_high"] and champion["iqm"] == pytest.approx(0.4, abs=0.02)
    assert recipe["champion_better"] > 0.9 and recipe["better_low"] > 0.5 and mean["better_low"] is None
    assert "beats training mean with probability 100% (no interval: 5 and 1 seeds are too few)." in section.answers[-1]
    profile = drawn(section)["frames-profile"]
    for _, own in profile.groupby("configuration"):
        assert own["share"].is_monotonic_increasing and (own["low"] <= own["share"]).all()
