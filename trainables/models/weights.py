"""Pretrained weights of an encoder: by torchvision's name, or from a local .pth or .safetensors file.

Never silently from scratch: weights that cannot be had, read or fitted are a UserError that says how to go on. No file
is ever unpickled into anything but tensors.
"""

from __future__ import annotations

import pickle
import re
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from trainables.errors import UserError

DOWNLOAD_TIMEOUT_S = 30.0
FILES = (".pth", ".safetensors")
GO_ON = (
    "give a local .pth or .safetensors file in model.weights, or set model.weights: null to start from random weights"
)
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


@dataclass(frozen=True)
class Network:
    """A torchvision classifier: its name, the module, and its head's module name, which no encoder needs."""

    name: str
    module: nn.Module
    head: str


def read_weights(network: Network, weights: str) -> dict[str, Tensor]:
    """The encoder's weights by their names in `network`, checked to fit it. Raises UserError."""
    state = _from_file(Path(weights)) if weights.endswith(FILES) else _from_torchvision(network.name, weights)
    renamed = {OLD_DENSE_LAYER.sub(r"\1\2", key): value for key, value in state.items()}
    mine = {key: value for key, value in renamed.items() if not key.startswith(f"{network.head}.")}
    _check(network, mine, weights)
    return mine


def fill(network: Network, weights: Mapping[str, Tensor]) -> None:
    """Copy checked weights into the network. Older files lack BatchNorm's batch counter, which nothing reads."""
    network.module.load_state_dict(weights, strict=False)


def _from_torchvision(name: str, weights: str) -> dict[str, Tensor]:
    names = torchvision.models.get_model_weights(name)
    if weights not in names.__members__:
        raise UserError(
            f"model.weights: {weights} is neither a .pth or .safetensors file nor weights of {name}; "
            f"torchvision knows {', '.join(names.__members__)}, and null starts from random weights"
        )
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)  # torch.hub asks without one, and a silent server would hang the study
    try:
        state: dict[str, Tensor] = names[weights].get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, *UNREADABLE) as error:
        reason = str(getattr(error, "reason", None) or error).splitlines()[0]
        raise UserError(
            f"model.weights: {weights} of {name} cannot be had from {names[weights].url} ({reason}); "
            f"connect to the internet once, {GO_ON}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return state


def _from_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            state: Any = load_safetensors(path.read_bytes())
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"model.weights: {path} cannot be read ({error.strerror or error}); {GO_ON}") from error
    except UNREADABLE as error:
        raise UserError(f"model.weights: {path} is damaged or holds more than tensors; {GO_ON}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"model.weights: {path} holds no mapping of names to tensors; {GO_ON}")
    return state


def _check(network: Network, state: Mapping[str, Tensor], weights: str) -> None:
    expected = {key: tuple(value.shape) for key, value in network.module.state_dict().items()}
    wanted = [k for k in expected if not k.startswith(f"{network.head}.") and not k.endswith("num_batches_tracked")]
    given = [k for k in state if not k.endswith("num_batches_tracked")]
    problem = None
    if missing := [key for key in wanted if key not in state]:
        problem = f"{missing[0]} is missing"
    elif unknown := [key for key in given if key not in expected]:
        problem = f"it has {unknown[0]}, which the encoder has not"
    elif misfits := [key for key in wanted if tuple(state[key].shape) != expected[key]]:
        problem = f"{misfits[0]} is {_size(state[misfits[0]].shape)} and not {_size(expected[misfits[0]])}"
    elif integers := [key for key in wanted if not state[key].is_floating_point()]:
        problem = f"{integers[0]} holds {state[integers[0]].dtype} and no floating-point numbers"
    if problem:
        raise UserError(f"model.weights: {weights} does not fit {network.name} ({problem}); {GO_ON}")


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
