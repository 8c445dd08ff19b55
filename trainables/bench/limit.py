"""Limits for the bench: a step's floating-point operations, the device's best rate, and a profile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

MATRIX_SIZES = {"cpu": (1024, 2048, 3072), "cuda": (4096, 8192, 12288)}
MATRIX_SECONDS = 0.5
PROFILED = 14  # operations that a profile names


def matrix_rate(device: Any, dtype: Any) -> float:
    """The best rate of square matrix products over several sizes, in floating-point operations per second."""
    import torch

    best = 0.0
    for size in MATRIX_SIZES[device.type]:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        a @ b
        synchronise(device)
        count, start = 0, time.perf_counter()
        while count == 0 or time.perf_counter() - start < MATRIX_SECONDS:
            for _ in range(5 if device.type == "cuda" else 1):
                a @ b
                count += 1
            synchronise(device)
        best = max(best, 2 * size**3 * count / (time.perf_counter() - start))
    return best


def step_flops(training: Any, batch: Any) -> float:
    """Operations of one forward and backward pass over a batch, by torch's counter, in eager mode."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainables.data.loader import augment

    learner = training.learner
    images, _, _ = augment(batch, learner.device)
    autocast = torch.autocast(learner.device.type, learner.dtype, enabled=learner.dtype != torch.float32)
    with FlopCounterMode(display=False) as counter, autocast:
        torch.autograd.backward(learner.model(images).sum())
    learner.optimiser.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def share_of_limit(times: Sequence[float], flops: float, rate: float) -> dict[str, Any]:
    shares = [flops / t / rate for t in times]
    if max(shares) > 1:
        raise AssertionError(f"a share of {max(shares):.2f} of the matrix limit: the limit or the count is wrong")
    return {"tflop_per_step_group": flops / 1e12, "matrix_tflop_per_s": rate / 1e12, "share_of_limit": spread(shares)}


def profile(body: Callable[[], None], device: Any) -> dict[str, float]:
    """Each operation's own share of the time on the device, from torch.profiler, the largest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch_profile(activities=activities) as recorded:
        body()
        synchronise(device)
    own = {e.key: float(e.self_device_time_total if on_gpu else e.self_cpu_time_total) for e in recorded.key_averages()}
    total = sum(own.values())
    largest = sorted(own, key=lambda name: -own[name])[:PROFILED]
    return {name: own[name] / total for name in largest}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def synchronise(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
