"""Planted truth for the spike detector: spikes, bad samples, bad settings, and clean studies that must stay clean."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from analysis import evidence, runs, spikes
from analysis.tables import read_table, write_table
from analysis.traces import THRESHOLDS, Steps, find_spikes, read_steps, trailing
from tests.analysis.make_results import Training, make_results, planted_trace, write_trace

IDS = [f"data/nyu2_train/room{i // 12}_out/{i % 12}.jpg" for i in range(240)]
WEIGHTS = {"ssim": 1.0, "gradient": 1.0, "depth": 0.1}


def seeded() -> np.random.Generator:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
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


def test_a_planted_spike_is_found_at_its_step(tmp_path: Path) -> None:
    rng = seeded()
    at = sorted(int(s) for s in rng.choice(np.arange(60, 480, 5), 3, replace=False) + rng.integers(5))
    steps = steps_of(tmp_path, trace(rng, noise=0.1, spikes=dict.fromkeys(at, 20.0)))
    found = find_spikes(steps, WEIGHTS, THRESHOLDS)
    assert [(spike.step, spike.recovery_steps) for spike in found] == [(step, 1) for step in at]
    assert found[0].loss == pytest.approx(float(steps.loss[at[0]]))
    assert found[0].term == "ssim"  # 0.5 of the loss, against 0.3 of gradient and 0.2 of weighted depth


def test_a_loss_that_is_not_finite_is_a_numeric_spike(tmp_path: Path) -> None:
    columns = trace(seeded())
    columns["loss"][200] = np.nan
    tables = study(tmp_path / "s", [columns])
    found = spikes.collect(tables).spikes
    assert found.loc[found["step"] == 200, "cause"].tolist() == ["numeric"]


def test_trailing_never_looks_ahead() -> None:
    values = seeded().standard_normal(700)
    middle, spread = trailing(values, 100, 30)
    changed = values.copy()
    changed[400:] += 50.0
    again, wider = trailing(changed, 100, 30)
    np.testing.assert_array_equal(middle[:401], again[:401])
    np.testing.assert_array_equal(spread[:401], wider[:401])
    assert np.isnan(middle[:30]).all() and np.isfinite(middle[30:]).all()
    assert middle[400] == pytest.approx(np.median(values[300:400]))


def test_planted_bad_samples_are_the_suspects(tmp_path: Path) -> None:
    rng = seeded()
    bad = {str(name): float(rng.uniform(3, 12)) for name in rng.choice(IDS, 10, replace=False)}
    section = spikes.analyse(study(tmp_path / "s", [trace(rng, bad=bad) for _ in range(4)]))
    first = {row["sample"] for row in section.data["suspects"][:12]}
    assert len(first & set(bad)) >= 9, (bad, section.data["suspects"][:12])
    assert section.data["verdict"] == "data"
    assert len(set(section.data["quarantine"]) - set(bad)) <= 2  # of 230 good ones: neighbours of a planted one


def test_a_sample_that_is_easier_than_its_scene_is_suspect_too(tmp_path: Path) -> None:
    rng = seeded()
    name = IDS[rng.integers(len(IDS))]
    section = spikes.analyse(study(tmp_path / "s", [trace(rng, bad={name: 0.1}) for _ in range(4)]))
    assert section.data["suspects"][0]["sample"] == name
    assert section.data["suspects"][0]["against"] == "scene"


def test_a_sample_without_valid_pixels_is_suspect(tmp_path: Path) -> None:
    rng = seeded()
    columns = trace(rng, steps=400)
    hollow = int(rng.integers(len(IDS)))
    own = columns["sample_losses"]
    own[columns["order"].reshape(own.shape) == hollow] = 0.0
    section = spikes.analyse(study(tmp_path / "s", [columns]))
    assert section.data["quarantine"] == [IDS[hollow]]
    assert section.data["suspects"][0]["empty_passes"] == section.data["suspects"][0]["passes"]


def test_five_clean_studies_have_no_data_verdict(tmp_path: Path) -> None:
    rng = seeded()
    for place in range(5):
        section = spikes.analyse(study(tmp_path / f"s{place}", [trace(rng, steps=300) for _ in range(3)]))
        assert section.data["quarantine"] == [] and section.data["verdict"] != "data", section.answers


def test_a_bad_learning_rate_is_called_optimisation(tmp_path: Path) -> None:
    rng = seeded()
    onset = [int(s) for s in np.arange(60, 460, 100) + rng.integers(0, 50, 4)]
    burst = {s + k: 8 * 0.8**k for s in onset for k in range(8)}
    section = spikes.analyse(study(tmp_path / "s", [trace(rng, noise=0.1, spikes=burst) for _ in range(3)]))
    assert section.data["verdict"] == "optimisation", section.answers
    assert section.data["causes"]["optimisation"] >= 9  # of 12 bursts
    assert section.data["quarantine"] == []


def test_fixed_places_of_an_unshuffled_list(tmp_path: Path) -> None:
    rng = seeded()
    place = int(rng.integers(140, 240))
    columns = trace(rng, listed=True, noise=0.1, bad={IDS[place]: 60.0})
    found = spikes.collect(study(tmp_path / "s", [columns], **{"data.order": "listed"})).spikes
    assert set(found["list_position"]) == {place}
    assert found["epoch"].nunique() >= 7


def test_a_released_table_regenerates_the_section(tmp_path: Path) -> None:
    rng = seeded()
    tables = study(tmp_path / "s", [trace(rng, bad={IDS[7]: 9.0}) for _ in range(3)])
    section = spikes.analyse(tables)
    write_table(tables, tmp_path / "table.parquet")
    again = spikes.analyse(read_table(tmp_path / "table.parquet"))
    assert again.data == section.data and list(again.answers) == list(section.answers)
    assert [figure.name for figure in again.figures] == [figure.name for figure in section.figures]


def test_parts_of_a_running_training_and_a_damaged_trace(tmp_path: Path) -> None:
    columns = trace(seeded(), steps=200)
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
    merged = evidence.with_findings(suspects, found, 6.0, 6.0)
    assert merged["sample"].tolist() == ["b", "a", "c"]
    assert merged["suspect"].tolist() == [True, False, False] and merged["from_losses"].tolist() == [1.0, 4.0, 0.5]
