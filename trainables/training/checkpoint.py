"""Checkpoints: safetensors and JSON in a folder, each file's SHA-256 beside them, nothing that runs code on loading.

    checkpoints/latest/   weights, optimiser, state (position, schedule, RNG, metric history): resumes bit for bit
    checkpoints/best/     weights and state of the best report
    checkpoints/spikes/step-N/   weights, optimiser and state from before a loss spike, for replay

A folder is replaced as a whole. A kill between its two renames leaves NAME.old, which `heal` puts back. state.json
also holds the number of the format: a checkpoint of another format is refused.

A rolling snapshot is kept in memory, and written for replay when a loss spike is seen. The online detector is
deliberately simple (analysis/spikes/causes.py judges later): a loss is a spike when its logarithm lies THRESHOLD scaled
median absolute deviations above the trailing window's median, and the loss at least doubles it.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from trainables.data.stand_in import stand_in_at
from trainables.models.depth_model import DepthModel, build_model
from trainables.runtime.durable import naming, replace_folder, sha256
from trainables.runtime.errors import Blocked, UserError
from trainables.settings.config import PREVIOUS_STAGE, TrialConfig, as_dict, flat, stored_config

CHECKPOINTS, LATEST, BEST, SPIKES = "checkpoints", "latest", "best", "spikes"
WEIGHTS, OPTIMISER, STATE, CONFIG, HASHES = (
    "weights.safetensors",
    "optimizer.safetensors",
    "state.json",
    "config.json",
    "SHA256.json",
)
FORMAT = 1  # of a checkpoint; raised whenever an older version could not read what is written
ADVICE = "restore it from a copy, or remove the training's folder to train it again"  # to a training that resumes
NAMED_ADVICE = "restore it from a copy, or name another checkpoint"  # to whoever named a checkpoint to use


@dataclass(frozen=True)
class Snapshot:
    """A training's state on the CPU: tensors copied, so that the training can continue while it is written."""

    weights: dict[str, Tensor]
    optimiser: dict[str, Tensor] | None
    state: dict[str, Any]


def take_snapshot(model: nn.Module, optimiser: torch.optim.Optimizer | None, state: Mapping[str, Any]) -> Snapshot:
    """Copy weights, optimiser state and the JSON-able `state` (plus the CPU generator's) to host memory."""
    weights = {name: _copy(tensor) for name, tensor in model.state_dict().items()}
    tensors = None
    if optimiser is not None:
        slots = optimiser.state_dict()["state"]
        tensors = {
            f"{i}.{k}": _copy(torch.as_tensor(v)) for i, slot in slots.items() for k, v in slot.items() if v is not None
        }
    rng = torch.get_rng_state().numpy().tobytes().hex()
    return Snapshot(weights, tensors, {**state, "torch_rng": rng, "format": FORMAT})


def write_checkpoint(folder: Path, snapshot: Snapshot, config: TrialConfig) -> None:
    """Durably replace the checkpoint folder."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    files = {
        WEIGHTS: save_safetensors(snapshot.weights),
        STATE: json.dumps(snapshot.state, allow_nan=False).encode(),
        CONFIG: json.dumps(as_dict(config), indent=1).encode(),
    }
    if snapshot.optimiser is not None:
        files[OPTIMISER] = save_safetensors(snapshot.optimiser)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[HASHES] = json.dumps(hashes, indent=1).encode()
    for name, content in files.items():
        with naming(folder / name):
            (temporary / name).write_bytes(content)
    replace_folder(temporary, folder)


def heal(folder: Path) -> bool:
    """Finish a replacement that a kill interrupted; whether there is a checkpoint."""
    old = folder.with_name(folder.name + ".old")
    if old.exists():
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)
    return folder.exists()


def check_named(folder: Path) -> None:
    """Raise UserError unless what a user named is a checkpoint's folder; a near miss is answered with the one meant."""
    if (folder / HASHES).is_file() or (folder / WEIGHTS).is_file():
        return
    near = [place for place in dict.fromkeys(_near(folder)) if (place / HASHES).is_file()]
    if folder.is_dir():
        what = "this folder holds no checkpoint itself" if near else "this folder holds no checkpoint"
    else:
        what = "this is a file, not a checkpoint's folder" if folder.exists() else "no such checkpoint folder"
    count = f", one of {len(near)}" if len(near) > 1 else ""
    raise UserError(
        f"{folder}: {what}; name {near[0]}{count}" if near
        else f"{folder}: {what}; name one that a training wrote, such as .../{CHECKPOINTS}/{BEST}"
    )  # fmt: skip


