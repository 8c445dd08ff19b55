"""runs.load and the released table, on planted results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from analysis import mlflow_store, runs
from analysis.sections import compare, cost
from analysis.spikes import verdicts
from analysis.spikes.traces import read_steps
from analysis.tables import tidy
from study.contract import Outcome
from tests.analysis import ledger_rows
from tests.analysis.make_results import Training, make_results, planted_study, planted_trace, write_trace
from trainables.runtime.durable import sha256
from trainables.runtime.errors import UserError


def test_every_outcome_is_told_apart_and_the_ledger_is_not_touched(tmp_path: Path) -> None:
    layout, truth = planted_study(tmp_path / "planted", 1, unfinished=True)
    before = sha256(layout.ledger)
    loaded = runs.load(layout.root)
    outcome = loaded.trials.set_index("key")["outcome"]
    assert [outcome[k] for k in (truth.best, truth.diverged, truth.pruned, truth.failed, truth.out_of_memory)] == [
        Outcome.COMPLETE, Outcome.DIVERGED, Outcome.PRUNED, Outcome.FAILED, Outcome.OUT_OF_MEMORY
    ]  # fmt: skip
    assert outcome[str(truth.unfinished)] == tidy.RUNNING
    assert loaded.unfinished() == ["search has ended 29 of 30 trainings"]
    best = loaded.trials.set_index("key").loc[truth.best]
    assert best["value"] == pytest.approx(0.48) and best["images"] == 2400 and best["config.optim.lr"] == 4e-4
    assert sha256(layout.ledger) == before


def test_the_judge_takes_the_best_report_not_the_last(tmp_path: Path) -> None:
    layout = make_results(tmp_path / "s", [Training("search", 0, history=[0.9, 0.4, 0.7])])
    assert runs.load(layout.root).trials["value"].tolist() == [0.4]


def test_a_half_written_line_is_normal_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    layout = make_results(tmp_path / "s", [Training("search", 0.5, outcome=None)])
    path = layout.trial("search-0000") / "reports.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[-1][:40])
    loaded = runs.load(layout.root)
    assert len(loaded.reports) == len(whole.splitlines()) and loaded.notes == []
    path.write_text(whole.replace('"step"', '"s', 1))
    assert "line 1 of reports.jsonl is damaged" in runs.load(layout.root).notes[0]


def test_an_empty_and_an_all_failed_study_load(tmp_path: Path) -> None:
    failed = [Training("search", 1.0, outcome=Outcome.FAILED, reason="planted") for _ in range(3)]
    loaded = runs.load(make_results(tmp_path / "failed", failed).root)
    assert loaded.trials["value"].isna().all() and loaded.reports.empty and loaded.unfinished() == []
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "study.yaml").write_text("name: begun\nsearch: {trials: 3}\n")
    begun = runs.load(tmp_path / "begun")
    assert begun.trials.empty and begun.unfinished() == ["search has not begun"] and "config" not in begun.trials


def test_unknown_and_damaged_studies_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a study in"):
        runs.load(tmp_path / "nowhere")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "ledger.db").write_bytes(b"SQLite format 3\0" + bytes(4000))
    with pytest.raises(UserError, match="the ledger cannot be read"):
        runs.load(tmp_path / "torn")


def test_a_trace_is_read_whole_or_in_parts_and_a_flipped_byte_is_found(tmp_path: Path) -> None:
    trace = planted_trace(np.random.default_rng(3), steps=50, batch_size=2, samples=["a", "b", "c"])
    layout = make_results(tmp_path / "s", [Training("search", 0.5, trace=trace)])
    folder, notes = layout.trial("search-0000"), list[str]()
    steps = read_steps(folder, notes)
    assert steps is not None and steps.loss == pytest.approx(trace["loss"], rel=1e-6)
    assert [steps.names[i] for i in steps.sample[:2]] == [["a", "b", "c"][i] for i in trace["order"][:2]]
    path = layout.trial("search-0000") / "trace.parquet"
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)
    assert read_steps(folder, notes) is None and "trace.parquet cannot be read" in notes[0]
    parts = layout.trial("search-0000") / "trace"
    write_trace(parts, trace)
    (parts / "trace.parquet").rename(parts / "part-000000000000.parquet")
    path.unlink()
    again = read_steps(folder, notes)
    assert again is not None and len(again.loss) == 50


def test_the_released_table_gives_the_same_study(tmp_path: Path) -> None:
    layout, _ = planted_study(tmp_path / "planted", 2)
    loaded = runs.load(layout.root)
    loaded.extras["spikes.spikes"] = pd.DataFrame(
        {"key": ["a"] * 3, "size": [float("nan"), float("inf"), -float("inf")]}
    )
    tidy.write_table(loaded, tmp_path / "study.parquet")
    again = tidy.read_table(tmp_path / "study.parquet")
    pd.testing.assert_frame_equal(loaded.trials, again.trials, check_dtype=False)
    pd.testing.assert_frame_equal(loaded.reports.reset_index(drop=True), again.reports, check_dtype=False)
    assert again.judge == loaded.judge and again.study == loaded.study
    pd.testing.assert_frame_equal(again.extras["spikes.spikes"], loaded.extras["spikes.spikes"])
    with pytest.raises(UserError, match="not a released table"):
        tidy.read_table(layout.study_file)


def test_the_tracking_file_is_the_one_beside_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever folder the command is started from: openings are counted there."""
    layout = make_results(tmp_path / "results" / "s", [Training("search", 0.5)])
    loaded = replace(runs.load(layout.root), study={"tracking": {"uri": "sqlite:///mlflow.db"}})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (elsewhere / "mlflow.db").touch()
    here = mlflow_store.tracking_uri(loaded)
    assert here == f"sqlite:///{elsewhere / 'mlflow.db'}"  # a results folder that was copied here
    (tmp_path / "mlflow.db").touch()
    assert mlflow_store.tracking_uri(loaded) == f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_passwords_stay_at_home(tmp_path: Path) -> None:
    uri = "postgresql://me:se@cret@host/db"
    layout = make_results(tmp_path / "s", [Training("search", 0.5)])
    loaded = replace(
        runs.load(layout.root),
        study={"ledger": uri, "tracking": {"uri": uri}},
        environment={"command": f"study.run --set ledger={uri}", "changes": [{"now": {"command": f"--set a={uri}"}}]},
    )
    tidy.write_table(loaded, tmp_path / "study.parquet")
    again = tidy.read_table(tmp_path / "study.parquet")
    shown = [table.frame.to_csv() for table in cost.provenance(loaded, {}).tables]
    shown.append(compare.analyse(loaded, runs.load(layout.root)).tables[1].frame.to_csv())
    shown += [str(verdicts.rerun(loaded, ["a sample"])), str(again.study), str(again.environment)]
    for text in shown:
        assert "***@host/db" in text and "cret" not in text and "//me" not in text


