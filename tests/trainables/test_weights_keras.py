"""Keras weights to ours: outputs equal those that Keras gave, and other files are refused.

golden/keras_tiny_*.h5 were saved by Keras (keras2: 'conv1/conv/kernel:0' as in the released file, no LeakyReLU between
the convolutions of an up-block; keras3: 'conv1_conv/kernel', with one): the authors' graph at half width on a DenseNet
of one layer per block, random weights; the .npz beside each is an image and the output of model.predict.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torchvision

from trainables import weights_keras
from trainables.data.target import y_to_depth_m
from trainables.models.encoder import ENCODERS, _densenet
from trainables.training.checkpoint import read_model
from trainables.weights_keras import convert, main, module_of

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the smallest DenseNet be an encoder."""
    monkeypatch.setattr(
        torchvision.models,
        "densenet_tiny",
        lambda weights: torchvision.models.DenseNet(block_config=(1, 1, 1, 1)),
        raising=False,
    )
    monkeypatch.setitem(ENCODERS, "densenet_tiny", _densenet("densenet_tiny", 1))
    monkeypatch.setitem(weights_keras.BLOCKS, "densenet_tiny", (1, 1, 1, 1))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("name", "between"), [("keras_tiny_keras2", False), ("keras_tiny_keras3", True)])
def test_outputs_equal_those_of_keras(
    name: str, between: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(GOLDEN / f"{name}.h5"), "--out", str(tmp_path / "released"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["activation_between"] is between
    model, config = read_model(tmp_path / "released")
    assert (config.model.width, config.model.encoder) == (0.5, "densenet_tiny")
    with np.load(GOLDEN / f"{name}.npz") as golden:
        image, y = torch.from_numpy(golden["image"]), golden["y"]
    with torch.no_grad():
        ours = model(image.permute(2, 0, 1)[None].float() / 255)[0, 0].numpy()
    assert ours == pytest.approx(y, abs=1e-4)
    assert y.std() > 0.1
    assert main([str(GOLDEN / f"{name}.h5"), "--out", str(tmp_path / "released")]) == 2  # never overwritten


@pytest.mark.usefixtures("tiny")
def test_weights_of_kitti_are_not_taken_for_those_of_nyu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same file means eight times the depth; the range travels with the checkpoint."""
    path = tmp_path / "KITTI.h5"
    shutil.copy(GOLDEN / "keras_tiny_keras2.h5", path)
    assert main([str(path), "--out", str(tmp_path / "refused")]) == 2
    assert "--trained-on kitti" in capsys.readouterr().err and not (tmp_path / "refused").exists()
    depths = {}
    for data in ("kitti", "nyu"):
        assert main([str(path), "--trained-on", data, "--out", str(tmp_path / data)]) == 0
        _, config = read_model(tmp_path / data)
        y = torch.tensor([[[[1.0, 2.0, 8.0]]]])
        depths[data] = y_to_depth_m(y, config.target).flatten().tolist()
        assert config.data.reach_m == config.target.max_depth_m == {"kitti": 80, "nyu": 10}[data]
    assert depths == {"kitti": [80.0, 40.0, 10.0], "nyu": [10.0, 5.0, 1.25]}


def test_every_layer_of_the_released_encoder_has_its_module() -> None:
    names = dict(torchvision.models.densenet169(weights=None).named_modules())
    for block, layers in enumerate(weights_keras.BLOCKS["densenet169"], start=2):
        for layer in range(1, layers + 1):
            for part in weights_keras.DENSE_PARTS:
                module = module_of(f"conv{block}_block{layer}_{part}")
                assert module is not None
                assert module.removeprefix("encoder.") in names
    assert module_of("pool4_conv") == "encoder.features.transition3.conv"
    assert module_of("up1_convA") == "decoder.blocks.s16.conv_a"
    assert module_of("dense_1") is None


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        ("link", "conv2 is a link"),
        ("external", "is not a plain array"),
        ("missing", "the weight for decoder.blocks.s2.conv_a"),
        ("shape", "decoder.conv3.weight is (1, 2, 1, 1), not"),
        ("nan", "holds NaN"),
        ("integers", "is not a plain array"),
        ("other", "not a DenseDepth model (it has no layer conv3)"),
        ("blocks", "dense blocks of [1, 1, 1] layers"),
        ("unnamed", "holds no Keras model"),
        ("cut", "cannot be read as a Keras HDF5 file"),
        ("text", "cannot be read as a Keras HDF5 file"),
    ],
)
def test_other_files_are_refused(spoil: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.h5"
    shutil.copy(GOLDEN / "keras_tiny_keras2.h5", path)
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:90_000])
    elif spoil == "text":
        path.write_text("no weights")
    else:
        with h5py.File(path, "r+") as file:
            damage(file, spoil, tmp_path)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert str(path) in error
    assert not (tmp_path / "out").exists()


def damage(file: h5py.File, spoil: str, folder: Path) -> None:
    weights = file["model_weights"]
    kernel = weights["conv3/conv3/kernel:0"]
    if spoil == "link":
        shutil.copy(GOLDEN / "keras_tiny_keras2.h5", folder / "other.h5")
        del weights["conv2"]
        weights["conv2"] = h5py.ExternalLink(str(folder / "other.h5"), "/model_weights/conv2")
    elif spoil == "external":
        values = kernel[()]
        (folder / "raw.bin").write_bytes(values.tobytes())
        del weights["conv3/conv3/kernel:0"]
        external = [(str(folder / "raw.bin"), 0, values.nbytes)]
        weights.create_dataset("conv3/conv3/kernel:0", values.shape, values.dtype, external=external)
    elif spoil in ("shape", "integers", "nan"):
        values = kernel[()]
        del weights["conv3/conv3/kernel:0"]
        changed = {
            "shape": values[:1, :1],
            "integers": values.astype(np.int64),
            "nan": np.full_like(values, np.nan),
        }
        weights["conv3/conv3/kernel:0"] = changed[spoil]
    elif spoil == "unnamed":
        del weights.attrs["layer_names"]
    else:
        gone = {"missing": "up4_convA", "other": "conv3", "blocks": "conv5_block"}[spoil]
        names = [n for n in weights.attrs["layer_names"] if not str(n).startswith(gone)]
        del weights.attrs["layer_names"]
        weights.attrs["layer_names"] = names


def test_a_variance_makes_up_for_keras_larger_epsilon() -> None:
    assert torch.nn.BatchNorm2d(1).eps == weights_keras.TORCH_BATCH_NORM_EPSILON
    layers = {"bn": {"moving_variance": np.array([2.0], np.float32)}}
    ours = weights_keras.state_dict_of(layers)["encoder.features.norm5.running_var"].double()
    assert float(ours + 1e-5) == pytest.approx(2.0 + 1.001e-5, rel=1e-7)


def test_convert_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(weights_keras.UserError, match=r"nyu\.h5: no such file"):
        convert(tmp_path / "nyu.h5")
