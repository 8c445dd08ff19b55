"""Training of one model by several processes, one device each: shards, reductions, agreement.

Each takes its part of every batch, so that nothing of a training's settings moves. A loss term's sum over the part is
divided by the whole batch's count, and the parts' gradients are summed: the step of one process. The sum is one
all-reduce of one flat tensor after the last backward pass, not DistributedDataParallel: that averages over processes,
which is wrong as soon as their counts of valid pixels differ, reduces once per backward pass of an accumulated step,
and hides the reduction in hooks; what it saves is the overlap of the reduction with the backward pass.

Known deviation from one process: in train mode BatchNorm normalises each part by its own statistics, as is usual;
running statistics are averaged, so that every process holds the same. Sums are added in another order, so equality
with one process is to float32's rounding, not bit for bit; a training may continue with another number of processes.

Alone (no process group), nothing here waits for or changes anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from trainables.runtime.errors import PeerLost, UserError

# A process that ends closes its connections, and the others see that at once; they wait as long as a validation takes.
LONGEST_WAIT = timedelta(hours=24)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
T = TypeVar("T")


@contextlib.contextmanager
def joined(store: Any, rank: int, size: int, device: torch.device) -> Iterator[None]:
    """Be one of `size` processes that train together; `store` (torch's) is where they find each other."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number; 0 leads."""
    return dist.get_rank() if dist.is_initialized() else 0


def leads() -> bool:
    """Whether this process validates and writes."""
    return rank() == 0


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def check_parts(batch_size: int, processes: int) -> None:
    """Refuse a batch that has no equal parts."""
    if batch_size % processes:
        raise UserError(
            f"a batch of {batch_size} has no {processes} equal parts for the {processes} workers of a training; "
            f"make batch_size a multiple of {processes}, or lower resources.gpus_per_trial or workers_per_trial"
        )


def part_of(count: int, rank: int, size: int) -> range:
    """A process's part of `count` samples: contiguous, the first parts longer by one where they cannot be equal."""
    least, rest = divmod(count, size)
    start = rank * least + min(rank, rest)
    return range(start, start + least + (rank < rest))


def total(values: Tensor) -> Tensor:
    """The sum over all processes; no gradient passes."""
    return _reduced(values, dist.ReduceOp.SUM)


def largest(values: Tensor) -> Tensor:
    """The maximum over all processes; no gradient passes."""
    return _reduced(values, dist.ReduceOp.MAX)


def any_of(flag: bool) -> bool:
    """Whether any process says so. Travels between the hosts, so a device is not waited for."""
    return bool(largest(torch.tensor(int(flag)))) if size() > 1 else flag


def gather(value: T) -> list[T]:
    """Every process's value, by rank."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    with _losing():
        dist.all_gather_object(values, value)
    return values


def from_first(value: T) -> T:
    """The leading process's value."""
    if size() == 1:
        return value
    values = [value]
    with _losing():
        dist.broadcast_object_list(values, 0)
    return values[0]


def start_alike(model: nn.Module) -> None:
    """Give every process the leading one's weights and statistics: another processor may have drawn others."""
    if size() > 1:
        tensors = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
        _in_one(tensors, lambda flat: dist.broadcast(flat, 0))


def sum_step(model: nn.Module, scalars: Sequence[Tensor]) -> None:
    """Sum gradients and scalars over all processes, average running statistics; in place, in one reduction."""
    if size() == 1:
        return
    # The graph is the same everywhere (an empty part is a masked sample), so the same parameters have gradients.
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    moving = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.training and m.track_running_stats]
    statistics = [s for m in moving for s in (m.running_mean, m.running_var) if s is not None]
    for values in statistics:
        values.div_(size())
    _in_one([*gradients, *statistics, *scalars], dist.all_reduce)


def _in_one(tensors: Sequence[Tensor], collective: Any) -> None:
    with torch.no_grad():
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _losing():
            collective(flat)
        for tensor, values in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(values.view(tensor.shape))


def _reduced(values: Tensor, operation: Any) -> Tensor:
    if size() == 1:
        return values
    whole = values.detach().clone()
    with _losing():
        dist.all_reduce(whole, operation)
    return whole


@contextlib.contextmanager
def _losing() -> Iterator[None]:
    """A collective that breaks off has lost a process; why that ended, it says itself."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerLost(f"another process of this training has ended ({str(error).splitlines()[0]})") from error
