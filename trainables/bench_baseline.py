"""What the bench compares with: DenseDepth's published PyTorch port, restated with this project's model and loss.

Source: ialhashim/DenseDepth@2e15107 PyTorch/train.py and data.py: float32, NCHW, Adam as torch makes it, `.item()` each
step, frames decoded, flipped and resized by PIL in the main process. Its loss had no gradient term; here both have it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class PlainLoop:
    """The published port's step on a copy of the model."""

    def __init__(self, training: Any, config: Any) -> None:
        import torch

        from trainables.models import build_model

        self._config, self._device = config, training.device
        self._model = build_model(config.model, config.target.kind).to(training.device).train()
        self._optimiser = torch.optim.Adam(self._model.parameters(), config.optim.lr)

    def to_device(self, batch: Any) -> tuple[Any, Any, Any]:
        from trainables.data.loader import augment

        images, target, valid = augment(batch, self._device)
        return images.contiguous(), target, valid

    def step(self, batch: tuple[Any, Any, Any]) -> float:
        import torch

        from trainables.losses import composite
        from trainables.target import DATA_RANGE

        images, target, valid = batch
        self._optimiser.zero_grad()
        pred = self._model(images)
        loss = composite(pred, target, valid, self._config.loss, DATA_RANGE[self._config.target.kind]).total
        torch.autograd.backward(loss)
        self._optimiser.step()
        return float(loss.item())


def port_loader(config: Any) -> Callable[[int], Any]:
    """The port's dataset: decoding, flip and resize by PIL, channel swap by NumPy, tensors in this process."""
    import random
    from itertools import permutations

    import numpy as np
    import torch
    from PIL import Image

    from trainables.data.dataset import open_training

    frames = open_training(config).train
    root = Path(config.data.root) if config.data.root else None
    if root is None or not root.is_dir():
        from trainables.data.rooms import rooms_root

        root = rooms_root(config.data.rooms)
    orders, draw = list(permutations(range(3))), random.Random(0)
    size = (config.input[1], config.input[0])

    def read(index: int) -> Any:
        name = frames.ids[index]
        image: Image.Image = Image.open(root / name)
        depth: Image.Image = Image.open((root / name).with_suffix(".png"))
        if draw.random() < config.augment.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            depth = depth.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if draw.random() < config.augment.channel_swap:
            image = Image.fromarray(np.asarray(image)[..., list(orders[draw.randint(0, 5)])])
        if image.size != size:
            image = image.resize(size)
        depth = depth.resize((size[0] // 2, size[1] // 2))
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        truth = torch.from_numpy(np.array(depth)).float().div(255) * 1000
        return tensor, 1000.0 / truth.clamp(10, 1000)

    return read
