"""One checkpoint of no study on a test split: the evaluator's own numbers, and a counted opening."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from analysis import calibration
from trainables.data.dataset import fingerprint, open_test
from trainables.evaluation.evaluate import evaluate
from trainables.evaluation.protocols import PROTOCOLS
from trainables.models.depth_model import build_model
from trainables.settings.config import TrialConfig
from trainables.training import checkpoint


def test_one_checkpoint_is_scored_and_the_opening_counted(
    tmp_path: Path, tiny_config: Callable[..., TrialConfig], tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(**{"data.root": None})  # as converted weights: they know of no data
    torch.manual_seed(0)
    model = build_model(config.model, config.target.kind)
    checkpoint.write_checkpoint(tmp_path / "released", checkpoint.take_snapshot(model, None, {}), config)
    command = [str(tmp_path / "released"), "--data-root", str(tiny_root), "--source", "kaggle", "--json"]
    command += ["--tracking", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    for count in (1, 2):
        assert calibration.main(command) == 0
        document = json.loads(capsys.readouterr().out)["data"]
        assert document["openings"] == count
    data = tiny_config().data
    assert document["test_data"] == fingerprint(data)["test"]
    expected = evaluate(model.eval(), open_test(data), config, list(PROTOCOLS), torch.device("cpu"), 4)
    for protocol, metrics in expected.summary.items():
        assert document["summary"][protocol] == pytest.approx(metrics, rel=1e-5, nan_ok=True)


def test_nothing_is_scored_where_the_opening_cannot_be_recorded(
    tmp_path: Path, tiny_config: Callable[..., TrialConfig], tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    model = build_model(config.model, config.target.kind)
    checkpoint.write_checkpoint(tmp_path / "c", checkpoint.take_snapshot(model, None, {}), config)
    scored: list[object] = []
    monkeypatch.setattr(calibration.final_evaluation, "score_test", lambda *_: scored.append(_))
    command = [str(tmp_path / "c"), "--data-root", str(tiny_root), "--source", "kaggle"]
    assert calibration.main([*command, "--tracking", "http://127.0.0.1:9"]) == 2 and not scored
    assert calibration.main([str(tmp_path / "absent"), "--data-root", str(tiny_root)]) == 2
