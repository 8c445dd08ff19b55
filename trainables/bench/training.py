"""Trainings that the bench measures, the plain loop they are compared with, and rounds in turn.

The plain loop is DenseDepth's published PyTorch port, restated with this project's model and loss. Source:
ialhashim/DenseDepth@2e15107 PyTorch/train.py and data.py: float32, NCHW, Adam as torch makes it, `.item()` each step,
frames decoded, flipped and resized by PIL in the main process. Its loss had no gradient term; here both have it.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from trainables.bench.limit import synchronise

RESIDENT = 4  # batches that are kept in memory


def interleave(bodies: dict[str, Callable[[], None]], pairs: int, device: Any) -> dict[str, list[float]]:
    """Seconds of each body in each of `pairs` rounds, run in turn after one round that does not count."""
    timings: dict[str, list[float]] = {name: [] for name in bodies}
    for number in range(pairs + 1):
        for name, body in bodies.items():
            took = seconds(body, device)
            if number:
                timings[name].append(took)
    return timings


def seconds(body: Callable[[], None], device: Any) -> float:
    """What a body takes on the device."""
    synchronise(device)
    start = time.perf_counter()
    body()
    synchronise(device)
    return time.perf_counter() - start


@contextlib.contextmanager
def training_of(config: Any) -> Iterator[Any]:
    from trainables.runtime.device import keep_freed_memory
    from trainables.training.trainer import Training

    keep_freed_memory()  # as the command does
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Training(config, Path(folder), None)) as training:
        yield training


def resident_batches(training: Any) -> Iterator[Any]:
    """An endless cycle of the first batches, already on the device."""
    from trainables.data.loader import TrainLoader

    loader = iter(TrainLoader(training.data.train, training.config, 0))
    batches = [next(loader).to(training.learner.device) for _ in range(RESIDENT)]
    return itertools.cycle(batches)


class Elsewhere:
    """A training loop in a process of its own: what this process sets for itself does not reach it.

    make: from the settings as JSON to a function that trains so many steps and returns when they are done.
    """

    def __init__(self, make: Callable[[str], contextlib.AbstractContextManager[Callable[[int], None]]], config: Any):
        from torch import multiprocessing

        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, config.model_dump_json(), theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.wait()

    def start(self, steps: int) -> None:
        """Begin to train so many steps."""
        self._pipe.send(steps)

    def wait(self) -> None:
        """Return when they are done. Raises EOFError where the process has failed; it prints why."""
        self._pipe.recv()

    def run(self, steps: int) -> None:
        """Train so many steps."""
        self.start(steps)
        self.wait()

    def own_mib(self) -> float:
        """Memory that no other process shares."""
        return float(psutil.Process(self._process.pid).memory_full_info().uss) / 2**20

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(make: Callable[[str], Any], settings: str, pipe: Any) -> None:
    with make(settings) as train:
        pipe.send(0)
        with contextlib.suppress(EOFError):
            while True:
                steps = pipe.recv()
                train(steps)
                pipe.send(steps)


@contextlib.contextmanager
def loaded_loop(settings: str) -> Iterator[Callable[[int], None]]:
    """This project's trainer, fed by its loader."""
    from trainables.data.loader import TrainLoader
    from trainables.settings.config import TrialConfig

    with training_of(TrialConfig.model_validate_json(settings)) as training:
        batches = iter(TrainLoader(training.data.train, training.config, 0))

        def train(steps: int) -> None:
            for _ in range(steps):
                training.train_step(batches)
            training.flush()

        yield train


@contextlib.contextmanager
def plain_loop(settings: str) -> Iterator[Callable[[int], None]]:
    """The published port's step, on batches already in memory."""
    import torch

    from trainables.data.dataset import open_training
    from trainables.data.loader import TrainLoader, augment
    from trainables.data.target import data_range
    from trainables.models.depth_model import build_model
    from trainables.models.losses import composite
    from trainables.runtime.device import choose_device
    from trainables.settings.config import TrialConfig

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
            loss = composite(pred, target, valid, config.loss, data_range(config.target)).total
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
        from trainables.data.rooms.writer import rooms_root

        root = rooms_root(config.data.rooms)
    orders, draw = list(permutations(range(3))), random.Random(0)
    size = (config.input[1], config.input[0])

    def read(index: int) -> Any:
        name = frames.ids[index]
        image: Image.Image = Image.open(root / name, formats=["JPEG", "PNG"])
        depth: Image.Image = Image.open((root / name).with_suffix(".png"), formats=["PNG"])
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
