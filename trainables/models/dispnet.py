"""DispNet's decoder: a prediction at every scale, upsampled into the next one.

Source: Mayer et al., "A Large Dataset to Train Convolutional Networks for Disparity, Optical Flow, and Scene Flow
Estimation" (CVPR 2016), Table 1 of its supplement: upconv, concatenation with skip and upsampled prediction, iconv, pr.
Known deviation: only the finest prediction is supervised; the channels halve from the bottleneck's, as DispNet's do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.models.decoder import (
    Size,
    Upsample,
    first_channels,
    half,
    in_float32,
    join,
    resize,
    size_at,
    up_scales,
)

UPCONV_KERNEL = 4


class DispBlock(nn.Module):
    """upconv (transposed 4x4, or bilinear and 3x3), [upconv, skip, coarser prediction], iconv 3x3, prediction 3x3."""

    def __init__(
        self, channels: int, skip_channels: int, out_channels: int, *, activation_between: bool, **up: bool
    ) -> None:
        super().__init__()
        self.up = Upsample(channels, out_channels, UPCONV_KERNEL, **up)
        self.smooth = nn.Identity() if up["transposed"] else nn.Conv2d(channels, out_channels, 3, padding=1)
        self.between = activation_between
        self.iconv = nn.Conv2d(out_channels + skip_channels + 1, out_channels, 3, padding=1)
        self.predict = nn.Conv2d(out_channels, 1, 3, padding=1)
        self.align_corners = up["align_corners"]

    def forward(self, x: Tensor, coarse: Tensor, skip: Tensor | None, size: Size | None) -> tuple[Tensor, Tensor]:
        x = self.smooth(self.up(x, size))
        if self.between:
            x = F.relu(x)
        coarse = resize(coarse, (x.shape[-2], x.shape[-1]), self.align_corners)
        x = F.relu(self.iconv(torch.cat([join(x, skip), coarse.to(x.dtype)], dim=1)))
        return x, in_float32(self.predict, x)


class DispNetDecoder(nn.Module):
    """From the bottleneck and the skips {scale: map} to one channel; arguments as decoder.Decoder takes them."""

    def __init__(
        self, bottleneck: int, skips: Mapping[str, int], *, width: float, activation_between: bool, **up: bool
    ) -> None:
        super().__init__()
        channels = first_channels(bottleneck, width)
        self.iconv = nn.Conv2d(bottleneck + skips.get("s32", 0), channels, 3, padding=1)
        self.predict = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = up_scales(skips)
        self.blocks = nn.ModuleDict()
        for scale in self.scales:
            self.blocks[scale] = DispBlock(
                channels, skips.get(scale, 0), half(channels), activation_between=activation_between, **up
            )
            channels = half(channels)

    def forward(self, x: Tensor, skips: Mapping[str, Tensor], size: Size) -> Tensor:
        """As trainables.models.decoder.Decoder."""
        x = F.relu(self.iconv(join(x, skips.get("s32"))))
        prediction = in_float32(self.predict, x)
        for scale in self.scales:
            end = size_at(scale, self.scales, skips, size)
            x, prediction = self.blocks[scale](x, prediction, skips.get(scale), end)
        return prediction
