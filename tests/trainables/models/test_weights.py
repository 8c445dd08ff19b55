"""Weights that fit arrive; those that cannot be had, read or fitted are one sentence; nothing starts from scratch."""

from __future__ import annotations

import argparse
import os
import pickle
import urllib.error
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from trainables.models import weights as module
from trainables.models.depth_model import build_model, check_model
from trainables.models.encoder import ENCODERS
from trainables.models.encoder_timm import timm_backbone
from trainables.models.weights import Network, read_weights
from trainables.runtime.errors import UserError
from trainables.settings.recipe import load_recipe

ENCODER = "resnet50"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 97790000\n"
GO_ON = r"(give a local|set model\.weights: null).*"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return torchvision.models.resnet50(weights=None).state_dict()


@pytest.fixture(scope="module")
def network() -> Network:
    with torch.device("meta"):
        return Network(ENCODERS[ENCODER], torchvision.models.resnet50(weights=None))


def settings(weights: str | None) -> Any:
    return load_recipe("densedepth", {"model.encoder": ENCODER, "model.width": 0.02, "model.weights": weights})[0].model


@pytest.mark.parametrize("form", ["pth", "safetensors", "wrapped"])
def test_local_files(state: dict[str, Tensor], tmp_path: Path, form: str) -> None:
    """As torchvision saves them, as safetensors without head and counters, and inside a training's `state_dict`."""
    path = tmp_path / f"w.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        save_file({k: v for k, v in state.items() if not k.startswith("fc.") and "num_batches" not in k}, path)
    else:
        torch.save(state if form == "pth" else {"state_dict": state, "epoch": 3}, path)
    encoder = build_model(settings(str(path)), "inverse").encoder
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())
    check_model(settings(str(path)))


