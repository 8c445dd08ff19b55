"""Planted truth for the spike detector: spikes, bad samples, bad settings, and clean studies that must stay clean."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from analysis import runs
from analysis.spikes import causes, verdicts
from analysis.spikes.suspects import with_findings
from analysis.spikes.traces import THRESHOLDS, Steps, find_spikes, read_steps, trailing
from analysis.tables.tidy import read_table, write_table
from tests.analysis.make_results import Training, make_results, planted_trace, write_trace
from trainables.data.dataset import open_training
from trainables.settings.config import TrialConfig, as_dict
from trainables.training import checkpoint

IDS = [f"data/nyu2_train/room{i // 12}_out/{i % 12}.jpg" for i in range(240)]
WEIGHTS = {"ssim": 1.0, "gradient": 1.0, "depth": 0.1}


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def trace(rng: np.random.Generator, **plant: Any) -> dict[str, Any]:
    hardness = dict(zip(IDS, np.exp(0.25 * rng.standard_normal(len(IDS))), strict=True))  # clean frames differ too
    bad = hardness | {name: hardness[name] * factor for name, factor in plant.pop("bad", {}).items()}
    return planted_trace(rng, steps=plant.pop("steps", 500), batch_size=4, samples=IDS, bad=bad, **plant)


def study(root: Path, traces: list[dict[str, Any]], **overrides: Any) -> Any:
    trainings = [Training("search", 0.5, overrides={"optim.lr": 1e-4} | overrides, trace=one) for one in traces]
    make_results(root, trainings)
    return runs.load(root)


def steps_of(folder: Path, columns: Mapping[str, Any]) -> Steps:
    write_trace(folder, columns)
    steps = read_steps(folder, [])
    assert steps is not None
    return steps


def test_a_planted_spike_is_found_at_its_step(tmp_path: Path, rng: np.random.Generator) -> None:
    at = sorted(int(s) for s in rng.choice(np.arange(60, 480, 5), 3, replace=False) + rng.integers(5))
    steps = steps_of(tmp_path, trace(rng, noise=0.1, spikes=dict.fromkeys(at, 20.0)))
    found = find_spikes(steps, WEIGHTS, THRESHOLDS)
    assert [(spike.step, spike.recovery_steps) for spike in found] == [(step, 1) for step in at]
    assert found[0].loss == pytest.approx(float(steps.loss[at[0]]))
    assert found[0].term == "ssim"  # 0.5 of the loss, against 0.3 of gradient and 0.2 of weighted depth


def test_a_loss_that_is_not_finite_is_a_numeric_spike(tmp_path: Path, rng: np.random.Generator) -> None:
    columns = trace(rng)
    columns["loss"][200] = np.nan
    tables = study(tmp_path / "s", [columns])
    found = causes.collect(tables).spikes
    assert found.loc[found["step"] == 200, "cause"].tolist() == ["numeric"]


def test_trailing_never_looks_ahead(rng: np.random.Generator) -> None:
    values = rng.standard_normal(700)
    middle, spread = trailing(values, 100, 30)
    changed = values.copy()
    changed[400:] += 50.0
    again, wider = trailing(changed, 100, 30)
    np.testing.assert_array_equal(middle[:401], again[:401])
    np.testing.assert_array_equal(spread[:401], wider[:401])
    assert np.isnan(middle[:30]).all() and np.isfinite(middle[30:]).all()
    assert middle[400] == pytest.approx(np.median(values[300:400]))


def test_planted_bad_samples_are_the_suspects(tmp_path: Path, rng: np.random.Generator) -> None:
    bad = {str(name): float(rng.uniform(3, 12)) for name in rng.choice(IDS, 10, replace=False)}
    section = causes.analyse(study(tmp_path / "s", [trace(rng, bad=bad) for _ in range(4)]))
    first = {row["sample"] for row in section.data["suspects"][:12]}
    assert len(first & set(bad)) >= 9, (bad, section.data["suspects"][:12])
    assert section.data["verdict"] == "data"
    assert len(set(section.data["quarantine"]) - set(bad)) <= 2  # of 230 good ones: neighbours of a planted one


def test_a_sample_is_judged_by_trainings_on_its_own_data(tmp_path: Path, rng: np.random.Generator) -> None:
    """Planted: three bad samples in one of two data sets, whose frames have the same names."""
    bad = {str(name): 10.0 for name in rng.choice(IDS, 3, replace=False)}
    other = {"data.rooms.train_scenes": 20, "loss.mse": 0.5}
    trainings = [Training("search", 0.5, trace=trace(rng)) for _ in range(4)]
    trainings += [Training("claims", 0.5, overrides=other, trace=trace(rng, bad=bad)) for _ in range(4)]
    section = causes.analyse(runs.load(make_results(tmp_path / "s", trainings).root))
    suspects = [row for row in section.data["suspects"] if row["suspect"]]
    assert {row["sample"] for row in suspects} >= set(bad) and {row["data_of"] for row in suspects} == {"claims-0000"}
    both = section.data["rerun"]["claims"]["test"][0]["both"]  # without which the accused would be other frames
    assert both["data.rooms.train_scenes"] == 20 and both["loss"]["mse"] == 0.5 and set(both["loss"]) >= set(WEIGHTS)


def test_a_sample_that_is_easier_than_its_scene_is_suspect_too(tmp_path: Path, rng: np.random.Generator) -> None:
    name = IDS[rng.integers(len(IDS))]
    section = causes.analyse(study(tmp_path / "s", [trace(rng, bad={name: 0.1}) for _ in range(4)]))
    assert section.data["suspects"][0]["sample"] == name
    assert section.data["suspects"][0]["against"] == "scene"


def test_a_sample_without_valid_pixels_is_suspect(tmp_path: Path, rng: np.random.Generator) -> None:
    columns = trace(rng, steps=400)
    hollow = int(rng.integers(len(IDS)))
    own = columns["sample_losses"]
    own[columns["order"].reshape(own.shape) == hollow] = 0.0
    section = causes.analyse(study(tmp_path / "s", [columns]))
    assert section.data["quarantine"] == [IDS[hollow]]
    assert section.data["suspects"][0]["empty_passes"] == section.data["suspects"][0]["passes"]
    tables = runs.load(tmp_path / "s")
    assert any("(no valid pixel, " in answer for answer in causes.analyse(tables).answers)
    write_table(tables, tmp_path / "table.parquet")
    again = causes.analyse(read_table(tmp_path / "table.parquet"))
    assert list(again.answers) == list(section.answers)
    (figure,) = [figure for figure in again.figures if figure.name == "spike-suspects"]
    assert np.isinf(figure.data["suspicion"]).sum() == 1  # which draws the arrow


def findings(named: list[str], accused: int) -> verdicts.Findings:
    """Spikes of these causes, each at a suspect, in one training; so many suspects."""
    trainings = {"key": ["a"], "steps": 1000, "samples": 240, "lr": 1e-4, "clip_norm": np.nan}
    trainings |= {f"spikes ({cause})": named.count(cause) for cause in verdicts.CAUSES}
    spikes_frame = {"key": "a", "cause": named, "sample": IDS[0], "listed": False}
    suspects = {
        "sample": IDS[:accused],
        "suspicion": 9.0,
        "suspect": True,
        "passes": 4,
        "trainings": 1,
        "empty_passes": 0,
    }
    frames = [pd.DataFrame(columns) for columns in (spikes_frame, suspects, trainings)]
    return verdicts.Findings(frames[0] if named else pd.DataFrame(), frames[1], frames[2], pd.DataFrame())


def test_the_verdict_says_where_no_spike_begins_in_a_suspect() -> None:
    verdict, said = verdicts.judge_cause(findings([], 1))
    assert verdict == "data" and "no spike is put down to them, so they speak of the data" in said[1]
    verdict, said = verdicts.judge_cause(findings(["numeric", "optimisation", "optimisation"], 1))
    assert verdict == "optimisation" and "no spike is put down to them" in said[1]
    assert "1 spike is put down to them" in verdicts.judge_cause(findings(["data", "numeric"], 1))[1][1]


def test_every_suspect_reaches_the_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(causes, "LISTED", 3)
    columns = trace(rng, steps=400)
    own = columns["sample_losses"]
    own[columns["order"].reshape(own.shape) < 5] = 0.0
    section = causes.analyse(study(tmp_path / "s", [columns]))
    assert set(IDS[:5]) <= set(section.data["quarantine"])
    assert section.data["rerun"]["claims"]["test"][0]["b"]["data.exclude"] == section.data["quarantine"]


def test_a_damaged_checkpoint_costs_the_pictures_not_the_section(
    tmp_path: Path, tiny_config: Callable[..., TrialConfig], rng: np.random.Generator
) -> None:
    config = tiny_config()
    ids = open_training(config).train.ids
    columns = planted_trace(rng, steps=300, batch_size=4, samples=ids)
    own = columns["sample_losses"]
    own[columns["order"].reshape(own.shape) == 0] = 0.0
    layout = make_results(tmp_path / "s", [Training("search", 0.5, trace=columns)], base=as_dict(config))
    best = layout.trial("search-0000") / "checkpoints" / checkpoint.BEST
    best.mkdir(parents=True)
    (best / checkpoint.WEIGHTS).write_bytes(b"torn")
    tables = runs.load(layout.root)
    section = causes.analyse(tables)
    assert ids[0] in section.data["quarantine"] and "spike-frames" not in [figure.name for figure in section.figures]
    assert any(note.startswith("The suspect samples are not pictured: ") for note in tables.notes)


def test_the_command_answers_as_the_others_do_and_keeps_its_own_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rng: np.random.Generator
) -> None:
    tables = study(tmp_path / "s", [trace(rng, steps=100)])
    write_table(tables, tmp_path / "released.parquet")
    capsys.readouterr()
    for name in (tmp_path / "s", tmp_path / "released.parquet"):
        assert causes.main([str(name), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert {"study", "answers", "data", "notes", "verdict", "quarantine"} <= document.keys()
        assert document["verdict"] == document["data"]["verdict"] and document["answers"]


def test_five_clean_studies_have_no_data_verdict(tmp_path: Path, rng: np.random.Generator) -> None:
    for place in range(5):
        section = causes.analyse(study(tmp_path / f"s{place}", [trace(rng, steps=300) for _ in range(3)]))
        assert section.data["quarantine"] == [] and section.data["verdict"] != "data", section.answers


def test_a_bad_learning_rate_is_called_optimisation(tmp_path: Path, rng: np.random.Generator) -> None:
    onset = [int(s) for s in np.arange(60, 460, 100) + rng.integers(0, 50, 4)]
    burst = {s + k: 8 * 0.8**k for s in onset for k in range(8)}
    section = causes.analyse(study(tmp_path / "s", [trace(rng, noise=0.1, spikes=burst) for _ in range(3)]))
    assert section.data["verdict"] == "optimisation", section.answers
    assert section.data["causes"]["optimisation"] >= 9  # of 12 bursts
    assert section.data["quarantine"] == []


def test_fixed_places_of_an_unshuffled_list(tmp_path: Path, rng: np.random.Generator) -> None:
    place = int(rng.integers(140, 240))
    columns = trace(rng, listed=True, noise=0.1, bad={IDS[place]: 60.0})
    found = causes.collect(study(tmp_path / "s", [columns], **{"data.order": "listed"})).spikes
    assert set(found["list_position"]) == {place}
    assert found["epoch"].nunique() >= 7


def test_a_released_table_regenerates_the_section(tmp_path: Path, rng: np.random.Generator) -> None:
    tables = study(tmp_path / "s", [trace(rng, bad={IDS[7]: 9.0}) for _ in range(3)])
    section = causes.analyse(tables)
    write_table(tables, tmp_path / "table.parquet")
    again = causes.analyse(read_table(tmp_path / "table.parquet"))
    assert again.data == section.data and list(again.answers) == list(section.answers)
    assert [figure.name for figure in again.figures] == [figure.name for figure in section.figures]


def test_parts_of_a_running_training_and_a_damaged_trace(tmp_path: Path, rng: np.random.Generator) -> None:
    columns = trace(rng, steps=200)
    write_trace(tmp_path / "whole", columns)
    whole = read_steps(tmp_path / "whole", [])
    parts = tmp_path / "parts" / "trace"
    parts.mkdir(parents=True)
    table = pa.parquet.read_table(tmp_path / "whole" / "trace.parquet")
    for start in (0, 120):
        pa.parquet.write_table(table.slice(start, 120), parts / f"part-{start:012d}.parquet", write_page_checksum=True)
    split = read_steps(tmp_path / "parts", [])
    assert whole is not None and split is not None
    np.testing.assert_array_equal(whole.loss, split.loss)
    assert [whole.names[i] for i in whole.sample] == [split.names[i] for i in split.sample]
    damaged = tmp_path / "whole" / "trace.parquet"
    content = bytearray(damaged.read_bytes())
    content[300] ^= 0xFF
    damaged.write_bytes(content)
    notes: list[str] = []
    assert read_steps(tmp_path / "whole", notes) is None and "cannot be read" in notes[0]


def test_a_finding_on_the_frame_lifts_a_sample_over_unproven_ones() -> None:
    suspects = pd.DataFrame(
        {"sample": ["a", "b", "c"], "suspicion": [4.0, 1.0, 0.5], "suspect": [False] * 3, "excess": [0.5, 0.1, 0.0]}
    )
    found = pd.DataFrame({"sample": ["b"], "finding": ["flipped"], "detail": ["fit 0.02, mirrored left-right 0.31"]})
    merged = with_findings(suspects, found, 6.0, 6.0)
    assert merged["sample"].tolist() == ["b", "a", "c"]
    assert merged["suspect"].tolist() == [True, False, False] and merged["from_losses"].tolist() == [1.0, 4.0, 0.5]
