"""The models as values: counts, taps, shapes at any size, what is refused, and what the published port computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.models.depth_model import DepthModel, build_model, check_model, output_size, parameter_counts
from trainables.models.encoder import ENCODERS, build_encoder
from trainables.runtime.device import chain_concatenations
from trainables.runtime.errors import UserError
from trainables.settings.config import SCALES, ModelConfig
from trainables.settings.recipe import load_recipe

NO_SKIPS = dict.fromkeys(SCALES, "none")
UNET = {
    "model.family": "unet",
    "model.encoder": None,
    "model.unet_channels": 4,
    "model.unet_levels": 3,
    "model.skips": NO_SKIPS | {"s1": "pre_pool", "s2": "pre_pool", "s4": "pre_pool"},
}
SMALL = {"model.encoder": "resnet50", "model.width": 0.02}  # the fastest to build


def settings(**overrides: Any) -> ModelConfig:
    return load_recipe("densedepth", {"model.weights": None} | overrides)[0].model


def on_meta(config: ModelConfig) -> DepthModel:
    with torch.device("meta"):
        return build_model(config, "inverse")


def small(**overrides: Any) -> DepthModel:
    torch.manual_seed(0)
    return build_model(settings(**SMALL | overrides), "inverse")


@pytest.mark.parametrize(
    ("overrides", "encoder", "total"),
    [
        ({}, 12_484_480, 42_657_689),
        ({"model.width": 0.5}, 12_484_480, 21_365_405),
        # milesial/Pytorch-UNet's widely known count for the classic U-Net
        (
            UNET
            | {
                "model.unet_channels": 64,
                "model.unet_levels": 4,
                "model.upsampling": "transposed",
                "model.skips": NO_SKIPS | dict.fromkeys(("s1", "s2", "s4", "s8"), "pre_pool"),
            },
            18_847_168,
            31_037_633,
        ),
    ],
)
def test_parameter_counts(overrides: dict[str, Any], encoder: int, total: int) -> None:
    expected = {"total": total, "trainable": total, "encoder": encoder, "decoder": total - encoder}
    assert parameter_counts(on_meta(settings(**overrides))) == expected


def test_taps_of_densenet169() -> None:
    """FACTS.md section 1's table, and the sizes that the scales promise."""
    expected = {
        ("s2", "post_pool"): ("features.relu0", 64),
        ("s2", "pre_pool"): ("features.conv0", 64),
        ("s4", "post_pool"): ("features.pool0", 64),
        ("s4", "pre_pool"): ("features.denseblock1.cat", 256),
        ("s8", "post_pool"): ("features.transition1.pool", 128),
        ("s8", "pre_pool"): ("features.denseblock2.cat", 512),
        ("s16", "post_pool"): ("features.transition2.pool", 256),
        ("s16", "pre_pool"): ("features.denseblock3.cat", 1280),
        ("s32", "post_pool"): ("features.transition3.pool", 640),
    }
    for kind in ("post_pool", "pre_pool"):
        scales = {scale: kind for scale, k in expected if k == kind}
        with torch.device("meta"):
            encoder = build_encoder(settings(**{"model.skips": NO_SKIPS | scales}))
        taps, channels = encoder.taps, encoder.channels
        found = {(s, kind): (node, channels[s]) for s, node in taps.items() if s != "bottleneck"}
        assert found == {key: value for key, value in expected.items() if key[1] == kind}
        assert (taps["bottleneck"], channels["bottleneck"]) == ("features.norm5", 1664)
        maps = encoder.features(torch.empty(1, 3, 96, 160, device="meta"))
        assert {s: 96 // m.shape[-2] for s, m in maps.items()} == {s: int(s[1:]) for s in scales} | {"bottleneck": 32}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("densenet121", ["post_pool", "pre_pool"]),
        pytest.param("densenet161", ["pre_pool"], marks=pytest.mark.slow),
        pytest.param("densenet201", ["pre_pool"], marks=pytest.mark.slow),
        ("resnet50", ["post_pool", "pre_pool"]),
        ("vgg16", ["post_pool", "pre_pool"]),
    ],
)
def test_every_tap_of_every_encoder(name: str, kinds: list[str]) -> None:
    """Each has its scale's size, at sides that are no multiple of 32, and the answer has the size that was promised."""
    for kind in kinds:
        scales = dict.fromkeys(getattr(ENCODERS[name], kind), kind)
        config = settings(**{"model.encoder": name, "model.width": 0.1, "model.skips": NO_SKIPS | scales})
        model = on_meta(config)
        y = model(torch.empty(2, 3, 97, 131, device="meta"))
        assert (y.shape[-2], y.shape[-1]) == output_size(config, (97, 131))
        maps = model.encoder(torch.empty(1, 3, 128, 192, device="meta"))
        for scale in maps.keys() - {"bottleneck"}:
            assert tuple(maps[scale].shape[-2:]) == (128 // int(scale[1:]), 192 // int(scale[1:]))


@pytest.mark.parametrize("match", ["interpolate", "pad_top"])
@pytest.mark.parametrize("upsampling", ["bilinear", "transposed"])
@pytest.mark.parametrize("family", ["densedepth", "dispnet", "unet"])
def test_any_size(family: str, upsampling: str, match: str) -> None:
    """Odd sides, with and without skips, trained for a step: an answer of the promised size, a gradient everywhere."""
    shape = {"model.family": family, "model.upsampling": upsampling, "model.match": match}
    base = UNET if family == "unet" else SMALL
    skips = {"model.skips": NO_SKIPS} if match == "interpolate" else {}
    config = settings(**base | shape | skips | {"model.activation_between": True})
    model = build_model(config, "inverse")
    for size in ((37, 51), (64, 33)):
        y = model(torch.rand(2, 3, *size))
        assert tuple(y.shape) == (2, 1, *output_size(config, size)) and y.dtype == torch.float32
    y.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_agrees_with_the_published_port() -> None:
    """ialhashim/DenseDepth@2e15107 PyTorch/model.py, restated with our weights: the same numbers."""
    model = small(**{"model.align_corners": True, "model.encoder": "densenet121"}).eval()
    original = torchvision.models.densenet121(weights=None)
    original.load_state_dict(model.encoder.state_dict(), strict=False)
    for module in original.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that differ from their initial values
            module.running_mean.uniform_(-0.1, 0.1), module.running_var.uniform_(0.5, 1.5)
    model.encoder.load_state_dict(original.state_dict(), strict=False)
    original.eval()
    image, d = torch.rand(1, 3, 64, 96), model.decoder
    with torch.no_grad():
        features = [image]
        for layer in original.features:
            features.append(layer(features[-1]))
        x = d.conv2(F.relu(features[12]))
        for block, skip in zip(d.blocks.values(), (features[8], features[6], features[4], features[3]), strict=True):
            up = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=True)
            x = F.leaky_relu(block.conv_b(block.conv_a(torch.cat([up, skip], dim=1))), 0.2)
        torch.testing.assert_close(model(image), d.conv3(x))


