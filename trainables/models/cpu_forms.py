"""Faster forms of layers on a CPU: a frozen encoder with its BatchNorm folded, and 1x1 convolutions as matrix products.

Both compute the same function and differ from the plain form by rounding. No parameter, buffer or name changes.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

SLOW_BATCH = 16  # below it, and with one thread, torch unfolds the input of a 1x1 convolution first (im2col)


class Pointwise(nn.Conv2d):
    """An unstrided 1x1 convolution, computed as a product of matrices where torch would unfold its input.

    That is in float32 on a CPU, with one thread and fewer than SLOW_BATCH images; torch's own way is taken elsewhere.
    """

    def forward(self, input: Tensor) -> Tensor:
        """input: N x C x H x W, channels last for speed."""
        if not _unfolded(input):
            return super().forward(input)
        return F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def with_pointwise(model: nn.Module) -> None:
    """Make every unstrided 1x1 convolution of a model a Pointwise with the same parameters, in place."""
    for name, conv in list(model.named_modules()):
        if type(conv) is not nn.Conv2d or conv.kernel_size != (1, 1) or conv.stride != (1, 1):
            continue
        if conv.groups != 1 or conv.padding not in ((0, 0), "valid", "same"):
            continue
        with torch.device("meta"):  # which draws no random numbers
            product = Pointwise(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None)
        product.weight, product.bias = conv.weight, conv.bias
        model.set_submodule(name, product.train(conv.training))


class FoldedEncoder:
    """The maps of a frozen encoder on a CPU, from a copy whose BatchNorm is part of its convolutions; without gradient.

    Not a module: the copy is nobody's parameter and stands in no state dict. It is made at the first call, and anew
    when the encoder's weights are loaded (load_state_dict of the encoder or of what holds it) or change their type. Set
    the weights in no other way after a call.
    """

    def __init__(self, encoder: nn.Module) -> None:
        """encoder: from an image to {scale: map}, with no parameter that is trained and BatchNorm in eval mode."""
        self._encoder = encoder
        self._copy: nn.Module | None = None
        self._dtype: torch.dtype | None = None
        encoder.register_load_state_dict_post_hook(self._forget)  # type: ignore[no-untyped-call]

    def serves(self, images: Tensor) -> bool:
        """Whether the copy is to be taken: on a CPU, where the images need no gradient; torch.compile folds itself.

        It is made by the main thread alone: following a module changes nn.Module for all threads as long as it takes.
        """
        if images.device.type != "cpu" or images.requires_grad or torch.compiler.is_compiling():
            return False
        return self.is_made or threading.current_thread() is threading.main_thread()

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """{scale: map}, as the encoder's own."""
        if not self.is_made:
            self._copy, self._dtype = folded(self._encoder), next(self._encoder.parameters()).dtype
        assert self._copy is not None
        with torch.no_grad():
            maps: dict[str, Tensor] = self._copy(images)
        return maps

    @property
    def is_made(self) -> bool:
        """Whether there is a copy of the encoder's weights as they are."""
        return self._copy is not None and self._dtype == next(self._encoder.parameters()).dtype

    def _forget(self, *_: object) -> None:
        self._copy = None


def is_frozen(encoder: nn.Module) -> bool:
    """Whether no parameter of an encoder is trained."""
    return not any(parameter.requires_grad for parameter in encoder.parameters())


def folded(encoder: nn.Module) -> nn.Module:
    """A copy in eval mode that holds each BatchNorm behind a convolution in that convolution's weights.

    A BatchNorm stays where it is if the convolution's own answer is wanted, too, or if none is before it. An encoder
    whose layers cannot be followed (its way depends on its input) is returned itself.
    """
    module = copy.deepcopy(encoder).eval()
    try:
        graph = _Layers().trace(module)
    except (fx.proxy.TraceError, TypeError):
        return encoder
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in list(graph.nodes):
        norm = _called(module, node)
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
            continue
        before, rest = node.args[0], _behind(norm)
        conv = _called(module, before)
        if not isinstance(conv, nn.Conv2d) or rest is None or len(before.users) > 1:
            continue
        if calls[node.target] > 1 or calls[before.target] > 1:  # a layer that is used twice has one set of weights
            continue
        module.set_submodule(before.target, fuse_conv_bn_eval(conv, norm))
        module.set_submodule(node.target, rest)
    for node in list(graph.nodes):
        if isinstance(_called(module, node), nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    return fx.GraphModule(module, graph).eval()


class _Layers(fx.Tracer):
    """A trace down to the layers that are folded; all of torch's own modules are layers anyway."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.BatchNorm2d | nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def _called(module: nn.Module, node: object) -> nn.Module | None:
    """The module that a node calls, None for any other node."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    return module.get_submodule(str(node.target))


def _behind(norm: nn.BatchNorm2d) -> nn.Module | None:
    """What a BatchNorm layer does behind its normalisation; None for a kind that is not known, which is not folded."""
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    parts = dict(norm.named_children())
    if parts.keys() == {"drop", "act"}:  # timm's BatchNormAct2d
        does = [part for part in (parts["drop"], parts["act"]) if not isinstance(part, nn.Identity)]
        return does[0] if len(does) == 1 else nn.Sequential(*does)
    return None


def _unfolded(input: Tensor) -> bool:
    """Whether torch would unfold the input of a 1x1 convolution (its Convolution.cpp, use_mkldnn)."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):  # before the batch, which is any in an export
        return False
    if input.device.type != "cpu" or input.dtype != torch.float32 or len(input) >= SLOW_BATCH:
        return False
    return torch.get_num_threads() == 1
