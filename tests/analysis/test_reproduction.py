"""The verdict by margins, and what stands in its way, on a study whose stored scores are planted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import reproduction, runs
from analysis.tables.published import PAPER, ROWS, comparable
from tests.analysis.make_results import JUDGE, Training, make_results
from trainables.evaluation.protocols import PROTOCOLS
from trainables.settings.config import as_dict
from trainables.settings.recipe import load_recipe

MARGINS: dict[str, float] = JUDGE["margins"]  # type: ignore[assignment]


LUCK = (-0.001, 0.0, 0.001)  # of three seeds: error 0.00058, so the 90% interval is +- 2.920 * 0.00058 = 0.00169


@pytest.mark.parametrize(
    ("shift", "word"),
    [
        ({}, "reproduced"),
        ({"rmse": 0.0183, "delta1": -0.0083}, "reproduced"),  # 0.0183 + 0.00169 < 0.02
        ({"rmse": 0.0184}, "cannot be told"),  # the margin itself: a point would have called it reproduced
        ({"rmse": 0.0224}, "cannot be told"),  # 95%: +- 4.303 * 0.00058 = 0.00248
        ({"rmse": 0.0225}, "partly reproduced"),
        ({"rmse": 0.0225, "abs_rel": 0.0075, "delta1": -0.0125}, "not reproduced"),
        ({"rmse": -0.1, "abs_rel": -0.1, "delta1": 0.1}, "not reproduced"),  # better by far is another result, too
    ],
)
def test_the_verdict_is_an_equivalence_test_over_seeds(shift: dict[str, float], word: str) -> None:
    ours = {name: [value + shift.get(name, 0.0) + luck for luck in LUCK] for name, value in PAPER.metrics.items()}
    found, gaps = reproduction.verdict(ours, PAPER.metrics, MARGINS)
    assert found == word and gaps.keys() == MARGINS.keys()
    assert all((one.p is not None and one.p < 0.05) == (one.said == reproduction.WITHIN) for one in gaps.values())


def test_fewer_seeds_than_a_test_needs_tell_nothing() -> None:
    ours = {name: [value, value] for name, value in PAPER.metrics.items()}
    found, gaps = reproduction.verdict(ours, PAPER.metrics, MARGINS)
    assert found == "cannot be told" and {one.low for one in gaps.values()} == {None}
    assert reproduction.verdict({"silog": [0.1]}, PAPER.metrics, MARGINS) == ("cannot be compared", {})


@pytest.mark.parametrize("seeds", [3, 5])
def test_how_often_reproduced_is_wrong(seeds: int) -> None:
    """A recipe at the margin in one metric and as published in the others is called reproduced in 5% of 2,000 draws."""
    rng, wrong = np.random.default_rng(5), 0
    for _ in range(2000):
        ours = {
            name: PAPER.metrics[name] + 0.3 * margin * rng.standard_normal(seeds) for name, margin in MARGINS.items()
        }
        ours["rmse"] += MARGINS["rmse"]
        found, _ = reproduction.verdict({name: own.tolist() for name, own in ours.items()}, PAPER.metrics, MARGINS)
        wrong += found == "reproduced"
    assert wrong / 2000 < 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5  # three standard errors


def entry(metrics: dict[str, float], **changes: Any) -> dict[str, Any]:
    """A stored entry of the sealed test that says the same under every protocol."""
    return {
        "name": "reproduce-0000",
        "roles": ["recipe densedepth"],
        "key": "reproduce-0000",
        "source": "kaggle",
        "frames": 654,
        "target": "inverse",
        "same_test_data": True,
        "edges": [],
        "summary": {name: dict(metrics) for name in PROTOCOLS},
        "protocols": {name: {"name": name, "comparable": True, "note": ""} for name in PROTOCOLS},
    } | changes


def verdicts(root: Path, stored: dict[str, Any], seeds: int = 3, **overrides: Any) -> dict[str, dict[str, Any]]:
    published = as_dict(load_recipe("densedepth")[0])
    trainings = [Training("reproduce", 0.46 + s, group="densedepth", seed=s, overrides=overrides) for s in range(3)]
    layout = make_results(root, trainings, base=published, budget_images=published["budget_images"])
    tables = runs.load(layout.root)
    others = [stored | {"name": f"reproduce-{s:04d}", "roles": ["another seed of recipe densedepth"]} for s in (1, 2)]
    tables.evaluation.update({"entries": [stored, *others[: seeds - 1]], "champion": "reproduce-0000"})
    return {row["against"]: row for row in reproduction.analyse(tables).data["verdicts"]}


def test_a_faithful_training_on_the_right_data_gets_a_verdict(tmp_path: Path) -> None:
    row = verdicts(tmp_path / "s", entry(dict(PAPER.metrics)))[PAPER.who]
    assert row["verdict"] == "reproduced" and row["why"] == "" and row["scored"] == 3
    assert "rmse +0.000 (90% interval +0.000 to +0.000, within)" in row["gaps"]
    few = verdicts(tmp_path / "few", entry(dict(PAPER.metrics)), 2)[PAPER.who]
    assert few["verdict"] == "cannot be told" and "rmse +0.000 (no interval)" in few["gaps"]


@pytest.mark.parametrize(
    ("changes", "overrides", "reason"),
    [
        ({"source": "rooms"}, {}, "rendered rooms, not NYU"),
        ({"frames": 9}, {}, "has 9 frames"),
        ({}, {"input": [96, 128]}, "not trained as published: input"),
        ({}, {"optim.lr": 2e-4}, "not trained as published: optim.lr"),
        (
            {"protocols": {n: {"name": n, "comparable": False, "note": "masked"} for n in PROTOCOLS}},
            {},
            "protocol: masked",
        ),
    ],
)
def test_what_stands_in_the_way_is_said(
    tmp_path: Path, changes: dict[str, Any], overrides: dict[str, Any], reason: str
) -> None:
    row = verdicts(tmp_path / "s", entry(dict(PAPER.metrics), **changes), **overrides)[PAPER.who]
    assert row["verdict"] == "cannot be compared" and reason in row["why"]


@pytest.mark.parametrize("changes", [{"frames": 653}, {"source": "rooms"}, {"target": "relative"}])
def test_only_the_654_frames_and_absolute_depth_are_comparable(changes: dict[str, Any]) -> None:
    assert comparable(entry({}), "densedepth") == (True, "")
    can, why = comparable(entry({}, **changes), "densedepth")
    assert not can and why


def test_published_rows_state_source_and_a_protocol_that_exists() -> None:
    assert all(row.source and row.metrics for row in ROWS)
    assert {row.protocol for row in ROWS} - {None} <= PROTOCOLS.keys()
