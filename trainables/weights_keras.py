"""`python -m trainables.weights_keras nyu.h5 --out FOLDER`: the authors' released Keras weights as a checkpoint.

Source: ialhashim/DenseDepth@2e15107 model.py (names of the decoder's layers) and Keras' applications.densenet (of the
encoder's). Read with h5py alone; nothing of the file is executed, and links out of it are refused.

The authors' KITTI weights have the same layers as NYU's and mean another depth: y = 80 m / depth, for 1 to 80 m
(ialhashim/DenseDepth issue 69). Nothing in the file says so; --trained-on does.

The released weights have no LeakyReLU between conv A and conv B (FACTS.md section 1). A file that stores its graph says
so itself. Keras adds a slightly larger epsilon to BatchNorm's variance than torch; the variance takes the difference.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.data.stand_in import stand_in_at
from trainables.models.depth_model import DepthModel, build_model
from trainables.runtime import cli
from trainables.runtime.durable import check_folder
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig
from trainables.settings.recipe import load_recipe
from trainables.settings.registry import NYU_MAX_DEPTH_M
from trainables.training.checkpoint import Snapshot, write_checkpoint

Weights = dict[str, dict[str, NDArray[np.float32]]]  # layer, its name's slashes as underscores -> weight -> values

BLOCKS = {"densenet121": (6, 12, 24, 16), "densenet169": (6, 12, 32, 32), "densenet201": (6, 12, 48, 32)}
MAX_VALUES = 1 << 28  # of one array: a small file can claim any size
KERAS_BATCH_NORM_EPSILON = 1.001e-5
TORCH_BATCH_NORM_EPSILON = 1e-5
ENCODER_LAYERS = {"conv1_conv": "conv0", "conv1_bn": "norm0", "bn": "norm5"}
DENSE_PARTS = {"0_bn": "norm1", "1_conv": "conv1", "1_bn": "norm2", "2_conv": "conv2"}
NAMES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}
RANGES_M = {"nyu": (0.1, NYU_MAX_DEPTH_M), "kitti": (1.0, 80.0)}  # nearest and largest depth of each data set
UP_SCALES = {"1": "s16", "2": "s8", "3": "s4", "4": "s2"}
DENSE_LAYER = re.compile(r"conv(\d+)_block(\d+)_(0_bn|1_conv|1_bn|2_conv)")
TRANSITION = re.compile(r"pool(\d+)_(bn|conv)")
UP_CONV = re.compile(r"up([1-4])_conv([AB])")
ADVICE = "give the nyu.h5 that the authors of DenseDepth released, or one saved by their code"


def module_of(layer: str) -> str | None:
    """The name of our module for a Keras layer's ('conv1/bn' as 'conv1_bn'); None for a layer of another model."""
    if layer in ENCODER_LAYERS:
        return f"encoder.features.{ENCODER_LAYERS[layer]}"
    if match := DENSE_LAYER.fullmatch(layer):
        block, number, part = match.groups()
        return f"encoder.features.denseblock{int(block) - 1}.denselayer{number}.{DENSE_PARTS[part]}"
    if match := TRANSITION.fullmatch(layer):
        return f"encoder.features.transition{int(match[1]) - 1}.{'norm' if match[2] == 'bn' else 'conv'}"
    if match := UP_CONV.fullmatch(layer):
        return f"decoder.blocks.{UP_SCALES[match[1]]}.conv_{match[2].lower()}"
    return f"decoder.{layer}" if layer in ("conv2", "conv3") else None


def read_h5(path: Path) -> tuple[Weights, dict[str, Any] | None]:
    """Layers' weights, and the stored graph if there is one. Raises UserError unless it is a Keras file of floats."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; {ADVICE}")
    try:
        with h5py.File(path, "r") as file:
            group = _own(file, "model_weights", path) if "model_weights" in file else file
            if "layer_names" not in group.attrs:
                raise UserError(f"{path} is HDF5 but holds no Keras model (no layer_names); {ADVICE}")
            layers = {name: _layer(_own(group, name, path), path) for name in _texts(group.attrs["layer_names"])}
            stored = file.attrs.get("model_config")
            graph = None if stored is None else json.loads(stored)
    except (OSError, KeyError, ValueError, RuntimeError) as error:  # what h5py raises for damaged files
        what = stand_in_at(path) or f"cannot be read as a Keras HDF5 file ({error})"
        raise UserError(f"{path} {what}; {ADVICE}") from error
    return {name.replace("/", "_"): weights for name, weights in layers.items() if weights}, graph


def _texts(names: Any) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _own(group: h5py.Group, name: str, path: Path) -> Any:
    """The object of a name below a group, reached by hard links of this file alone."""
    node: Any = group
    for part in name.split("/"):
        if not isinstance(node, h5py.Group) or part not in node:
            raise UserError(f"{path}: {name} is missing from {group.name}; {ADVICE}")
        if not isinstance(node.get(part, getlink=True), h5py.HardLink):
            raise UserError(f"{path}: {name} is a link, and links are refused; {ADVICE}")
        node = node[part]
    return node


def _layer(group: Any, path: Path) -> dict[str, NDArray[np.float32]]:
    weights = {}
    for name in _texts(group.attrs.get("weight_names", ())):
        data = _own(group, name, path)
        if not isinstance(data, h5py.Dataset) or data.dtype.kind != "f" or data.is_virtual or data.external:
            raise UserError(f"{path}: {name} is not a plain array of floating-point numbers; {ADVICE}")
        if data.size > MAX_VALUES:
            raise UserError(f"{path}: {name} claims {data.size:,} numbers; {ADVICE}")
        values = np.asarray(data[()], dtype=np.float32)
        if not np.isfinite(values).all():
            raise UserError(f"{path}: {name} holds NaN or infinity; {ADVICE}")
        weights[name.rsplit("/", 1)[-1].split(":")[0]] = values
    return weights


def state_dict_of(layers: Weights) -> dict[str, Tensor]:
    """Our model's state of a Keras model's weights: convolutions as (out, in, rows, columns), BatchNorm's four."""
    state = {}
    for layer, weights in layers.items():
        module = module_of(layer)
        if module is None:
            continue
        for name, values in weights.items():
            tensor = torch.from_numpy(np.ascontiguousarray(values))
            if name == "kernel" and tensor.ndim == 4:
                state[f"{module}.weight"] = tensor.permute(3, 2, 0, 1).contiguous()
            elif name == "moving_variance":
                state[f"{module}.running_var"] = tensor + (KERAS_BATCH_NORM_EPSILON - TORCH_BATCH_NORM_EPSILON)
            else:
                state[f"{module}.{NAMES.get(name, name)}"] = tensor
    return state