def test_torchvision_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By name, through torch.hub's cache, with the older names that torchvision's DenseNet files carry."""
    with torch.device("meta"):
        dense = Network(ENCODERS["densenet121"], torchvision.models.densenet121(weights=None))
    state = {key: torch.full(value.shape, 0.25) for key, value in dense.module.state_dict().items()}
    old = {}
    for key, value in state.items():
        for part in ("norm", "relu", "conv"):
            key = (
                key.replace(f".{part}1.", f".{part}.1.").replace(f".{part}2.", f".{part}.2.")
                if "denselayer" in key
                else key
            )
        if "num_batches" not in key:
            old[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    name = Path(torchvision.models.DenseNet121_Weights.IMAGENET1K_V1.url).name
    (tmp_path / "checkpoints").mkdir()
    torch.save(old, tmp_path / "checkpoints" / name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = read_weights(dense, "IMAGENET1K_V1")
    assert found.keys() == {k for k in state if not k.startswith("classifier.") and "num_batches" not in k}


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no route to host"), TimeoutError("timed out"), RuntimeError("invalid hash value")],
)
def test_a_download_that_fails(monkeypatch: pytest.MonkeyPatch, network: Network, error: Exception) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        assert kwargs["weights_only"] is True and kwargs["check_hash"] is True
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    sentence = rf"^model\.weights: IMAGENET1K_V2 of resnet50 cannot be had from https://\S+ \(.+\); connect .* {GO_ON}"
    with pytest.raises(UserError, match=sentence):
        read_weights(network, "IMAGENET1K_V2")
    with pytest.raises(UserError, match=sentence):  # never a model from scratch instead
        build_model(settings("IMAGENET1K_V2"), "inverse")


def test_names_that_are_none(network: Network) -> None:
    for name in ("IMAGENET1K_V9", "weights.h5", ""):
        with pytest.raises(UserError, match=r"is neither a file .* torchvision knows IMAGENET1K_V1, IMAGENET"):
            read_weights(network, name)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"layer1.0.conv1.weight": None}, r"layer1\.0\.conv1\.weight is missing"),
        ({"layer9.weight": torch.zeros(1)}, r"unexpected key layer9\.weight"),
        ({"conv1.weight": torch.zeros(64, 1, 7, 7)}, r"conv1\.weight is 64 x 1 x 7 x 7 and not 64 x 3 x 7 x 7"),
        ({"bn1.weight": torch.zeros(64, dtype=torch.int64)}, r"bn1\.weight holds torch\.int64"),
    ],
)
def test_weights_that_do_not_fit(
    state: dict[str, Tensor], network: Network, tmp_path: Path, change: dict[str, Tensor | None], problem: str
) -> None:
    path = tmp_path / "w.pth"
    torch.save({k: v for k, v in (state | change).items() if v is not None}, path)
    with pytest.raises(UserError, match=rf"^model\.weights: \S+w\.pth does not fit resnet50 \({problem}.*\); {GO_ON}"):
        read_weights(network, str(path))


@pytest.fixture(scope="module")
def small() -> tuple[Network, dict[str, Tensor]]:
    """A backbone whose weights are written in no time, and weights for it."""
    torch.manual_seed(6)
    backbone = timm_backbone("timm/mobilenetv3_small_050")
    state = backbone.make().state_dict()
    with torch.device("meta"):
        return Network(backbone, backbone.make()), state


@pytest.mark.parametrize("suffix", module.FILES)
@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "encoder.", "module.encoder.", "model.module.", "_orig_mod.", "net.backbone."]
)
def test_prefixes_of_trainers(small: Any, tmp_path: Path, prefix: str, suffix: str) -> None:
    """Taken off in every kind of file; a head for other classes, or none, is not asked for."""
    network, state = small
    path = tmp_path / f"w{suffix}"
    given = {f"{prefix}{key}": value for key, value in state.items() if not key.startswith("classifier.")}
    given[f"{prefix}classifier.weight"] = torch.zeros(7, 1024)
    (save_file if suffix == ".safetensors" else torch.save)(given, path)
    found = read_weights(network, str(path))
    assert found.keys() == {key for key in state if not network.in_head(key)}
    assert all(torch.equal(value, state[key]) for key, value in found.items())


@pytest.mark.parametrize(
    "wrapping", ["state_dict", "model", "model_state_dict", "model>state_dict", "state_dict_ema", "run>nets>depth"]
)
def test_wrappings_of_trainers(small: Any, tmp_path: Path, wrapping: str) -> None:
    """As trainers save them, their arguments and optimiser beside them."""
    network, state = small
    path, given = tmp_path / "last.pth.tar", {f"module.{key}": value for key, value in state.items()}
    whole: Any = given
    for name in reversed(wrapping.split(">")):
        whole = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}, name: whole}
    torch.save(whole, path)
    assert all(torch.equal(value, state[key]) for key, value in read_weights(network, str(path)).items())


def test_of_several_networks_in_a_file_the_usual_one_is_read_or_none(small: Any, tmp_path: Path) -> None:
    """timm keeps an average beside the weights, others a teacher beside the student."""
    network, state = small
    other = {key: value + 1 for key, value in state.items()}
    path = tmp_path / "w.pth"

    def read(whole: Any) -> dict[str, Tensor]:
        torch.save(whole, path)
        return read_weights(network, str(path))

    stem = state["conv_stem.weight"]
    for whole in (
        {"state_dict_ema": other, "state_dict": state},
        {"ema_model.conv": torch.zeros(1), **{f"model.{key}": value for key, value in state.items()}},
        {f"{name}.{key}": value for name, part in (("ema", other), ("module", state)) for key, value in part.items()},
        {"epoch": 3, "best": 0.5, **state},
        {"net": state, "again": state},
    ):
        assert torch.equal(read(whole)["conv_stem.weight"], stem)
    for whole, places in (
        ({"net": state, "ema": other}, "net and ema"),
        ({f"{n}.{k}": v for n, part in (("student", state), ("teacher", other)) for k, v in part.items()},
         "student and teacher"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"holds weights that fit under {places}; save those that are meant"):
            read(whole)
    with pytest.raises(UserError, match=r"does not fit .* \(conv_stem\.weight is missing; its names are like a\.b\)"):
        read({"a.b": torch.zeros(1)})


def test_a_whole_model_and_a_folder_are_named(small: Any, tmp_path: Path) -> None:
    network, _ = small
    torch.save({"state_dict": {}, "net": torchvision.models.resnet18()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"more than tensors \(\S+: save its state_dict alone, where it was trained\);"):
        read_weights(network, str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match=r"is a folder; name a file in it \(a checkpoint's weights\.safetensors\)"):
        read_weights(network, str(tmp_path))


def test_files_in_the_place_of_weights_are_named(small: Any, tmp_path: Path) -> None:
    """A pointer that a clone without Git LFS leaves, a page that a download ends with, a program of TorchScript."""
    network, _ = small
    for suffix in (".pth", ".safetensors"):
        for content, says in ((LFS, "is a Git LFS pointer"), (b"<html>quota</html>", "is a web page")):
            (tmp_path / f"w{suffix}").write_bytes(content)
            with pytest.raises(UserError, match=rf"w{suffix} {says} and not the file itself \(.*\); {GO_ON}"):
                read_weights(network, str(tmp_path / f"w{suffix}"))
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "program.pt"))
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(UserError, match="a TorchScript program: save its"),
    ):
        read_weights(network, str(tmp_path / "program.pt"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(small: Any, tmp_path: Path, value: float) -> None:
    """As a divergence leaves them, or a conversion to 16 bits: every training from them would diverge at step 0."""
    network, state = small
    broken = {key: one.clone() for key, one in state.items()}
    broken["blocks.1.0.bn1.running_var"][3] = value
    torch.save(broken, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"blocks\.1\.0\.bn1\.running_var of \S+ holds NaN or infinity.*; {GO_ON}"):
        read_weights(network, str(tmp_path / "w.pth"))
    broken["blocks.1.0.bn1.running_var"][3] = 1.0
    broken["classifier.bias"][:] = value  # of the head, which no encoder needs
    torch.save({key: one.bfloat16() for key, one in broken.items()}, tmp_path / "w.pth")
    assert read_weights(network, str(tmp_path / "w.pth")).keys() == {key for key in state if not network.in_head(key)}
    counted = {key: one + 100_000 if key.endswith("num_batches_tracked") else one for key, one in state.items()}
    torch.save({key: one.half() for key, one in counted.items()}, tmp_path / "w.pth")  # counts become infinite
    assert read_weights(network, str(tmp_path / "w.pth"))


def test_what_a_profiler_left_in_a_model_is_not_asked_for(small: Any, tmp_path: Path) -> None:
    """thop registers buffers in every module, which are saved with it."""
    network, state = small
    counters = {f"{place}total_{what}": torch.zeros(1) for place in ("", "blocks.1.0.") for what in ("ops", "params")}
    torch.save({"model": state | counters}, tmp_path / "w.pth")
    found = read_weights(network, str(tmp_path / "w.pth"))
    assert all(torch.equal(value, state[key]) for key, value in found.items())


def test_checkpoints_of_ours(tmp_path: Path) -> None:
    """The encoder of a model with another decoder; where only a part of it is there, the first key is named."""
    settings = {"model.encoder": "timm/mobilenetv3_small_050", "model.weights": None, "model.width": 0.05}
    wide = load_recipe("densedepth", settings | {"model.width": 0.1})[0].model
    torch.manual_seed(1)
    state = build_model(wide, "inverse").state_dict()
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    config = load_recipe("densedepth", settings | {"model.weights": str(path)})[0].model
    check_model(config)
    model = build_model(config, "inverse")
    assert all(torch.equal(value, state[f"encoder.{key}"]) for key, value in model.encoder.state_dict().items())
    state["encoder.blocks.1.0.conv_pw.weight"] = torch.zeros(3, 8, 1, 1)
    save_file(state, path)
    problem = r"blocks\.1\.0\.conv_pw\.weight is 3 x 8 x 1 x 1 and not 40 x 8 x 1 x 1"
    with pytest.raises(
        UserError, match=rf"weights\.safetensors does not fit timm/mobilenetv3_small_050 \({problem}\);"
    ):
        build_model(config, "inverse")
    del state["encoder.conv_stem.weight"]
    save_file(state, path)
    with pytest.raises(UserError, match=r"does not fit timm/mobilenetv3_small_050 \(conv_stem\.weight is missing\);"):
        build_model(config, "inverse")


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


def test_files_that_are_not_weights(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, empty, a folder, text, a pickle that runs code, something else than tensors."""
    monkeypatch.chdir(tmp_path)
    for name, content in {"empty": b"", "text": b"404: not found", "attack": pickle.dumps({"a": Attack()})}.items():
        for suffix in (".pth", ".safetensors"):
            (tmp_path / f"{name}{suffix}").write_bytes(content)
            with pytest.raises(
                UserError, match=rf"model\.weights: \S+{name}.* is damaged or holds more than tensors; {GO_ON}"
            ):
                read_weights(network, str(tmp_path / f"{name}{suffix}"))
    torch.save({"attack": Attack()}, tmp_path / "zip.pth")
    with pytest.raises(UserError, match="is damaged or holds more than tensors"):
        read_weights(network, str(tmp_path / "zip.pth"))
    assert not (tmp_path / "pwned").exists()
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no mapping of names to tensors"):
        read_weights(network, str(tmp_path / "list.pth"))
    (tmp_path / "folder.pth").mkdir()
    for name in ("folder.pth", "absent.pth", "absent.safetensors"):
        with pytest.raises(UserError, match=rf"model\.weights: \S*{name} cannot be read \(.+\); {GO_ON}"):
            read_weights(network, str(tmp_path / name))


