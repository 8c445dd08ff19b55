"""Prediction, evaluation and the served model on a GPU."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from trainables import predict
from trainables.data.dataset import open_training
from trainables.evaluation.evaluate import evaluate
from trainables.evaluation.protocols import PROTOCOLS
from trainables.settings.config import TrialConfig
from trainables.trained import load_model
from trainables.training import checkpoint
from trainables.training.trainer import iter_fit

pytestmark = pytest.mark.gpu
SAME_M = 0.02  # of depths up to 10 m: TF32 and bfloat16 round


@pytest.fixture
def trained(tmp_path: Path, family_config: Callable[..., TrialConfig]) -> Path:
    """A checkpoint that the GPU has trained."""
    list(iter_fit(family_config("unet"), tmp_path))
    return tmp_path / "checkpoints" / checkpoint.BEST


def test_a_picture_has_the_same_depth_on_cpu_and_gpu(trained: Path, tmp_path: Path, tiny_root: Path) -> None:
    picture = next(tiny_root.glob("data/nyu2_test/*_colors.png"))
    depths = {}
    for name in ("cpu", "cuda"):
        options = ["--checkpoint", str(trained), "--out", str(tmp_path / name), "--device", name]
        assert predict.main([str(picture), *options]) == 0
        depths[name] = np.load(tmp_path / name / f"{picture.stem}_depth.npy")
    assert np.abs(depths["cuda"] - depths["cpu"]).max() < SAME_M


def test_the_served_model_answers_on_the_gpu(trained: Path, cuda: torch.device) -> None:
    pytest.importorskip("mlflow")
    from analysis.served_model import DepthOfPicture

    served = DepthOfPicture()
    served.load_context(SimpleNamespace(artifacts={"checkpoint": str(trained)}))
    assert served.model.device.type == cuda.type
    rgb = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    png = io.BytesIO()
    Image.fromarray(rgb).save(png, format="PNG")
    (answer,) = served.predict(None, pd.DataFrame({"image": [png.getvalue()]}))["depth_m"]
    expected = load_model(trained, "cpu").predict(rgb)
    assert np.abs(np.array(answer) - expected).max() < SAME_M


def test_every_protocol_scores_alike(trained: Path) -> None:
    """The same metrics on CPU and GPU, to a thousandth."""
    model, config = checkpoint.read_model(trained)
    frames = open_training(config).validation
    summaries = []
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        settings = config.model_copy(update={"device": name})
        summaries.append(evaluate(model.to(device), frames, settings, list(PROTOCOLS), device, 4).summary)
    for protocol, metrics in summaries[0].items():
        for metric, value in metrics.items():
            if value is not None and metric not in ("edge_f1",):  # a threshold: rounding moves single pixels over it
                assert summaries[1][protocol][metric] == pytest.approx(value, rel=1e-2, abs=1e-3), (protocol, metric)
