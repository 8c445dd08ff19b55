"""Decoders of DenseDepth and of DispNet, built from the channels of the taps they are given.

DenseDepth's: a 1x1 convolution, then one up-block per scale: twice the size, concatenation with the skip, two 3x3
convolutions; at last a 3x3 convolution to one channel. Source: paper Table 5; ialhashim/DenseDepth@2e15107 model.py and
PyTorch/model.py.

DispNet's: a prediction at every scale, upsampled into the next one. Source: Mayer et al., "A Large Dataset to Train
Convolutional Networks for Disparity, Optical Flow, and Scene Flow Estimation" (CVPR 2016), Table 1 of its supplement:
upconv, concatenation with skip and upsampled prediction, iconv, pr. Known deviation: only the finest prediction is
supervised; the channels halve from the bottleneck's, as DispNet's do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.settings.config import SCALES

SLOPE = 0.2
Size = tuple[int, int]


class Upsample(nn.Module):
    """Twice the size, then exactly `size`: by interpolation, or by zeros on top and left (`pad_top`; Michigan's).

    Where the skip is smaller, `pad_top` cuts the same edges. A `transposed` convolution of size `kernel` makes
    `out_channels`; interpolation keeps the channels.
    """

    def __init__(
        self, channels: int, out_channels: int, kernel: int, *, transposed: bool, align_corners: bool, pad_top: bool
    ) -> None:
        super().__init__()
        self.align_corners, self.pad = align_corners, pad_top
        self.transposed = None
        if transposed:
            self.transposed = nn.ConvTranspose2d(channels, out_channels, kernel, stride=2, padding=(kernel - 2) // 2)

    def forward(self, x: Tensor, size: Size | None) -> Tensor:
        """x: N x C x h x w; size: rows and columns wanted, None for exactly twice."""
        doubled = (2 * x.shape[-2], 2 * x.shape[-1])
        size = size or doubled
        if self.transposed is not None:
            x = self.transposed(x)
        if self.pad:
            x = resize(x, doubled, self.align_corners)
            return F.pad(x, (size[1] - x.shape[-1], 0, size[0] - x.shape[-2], 0)) if size != doubled else x
        return resize(x, size, self.align_corners)


class UpBlock(nn.Module):
    """Upsampling, concatenation, conv A, an activation if `activation_between`, conv B, LeakyReLU."""

    def __init__(
        self, channels: int, skip_channels: int, out_channels: int, *, activation_between: bool, **up: bool
    ) -> None:
        super().__init__()
        self.up = Upsample(channels, channels, 2, **up)
        self.conv_a = nn.Conv2d(channels + skip_channels, out_channels, 3, padding=1)
        self.conv_b = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.between = activation_between

    def forward(self, x: Tensor, skip: Tensor | None, size: Size | None) -> Tensor:
        x = join(self.up(x, size), skip)
        x = self.conv_a(x)
        if self.between:
            x = F.leaky_relu_(x, SLOPE)  # in place: a convolution keeps its input for the gradient, never its output
        return F.leaky_relu_(self.conv_b(x), SLOPE)


class Decoder(nn.Module):
    """From the bottleneck and the skips {scale: map} to one channel.

    bottleneck, skips: their channels; width: the decoder's first channels over the bottleneck's; activation_between:
    as UpBlock takes it; up: transposed, align_corners and pad_top, as Upsample takes them.
    """

    def __init__(
        self, bottleneck: int, skips: Mapping[str, int], *, width: float, activation_between: bool, **up: bool
    ) -> None:
        super().__init__()
        channels = first_channels(bottleneck, width)
        self.conv2 = nn.Conv2d(bottleneck + skips.get("s32", 0), channels, 1)
        self.scales = up_scales(skips)
        self.blocks = nn.ModuleDict()
        for scale in self.scales:
            self.blocks[scale] = UpBlock(
                channels, skips.get(scale, 0), half(channels), activation_between=activation_between, **up
            )
            channels = half(channels)
        self.conv3 = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x: Tensor, skips: Mapping[str, Tensor], size: Size) -> Tensor:
        """x: N x C x h/32 x w/32; size: rows and columns of the answer, N x 1 x rows x columns, float32."""
        x = self.conv2(join(x, skips.get("s32")))
        for scale in self.scales:
            x = self.blocks[scale](x, skips.get(scale), size_at(scale, self.scales, skips, size))
        return in_float32(self.conv3, x)


def up_scales(skips: Mapping[str, int]) -> tuple[str, ...]:
    """The scales an up-block ends at, coarse to fine: down to 1/2, and to 1/1 only where the input is a skip."""
    finest = 0 if "s1" in skips else 1
    return SCALES[finest:-1][::-1]


def size_at(scale: str, scales: tuple[str, ...], skips: Mapping[str, Tensor], size: Size) -> Size | None:
    """Where an up-block must end: the skip's size, the answer's at the last scale, else None (twice the size)."""
    if scale in skips:
        return (skips[scale].shape[-2], skips[scale].shape[-1])
    return size if scale == scales[-1] else None


def first_channels(bottleneck: int, width: float) -> int:
    """The decoder's first channels."""
    return max(int(bottleneck * width), 1)


def half(channels: int) -> int:
    return max(channels // 2, 1)


def join(x: Tensor, skip: Tensor | None) -> Tensor:
    """Concatenation of the channels. On a CPU the gradient of `x`, which is a part of the whole's, is packed first:
    the gradient of upsampling takes five times as long where a pixel's channels do not follow the pixel before.
    """
    if skip is None:
        return x
    if x.requires_grad and x.device.type == "cpu" and not torch.compiler.is_compiling():
        x.register_hook(_packed)  # type: ignore[no-untyped-call]
    return torch.cat([x, skip], dim=1)


def _packed(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


def resize(x: Tensor, size: Size, align_corners: bool) -> Tensor:
    """Bilinear, and nothing where the size is right already.

    Autocast interpolates in float32. The result goes back to the type of `x`: the next convolution would round it so
    anyway, and what is concatenated until then takes half the memory.
    """
    if (x.shape[-2], x.shape[-1]) == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners).to(x.dtype)


def in_float32(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The last layer outside autocast: bfloat16 would round an inverse depth of 100 to steps of 0.5."""
    if x.is_meta:  # on which shapes are measured, and which has no autocast
        return layer(x)
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(torch.promote_types(x.dtype, torch.float32)))


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