def test_damaged_files(network: Network, tmp_path: Path) -> None:
    """Cut anywhere, or with bytes overwritten: a sentence or, where the damage hits numbers alone, weights."""
    rng = np.random.default_rng(11)
    small = {f"layer{i}.weight": torch.randn(3, 4) for i in range(4)}
    torch.save(small, tmp_path / "good.pth")
    save_file(small, tmp_path / "good.safetensors")
    torch.save(small, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    refused = 0
    for good in sorted(tmp_path.glob("*.*")):
        whole = good.read_bytes()
        for trial in range(60):
            cut = int(rng.integers(len(whole)))
            damaged = bytearray(whole[:cut] if trial % 2 else whole)
            for at in rng.integers(0, max(len(damaged), 1), 8) if len(damaged) and not trial % 2 else ():
                damaged[at] ^= int(rng.integers(1, 256))
            path = tmp_path / f"bad{good.suffix}"
            path.write_bytes(bytes(damaged))
            with pytest.raises(UserError, match=r"^model\.weights: "):
                read_weights(network, str(path))
            refused += 1
    assert refused == 180


def test_the_silent_server_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    import socket

    seen = []

    def look(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        seen.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", look)
    with pytest.raises(UserError, match="timed out"):
        read_weights(network, "IMAGENET1K_V1")
    assert seen == [module.DOWNLOAD_TIMEOUT_S] and socket.getdefaulttimeout() is None