def test_rows_of_a_planted_ledger_are_those_that_optuna_writes(tmp_path: Path) -> None:
    """tests/analysis/ledger_rows.py goes past Optuna's interface: every state, non-finite values, running trials."""
    space = {"lr": optuna.distributions.FloatDistribution(1e-5, 1.0, log=True)}
    ends = {"COMPLETE": 0.5, "PRUNED": float("inf"), "FAIL": None}
    trials = [
        optuna.trial.create_trial(
            state=TrialState[state], value=value, params={"lr": 0.1}, distributions=space,
            user_attrs={"a": [None, "x"]}, intermediate_values={1: float("nan"), 2: 0.25},
        )
        for state, value in ends.items()
    ]  # fmt: skip
    rows, own = ledger_rows.new_storage(tmp_path / "rows.db"), RDBStorage(f"sqlite:///{tmp_path / 'own.db'}")
    ledger_rows.write_study(rows, "s", {"b": {"c": 1}}, trials)
    expected = optuna.create_study(study_name="s", storage=own, direction="minimize")
    expected.set_user_attr("b", {"c": 1})
    expected.add_trials(trials)
    found = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'rows.db'}")
    assert (found.user_attrs, found.direction) == (expected.user_attrs, expected.direction)
    assert [repr(t) for t in found.get_trials()] == [repr(t) for t in expected.get_trials()]
    rows.engine.dispose()
    own.engine.dispose()
