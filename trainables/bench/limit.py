"""Limits for the bench: a step's floating-point operations, the device's best rate, and a profile."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

MATRIX_SIZES = {"cpu": (1024, 2048, 3072), "cuda": (4096, 8192, 12288)}
MATRIX_SECONDS = 0.5
PROFILED = 14  # operations that a profile names
# The operations that a processor can do at about its matrix rate: products, and convolutions over all channels.
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
CONVOLUTIONS = {  # name: place of the input and of the weight among its arguments
    "aten::convolution_backward": (1, 2),
    "aten::cudnn_convolution": (0, 1),
    "aten::mkldnn_convolution": (0, 1),
    "aten::_slow_conv2d_forward": (0, 1),
    "aten::_slow_conv2d_backward": (1, 2),
}


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
    """Operations of one forward and backward pass over a batch, in eager mode: by torch's counter, except that it
    takes the backward pass of a grouped convolution for one over all channels.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainables.data.loader import augment

    learner = training.learner
    images, _, _ = augment(batch, learner.device)
    autocast = torch.autocast(learner.device.type, learner.dtype, enabled=learner.dtype != torch.float32)
    counted = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter, autocast:
        torch.autograd.backward(learner.model(images).sum())
    learner.optimiser.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def convolution_backward_flops(
    grad_out: Sequence[int],
    input: Sequence[int],
    weight: Sequence[int],
    bias: object,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    output_padding: object,
    groups: int,
    wanted: Sequence[bool],
    *,
    out_shape: object,
) -> int:
    """Operations of a convolution's backward pass, from shapes, as aten::convolution_backward is called.

    The gradients of input and weight cost what the forward pass does, each where it is `wanted`: two operations per
    weight and place that the filter is laid at. The weight's shape has its groups in it already.
    """
    places = math.prod((input if transposed else grad_out)[2:])
    return 2 * input[0] * places * math.prod(weight) * (int(wanted[0]) + int(wanted[1]))


def share_of_limit(times: Sequence[float], flops: float, rate: float) -> dict[str, Any]:
    shares = [flops / t / rate for t in times]
    if max(shares) > 1:
        raise AssertionError(f"a share of {max(shares):.2f} of the matrix limit: the limit or the count is wrong")
    return {"tflop_per_step_group": flops / 1e12, "matrix_tflop_per_s": rate / 1e12, "share_of_limit": spread(shares)}


def profile(body: Callable[[], None], device: Any) -> dict[str, float]:
    """Each operation's own share of the time on the device, from torch.profiler, the largest first.

    `memory_bound_share` is the share of everything but matrix products and dense convolutions: what no faster
    arithmetic would shorten. Depthwise convolutions belong to it, which do few operations per value they read.
    """
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch_profile(activities=activities, record_shapes=True) as recorded:
        body()
        synchronise(device)
    own: dict[str, float] = {}
    dense = 0.0
    for event in recorded.key_averages(group_by_input_shape=True):
        took = float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)
        own[event.key] = own.get(event.key, 0.0) + took
        dense += took if is_dense(event.key, event.input_shapes) else 0.0
    total = sum(own.values())
    largest = sorted(own, key=lambda name: -own[name])[:PROFILED]
    return {name: own[name] / total for name in largest} | {"memory_bound_share": 1 - dense / total}


def is_dense(operation: str, shapes: Sequence[Sequence[int]]) -> bool:
    """Whether an operation on arguments of these shapes is a matrix product or a convolution that is not depthwise."""
    if operation not in CONVOLUTIONS:
        return operation in PRODUCTS
    input, weight = (shapes[place] for place in CONVOLUTIONS[operation])
    return weight[1] > 1 or input[1] == 1


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def synchronise(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