def _near(folder: Path) -> list[Path]:
    """Where the checkpoint lies whose file, training or study was named instead; the likeliest first."""
    parent = folder.parent
    one = [folder / BEST, folder / CHECKPOINTS / BEST, parent, parent / BEST, parent / CHECKPOINTS / BEST]
    stages = sorted(folder.glob(f"stage-*/{CHECKPOINTS}/{BEST}"), reverse=True)
    trials = sorted(folder.glob(f"trials/*/{CHECKPOINTS}/{BEST}")) + sorted(folder.glob(f"*/{CHECKPOINTS}/{BEST}"))
    return [*one, *stages, *trials]


def verify(folder: Path, advice: str = ADVICE) -> None:
    """Raise Blocked unless every file of a checkpoint is there and unchanged, UserError for one of another format."""
    try:
        hashes = json.loads((folder / HASHES).read_text())
    except (OSError, ValueError) as error:
        raise Blocked(f"{folder / HASHES}: the checkpoint's hashes cannot be read ({error}); {advice}") from error
    if not isinstance(hashes, dict) or not {WEIGHTS, STATE, CONFIG} <= hashes.keys():
        raise Blocked(f"{folder / HASHES} does not list the checkpoint's files; {advice}")
    for name, expected in hashes.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise Blocked(f"{path} is missing from the checkpoint; {advice}")
        if sha256(path) != expected:
            what = stand_in_at(path) or "has changed since it was written (SHA-256 differs)"
            raise Blocked(f"{path} {what}; {advice}")
    number = json.loads((folder / STATE).read_text()).get("format", 1)  # checkpoints of before it had one
    if number != FORMAT:
        raise UserError(
            f"{folder} was written by another version of this project (checkpoint format {number}, here {FORMAT}); "
            "use the version that wrote it"
        )


def read_state(folder: Path) -> dict[str, Any]:
    """The verified JSON state of a checkpoint."""
    verify(folder)
    state: dict[str, Any] = json.loads((folder / STATE).read_text())
    return state


