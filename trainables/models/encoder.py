"""Encoders: backbones that are tapped by node, from torchvision, here, and timm (encoder_timm).

`Encoder` is all that the model and its decoder know of one. What no tap needs (the classifier, layers after the
bottleneck) is not part of it.

Source of torchvision's: paper Table 5 and ialhashim/DenseDepth@2e15107 model.py for DenseNet; the nodes are
torchvision's own names. A residual network halves inside a block, so its first block of a stage stands for "after the
pooling". Adding one of torchvision's is an entry of ENCODERS.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import get_graph_node_names

from trainables.models.backbone import BOTTLENECK, INPUT, STRIDE, Backbone, Halving, Training
from trainables.models.weights import (
    DOWNLOAD_TIMEOUT_S,
    GO_ON,
    NO_WEIGHTS,
    UNREADABLE,
    Network,
    fill,
    is_file,
    read_weights,
    training_of,
)
from trainables.runtime.errors import UserError
from trainables.settings.config import SCALES, ModelConfig
from trainables.settings.yamlfile import nearest

IMAGENET = Training(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_CHANNELS: dict[tuple[Any, ...], dict[str, int]] = {}  # (encoder, *taps) -> as measured; a search builds many alike


@dataclass(frozen=True)
class Encoder:
    """A module from an image to {scale: map}, with the channels and the tapped node of each; s1 is in `taps` alone.

    `rectified`: the decoder sees the bottleneck's positive part. `first_halving`: how an odd side of the image is
    halved.
    """

    features: nn.Module
    channels: Mapping[str, int]
    taps: Mapping[str, str]
    rectified: bool
    first_halving: Halving


def build_encoder(config: ModelConfig, *, pretrained: bool = True) -> Encoder:
    """The tapped encoder, with its weights (random ones if not `pretrained`) and frozen parts.

    Raises UserError for a tap that the encoder lacks, weights that cannot be had or do not fit, and a frozen prefix
    that names nothing.
    """
    backbone, taps = _backbone(str(config.encoder)), resolve_taps(config)
    network = _network(backbone, config.weights)
    _check_frozen(network, config.frozen)
    if config.weights is not None and pretrained:
        fill(network, read_weights(network, config.weights))
    features = _tapped(network, {node: scale for scale, node in taps.items() if node != INPUT})
    for name, parameter in features.named_parameters():
        parameter.requires_grad_(not any(_within(name, prefix) for prefix in config.frozen))
    key = backbone.name, *taps.items()
    if key not in _CHANNELS:
        _CHANNELS[key] = tap_channels(features)
    return Encoder(features, _CHANNELS[key], taps, backbone.rectified, backbone.first_halving)


def check_encoder(config: ModelConfig) -> None:
    """Raise UserError for what `build_encoder` would refuse, without random initialisation or tracing."""
    resolve_taps(config)
    input_statistics(config)
    _check_network(str(config.encoder), config.frozen, config.weights)


def resolve_taps(config: ModelConfig) -> dict[str, str]:
    """Scale -> node of each skip that is used, and of the bottleneck. Raises UserError for one the encoder lacks."""
    backbone = _backbone(str(config.encoder))
    taps = {}
    for scale in SCALES:
        kind = getattr(config.skips, scale)
        if kind == "none" or scale in backbone.scales_left_out:
            continue
        nodes = {"post_pool": backbone.post_pool, "pre_pool": backbone.pre_pool}
        if scale not in nodes[kind]:
            there = [other for other in nodes if scale in nodes[other]]
            raise UserError(
                f"model.skips.{scale}: {backbone.name} has no {kind} tap there (only at {', '.join(nodes[kind])}); "
                f"set it to {' or '.join([*there, 'none'])}"
            )
        taps[scale] = nodes[kind][scale]
    if config.bottleneck not in backbone.bottleneck:
        raise UserError(
            f"model.bottleneck: {backbone.name} has no {config.bottleneck}; "
            f"set it to {' or '.join(backbone.bottleneck)}"
        )
    return taps | {BOTTLENECK: backbone.bottleneck[config.bottleneck]}


def input_statistics(config: ModelConfig) -> Training | None:
    """Mean and std that images are normalised by, None for no normalisation; known without reading any weights.

    Raises UserError for of_weights where no weights say theirs.
    """
    if config.input_normalisation != "of_weights":
        return IMAGENET if config.input_normalisation == "imagenet" else None
    if config.weights is None or config.encoder is None:
        raise UserError("model.input_normalisation: of_weights needs weights; set it to imagenet or none")
    if is_file(config.weights):
        raise UserError(
            f"model.input_normalisation: {config.weights} does not say its mean and std, which of_weights needs; "
            "set it to what the file was trained with: imagenet or none"
        )
    return training_of(_backbone(config.encoder), config.weights)


def tap_channels(features: nn.Module) -> dict[str, int]:
    """Channels of each tap, measured by a run without memory or arithmetic (the meta device)."""
    mode = features.training
    state = {name: p.detach().to("meta") for name, p in (*features.named_parameters(), *features.named_buffers())}
    image = torch.empty(1, 3, 2 * STRIDE, 2 * STRIDE, device="meta")
    with torch.no_grad():
        maps: dict[str, Tensor] = torch.func.functional_call(features.eval(), state, (image,))
    features.train(mode)
    return {scale: value.shape[1] for scale, value in maps.items()}


def last_block_channels(name: str) -> int:
    """Channels of the whole last block, as the classifier takes them: `last_layer_input` lacks the last layer's."""
    backbone = _backbone(name)
    with torch.device("meta"):
        module = backbone.make()
    return int(module.get_submodule(backbone.head[0]).in_features)  # type: ignore[arg-type]