def settings_of(layers: Weights, graph: dict[str, Any] | None, path: Path) -> dict[str, Any]:
    """The settings of our model that the file's weights and graph decide. Raises UserError for another model's file."""
    found = Counter(int(m[1]) for m in map(DENSE_LAYER.fullmatch, layers) if m and m[3] == "1_conv")
    blocks = tuple(found[number] for number in sorted(found))
    names = [name for name, counts in BLOCKS.items() if counts == blocks]
    missing = {"conv2", "conv3", "bn"} - layers.keys()
    if not names or missing or "kernel" not in layers["conv2"] or layers["conv2"]["kernel"].ndim != 4:
        what = f"it has no layer {sorted(missing)[0]}" if missing else f"dense blocks of {list(blocks)} layers"
        raise UserError(f"{path}: this is not a DenseDepth model ({what}); {ADVICE}")
    channels, first = layers["conv2"]["kernel"].shape[2:]
    activations = 4 if graph is None else json.dumps(graph).count('"class_name": "LeakyReLU"')
    return {
        "model.encoder": names[0],
        "model.weights": None,
        "model.width": first / channels,
        "model.activation_between": activations > len(UP_SCALES),
    }


def convert(path: Path, trained_on: str | None = None) -> tuple[DepthModel, TrialConfig]:
    """The model of a Keras file in eval mode, and the paper's settings adapted to it. trained_on: a key of RANGES_M;
    None: NYU, unless the file's name says KITTI. Raises UserError.
    """
    if trained_on is None and "kitti" in path.name.lower():
        raise UserError(f"{path}: its name says KITTI, whose weights mean depth to 80 m and not NYU's 10 m; say "
                        "--trained-on kitti, or --trained-on nyu")  # fmt: skip
    layers, graph = read_h5(path)
    near, far = RANGES_M[trained_on or "nyu"]
    reach = {"target.min_depth_m": near, "data.max_depth_m": None if far == NYU_MAX_DEPTH_M else far}
    (config,) = load_recipe("densedepth", settings_of(layers, graph, path) | reach, str(path))
    model = build_model(config.model, config.target.kind)
    state = state_dict_of(layers)
    expected = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    if differing := sorted(expected.keys() ^ state.keys()):
        side = "missing" if differing[0] in expected else "unknown"
        raise UserError(f"{path}: the weight for {differing[0]} is {side}; {ADVICE}")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{path}: the weight for {name} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}; {ADVICE}"
            )
    model.load_state_dict(state, strict=False)  # BatchNorm's batch counter exists in torch alone, and nothing reads it
    return model.eval(), config


def snapshot_of(model: nn.Module, source: Path) -> Snapshot:
    """What a checkpoint of converted weights holds: no optimiser, no position."""
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    return Snapshot(weights, None, {"converted_from": source.name})


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = cli.parser(
        "trainables.weights_keras",
        "Convert the released Keras weights of DenseDepth (nyu.h5) to a checkpoint folder of this project.",
        "python -m trainables.weights_keras nyu.h5 --out results/released && "
        "python -m trainables.predict docs/report.png --checkpoint results/released --out results/released-depth",
    )
    parser.add_argument("file", metavar="nyu.h5", type=cli.path)
    parser.add_argument("--trained-on", choices=sorted(RANGES_M), help="the data set, which decides the range of depth "
                        "(nyu, unless the file's name says kitti)")  # fmt: skip
    parser.add_argument("--out", type=cli.path, required=True, help="checkpoint folder to write; must not exist")

    def body(args: argparse.Namespace) -> dict[str, Any]:
        if args.out.exists():
            raise UserError(f"{args.out} already exists; name a new folder")
        check_folder(args.out)
        model, config = convert(args.file, args.trained_on)
        write_checkpoint(args.out, snapshot_of(model, args.file), config)
        parameters = sum(p.numel() for p in model.parameters())
        encoder, width = config.model.encoder, config.model.width
        print(f"{args.out}: {encoder}, decoder width {width:g}, {parameters:,} parameters")
        return {
            "checkpoint": str(args.out),
            "encoder": encoder,
            "width": width,
            "activation_between": config.model.activation_between,
            "max_depth_m": config.target.max_depth_m,
            "parameters": parameters,
        }

    return cli.run(parser, body, argv)


if __name__ == "__main__":
    sys.exit(main())
