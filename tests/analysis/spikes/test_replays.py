"""Replays of a study's spikes, and paired trainings that leave samples out: a real training with one frame of noise."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from analysis import report, runs
from analysis.spikes import causes, replays, verdicts
from analysis.tables.tidy import read_table, write_table
from study.config import load_study
from study.contract import Outcome
from study.plan import make_plan
from tests.analysis.make_results import Training, claim, make_results
from tests.trainables.training.test_replay import spiked
from trainables.runtime.durable import write_json
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig, as_dict


def test_a_study_is_replayed_and_its_report_shows_it(
    tiny_root: Path, tmp_path: Path, tiny_config: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(tiny_root, tmp_path / "set"))
    _, bad = spiked(root, tmp_path / "training", tiny_config)
    config = as_dict(TrialConfig.model_validate_json((tmp_path / "training" / "config.json").read_bytes()))
    layout = make_results(tmp_path / "s", [Training("search", 0.5)], base=config)
    folder = layout.trial("search-0000")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "training", folder)
    monkeypatch.setattr(replays, "STEPS_AFTER", 4)
    said: list[str] = []
    tables = runs.load(layout.root)
    replays.replay_all(tables, causes.collect(tables).spikes, said.append)
    assert [line for line in said if f"with and without {bad}" in line]
    replays.replay_all(tables, causes.collect(tables).spikes, lambda line: pytest.fail("replayed twice"))
    section = causes.analyse(tables)
    shown = section.data["replays"]
    assert shown and all(row["sample"] == bad and row["share_gone"] > 0.5 for row in shown), shown
    assert any(f"with {bad} and to" in sentence for sentence in section.answers)
    assert {"spike-replays", "spike-replayed"} <= {figure.name for figure in section.figures}
    for figure in section.figures:
        assert figure.render().axes
    page = report.write(tables, [section], layout.root, {})
    again = read_table(page.parent / "report" / report.TABLE)
    assert causes.analyse(again).data["replays"] == section.data["replays"]
    next(folder.glob("replays/*.json")).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        replays.read(runs.load(layout.root))


def test_a_replay_that_diverges_counts(tmp_path: Path) -> None:
    """As it was it diverges: by its loss, with and without the sample alike, or by a gradient, which ends it early."""
    layout = make_results(tmp_path / "s", [Training("search", 0.5)])
    facts = {"first_step": 40, "spike_step": 41, "left_out": ["a"], "target_min": 1.0, "target_max": 2.0,
             "hole_share": 0.0, "usual_loss": 0.2, "cause": "numeric"}  # fmt: skip
    runs_of = {41: ([0.2, None], [0.2, 0.3]), 42: ([0.2, None], [0.2, None]), 43: ([0.2, 0.3], [0.2, 0.3, 0.2])}
    for step, (as_it_was, without) in runs_of.items():
        kept = facts | {"spike_step": step, "first_step": step - 1, "as_it_was": as_it_was, "without": without}
        write_json(layout.trial("search-0000") / "replays" / f"step-{step}.json", kept)
    tables = runs.load(layout.root)
    found, _ = replays.read(tables)
    assert dict(zip(found["step"], found["share_gone"], strict=True)) == {41: 1.0, 42: 0.0, 43: 1.0}
    (said,) = replays.sentences(found)
    assert "2 of 3 spikes lose" in said and "to infinity (the training diverges) with a and to 0.300 without it" in said
    write_table(tables, tmp_path / "released.parquet")
    assert replays.sentences(replays.read(read_table(tmp_path / "released.parquet"))[0]) == [said]


def test_only_pairs_of_complete_trainings_say_what_a_flip_does_to_spikes(tmp_path: Path) -> None:
    """Planted: the flipped training of the second seed crashed before it could spike."""
    trainings = [
        Training("claims", 0.5, seed=seed, group=f"densedepth: {arm}",
                 outcome=Outcome.FAILED if (arm, seed) == ("x", 1) else Outcome.COMPLETE)
        for seed in range(2) for arm in ("base", "x")
    ]  # fmt: skip
    asked = [claim("x", "x", seeds=range(2))]
    tables = runs.load(make_results(tmp_path / "s", trainings, claims=asked).root)
    counted = tables.trials[["key"]].assign(steps=[1000, 1000, 1000, 20], spikes=[4, 8, 8, 0])
    pairs = verdicts.by_claim(tables, counted)
    (row,) = pairs.to_dict("records")
    assert (row["pairs"], row["left_out"], row["of_a"], row["of_b"]) == (1, 1, 8.0, 4.0)
    assert verdicts.paired_sentences(pairs)[0].endswith("; left out of 2 pairs, as not complete or without a trace: 1.")
    tables.trials.loc[tables.trials["seed"] == 0, "outcome"] = Outcome.DIVERGED
    (said,) = verdicts.paired_sentences(verdicts.by_claim(tables, counted))
    assert said.endswith("no pair to count spikes in; left out of 2 pairs, as not complete or without a trace: 2.")


def test_the_quarantine_keeps_what_the_study_left_out_and_its_variant(tmp_path: Path) -> None:
    out = {"data.exclude": ["old"], "variant": "batch_8"}
    trainings = [
        Training("reproduce", 0.5, overrides=out),
        Training("reproduce", 0.5, overrides=out | {"data.exclude": ["old", "x"]}),
    ]
    tables = runs.load(make_results(tmp_path / "s", trainings).root)
    asked = verdicts.rerun(tables, ["x", "new"])
    assert asked is not None and asked["claims"]["recipe"] == "densedepth+batch_8"
    (asked_claim,) = asked["claims"]["test"]
    assert [asked_claim[arm]["data.exclude"] for arm in "ab"] == [["old"], ["old", "x", "new"]]
    assert verdicts.rerun(tables, ["old"]) is None


def test_the_quarantine_list_becomes_a_study_that_says_what_leaving_out_does(tmp_path: Path) -> None:
    """Planted: 5, 7 and 9 spikes in 1,000 steps, 1 each without the samples."""
    arms = {"base": (5, 7, 9), "data.exclude=x": (1, 1, 1)}
    trainings = [Training("claims", 0.5, seed=seed, group=f"densedepth: {arm}") for seed in range(3) for arm in arms]
    asked = [claim("quarantine", *arms, seeds=range(3))]
    layout = make_results(tmp_path / "s", trainings, claims=asked)
    tables = runs.load(layout.root)
    counted = tables.trials[["key", "seed"]].assign(steps=1000, spikes=[arms[a][s] for s in range(3) for a in arms])
    (row,) = verdicts.by_claim(tables, counted).to_dict("records")
    assert (row["pairs"], row["of_a"], row["of_b"], row["difference"]) == (3, 7.0, 1.0, 6.0)
    assert row["low"] == pytest.approx(6 - 4.968, abs=1e-3)  # t(2) = 4.303, standard deviation 2 over root 3
    (sentence,) = verdicts.paired_sentences(verdicts.by_claim(tables, counted))
    assert "7 per 1,000 steps against 1, a difference of 6" in sentence and "distinguishable" not in sentence
    names = [f"data/nyu2_train/room_{n}_out/1.jpg" for n in range(9)]
    assert verdicts.rerun(tables, []) is None
    path = tmp_path / "quarantine.yaml"
    path.write_text(yaml.safe_dump(verdicts.rerun(tables, names)))
    plan = make_plan(load_study(path, ["trial={model.weights: null}"]))
    assert [p.config.data.exclude for p in plan.claims] == [(), tuple(names)] * verdicts.RERUN_SEEDS
    assert max(len(p.group) for p in plan.claims) < 120
