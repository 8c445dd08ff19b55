"""Did it learn? Planted checkpoints: one that knows depth, one all grey, one never trained; then none at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from analysis import runs
from analysis.sections import learned
from analysis.tables.tidy import read_table, write_table
from study.contract import Layout, Outcome
from tests.analysis.make_results import Training, make_results
from trainables.data.dataset import fingerprint
from trainables.models.depth_model import build_model
from trainables.runtime.durable import sha256
from trainables.settings.config import TrialConfig, as_dict
from trainables.training import checkpoint

GOOD, GREY, NOISY = "reproduce-0000", "reproduce-0001", "reproduce-0002"


class Oracle(torch.nn.Module):
    """Metres from the green channel, which is what the tiny data paint depth with."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 1:2] * 10.2


@pytest.fixture
def study(tmp_path: Path, tiny_config: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch) -> Layout:
    """Three recipes' trainings; the first one's checkpoint loads as the oracle."""
    config = tiny_config(**{"target.kind": "metric"})
    trainings = [Training("reproduce", 0.5 + 0.1 * i, group=f"g{i}", seed=i) for i in range(3)]
    layout = make_results(tmp_path / "s", trainings, data=fingerprint(config.data), base=as_dict(config))
    for seed, (key, shrink) in enumerate({GOOD: 1.0, GREY: 1e-6, NOISY: 1.0}.items()):
        torch.manual_seed(seed)
        model = build_model(config.model, config.target.kind)
        last = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)][-1]
        with torch.no_grad():
            last.weight.mul_(shrink)
            last.bias.fill_(3.0)  # type: ignore[union-attr]
        snapshot = checkpoint.take_snapshot(model, None, {})
        checkpoint.write_checkpoint(layout.trial(key) / "checkpoints/best", snapshot, config)
    good, load = sha256(layout.trial(GOOD) / "checkpoints/best" / checkpoint.WEIGHTS), checkpoint.read_model

    def planted(folder: Path) -> tuple[torch.nn.Module, TrialConfig]:
        model, config = load(folder)
        return Oracle() if sha256(folder / checkpoint.WEIGHTS) == good else model, config

    monkeypatch.setattr(checkpoint, "read_model", planted)
    return layout


def test_each_is_said_and_what_was_measured_outlives_the_checkpoints(study: Layout, tmp_path: Path) -> None:
    tables = runs.load(study.root)
    section = learned.analyse(tables)
    verdicts = {row["training"]: row["verdict"] for row in section.data["trainings"]}
    assert verdicts[GOOD] == "learned" and section.data["trainings"][0]["error_ratio"] < 0.5
    assert verdicts[GREY].startswith("constant") and "no better than the training set's mean" in verdicts[NOISY]
    assert section.answers[0] == "2 of 3 judged checkpoints did not learn depth from the picture."
    assert section.data["trainings"][0]["roles"] == "champion, recipe g0"
    stored = json.loads((study.evaluation / "learned.json").read_text())
    assert {row["training"] for row in stored.values()} == {GOOD, GREY, NOISY} and all(len(k) == 64 for k in stored)

    write_table(tables, tmp_path / "released.parquet")
    shutil.rmtree(study.trial(GREY) / "checkpoints")
    again = learned.analyse(runs.load(study.root))
    released = learned.analyse(read_table(tmp_path / "released.parquet"))
    assert again.data == section.data and released.answers == section.answers


def test_new_weights_are_measured_again(study: Layout) -> None:
    learned.analyse(runs.load(study.root))
    shutil.rmtree(study.trial(GOOD) / "checkpoints")
    shutil.copytree(study.trial(GREY) / "checkpoints", study.trial(GOOD) / "checkpoints")
    rows = learned.analyse(runs.load(study.root)).data["trainings"]
    assert rows[0]["verdict"].startswith("constant")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    layout = make_results(tmp_path / "s", [Training("reproduce", 0.5, group="g"), Training("search", 0.4)])
    tables = runs.load(layout.root)
    section = learned.analyse(tables)
    assert any("search-0000 (champion): not known: its checkpoint is missing" in answer for answer in section.answers)
    write_table(runs.load(layout.root), tmp_path / "bare.parquet")
    assert "holds no diagnosis" in learned.analyse(read_table(tmp_path / "bare.parquet")).answers[0]
    failed = make_results(tmp_path / "f", [Training("search", 0.4, outcome=Outcome.FAILED)])
    assert learned.analyse(runs.load(failed.root)).answers == [
        "No training has a judged checkpoint: none of 1 ended trainings is complete with a finite judged value."
    ]


def test_earlier_stages_are_asked_about_too(tmp_path: Path) -> None:
    trainings = [
        Training("reproduce", value, group="g", seed=seed, overrides={"stage": stage})
        for seed in (0, 1) for stage, value in ((0, 0.9), (1, 0.5 + seed))
    ]  # fmt: skip
    roles = learned.judged_trainings(runs.load(make_results(tmp_path / "s", trainings).root))
    assert roles == {"reproduce-0001": ["champion", "recipe g"], "reproduce-0000": ["earlier stage of g"]}
