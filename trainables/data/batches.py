"""Batches, and their augmentation on the device: mirrored images and swapped color channels (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, Final

import torch

# Channel orders by number; 0 keeps them. As in the reference, a swap draws from all six.
CHANNEL_ORDERS: Final = tuple(permutations(range(3)))
TENSORS: Final = ("images", "target", "valid", "flip", "swap")  # of a Batch


@dataclass(frozen=True)
class Batch:
    """Samples before augmentation. `skipped`: (id, reason) of bad frames that others stand in for.

    Where several processes train together it holds a part: `first` is where it begins in the whole batch. An empty part
    has no ids and one sample that is a hole everywhere, so that every process does the same and nothing counts twice.
    """

    position: int  # images seen before the whole batch
    first: int
    whole: int  # samples of the whole batch
    ids: tuple[str, ...]
    index: list[int]  # positions in the frame list
    images: torch.Tensor  # uint8 (N, 3, h, w), channels last
    target: torch.Tensor  # float32 (N, 1, h', w'), target space
    valid: torch.Tensor  # bool (N, 1, h', w')
    flip: torch.Tensor  # bool (N,)
    swap: torch.Tensor  # int64 (N,), numbers of CHANNEL_ORDERS
    skipped: tuple[tuple[str, str], ...] = ()

    def to(self, device: torch.device) -> Batch:
        """On a device, copied in the background where the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """In memory that a GPU copies from by itself."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        moved: dict[str, Any] = {name: function(getattr(self, name)) for name in TENSORS}
        return replace(self, **moved)


def augment(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images float32 0..1 (N, 3, h, w), channels last, target and validity on the device, flipped and swapped as drawn.

    Whole batches and tensor arithmetic only: the host never waits for the device.
    """
    batch = batch.to(device)
    return augment_one_by_one(batch) if device.type == "cpu" else augment_at_once(batch)


def augment_at_once(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By a few operations on the whole batch; the host needs no value of the device."""
    numbers = torch.arange(len(batch.images), device=batch.images.device)[:, None]
    orders = torch.tensor(CHANNEL_ORDERS).to(batch.images.device, non_blocking=True)[batch.swap]
    images, flip = batch.images[numbers, orders], batch.flip[:, None, None, None]
    flipped = (torch.where(flip, tensor.flip(-1), tensor) for tensor in (images, batch.target, batch.valid))
    images, target, valid = flipped
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255), target, valid


def augment_one_by_one(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same on a CPU, where the draws are at hand: only what changes is moved, several times as fast there."""
    images = torch.empty(batch.images.shape, memory_format=torch.channels_last)
    target, valid = batch.target.clone(), batch.valid.clone()
    for n, (flip, swap) in enumerate(zip(batch.flip.tolist(), batch.swap.tolist(), strict=True)):
        image = batch.images[n]
        if flip:
            image = image.flip(-1)
            target[n], valid[n] = batch.target[n].flip(-1), batch.valid[n].flip(-1)
        for here, there in enumerate(CHANNEL_ORDERS[swap]) if swap else ():
            images[n, here] = image[there]
        if not swap:
            images[n] = image
        images[n].div_(255)  # while the picture is still in the processor's cache
    return images, target, valid