def test_settings_change_the_answer_as_they_say() -> None:
    """Half-pixel centres, an activation between the convolutions, normalisation, pooling: each by its definition."""
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        plain = small().eval()
        for key, value in (("align_corners", True), ("activation_between", True), ("match", "pad_top")):
            other = small(**{f"model.{key}": value}).eval()
            same = torch.allclose(plain(image), other(image))
            assert same == (key == "match")  # at multiples of 32 there is nothing to match
        normalised = small(**{"model.input_normalisation": "imagenet"}).eval()
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        by_hand = (image - mean[:, None, None]) / std[:, None, None]
        torch.testing.assert_close(normalised(image), plain(by_hand))
        pooled = small(**{"model.input_pool": 2}).eval()
        blocks = image.unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))
        torch.testing.assert_close(pooled(image), plain(blocks))


def test_padding_goes_on_top() -> None:
    """Sixty-four columns of 48 rows: 3 -> 6, 12, 24; of 40 rows: 2 -> 4 -> 5 (one zero row on top), 10, 20."""
    up = small(**{"model.match": "pad_top"}).decoder.blocks["s16"].up
    x = torch.ones(1, 1, 2, 3)
    padded = up(x, (5, 7))
    assert (padded[..., 0, :] == 0).all() and (padded[..., 0] == 0).all() and (padded[..., 1:, 1:] == 1).all()


