"""A trained model as a value: its network, settings and device; a picture in, depth in metres out.

Any checkpoint folder is one, whether a training, a study or trainables.weights_keras wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainables.data.frames import FrameList
from trainables.data.samples import resize_rgb
from trainables.evaluation.evaluate import Evaluation, predict_depth_m
from trainables.evaluation.evaluate import evaluate as evaluate_network
from trainables.evaluation.protocols import PROTOCOLS
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig
from trainables.settings.yamlfile import nearest
from trainables.training.checkpoint import read_model


@dataclass(frozen=True)
class TrainedModel:
    """A network in eval mode on `device`, and the settings it was trained with."""

    network: nn.Module
    config: TrialConfig
    device: torch.device

    @property
    def metric(self) -> bool:
        """Whether its depth has a scale. Relative depth (0 to 1) is spread over the range of depth: its metres are
        units only.
        """
        return self.config.target.kind != "relative"

    def predict(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Depth in metres, float32 (H, W), of an upright RGB picture, uint8 (H, W, 3), of any size.

        The picture is resized to the training's input, as its frames were, whatever its own proportions. Raises
        UserError for another kind of array.
        """
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
            raise UserError(f"predict: needs uint8 of shape (H, W, 3), not {rgb.dtype} of {rgb.shape}; convert it")
        images = resize_rgb(rgb, self.config.input).to(self.device)[None].float() / 255
        with torch.inference_mode():
            depth = predict_depth_m(
                self.network, images, self.config, self.config.mirrored, (rgb.shape[0], rgb.shape[1])
            )
        result: NDArray[np.float32] = depth[0].cpu().numpy()
        return result


def load_model(path: str | Path, device: Literal["auto", "cpu", "cuda"] = "auto") -> TrainedModel:
    """The model of a checkpoint folder, hash-checked, in eval mode; `auto` takes a GPU when there is one.

    Raises UserError for a damaged or missing checkpoint, and for a GPU that is not there.

    >>> model = load_model(checkpoint)
    >>> depth_m = model.predict(np.zeros((90, 120, 3), np.uint8))
    >>> depth_m.shape, str(depth_m.dtype), model.metric
    ((90, 120), 'float32', True)
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for and this machine has no usable GPU; use auto or cpu")
    chosen = torch.device("cuda" if torch.cuda.is_available() and device != "cpu" else "cpu")
    network, config = read_model(Path(path))
    return TrainedModel(network.to(chosen), config, chosen)


def evaluate(model: TrainedModel, data: FrameList, protocols: Sequence[str] = tuple(PROTOCOLS)) -> Evaluation:
    """Scores of a model on frames, for example `open_training(config).validation`, under protocols by name.

    `summary` of the result maps each protocol, by its name as run on these data, to its means {metric: value}; `rows`
    holds every frame's values. Raises UserError for an unknown protocol.

    >>> from trainables import open_training
    >>> model = load_model(checkpoint)
    >>> evaluation = evaluate(model, open_training(model.config).validation, ["densedepth"])
    >>> [sorted(means)[:3] for means in evaluation.summary.values()], len(evaluation.rows)
    ([['abs_rel', 'delta1', 'delta2']], 6)
    """
    for name in protocols:
        if name not in PROTOCOLS:
            raise UserError(f"no protocol {name}{nearest(name, PROTOCOLS)}; the protocols are {', '.join(PROTOCOLS)}")
    return evaluate_network(model.network, data, model.config, protocols, model.device, model.config.batch_size)