def first_halving(name: str) -> Halving:
    """How an encoder halves an odd side of the image."""
    return _backbone(name).first_halving


def halved(side: int, halving: Halving) -> int:
    """Rows or columns at s2 of an image of that many."""
    return (side + 1) // 2 if halving == "ceil" else side // 2


def _backbone(name: str) -> Backbone:
    if name.startswith("timm/"):
        from trainables.models.encoder_timm import timm_backbone  # takes more than a second, which others need not wait

        return timm_backbone(name)
    if name not in ENCODERS:
        raise UserError(
            f"model.encoder: no {name}{nearest(name, ENCODERS)}; the encoders are {', '.join(ENCODERS)}, "
            "and timm/NAME for any of timm's"
        )
    return ENCODERS[name]


def _network(backbone: Backbone, weights: str | None) -> Network:
    """The classifier, randomly initialised, with the BatchNorm that the weights were trained with."""
    module = backbone.make()
    training = training_of(backbone, weights)
    if training is not None and training.bn_eps is not None:
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eps = training.bn_eps
    return Network(backbone, module)


@functools.cache  # a search's settings differ in their taps, hardly in these
def _check_network(name: str, frozen: tuple[str, ...], weights: str | None) -> None:
    with torch.device("meta"):
        network = _network(_backbone(name), weights)
    _check_frozen(network, frozen)
    if weights is not None:
        read_weights(network, weights)


def _tapped(network: Network, scales: Mapping[str, str]) -> fx.GraphModule:
    """The network up to its tapped nodes, {node: scale}; a module's name stands for its last node."""
    whole, names = network.backbone.trace()
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.graph_copy(whole, copies)
    found = {
        scale: copies[node]
        for node, name in names.items()
        for tap, scale in scales.items()
        if f"{name}.".startswith(f"{tap}.")
    }
    graph.output(found)
    tapped = fx.GraphModule(network.module, graph)
    tapped.graph.eliminate_dead_code()
    return fx.GraphModule(tapped, tapped.graph)  # of what is left: the classifier is not part of it


def _check_frozen(network: Network, prefixes: tuple[str, ...]) -> None:
    names = [name for name, _ in network.module.named_parameters() if not network.in_head(name)]
    for prefix in prefixes:
        if not any(_within(name, prefix) for name in names):
            modules = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
            raise UserError(
                f"model.frozen: the encoder has no {prefix}{nearest(prefix, modules)}; "
                f"it has {', '.join(modules)}, and * means all"
            )


def _within(name: str, prefix: str) -> bool:
    """Whether a parameter belongs to the module of that name; * is the whole encoder."""
    return prefix == "*" or f"{name}.".startswith(f"{prefix}.")


