"""The verdict by margins, and what stands in its way, on a study whose stored scores are planted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis import reproduction, runs
from analysis.tables.published import PAPER, ROWS, comparable
from tests.analysis.make_results import JUDGE, Training, make_results
from trainables.evaluation.protocols import PROTOCOLS
from trainables.settings.config import as_dict
from trainables.settings.recipe import load_recipe

MARGINS: dict[str, float] = JUDGE["margins"]  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("shift", "word"),
    [
        ({}, "reproduced"),
        ({"rmse": 0.019, "delta1": -0.009}, "reproduced"),
        ({"rmse": 0.021}, "partly reproduced"),
        ({"rmse": 0.021, "abs_rel": 0.006, "delta1": -0.011}, "not reproduced"),
        ({"rmse": -0.1, "abs_rel": -0.1, "delta1": 0.1}, "not reproduced"),  # better by far is another result, too
    ],
)
def test_the_verdict_follows_the_margins(shift: dict[str, float], word: str) -> None:
    ours = {name: value + shift.get(name, 0.0) for name, value in PAPER.metrics.items()}
    found, gaps = reproduction.verdict(ours, PAPER.metrics, MARGINS)
    assert found == word and gaps.keys() == MARGINS.keys()


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


def verdicts(root: Path, stored: dict[str, Any], **overrides: Any) -> dict[str, dict[str, Any]]:
    published = as_dict(load_recipe("densedepth")[0])
    training = Training("reproduce", 0.46, group="densedepth", overrides=overrides)
    layout = make_results(root, [training], base=published, budget_images=published["budget_images"])
    tables = runs.load(layout.root)
    tables.evaluation.update({"entries": [stored], "champion": "reproduce-0000"})
    return {row["against"]: row for row in reproduction.analyse(tables).data["verdicts"]}


def test_a_faithful_training_on_the_right_data_gets_a_verdict(tmp_path: Path) -> None:
    row = verdicts(tmp_path / "s", entry(dict(PAPER.metrics)))[PAPER.who]
    assert row["verdict"] == "reproduced" and row["why"] == ""


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
