"""torchvision's backbones.

Source: paper Table 5 and ialhashim/DenseDepth@2e15107 model.py for DenseNet; the nodes are torchvision's own names.
A residual network halves inside a block, so its first block of a stage stands for "after the pooling". Adding one is an
entry of ENCODERS.
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
from torchvision.models.feature_extraction import NodePathTracer

from trainables.errors import UserError
from trainables.models.backbone import INPUT, Backbone, Training
from trainables.models.weights import DOWNLOAD_TIMEOUT_S, GO_ON, NO_WEIGHTS, UNREADABLE
from trainables.yamlfile import nearest


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

    One for both modes, which are the same for these networks; torchvision's own function traces each mode of each
    network anew, which took longer than making the network.
    """
    with torch.device("meta"):
        module = ENCODERS[name].make().eval()
    tracer = NodePathTracer()
    return tracer.trace(module), dict(tracer.node_to_qualname)