def restore(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a verified checkpoint into model and optimiser, restore the CPU generator, and return the state."""
    state = read_state(folder)
    if not (folder / OPTIMISER).is_file():
        raise Blocked(f"{folder / OPTIMISER} is missing, without which no training is resumed; {ADVICE}")
    _fill(model, load_safetensors((folder / WEIGHTS).read_bytes()), str(folder))
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in load_safetensors((folder / OPTIMISER).read_bytes()).items():
        index, _, key = name.partition(".")
        slots.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
    for parameter, slot in optimiser.state.items():  # fused kernels walk memory: moments need their weight's strides
        for key, value in slot.items():
            if value.shape == parameter.shape:
                slot[key] = torch.empty_like(parameter).copy_(value)
    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["torch_rng"]), dtype=torch.uint8))
    return state


def read_config(folder: Path, advice: str = ADVICE) -> TrialConfig:
    """The verified settings a checkpoint was trained with."""
    verify(folder, advice)
    return stored_config((folder / CONFIG).read_bytes(), str(folder / CONFIG))


def read_weights(folder: Path, advice: str = ADVICE) -> dict[str, Tensor]:
    """The verified weights of a checkpoint, on the CPU."""
    verify(folder, advice)
    weights: dict[str, Tensor] = load_safetensors((folder / WEIGHTS).read_bytes())
    return weights


def start_from(model: nn.Module, folder: Path) -> None:
    """Load the verified weights of a checkpoint into a model to be trained. Raises UserError for a misfit."""
    check_named(folder)
    _fill(model, read_weights(folder, NAMED_ADVICE), f"start_from: {folder}")


def check_start(config: TrialConfig) -> None:
    """Raise UserError for a `start_from` that the training could not begin from; the weights' shapes alone are read."""
    if config.start_from is None or config.start_from == PREVIOUS_STAGE:
        return
    folder = Path(config.start_from)
    try:
        check_named(folder)
        verify(folder, NAMED_ADVICE)
    except UserError as error:
        raise UserError(f"start_from: {error}") from None
    with torch.device("meta"):
        model = build_model(config.model, config.target.kind, pretrained=False)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    _refuse_misfit(model, shapes, f"start_from: {folder}")


def check_settings(folder: Path, config: TrialConfig) -> None:
    """Refuse a checkpoint that was trained with other settings than these."""
    old, new = flat(read_config(folder)), flat(config)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise UserError(
                f"{folder} was trained with {key} = {old.get(key)}, not {new.get(key)}; "
                "use another folder, or put the setting back"
            )


def read_model(folder: Path) -> tuple[DepthModel, TrialConfig]:
    """The trained model in eval mode, and its settings. Raises UserError for a damaged or missing checkpoint."""
    check_named(folder)
    config = read_config(folder, NAMED_ADVICE)
    model = build_model(config.model, config.target.kind, pretrained=False)
    _fill(model, read_weights(folder, NAMED_ADVICE), str(folder))
    return model.eval(), config


def _fill(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load weights into a model. Raises UserError naming the first that does not fit."""
    _refuse_misfit(model, {name: tuple(tensor.shape) for name, tensor in weights.items()}, where)
    model.load_state_dict(weights)


def _refuse_misfit(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in (*expected, *shapes):
        if shapes.get(name) != expected.get(name):
            told = [list(found[name]) if name in found else "missing" for found in (shapes, expected)]
            raise UserError(f"{where}: its weights do not fit this model ({name} is {told[0]} there, {told[1]} here)")


def _copy(tensor: Tensor) -> Tensor:
    """A CPU copy that owns its memory, in the default layout (safetensors stores no strides)."""
    return tensor.detach().to("cpu", copy=True).contiguous()


WINDOW_STEPS = 100
LEAST_STEPS = 30  # before that the loss still falls too fast to call anything a spike
THRESHOLD = 6.0
MAD_TO_SIGMA = 1.4826
MOST_SNAPSHOTS = 3  # per training: they are as large as a checkpoint


class SpikeRecorder:
    """Takes a snapshot every `snapshot_every_steps` steps and writes the last one before each of the first spikes."""

    def __init__(self, config: TrialConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._every = config.snapshot_every_steps
        self._recent: deque[tuple[int, Snapshot]] = deque(maxlen=2)  # a flush looks back less than one interval
        self._logs: deque[float] = deque(maxlen=WINDOW_STEPS)

    def before_step(self, step: int, take: Callable[[], Snapshot]) -> None:
        """Offer the state before a step."""
        if self._every and step % self._every == 0:
            self._recent.append((step, take()))

    def observe(self, steps: Sequence[dict[str, Any]]) -> None:
        """Look at finished steps {'step', 'loss', 'samples'}; write a snapshot for each new spike."""
        for row in steps:
            log = math.log(max(float(row["loss"]), 1e-12))
            if self._every and len(self._logs) >= LEAST_STEPS and self._is_spike(log):
                self._write(row)
            else:
                self._logs.append(log)

    def _is_spike(self, log: float) -> bool:
        middle = median(self._logs)
        spread = MAD_TO_SIGMA * median(abs(value - middle) for value in self._logs)
        return log - middle > max(THRESHOLD * spread, math.log(2))

    def _write(self, row: dict[str, Any]) -> None:
        before = [(step, snapshot) for step, snapshot in self._recent if step <= row["step"]]
        if not before:
            return
        step, snapshot = before[-1]
        folder = self._folder / f"step-{step}"
        if folder.exists() or len(list(self._folder.glob("step-*"))) >= MOST_SNAPSHOTS:
            return
        spike = {"spike_step": row["step"], "spike_loss": float(row["loss"]), "spike_samples": list(row["samples"])}
        write_checkpoint(folder, Snapshot(snapshot.weights, snapshot.optimiser, snapshot.state | spike), self._config)
