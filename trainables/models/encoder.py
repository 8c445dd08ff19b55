"""Encoders: torchvision backbones, tapped by node.

Source: paper Table 5 and ialhashim/DenseDepth@2e15107 model.py for DenseNet; the nodes are torchvision's own names.
`post_pool` is the feature map right after a scale was reached (the paper's skips), `pre_pool` the last one before the
next halving. A residual network halves inside a block, so its first block of a stage stands for "after the pooling".
Adding an encoder is one entry of ENCODERS.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from trainables.config import SCALES, ModelConfig
from trainables.errors import UserError
from trainables.models.weights import Network, fill, read_weights
from trainables.yamlfile import nearest

INPUT = "x"  # the graph's input, the tap of s1
BOTTLENECK = "bottleneck"
STRIDE = 32  # of every encoder's bottleneck


@dataclass(frozen=True)
class Backbone:
    """Nodes per scale and tap, bottleneck nodes, the classifier's module, and how a first odd side is halved."""

    post_pool: Mapping[str, str]
    pre_pool: Mapping[str, str]
    bottleneck: Mapping[str, str]
    head: str
    first_halving: Literal["ceil", "floor"]


def _densenet(last_layer: int) -> Backbone:
    transitions = {
        "s8": "features.transition1.pool",
        "s16": "features.transition2.pool",
        "s32": "features.transition3.pool",
    }
    blocks = {"s4": "features.denseblock1.cat", "s8": "features.denseblock2.cat", "s16": "features.denseblock3.cat"}
    return Backbone(
        post_pool={"s1": INPUT, "s2": "features.relu0", "s4": "features.pool0", **transitions},
        pre_pool={"s2": "features.conv0", **blocks},
        bottleneck={
            "norm": "features.norm5",
            "last_layer_input": f"features.denseblock4.denselayer{last_layer}.cat",
        },
        head="classifier",
        first_halving="ceil",
    )


ENCODERS: dict[str, Backbone] = {
    "densenet121": _densenet(16),
    "densenet161": _densenet(24),
    "densenet169": _densenet(32),
    "densenet201": _densenet(32),
    "resnet50": Backbone(
        post_pool={"s1": INPUT, "s2": "relu", "s4": "maxpool", "s8": "layer2.0.relu_2", "s16": "layer3.0.relu_2"},
        pre_pool={"s2": "conv1", "s4": "layer1.2.relu_2", "s8": "layer2.3.relu_2", "s16": "layer3.5.relu_2"},
        bottleneck={"norm": "layer4.2.relu_2"},
        head="fc",
        first_halving="ceil",
    ),
    "vgg16": Backbone(
        post_pool={"s1": INPUT, "s2": "features.4", "s4": "features.9", "s8": "features.16", "s16": "features.23"},
        pre_pool={
            "s1": "features.3",
            "s2": "features.8",
            "s4": "features.15",
            "s8": "features.22",
            "s16": "features.29",
        },
        bottleneck={"norm": "features.30"},
        head="classifier",
        first_halving="floor",
    ),
}


def resolve_taps(config: ModelConfig) -> dict[str, str]:
    """Scale -> node of each skip that is used, and of the bottleneck. Raises UserError for one the encoder lacks."""
    name = str(config.encoder)
    backbone = _backbone(name)
    taps = {}
    for scale in SCALES:
        kind = getattr(config.skips, scale)
        if kind == "none":
            continue
        nodes = backbone.post_pool if kind == "post_pool" else backbone.pre_pool
        if scale not in nodes:
            raise UserError(
                f"model.skips.{scale}: {name} has no {kind} tap there (only at {', '.join(nodes)}); "
                "choose another tap or none"
            )
        taps[scale] = nodes[scale]
    if config.bottleneck not in backbone.bottleneck:
        raise UserError(
            f"model.bottleneck: {name} has no {config.bottleneck}; set it to {' or '.join(backbone.bottleneck)}"
        )
    return taps | {BOTTLENECK: backbone.bottleneck[config.bottleneck]}


def build_encoder(config: ModelConfig) -> tuple[nn.Module, dict[str, str]]:
    """The tapped encoder, with its weights and frozen parts, and its taps. It returns {scale: map} for an image.

    What no tap needs (the classifier, layers after the bottleneck) is not part of it. Raises UserError for a tap that
    the encoder lacks, weights that cannot be had or do not fit, and a frozen prefix that names nothing.
    """
    taps = resolve_taps(config)
    network = _network(str(config.encoder))
    _check_frozen(network, config.frozen)
    if config.weights is not None:
        fill(network, read_weights(network, config.weights))
    encoder = _tapped(network, {node: scale for scale, node in taps.items() if node != INPUT})
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(not any(_within(name, prefix) for prefix in config.frozen))
    return encoder, taps


def _tapped(network: Network, scales: Mapping[str, str]) -> fx.GraphModule:
    """The network up to its tapped nodes, {node: scale}; a module's name stands for its last node."""
    whole, names = _traced(network.name)
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
    return fx.GraphModule(tapped, tapped.graph)  # of what is left: the classifier is no part of it


@functools.cache
def _traced(name: str) -> tuple[fx.Graph, dict[fx.Node, str]]:
    """A network's graph and its nodes' names as torchvision gives them, without memory or arithmetic.

    One for both modes, which are the same for these networks; torchvision's own function traces each mode of each
    network anew, which took longer than making the network.
    """
    with torch.device("meta"):
        module = _network(name).module.eval()
    tracer = NodePathTracer()
    return tracer.trace(module), dict(tracer.node_to_qualname)


def check_encoder(config: ModelConfig) -> None:
    """Raise UserError for what `build_encoder` would refuse, without random initialisation or tracing."""
    resolve_taps(config)
    _check_network(str(config.encoder), config.frozen, config.weights)


@functools.cache  # a search's settings differ in their taps, hardly in these
def _check_network(name: str, frozen: tuple[str, ...], weights: str | None) -> None:
    with torch.device("meta"):
        network = _network(name)
    _check_frozen(network, frozen)
    if weights is not None:
        read_weights(network, weights)


def tap_channels(encoder: nn.Module) -> dict[str, int]:
    """Channels of each tap, measured by a run without memory or arithmetic (the meta device)."""
    mode = encoder.training
    state = {key: value.detach().to("meta") for key, value in encoder.state_dict().items()}
    image = torch.empty(1, 3, 2 * STRIDE, 2 * STRIDE, device="meta")
    with torch.no_grad():
        maps: dict[str, Tensor] = torch.func.functional_call(encoder.eval(), state, (image,))
    encoder.train(mode)
    return {scale: value.shape[1] for scale, value in maps.items()}


def last_block_channels(name: str) -> int:
    """Channels of the whole last block, as the classifier takes them: `last_layer_input` lacks the last layer's."""
    with torch.device("meta"):
        network = _network(name)
    return int(network.module.get_submodule(network.head).in_features)  # type: ignore[arg-type]


def halved(name: str, side: int) -> int:
    """Rows or columns at s2 of an image of that many."""
    return (side + 1) // 2 if _backbone(name).first_halving == "ceil" else side // 2


def _backbone(name: str) -> Backbone:
    if name not in ENCODERS:
        raise UserError(f"model.encoder: no {name}{nearest(name, ENCODERS)}; the encoders are {', '.join(ENCODERS)}")
    return ENCODERS[name]


def _network(name: str) -> Network:
    return Network(name, getattr(torchvision.models, name)(weights=None), _backbone(name).head)


def _check_frozen(network: Network, prefixes: tuple[str, ...]) -> None:
    names = [n for n, _ in network.module.named_parameters() if not _within(n, network.head)]
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
