"""CUDA graph of a model's forward and backward pass.

A step of DenseNet-169 launches thousands of kernels, and on a fast GPU the host takes longer to launch them than the
GPU takes to run them. A graph launches all of them at once. torch.cuda.make_graphed_callables captures it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class GraphedForward:
    """A model's forward pass, replayed from a CUDA graph for whole batches in train mode; others run as usual.

    Capture it before another thread uses the GPU (pinning memory would break the capture). The model's parameters and
    buffers are the same tensors as before, with the same values.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[Tensor], Tensor],
        shape: tuple[int, int, int, int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """forward: the model itself or what torch.compile made of it; shape: N x 3 x H x W of a whole batch; dtype:
        autocast's, float32 for none.
        """
        self._model, self._forward, self._shape = model, forward, torch.Size(shape)
        images = torch.zeros(shape, device=device).to(memory_format=torch.channels_last)
        kept: list[Tensor] = [buffer.clone() for buffer in model.buffers()]
        model.train()
        # Autocast must not keep its casts of the weights: the graph has to cast them anew at each replay.
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            called = _Called(model, forward)
            self._graphed: Any = torch.cuda.make_graphed_callables(called, (images,), allow_unused_input=True)
        with torch.no_grad():  # the runs that warm up have moved BatchNorm's statistics
            for moved, value in zip(model.buffers(), kept, strict=True):
                moved.copy_(value)

    def __call__(self, images: Tensor) -> Tensor:
        """As the model's. The result is overwritten by the next call."""
        if self._model.training and images.shape == self._shape:
            replayed: Tensor = self._graphed(images)
            return replayed
        return self._forward(images)


class _Called(nn.Module):
    """A model behind a module of its own: capturing replaces the forward of the module it is given."""

    def __init__(self, model: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model  # whose parameters the backward pass differentiates
        self.call = forward

    def forward(self, images: Tensor) -> Tensor:
        return self.call(images)
