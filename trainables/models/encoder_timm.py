"""timm's backbones, as timm/NAME: any whose `features_only` form is a pyramid of maps that ends at 1/32.

Source: huggingface/pytorch-image-models, `feature_info` (the module that gives the last map of each scale). `pre_pool`
is that map. `post_pool` is the first one of a scale: the answer of the pooling or strided convolution that reaches it,
with the normalisation and activation behind, or of the block that strides inside. Where a scale has a single map, both
names mean it. A scale without any (a ConvNeXt starts at 1/4) is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, fx, nn

from trainables.models.backbone import INPUT, STRIDE, Backbone, Training
from trainables.models.weights import GO_ON, NO_WEIGHTS, PACKAGES
from trainables.runtime.errors import UserError
from trainables.settings.config import SCALES
from trainables.settings.yamlfile import nearest

PREFIX = "timm/"
SIDE = 2 * STRIDE  # of the square image that maps are measured with
ODD = (3 * STRIDE + 1, 4 * STRIDE + 3)  # rows and columns that every halving rounds


@dataclass(frozen=True)
class TimmBackbone(Backbone):
    """A classifier of timm.

    Its bottleneck keeps its sign. The ReLU of the published decoder belongs to DenseNet's last BatchNorm; these maps
    come from linear bottlenecks, residual sums or smooth activations, and a ReLU would cut what their own head sees.
    """

    rectified: bool = False

    def make(self) -> nn.Module:
        return _make(self.name)

    def trace(self) -> tuple[fx.Graph, Mapping[fx.Node, str]]:
        return _outline(self.name)

    def published(self, weights: str) -> dict[str, Tensor]:
        self.training_of(weights)
        try:
            with torch.device("cpu"):  # a check runs without memory
                model = timm.create_model(f"{_bare(self.name)}.{weights}", pretrained=True)
        except (OSError, RuntimeError) as error:
            first: BaseException = error
            while first.__cause__ or first.__context__:  # the hub wraps "Name or service not known" four times
                first = first.__cause__ or first.__context__ or first
            raise UserError(
                f"model.weights: {weights} of {self.name} cannot be had from timm's hub ({first}); "
                f"connect to the internet once, {GO_ON}"
            ) from error
        state: dict[str, Tensor] = model.state_dict()
        return state

    def training_of(self, weights: str) -> Training:
        tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{_bare(self.name)}.*")]
        if weights not in tags:
            known = [*tags, "installed"] if self.name in PACKAGES else tags
            raise UserError(
                f"model.weights: {weights} is {NO_WEIGHTS} of {self.name}{nearest(weights, known)}; "
                f"there are {', '.join(known) or 'none'}, and null starts from random weights"
            )
        config = timm.get_pretrained_cfg(f"{_bare(self.name)}.{weights}")
        return Training(tuple(config.mean), tuple(config.std))


@functools.cache
def timm_backbone(name: str) -> TimmBackbone:
    """The backbone of that name, measured on the meta device. Raises UserError for one unknown or without pyramid."""
    stages = _stages(name)
    graph, names = _outline(name)
    with torch.device("meta"):
        module = _make(name).eval()
    sizes = _sizes(name, module, graph, (SIDE, SIDE))
    post_pool, pre_pool = {"s1": INPUT}, {}
    for scale, stage in stages.items():
        side = SIDE // int(scale[1:])
        last = _last_node(name, graph, names, stage)
        if sizes.get(last) != (side, side):
            raise UserError(
                f"model.encoder: the map of {name} at 1/{scale[1:]} has no rows and columns of pixels, channels first; "
                "choose a convolutional one, such as timm/convnext_atto"
            )
        pre_pool[scale] = stage
        first = next((n for n, size in sizes.items() if size == (side, side) and n.op == "call_module"), None)
        if first is None:  # a transformer's tokens, which become a map at the end of the scale alone
            continue
        while _only_scales(module, first.next) and sizes.get(first.next) == (side, side):
            first = first.next
        post_pool[scale] = names[first]
    bottleneck = pre_pool.pop("s32")
    if post_pool.get("s32") == names[_last_node(name, graph, names, bottleneck)]:
        del post_pool["s32"]
    odd = _sizes(name, module, graph, ODD)  # which some cannot take
    at_half = odd[_last_node(name, graph, names, stages["s2"])] if "s2" in stages else None
    return TimmBackbone(
        name,
        post_pool,
        pre_pool,
        {"norm": bottleneck},
        head=_unused(module, graph),
        first_halving="floor" if at_half == (ODD[0] // 2, ODD[1] // 2) else "ceil",
        scales_left_out=tuple(scale for scale in SCALES[1:] if scale not in stages),
    )


def _bare(name: str) -> str:
    return name.removeprefix(PREFIX)


def _make(name: str, **arguments: Any) -> nn.Module:
    module: nn.Module = timm.create_model(_bare(name), **arguments)
    return module


@functools.cache
def _stages(name: str) -> dict[str, str]:
    """Scale -> the module that gives its last map, as timm says."""
    architecture, _, tag = _bare(name).partition(".")
    if not timm.is_model(architecture):
        known = [f"{PREFIX}{model}" for model in timm.list_models()]
        raise UserError(f"model.encoder: timm has no {name}{nearest(name, known)}; timm.list_models() lists its names")
    if tag:
        raise UserError(
            f"model.encoder: {name} names weights, too; set it to {PREFIX}{architecture} and model.weights to {tag}"
        )
    with torch.device("meta"):
        info: Any = _make(name, features_only=True).feature_info
    stages = dict(zip((f"s{reduction}" for reduction in info.reduction()), info.module_name(), strict=True))
    stages.pop("s1", None)
    if not stages.keys() <= set(SCALES) or list(stages)[-1:] != [f"s{STRIDE}"] or len(stages) < 2:
        raise UserError(
            f"model.encoder: {name} gives no pyramid of maps down to 1/{STRIDE} (timm: {info.reduction()}); "
            "choose another, such as timm/convnext_atto"
        )
    if timm.get_pretrained_cfg(_bare(name)).fixed_input_size:
        raise UserError(
            f"model.encoder: {name} takes images of one size only; "
            "choose a convolutional one, such as timm/convnext_atto"
        )
    return stages


class _Outline(fx.Tracer):
    """A trace that enters containers and stages, and takes each block as a whole. A node is named by its module."""

    def __init__(self, stages: tuple[str, ...]) -> None:
        super().__init__()
        self.stages = stages
        self.names: dict[fx.Node, str] = {}
        self.path: list[str] = []

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.path.append(self.path_of_module(m))
        answer = super().call_module(m, forward, args, kwargs)
        self.path.pop()
        return answer

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.names[node] = self.path[-1] if node.op == "call_module" else ".".join([*self.path[-1:], node.name])
        return node

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) in (nn.Sequential, nn.ModuleList):
            return False
        if any(stage.startswith(f"{module_qualified_name}.") for stage in self.stages):
            return False
        return not (module_qualified_name in self.stages and _holds_blocks(m))


def _holds_blocks(module: nn.Module) -> bool:
    """Whether a stage is a sequence of blocks: as a container, in its `blocks`, or as children of one type."""
    children = [type(child) for child in module.children()]
    alike = len(children) > 1 and len(set(children)) == 1
    return isinstance(module, nn.Sequential | nn.ModuleDict) or hasattr(module, "blocks") or alike


@functools.cache
def _outline(name: str) -> tuple[fx.Graph, dict[fx.Node, str]]:
    """The graph of a backbone's blocks, down to its bottleneck, and its nodes' names."""
    stages = _stages(name)
    with torch.device("meta"):
        module = _make(name).eval()
    tracer = _Outline(tuple(stages.values()))
    try:
        graph = tracer.trace(module)
    except (fx.proxy.TraceError, TypeError) as error:
        raise UserError(
            f"model.encoder: {name} cannot be followed block by block ({_first_line(error)}); "
            "choose another, such as timm/convnext_atto"
        ) from error
    names = tracer.names
    bottleneck = _last_node(name, graph, names, stages["s32"])
    for node in reversed(list(graph.nodes)):
        if node is bottleneck:
            break
        graph.erase_node(node)
        del names[node]
    graph.output(bottleneck)
    return graph, names


def _last_node(name: str, graph: fx.Graph, names: Mapping[fx.Node, str], stage: str) -> fx.Node:
    nodes = [node for node in graph.nodes if _is_within(names.get(node, ""), stage)]
    if not nodes:
        raise UserError(
            f"model.encoder: {name} has its map {stage} inside a block; choose another, such as timm/convnext_atto"
        )
    last: fx.Node = nodes[-1]
    return last


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _is_within(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module}.")


def _sizes(name: str, module: nn.Module, graph: fx.Graph, image: tuple[int, int]) -> dict[fx.Node, tuple[int, int]]:
    """Rows and columns of each map, in order, for an image of that many."""
    measure = _Measure(module, graph)
    try:
        with torch.no_grad():
            measure.run(torch.empty(1, 3, *image, device="meta"))
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UserError(
            f"model.encoder: {name} cannot be followed block by block through an image of {image[0]} x {image[1]} "
            f"({_first_line(error)}); choose another, such as timm/convnext_atto"
        ) from error
    return measure.sizes


class _Measure(fx.Interpreter):
    """A run of a graph that notes the size of each map."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.sizes: dict[fx.Node, tuple[int, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.ndim == 4:
            self.sizes[n] = (result.shape[-2], result.shape[-1])
        return result


def _only_scales(module: nn.Module, node: fx.Node) -> bool:
    """Whether a node normalises or activates: a module without a weight of more than one dimension."""
    if node.op != "call_module":
        return False
    called = module.get_submodule(str(node.target))
    return all(parameter.ndim < 2 for parameter in called.parameters())


def _unused(module: nn.Module, graph: fx.Graph) -> tuple[str, ...]:
    """Modules that the graph does not need: the largest whose weights are all unused."""
    used = [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]

    def walk(parent: nn.Module, path: str) -> Iterator[str]:
        for name, child in parent.named_children():
            inner = f"{path}{name}"
            if not any(_is_within(target, inner) or _is_within(inner, target) for target in used):
                yield inner
            elif not any(_is_within(inner, target) for target in used):
                yield from walk(child, f"{inner}.")

    return tuple(walk(module, ""))
