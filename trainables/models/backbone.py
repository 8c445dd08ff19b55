"""Interface of a backbone, whichever library it comes from.

`post_pool` is the feature map right after a scale was reached (the paper's skips), `pre_pool` the last one before the
next halving. Both map a scale to a node of the backbone's graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, fx, nn

INPUT = "x"  # the graph's input, the tap of s1
BOTTLENECK = "bottleneck"
STRIDE = 32  # of every encoder's bottleneck

Halving = Literal["ceil", "floor"]  # of an odd side
Color = tuple[float, float, float]  # a number per channel: red, green, blue


@dataclass(frozen=True)
class Training:
    """What published weights were trained with: their inputs' mean and std, and BatchNorm's eps where it is unusual."""

    mean: Color
    std: Color
    bn_eps: float | None = None


@dataclass(frozen=True)
class Backbone(ABC):
    """Nodes per scale and tap, bottleneck nodes, and what differs between libraries.

    `head`: modules that no tap needs, whose weights are neither asked for nor read. `first_halving`: how a first odd
    side is halved. `rectified`: the decoder sees the bottleneck's positive part. `scales_left_out`: scales without any
    map, at which a skip that is asked for is left out.
    """

    name: str
    post_pool: Mapping[str, str]
    pre_pool: Mapping[str, str]
    bottleneck: Mapping[str, str]
    head: tuple[str, ...]
    first_halving: Halving
    scales_left_out: tuple[str, ...]
    rectified: bool

    @abstractmethod
    def make(self) -> nn.Module:
        """The whole classifier, randomly initialised on the current device."""

    @abstractmethod
    def trace(self) -> tuple[fx.Graph, Mapping[fx.Node, str]]:
        """The classifier's graph and its nodes' names."""

    @abstractmethod
    def published(self, weights: str) -> dict[str, Tensor]:
        """The state dict of weights by the library's name for them. Raises UserError if they cannot be had."""

    @abstractmethod
    def training_of(self, weights: str) -> Training:
        """What those weights were trained with, without reading them. Raises UserError for an unknown name."""
