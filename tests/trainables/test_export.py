"""Export to ONNX: what onnxruntime opens scores as the checkpoint does, at any batch size, mirrored or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainables import export
from trainables.data.dataset import open_training
from trainables.models.depth_model import build_model
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig
from trainables.trained import load_model
from trainables.training.checkpoint import take_snapshot, write_checkpoint

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


def checkpoint(config: TrialConfig, folder: Path) -> Path:
    """An untrained model that answers about 2.5 m, so that nothing is clipped."""
    torch.manual_seed(0)
    model = build_model(config.model, config.target.kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("decoder") and name.endswith("bias") and parameter.numel() == 1:
                parameter.fill_(4.0)
    write_checkpoint(folder, take_snapshot(model, None, {"step": 0}), config)
    return folder


SKIPS = {"s1": "none", "s2": "post_pool", "s4": "post_pool", "s8": "post_pool", "s16": "post_pool", "s32": "none"}
ENCODER = {"model.family": "densedepth", "model.width": 0.1, "input": [64, 96], "model.skips": SKIPS}


@pytest.mark.parametrize(
    "overrides",
    [
        {"mirrored": True},
        pytest.param(ENCODER | {"model.encoder": "densenet121"}, marks=pytest.mark.slow),
        pytest.param(ENCODER | {"model.encoder": "timm/efficientnet_lite0"},
                     marks=pytest.mark.slow),
    ],
    ids=["unet", "densenet", "timm"],
)  # fmt: skip
def test_the_onnx_model_scores_as_the_checkpoint(
    tmp_path: Path, tiny_config: Callable[..., TrialConfig], overrides: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, out = checkpoint(tiny_config(**overrides), tmp_path / "best"), tmp_path / "depth.onnx"
    assert export.main([str(folder), "--onnx", "--out", str(out), "--frames", "4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["frames"] == 4 and document["worst"] <= export.TOLERANCE and document["onnx"] == str(out)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["input"] == "x".join(map(str, tiny_config(**overrides).input)) and len(facts["weights_sha256"]) == 64
    images = np.random.default_rng(0).random((3, 3, *tiny_config(**overrides).input), dtype=np.float32)
    (three,) = session.run(["depth_m"], {"images": images})
    (one,) = session.run(["depth_m"], {"images": images[1:2]})
    assert three.shape[0] == 3 and np.allclose(three[1:2], one, atol=1e-5) and 0.1 <= one.min() < one.max() <= 10
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".depth")] == []


def test_a_model_that_scores_otherwise_is_not_written(
    tmp_path: Path, tiny_config: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The weights of another training in the exported model."""
    folder, out = checkpoint(tiny_config(), tmp_path / "best"), tmp_path / "depth.onnx"
    right, frames = load_model(folder, "cpu"), open_training(tiny_config()).validation
    content = export.export_onnx(right, "0" * 64)
    with torch.no_grad():
        for parameter in right.network.parameters():
            parameter.mul_(1.05)
    wrong = tmp_path / "wrong\udcff.onnx"  # a name that is no UTF-8
    wrong.write_bytes(content)
    assert export.check(right, wrong, frames).worst > export.TOLERANCE
    monkeypatch.setattr(export, "export_onnx", lambda model, digest: wrong.read_bytes())
    monkeypatch.setattr("trainables.trained.load_model", lambda path, device: right)
    assert export.main([str(folder), "--onnx", "--out", str(out)]) == 1
    assert "is not written: on" in capsys.readouterr().err and not out.exists()


def test_what_is_missing_is_said_in_a_sentence(
    tmp_path: Path, tiny_config: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = checkpoint(tiny_config(), tmp_path / "best")
    assert export.main([str(folder), "--onnx", "--out", str(tmp_path)]) == 2
    assert "is there already; name another file with --out" in capsys.readouterr().err
    assert export.main([str(folder)]) == 2 and "say what to write: --onnx" in capsys.readouterr().err
    none = ["--data", str(tmp_path / "none")]
    assert export.main([str(folder), "--onnx", "--out", str(tmp_path / "d.onnx"), *none]) == 2
    assert "none" in capsys.readouterr().err and not (tmp_path / "d.onnx").exists()
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(UserError, match="--onnx needs onnxscript, which is not here; install it with: pip install"):
        export.export_onnx(load_model(folder, "cpu"), "0" * 64)
