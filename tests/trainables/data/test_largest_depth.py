"""The largest depth as a property of the data: frames to 80 m train, are scored, predicted and drawn as such."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainables.evaluation.expectation import random_guess_expectation
from trainables import predict
from trainables.data.dataset import open_test, open_training
from trainables.data.samples import prepare
from trainables.data.target import data_range, depth_to_y, y_to_depth_m
from trainables.evaluation import baselines
from trainables.evaluation.evaluate import Scorer
from trainables.evaluation.protocols import PROTOCOLS, Truth
from trainables.settings.config import TrialConfig
from trainables.settings.recipe import load_recipe
from trainables.trained import evaluate, load_model
from trainables.training.trainer import fit

ROWS, COLUMNS, FRAMES, FAR_M = 48, 64, 6, 80.0


def street(i: int) -> np.ndarray:
    """Depth in metres from a few metres at the lower edge to 70 m at the horizon, with the sky as holes."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    depth = 70.0 * np.exp(-(y - 8) / 14) + 0.02 * x + 2 + i / 4
    depth[:8] = 0
    return depth.clip(0, FAR_M)


def write_streets(root: Path) -> Path:
    """KITTI's coding: 16 bits, metres times 256; a list per split, a folder per drive."""
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for drive in range(4):
        for i in range(FRAMES):
            split = "test" if drive == 3 else "train"
            names = [f"drive_{drive:04d}/{i}.{suffix}" for suffix in ("jpg", "png")]
            depth = street(i + drive)
            (root / names[0]).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.repeat((255 - 3 * depth)[..., None], 3, 2).clip(0, 255).astype(np.uint8)).save(
                root / names[0]
            )
            Image.fromarray((depth * 256).round().astype(np.uint16)).save(root / names[1])
            lines[split].append(" ".join(names))
    for split, listed in lines.items():
        (root / f"{split}.txt").write_text("\n".join(listed))
    return root


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_streets(tmp_path_factory.mktemp("streets"))


@pytest.fixture
def config(streets: Path, tiny_config: Callable[..., TrialConfig]) -> TrialConfig:
    said = {"data.source": "list", "data.root": str(streets), "data.depth": "raw", "data.depth_scale": 256}
    return tiny_config(**said | {"data.max_depth_m": FAR_M, "protocol": "bts", "budget_images": 480,
                                 "data.validation.share": 0.3, "validate_every_images": 480})  # fmt: skip


def test_the_target_reaches_as_far_as_the_data(config: TrialConfig) -> None:
    assert config.target.max_depth_m == FAR_M and data_range(config.target) == pytest.approx(800)
    (nyu,) = load_recipe("densedepth")
    assert (nyu.target.max_depth_m, data_range(nyu.target)) == (10, pytest.approx(100))
    (own,) = load_recipe("densedepth", {"data.max_depth_m": 80, "target.max_depth_m": 50.0})
    assert own.target.max_depth_m == 50
    for kind, expected in {"inverse": [2.0, 1.0, 800.0], "metric": [40, 80, 0.1], "unit": [0.5, 1, 0.1 / 80]}.items():
        target = config.target.model_copy(update={"kind": kind})
        depth = torch.tensor([[[40.0, 200.0, 0.01]]])
        assert depth_to_y(depth, target).flatten().tolist() == pytest.approx(expected)
        back = y_to_depth_m(depth_to_y(depth, target), target)
        assert back.flatten().tolist() == pytest.approx([40, 80, 0.1])
    sample = prepare(open_training(config).train.read(0), config)
    assert 1 <= float(sample.target[sample.valid].min()) < 1.2  # the horizon, at 70 m


def test_streets_train_and_are_scored_predicted_and_drawn(
    config: TrialConfig, streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config.model_copy(update={
        "target": config.target.model_copy(update={"kind": "unit"}), "loss": {"depth": 1.0},
        "optim": config.optim.model_copy(update={"lr": 1e-2}),
    })  # fmt: skip
    result = fit(config, tmp_path / "training")
    assert (tmp_path / "training" / "preview.png").stat().st_size > 1000
    model = load_model(result.checkpoint)
    test = open_test(config.data)
    evaluation = evaluate(model, test, ["bts", "densedepth"])
    assert set(evaluation.summary) == {"bts, to 80 m", "densedepth+mask, to 80 m"}
    assert not evaluation.resolved["bts"].comparable and "80 m" in evaluation.resolved["bts"].note
    pixels = {row["pixels"] for row in evaluation.rows if row["requested"] == "bts"}
    rows, columns = PROTOCOLS["bts"].crop_at((ROWS, COLUMNS))
    assert pixels == {int((street(0)[rows, columns] > 0).sum())}  # the 10 m of NYU would leave the horizon out
    predicted = model.predict(test.read(0).rgb)
    assert predicted.max() > 20 and evaluation.summary["bts, to 80 m"]["abs_rel"] < 1
    picture = streets / "drive_0003/0.jpg"
    assert predict.main([str(picture), "--checkpoint", str(result.checkpoint), "--out", str(tmp_path / "o")]) == 0
    stored = np.asarray(Image.open(tmp_path / "o/0_depth.png")) / 256  # millimetres would end at 65.5 m
    np.testing.assert_allclose(stored, np.load(tmp_path / "o/0_depth.npy"), atol=0.51 / 256)


@pytest.mark.parametrize(("reach_m", "key"), [(10, "depth_png_mm"), (65.535, "depth_png_mm"), (80, "depth_png_m256")])
def test_the_written_picture_holds_the_largest_depth(reach_m: float, key: str) -> None:
    assert predict.png_key(reach_m) == key


def test_a_random_guess_and_every_limit_follow(config: TrialConfig) -> None:
    guess = baselines.random_guess((40, 40), 0, FAR_M)
    assert 78 < float(guess.max()) < 80
    truth = torch.full((1, 2, 2), 60.0)
    exact = random_guess_expectation(truth, truth > 0, FAR_M)
    assert float(exact["abs_rel"]) == pytest.approx((60**2 + 20**2) / (160 * 60))
    for name, protocol in PROTOCOLS.items():
        assert protocol.reaching(10.0) == protocol, name
        assert protocol.reaching(80.0).clip_m[1] in (80.0, protocol.clip_m[1])
    scorer = Scorer([PROTOCOLS["densedepth"].reaching(FAR_M)], "filled")
    truths: dict[Truth, torch.Tensor] = {"filled": torch.full((1, ROWS, COLUMNS), 50.0)}
    scorer.add(["a"], [None], torch.full((1, ROWS, COLUMNS), 60.0), truths)
    (means,) = scorer.finish().summary.values()
    assert means["abs_rel"] == pytest.approx(0.2)  # not clipped to 10 m
