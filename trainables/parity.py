"""`python -m trainables.parity REF.npz`: the reference code's golden numbers, computed by this project's own code.

The keys are those of tests/golden/*.json, as far as the arrays allow. Where REF.json lies beside REF.npz, the largest
relative difference from it is reported on stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.data.target import data_range
from trainables.evaluation.evaluate import Row, aggregate, depth_from_outputs, score
from trainables.evaluation.protocols import PROTOCOLS
from trainables.models.losses import composite
from trainables.runtime import cli
from trainables.runtime.errors import UserError
from trainables.settings.config import TargetConfig
from trainables.settings.registry import REPOSITORY_METRICS

# Target and loss weights are the paper's.
TARGET = TargetConfig(kind="inverse", resize="inverse_then_resize", holes="mask", min_depth_m=0.1, max_depth_m=10.0)
LOSS_WEIGHTS = {"ssim": 1.0, "gradient": 1.0, "depth": 0.1}
LOSS_KEYS = {"depth_l1": "depth", "gradient": "gradient", "ssim": "ssim"}
HOLES = (slice(None), slice(100, 140), slice(200, 300))
BTS_METRICS = ("delta1", "delta2", "delta3", "abs_rel", "sq_rel", "rmse", "rmse_log", "log10")
EVALUATION_ARRAYS = ("target_depth_m", "net_output", "net_output_mirrored")
LOSS_ARRAYS = ("loss_target", "loss_pred")


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The file's known arrays as float32 tensors (N, H, W); UserError for a file that does not hold them."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a file like densedepth_reference.npz")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"{path}: a single array, no .npz archive; give a file like densedepth_reference.npz")
        with archive:
            found = {name: archive[name] for name in (*EVALUATION_ARRAYS, *LOSS_ARRAYS) if name in archive}
    except UserError:
        raise
    except Exception as error:  # NumPy promises no list of what a damaged header or archive raises
        raise UserError(
            f"{path} cannot be read as .npz ({error}); give a file like densedepth_reference.npz"
        ) from error
    for names in (EVALUATION_ARRAYS, LOSS_ARRAYS):
        held = [name for name in names if name in found]
        if held and len(held) < len(names):
            raise UserError(f"{path} holds {', '.join(held)} without {', '.join(sorted(set(names) - set(held)))}")
    if not found:
        known = ", ".join((*EVALUATION_ARRAYS, *LOSS_ARRAYS))
        raise UserError(f"{path} holds none of {known}; give a file like tests/golden/densedepth_reference.npz")
    for name, array in found.items():
        if array.ndim != 3 or array.dtype.kind != "f":
            raise UserError(
                f"{path}: {name} is {array.dtype} of shape {array.shape}; it must be floats (N, rows, columns)"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name} holds NaN or infinity; its numbers would be meaningless")
    if "target_depth_m" in found and not (found["target_depth_m"] > 0).any((1, 2)).all():
        raise UserError(f"{path}: target_depth_m has a frame without any depth above 0, so there is nothing to measure")
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in found.items()}


def evaluation_numbers(depth_m: Tensor, truth_m: Tensor) -> dict[str, Any]:
    """The protocols' numbers of predictions (N, H, W) against the truth, under the golden files' names."""
    printed = {
        name: aggregate(_rows(depth_m, truth_m, name), PROTOCOLS[name]) for name in ("densedepth", "densedepth_repo")
    }
    paper = {key: printed["densedepth"][key] for key in REPOSITORY_METRICS}
    numbers: dict[str, Any] = {
        "densedepth_repo_pooled_arguments_swapped": {k: printed["densedepth_repo"][k] for k in REPOSITORY_METRICS},
        "densedepth_per_image_mean": paper,
        "densedepth_per_image_printed": ", ".join(f"{value:10.4f}" for value in paper.values()).strip(),
        "bts": _bts(depth_m, truth_m),
    }
    if truth_m.shape[1] > HOLES[1].start and truth_m.shape[2] > HOLES[2].start:
        holed = truth_m.clone()
        holed[HOLES] = 0.0
        numbers["bts_with_holes_rows100_140_cols200_300_zero"] = _bts(depth_m, holed)
    return numbers


def _rows(depth_m: Tensor, truth_m: Tensor, protocol: str) -> list[Row]:
    return score(depth_m, truth_m, PROTOCOLS[protocol])


def _bts(depth_m: Tensor, truth_m: Tensor) -> dict[str, float]:
    means = aggregate(_rows(depth_m, truth_m, "bts"), PROTOCOLS["bts"])
    return {**{key: means[key] for key in BTS_METRICS}, "silog_x100": 100 * means["silog"]}


def loss_numbers(pred: Tensor, target: Tensor) -> dict[str, float]:
    """Each unweighted term of the paper's loss, its total, and the norm of the total's gradient in the prediction."""
    leaf = pred[:, None].clone().requires_grad_()
    truth = target[:, None]
    valid = torch.ones_like(truth, dtype=torch.bool)
    result = composite(leaf, truth, valid, LOSS_WEIGHTS, data_range(TARGET))
    (gradient,) = torch.autograd.grad(result.total, leaf)
    return {
        **{key: float(result.terms[term].detach()) for key, term in LOSS_KEYS.items()},
        "total": float(result.total.detach()),
        "grad_wrt_pred_norm": float(gradient.double().norm()),
    }


def parity(path: Path) -> dict[str, Any]:
    """{'evaluation': ..., 'loss': ...} of one .npz, whichever its arrays allow."""
    arrays = read_arrays(path)
    numbers: dict[str, Any] = {}
    if "target_depth_m" in arrays:
        truth, y, y_mirrored = (arrays[name] for name in EVALUATION_ARRAYS)
        if not len(truth) == len(y) == len(y_mirrored) or y.shape != y_mirrored.shape:
            raise UserError(f"{path}: {', '.join(EVALUATION_ARRAYS)} do not belong together: {truth.shape}, {y.shape}")
        depth_m = depth_from_outputs(y[:, None], y_mirrored[:, None], TARGET, None)
        if depth_m.shape != truth.shape:
            raise UserError(
                f"{path}: target_depth_m must be twice the size of net_output, not {tuple(truth.shape[1:])}"
            )
        numbers["evaluation"] = evaluation_numbers(depth_m, truth)
    if "loss_target" in arrays:
        if arrays["loss_pred"].shape != arrays["loss_target"].shape:
            raise UserError(f"{path}: loss_pred and loss_target differ in shape; they must be maps of the same pixels")
        numbers["loss"] = loss_numbers(arrays["loss_pred"], arrays["loss_target"])
    return numbers


def largest_difference(numbers: Mapping[str, Any], golden: Mapping[str, Any]) -> tuple[float, str]:
    """The largest relative difference of the numbers in both trees, and its key; texts are compared for equality."""
    worst = (0.0, "")
    for key in golden.keys() & numbers.keys():
        ours, theirs = numbers[key], golden[key]
        if isinstance(theirs, Mapping):
            inner, name = largest_difference(ours, theirs)
            worst = max(worst, (inner, f"{key}.{name}"))
        elif isinstance(theirs, str):
            worst = max(worst, (0.0 if ours == theirs else float("inf"), key))
        else:
            worst = max(worst, (abs(ours - theirs) / abs(theirs), key))
    return worst


def main(argv: list[str] | None = None) -> int:
    """The command: prints one JSON document."""
    parser = cli.parser(
        "trainables.parity",
        "Agreement with the reference code: its golden numbers computed by this project's own code.",
        "python -m trainables.parity tests/golden/densedepth_reference.npz",
    )
    parser.add_argument(
        "reference", metavar="REF.npz", type=cli.path, help="arrays named as those of tests/golden/*.npz"
    )

    def body(args: argparse.Namespace) -> dict[str, Any]:
        numbers = parity(args.reference)
        golden = args.reference.with_suffix(".json")
        if golden.is_file():
            try:
                parts = json.loads(golden.read_bytes()).items()
                found = [(part, largest_difference(numbers[part], theirs)) for part, theirs in parts if part in numbers]
            except (OSError, ValueError, AttributeError, TypeError, ZeroDivisionError) as error:
                raise UserError(
                    f"{golden} beside it holds no golden numbers ({error}); move it, or give it another name"
                ) from error
            for part, (difference, key) in found:
                print(f"{part}: largest relative difference {difference:.2e} at {key}", file=sys.stderr)
        if not args.json:
            print(json.dumps(numbers, indent=1, allow_nan=False))
        return numbers

    return cli.run(parser, body, argv)


if __name__ == "__main__":
    sys.exit(main())