def test_input_as_a_skip_gives_the_input_size() -> None:
    model = small(**{"model.skips.s1": "post_pool"})
    assert model.taps["s1"] == "x" and list(model.decoder.blocks) == ["s16", "s8", "s4", "s2", "s1"]
    assert model(torch.rand(2, 3, 70, 64)).shape == (2, 1, 70, 64)


def test_last_layer_input_is_projected_to_the_whole() -> None:
    model = on_meta(settings(**{"model.bottleneck": "last_layer_input"}))
    assert model.taps["bottleneck"] == "features.denseblock4.denselayer32.cat"
    assert isinstance(model.project, nn.Conv2d)
    assert (model.project.in_channels, model.project.out_channels) == (1632, 1664)
    assert not [n for n, _ in model.named_parameters() if "denselayer32.conv" in n and "denseblock4" in n]


@pytest.mark.parametrize(
    ("frozen", "free"),
    [((), "conv1.weight"), (("conv1", "layer1.1"), "layer1.2.conv1.weight"), (("*",), None)],
)
def test_frozen_prefixes(frozen: tuple[str, ...], free: str | None) -> None:
    model = small(**{"model.frozen": list(frozen)})
    flags = {name: p.requires_grad for name, p in model.encoder.named_parameters()}
    expected = {n: not any(f == "*" or n.startswith(f"{f}.") for f in frozen) for n in flags}
    assert flags == expected and (free is None or flags[free])
    trainable = sum(p.numel() for n, p in model.encoder.named_parameters() if expected[n])
    assert parameter_counts(model)["trainable"] == trainable + parameter_counts(model)["decoder"]
    assert all(p.requires_grad for p in model.decoder.parameters())


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_batch_norm_statistics(batch_norm: str) -> None:
    """Frozen statistics do not move, and are those used: one image's answer does not depend on the others."""
    model = small(**{"model.batch_norm": batch_norm})
    before = copy.deepcopy(model.encoder.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        together = model.train()(images)[0]
    moved = [key for key, value in model.encoder.state_dict().items() if not torch.equal(value, before[key])]
    assert bool(moved) == (batch_norm == "train") and all("running" in key or "tracked" in key for key in moved)
    if batch_norm == "frozen":
        with torch.no_grad():
            torch.testing.assert_close(model(images[:1])[0], together, rtol=1e-4, atol=1e-5)
        assert model.training and not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_answer_is_not_rounded_under_autocast() -> None:
    """bfloat16 has 8 significant bits: the last layer runs outside it, and most answers need more."""
    model = small().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = model(torch.rand(1, 3, 64, 64))
    assert y.dtype == torch.float32 and (y != y.bfloat16().float()).float().mean() > 0.9


@pytest.mark.parametrize(
    "overrides", [UNET, pytest.param(SMALL | {"model.input_normalisation": "imagenet"}, marks=pytest.mark.slow)]
)
def test_compiles_into_one_graph(overrides: dict[str, Any]) -> None:
    model = build_model(settings(**overrides), "inverse").eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(image), model(image))


