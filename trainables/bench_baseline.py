"""Baseline of the bench: DenseDepth's published PyTorch port, restated with this project's model and loss.

Source: ialhashim/DenseDepth@2e15107 PyTorch/train.py and data.py: float32, NCHW, Adam as torch makes it, `.item()` each
step, frames decoded, flipped and resized by PIL in the main process. Its loss had no gradient term; here both have it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainables.bench_run import RESIDENT


@contextlib.contextmanager
def plain_loop(settings: str) -> Iterator[Callable[[int], None]]:
    """The published port's step, on batches already in memory."""
    import torch

    from trainables.config import TrialConfig
    from trainables.data.dataset import open_training
    from trainables.data.loader import TrainLoader, augment
    from trainables.device import choose_device
    from trainables.losses import composite
    from trainables.models import build_model
    from trainables.target import DATA_RANGE

    config = TrialConfig.model_validate_json(settings)
    device = choose_device(config)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    loader = iter(TrainLoader(open_training(config).train, config, 0))
    first = [augment(next(loader), device) for _ in range(RESIDENT)]
    batches = itertools.cycle([(images.contiguous(), target, valid) for images, target, valid in first])
    model = build_model(config.model, config.target.kind).to(device).train()
    optimiser = torch.optim.Adam(model.parameters(), config.optim.lr)

    def train(steps: int) -> None:
        for images, target, valid in itertools.islice(batches, steps):
            optimiser.zero_grad()
            pred = model(images)
            loss = composite(pred, target, valid, config.loss, DATA_RANGE[config.target.kind]).total
            torch.autograd.backward(loss)
            optimiser.step()
            loss.item()

    yield train


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
