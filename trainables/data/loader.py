"""Batch loaders. What a batch holds depends on (seed, position) alone, position being the images seen before it.

The order of an epoch comes from (seed, epoch), a frame's augmentation from (seed, its own position): a resumed training
needs one integer, and workers, threads and the cache change nothing. An epoch ends with a partial batch. Where a bad
frame is skipped, the next good one of the list stands in for it, again by position alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from trainables.data.batches import CHANNEL_ORDERS, Batch, augment
from trainables.data.cache import SampleCache, open_cache
from trainables.data.frames import BadFrame, Depth, FrameList
from trainables.data.samples import cropped, prepare, resize_rgb
from trainables.models.depth_model import output_size
from trainables.runtime.device import single_threaded
from trainables.runtime.errors import UserError
from trainables.runtime.parallel import part_of
from trainables.settings.config import TrialConfig

__all__ = ["Batch", "EvalLoader", "TrainLoader", "augment"]
_ORDER, _AUGMENT = 0, 1  # streams of random numbers
T = TypeVar("T")
R = TypeVar("R")


class TrainLoader:
    """Endless batches of a frame list from `start_position` on; each iteration starts there again.

    `skipped` collects the bad frames met so far, id -> reason.
    """

    def __init__(
        self, data: FrameList, config: TrialConfig, start_position: int, *, rank: int = 0, size: int = 1
    ) -> None:
        """`rank` of `size` processes that train together makes its part of each batch."""
        if not len(data):
            raise UserError("there are no training frames; check data.root, data.subset and data.exclude")
        self._start = start_position
        self._config = config
        self._frames = len(data)
        self._source = _Source(data, config, open_cache(data, config), rank, size)
        self.skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[Batch]:
        for batch in _ahead(self._source, self._positions, self._config):
            self.skipped.update(batch.skipped)
            yield batch

    def _positions(self) -> Iterator[int]:
        position = self._start
        while True:
            yield position
            position += min(self._config.batch_size, self._frames - position % self._frames)


class EvalLoader:
    """(ids, images uint8 (N, 3, h, w), depths in metres at their stored size, positions) of every frame, in order.

    Only the images lose `data.crop_border_px`. Bad frames are left out where they are to be skipped, and collected in
    `skipped`, id -> reason.
    """

    def __init__(self, data: FrameList, config: TrialConfig, batch_size: int) -> None:
        self._batches = [range(i, min(i + batch_size, len(data))) for i in range(0, len(data), batch_size)]
        self._config = config
        self._source = _EvalSource(data, config)
        self.skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], torch.Tensor, list[Depth], list[int]]]:
        for images, depths, index, ids, skipped in _ahead(self._source, lambda: iter(self._batches), self._config):
            self.skipped.update(skipped)
            if index:
                yield ids, images, depths, index


@dataclass
class _Source:
    """Makes the batch at a position, or a process's part of it."""

    frames: FrameList
    config: TrialConfig
    cache: SampleCache | None
    rank: int
    size: int

    def __post_init__(self) -> None:
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None  # of the last epoch asked for

    def __call__(self, position: int) -> Batch:
        config, total = self.config, len(self.frames)
        epoch, offset = divmod(position, total)
        whole = self._order_of(epoch)[offset : offset + config.batch_size]
        part = part_of(len(whole), self.rank, self.size)
        order = whole[part.start : part.stop] if part else whole[:1]
        rows, columns = output_size(config.model, config.input)
        images = np.empty((len(order), *config.input, 3), np.uint8)
        target = np.empty((len(order), 1, rows, columns), np.float32)
        valid = np.empty((len(order), 1, rows, columns), np.bool_)
        skipped: dict[str, str] = {}
        index = [self._fill(int(i), images[k], target[k], valid[k], skipped) for k, i in enumerate(order)]
        draws = [self._draw(position + part.start + k) for k in range(len(order))]
        if not part:
            valid[...], index = False, []
        return Batch(
            position=position,
            first=part.start,
            whole=len(whole),
            ids=tuple(self.frames.ids[i] for i in index),
            index=index,
            images=torch.from_numpy(images).permute(0, 3, 1, 2),
            target=torch.from_numpy(target),
            valid=torch.from_numpy(valid),
            flip=torch.tensor([flip for flip, _ in draws]),
            swap=torch.tensor([swap for _, swap in draws]),
            skipped=tuple(skipped.items()),
        )

    def _order_of(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            total = len(self.frames)
            shuffled = self.config.data.order == "shuffled"
            random = np.random.default_rng([self.config.seed, _ORDER, epoch])
            self._order = epoch, random.permutation(total) if shuffled else np.arange(total)
        return self._order[1]

    def _draw(self, position: int) -> tuple[bool, int]:
        """Whether the frame at a position is flipped, and its channel order."""
        random = np.random.default_rng([self.config.seed, _AUGMENT, position])
        flip, swap = random.random(2)
        order = int(random.integers(len(CHANNEL_ORDERS)))
        return bool(flip < self.config.augment.flip), order if swap < self.config.augment.channel_swap else 0

    def _fill(
        self,
        wanted: int,
        rgb: npt.NDArray[np.uint8],
        target: npt.NDArray[np.float32],
        valid: npt.NDArray[np.bool_],
        skipped: dict[str, str],
    ) -> int:
        """Write a frame's sample, or that of the next one that can be read; returns the position in the list."""
        for step in range(len(self.frames)):
            i = (wanted + step) % len(self.frames)
            slot = self.frames.rgb_of[i]
            if self.cache is not None and self.cache.read(slot, rgb, target, valid):
                return i
            try:
                sample = prepare(self.frames.read(i), self.config)
            except BadFrame as error:
                if self.config.data.on_bad_frame == "stop":
                    raise
                skipped[self.frames.ids[i]] = str(error)
                continue
            if self.cache is not None:
                self.cache.put(slot, sample)
            rgb[...] = sample.rgb.permute(1, 2, 0).numpy()
            target[...], valid[...] = sample.target.numpy(), sample.valid.numpy()
            return i
        raise UserError(f"every training frame is bad, {self.frames.ids[wanted]} for one; run the doctor on the data")


@dataclass
class _EvalSource:
    """Makes the batch of some positions of a list: images, depths, positions, ids, skipped."""

    frames: FrameList
    config: TrialConfig

    def __call__(
        self, positions: range
    ) -> tuple[torch.Tensor, list[Depth], list[int], tuple[str, ...], dict[str, str]]:
        images: list[torch.Tensor] = []
        depths: list[Depth] = []
        index: list[int] = []
        skipped: dict[str, str] = {}
        for i in positions:
            try:
                frame = self.frames.read(i)
                images.append(resize_rgb(cropped(frame.rgb, self.config.data.crop_border_px), self.config.input))
            except BadFrame as error:
                if self.config.data.on_bad_frame == "stop":
                    raise
                skipped[self.frames.ids[i]] = str(error)
                continue
            depths.append(frame.depth_m)
            index.append(i)
        stacked = torch.stack(images) if images else torch.empty((0, 3, *self.config.input), dtype=torch.uint8)
        return stacked, depths, index, tuple(self.frames.ids[i] for i in index), skipped


def _ahead(source: Callable[[T], R], items: Callable[[], Iterator[T]], config: TrialConfig) -> Iterator[R]:
    """source(item) for each item, in order, made ahead: by `data.workers` processes, or one ahead by a thread."""
    pin = config.device != "cpu" and torch.cuda.is_available()
    if config.data.workers:
        loader: DataLoader[Any] = DataLoader(
            _Made(source),
            batch_size=None,
            sampler=_Endless(items),
            num_workers=config.data.workers,
            collate_fn=_as_it_is,
            pin_memory=pin,
            generator=torch.Generator(),  # or its seed would be drawn from the training's random numbers
        )
        for made in loader:
            if isinstance(made, UserError):
                raise made
            yield made
        return
    with single_threaded("loader") as pool:
        future = None
        for item in items():
            following = pool.submit(_pinned, source, item, pin)
            if future is not None:
                yield future.result()
            future = following
        if future is not None:
            yield future.result()


def _pinned(source: Callable[[T], R], item: T, pin: bool) -> R:
    made = source(item)
    return made.pin_memory() if pin and isinstance(made, Batch) else made  # type: ignore[return-value]


def _as_it_is(made: R) -> R:
    return made


@dataclass
class _Made(Dataset[Any]):
    """A source as torch's workers want it. A mistake of the user travels as a value: raised in a worker, its one
    sentence would come back inside a traceback.
    """

    source: Callable[[Any], Any]

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.source(item)
        except UserError as error:
            return error


class _Endless(Sampler[Any]):
    def __init__(self, items: Callable[[], Iterable[Any]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items())