def test_channels_last_and_copies_change_nothing() -> None:
    model = small().eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        y = model(image)
        other = small(**{"model.frozen": ["*"]}).eval()
        other.load_state_dict(model.state_dict())
        other = copy.deepcopy(other).to(memory_format=torch.channels_last)
        torch.testing.assert_close(other(image.to(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"model.encoder": "densenet99"},
            r"model\.encoder: no densenet99 \(did you mean densenet\d+\?\); the encoders are",
        ),
        ({"model.skips.s32": "pre_pool"}, r"model\.skips\.s32: densenet169 has no pre_pool tap there \(only at s2, "),
        ({"model.skips.s1": "pre_pool"}, r"model\.skips\.s1: densenet169 has no pre_pool tap there"),
        (
            {"model.encoder": "resnet50", "model.skips.s32": "post_pool"},
            r"model\.skips\.s32: resnet50 has no post_pool",
        ),
        (
            {"model.encoder": "vgg16", "model.bottleneck": "last_layer_input"},
            r"model\.bottleneck: vgg16 has no last_layer",
        ),
        (SMALL | {"model.frozen": ["layer5"]}, r"model\.frozen: the encoder has no layer5 \(did you mean layer\d"),
        (UNET | {"model.skips.s8": "pre_pool"}, r"model\.skips\.s8: a U-Net of 3 levels has no pre_pool tap there"),
        (UNET | {"model.skips.s2": "post_pool"}, r"model\.skips\.s2: a U-Net of 3 levels has no post_pool tap there"),
        (UNET | {"model.weights": "IMAGENET1K_V1"}, r"model\.weights: IMAGENET1K_V1 needs a pretrained encoder"),
        (UNET | {"model.frozen": ["*"]}, r"model\.frozen: \['\*'\] needs a pretrained encoder"),
        (UNET | {"model.batch_norm": "frozen"}, r"model\.batch_norm: frozen needs .* set it to train"),
    ],
)
def test_refusals(overrides: dict[str, Any], message: str) -> None:
    """By the check before a study, and by the model itself."""
    config = settings(**overrides)
    with pytest.raises(UserError, match=message):
        check_model(config)
    with pytest.raises(UserError, match=message):
        on_meta(config)


def test_images_that_are_too_small() -> None:
    with pytest.raises(UserError, match=r"input: 100 x 128, pooled to 25 x 32, is too small .* at least 128 on both"):
        output_size(settings(**{"model.input_pool": 4}), (100, 128))
    model = small()
    with pytest.raises(UserError, match="input: 31 x 64 is too small"):
        model(torch.rand(2, 3, 31, 64))
    with pytest.raises(UserError, match="batch_size: one image of 32 x 48 has a single bottleneck pixel"):
        model(torch.rand(1, 3, 32, 48))
    assert model.eval()(torch.rand(1, 3, 32, 48)).shape == (1, 1, 16, 24)


def test_dispnet_feeds_each_prediction_on() -> None:
    """The coarsest prediction reaches the answer through every scale, and nothing else joins them."""
    config = settings(**{"model.family": "dispnet", "model.encoder": "vgg16", "model.width": 0.02})
    decoder = build_model(config, "inverse").eval().decoder
    joined = {s: b.iconv.in_channels - b.iconv.out_channels for s, b in decoder.blocks.items()}
    assert joined == {"s16": 512 + 1, "s8": 256 + 1, "s4": 128 + 1, "s2": 64 + 1}
    skips = {
        s: torch.rand(1, c, 64 // int(s[1:]), 64 // int(s[1:]))
        for s, c in (("s16", 512), ("s8", 256), ("s4", 128), ("s2", 64))
    }
    x = torch.rand(1, 512, 2, 2)

    def answer() -> Tensor:
        with torch.no_grad():
            return decoder(x, skips, (32, 32))

    before = answer()
    with torch.no_grad():
        decoder.predict.bias.add_(5.0)
    assert not torch.equal(answer(), before)


def test_chained_concatenations_change_nothing_but_rounding() -> None:
    """DenseNet-121's forward pass to the bit, its gradients to rounding, in half as many layers' concatenations."""
    small = {"model.weights": None, "model.encoder": "densenet121", "model.width": 0.25}
    (settings,) = load_recipe("densedepth", small)
    results = []
    for chained in (False, True):
        torch.manual_seed(0)
        model = build_model(settings.model, "inverse")
        if chained:
            assert chain_concatenations(model) == 6 + 12 + 24 + 16
        y = model(torch.rand(2, 3, 64, 96))
        y.square().mean().backward()
        results.append((y.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (plain, plain_gradient), (chained_y, gradient) = results
    assert torch.equal(plain, chained_y)
    assert torch.linalg.vector_norm(plain_gradient - gradient) < 1e-4 * torch.linalg.vector_norm(plain_gradient)