@dataclass(frozen=True)
class TorchvisionBackbone(Backbone):
    """A classifier of torchvision. The decoder sees what its classifier sees: the bottleneck behind a ReLU."""

    scales_left_out: tuple[str, ...] = ()
    rectified: bool = True

    def make(self) -> nn.Module:
        module: nn.Module = getattr(torchvision.models, self.name)(weights=None)
        return module

    def trace(self) -> tuple[fx.Graph, Mapping[fx.Node, str]]:
        return _traced(self.name)

    def published(self, weights: str) -> dict[str, Tensor]:
        entry = self._entry(weights)
        before = socket.getdefaulttimeout()
        # torch.hub asks without one, and a silent server would hang the study.
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
        try:
            state: dict[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, *UNREADABLE) as error:
            reason = str(getattr(error, "reason", None) or error).splitlines()[0]
            raise UserError(
                f"model.weights: {weights} of {self.name} cannot be had from {entry.url} ({reason}); "
                f"connect to the internet once, {GO_ON}"
            ) from error
        finally:
            socket.setdefaulttimeout(before)
        return state

    def training_of(self, weights: str) -> Training:
        preset = self._entry(weights).transforms()
        return Training(tuple(preset.mean), tuple(preset.std))

    def _entry(self, weights: str) -> Any:
        names = torchvision.models.get_model_weights(self.name)
        if weights not in names.__members__:
            raise UserError(
                f"model.weights: {weights} is {NO_WEIGHTS} of {self.name}{nearest(weights, names.__members__)}; "
                f"torchvision knows {', '.join(names.__members__)}, and null starts from random weights"
            )
        return names[weights]


def _densenet(name: str, last_layer: int) -> TorchvisionBackbone:
    transitions = {
        "s8": "features.transition1.pool",
        "s16": "features.transition2.pool",
        "s32": "features.transition3.pool",
    }
    blocks = {"s4": "features.denseblock1.cat", "s8": "features.denseblock2.cat", "s16": "features.denseblock3.cat"}
    return TorchvisionBackbone(
        name,
        post_pool={"s1": INPUT, "s2": "features.relu0", "s4": "features.pool0", **transitions},
        pre_pool={"s2": "features.conv0", **blocks},
        bottleneck={
            "norm": "features.norm5",
            "last_layer_input": f"features.denseblock4.denselayer{last_layer}.cat",
        },
        head=("classifier",),
        first_halving="ceil",
    )


_BACKBONES = (
    _densenet("densenet121", 16),
    _densenet("densenet161", 24),
    _densenet("densenet169", 32),
    _densenet("densenet201", 32),
    TorchvisionBackbone(
        "resnet50",
        post_pool={"s1": INPUT, "s2": "relu", "s4": "maxpool", "s8": "layer2.0.relu_2", "s16": "layer3.0.relu_2"},
        pre_pool={"s2": "conv1", "s4": "layer1.2.relu_2", "s8": "layer2.3.relu_2", "s16": "layer3.5.relu_2"},
        bottleneck={"norm": "layer4.2.relu_2"},
        head=("fc",),
        first_halving="ceil",
    ),
    TorchvisionBackbone(
        "vgg16",
        post_pool={"s1": INPUT, "s2": "features.4", "s4": "features.9", "s8": "features.16", "s16": "features.23"},
        pre_pool={
            "s1": "features.3",
            "s2": "features.8",
            "s4": "features.15",
            "s8": "features.22",
            "s16": "features.29",
        },
        bottleneck={"norm": "features.30"},
        head=("classifier",),
        first_halving="floor",
    ),
)
ENCODERS: dict[str, TorchvisionBackbone] = {backbone.name: backbone for backbone in _BACKBONES}


@functools.cache
def _traced(name: str) -> tuple[fx.Graph, dict[fx.Node, str]]:
    """A network's graph and its nodes' names as torchvision gives them, without memory or arithmetic.

    One for both modes, which are the same for these networks. torchvision's public functions give names without a graph
    or a module without names, so the graph is traced beside them: the same nodes in the same order, its output unnamed.
    """
    with torch.device("meta"):
        module = ENCODERS[name].make().eval()
    graph, (_, names) = fx.Tracer().trace(module), get_graph_node_names(module)
    return graph, dict(zip(graph.nodes, names, strict=False))
