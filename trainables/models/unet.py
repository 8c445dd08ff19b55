"""U-Net from scratch.

Source: Ronneberger et al., "U-Net" (MICCAI 2015), with padded convolutions and BatchNorm, as student projects build it.
The answer has the input's size. Skips are tapped `pre_pool`, at 1/1 and on, one per level.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.models.backbone import BOTTLENECK
from trainables.models.decoder import Size, Upsample, in_float32, join
from trainables.models.encoder import Encoder
from trainables.runtime.errors import UserError
from trainables.settings.config import SCALES, ModelConfig


class DoubleConv(nn.Module):
    """Twice 3x3 convolution and BatchNorm, with ReLU behind; between them if `activation_between`."""

    def __init__(self, channels: int, out_channels: int, *, activation_between: bool) -> None:
        super().__init__()
        self.conv_a = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.norm_a = nn.BatchNorm2d(out_channels)
        self.conv_b = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm_b = nn.BatchNorm2d(out_channels)
        self.between = activation_between

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_a(self.conv_a(x))
        if self.between:
            x = F.relu_(x)  # in place: BatchNorm keeps its input for the gradient, never its output
        return F.relu_(self.norm_b(self.conv_b(x)))


class UNetEncoder(nn.Module):
    """Image -> {scale: map} of each scale `kept` as a skip, and the bottleneck, `levels` halvings below the input.

    first_channels: of the first level; each further one has twice as many.
    """

    def __init__(self, first_channels: int, levels: int, kept: Collection[str], *, activation_between: bool) -> None:
        super().__init__()
        self.kept = frozenset(kept)
        self.levels = SCALES[:levels]
        channels = [first_channels * 2**level for level in range(levels + 1)]
        self.blocks = nn.ModuleDict()
        for before, after, scale in zip([3, *channels], channels, [*self.levels, BOTTLENECK], strict=False):
            self.blocks[scale] = DoubleConv(before, after, activation_between=activation_between)
        self.channels = dict(zip([*self.levels, BOTTLENECK], channels, strict=True))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for scale in self.levels:
            x = self.blocks[scale](x)
            if scale in self.kept:
                maps[scale] = x
            x = F.max_pool2d(x, 2)
        return maps | {BOTTLENECK: self.blocks[BOTTLENECK](x)}


class UNetDecoder(nn.Module):
    """From the bottleneck and the skips {scale: map} to one channel.

    bottleneck, skips: their channels; first_channels, levels: the encoder's; width: the decoder's channels over the
    encoder's at the same level; up: transposed, align_corners and pad_top, as decoder.Upsample takes them.
    """

    def __init__(
        self,
        bottleneck: int,
        skips: Mapping[str, int],
        *,
        first_channels: int,
        levels: int,
        width: float,
        activation_between: bool,
        **up: bool,
    ) -> None:
        super().__init__()
        self.scales = SCALES[:levels][::-1]
        self.ups, self.blocks = nn.ModuleDict(), nn.ModuleDict()
        channels = bottleneck
        for level, scale in reversed(list(enumerate(SCALES[:levels]))):
            out = max(int(first_channels * 2**level * width), 1)
            self.ups[scale] = Upsample(channels, out, 2, **up)
            joined = (out if up["transposed"] else channels) + skips.get(scale, 0)
            self.blocks[scale] = DoubleConv(joined, out, activation_between=activation_between)
            channels = out
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor, skips: Mapping[str, Tensor], size: Size) -> Tensor:
        """x: the bottleneck's map; size: the input's rows and columns, which the answer has too."""
        for level, scale in reversed(list(enumerate(self.scales[::-1]))):
            end = (size[0] >> level, size[1] >> level)
            x = self.blocks[scale](join(self.ups[scale](x, end), skips.get(scale)))
        return in_float32(self.head, x)


def unet_encoder(config: ModelConfig) -> Encoder:
    """The encoding half, from random weights. Raises UserError for settings that it cannot serve."""
    check_unet(config)
    taps = unet_taps(config)
    unet = UNetEncoder(config.unet_channels, config.unet_levels, taps, activation_between=config.activation_between)
    # Not rectified again: its bottleneck ends in a ReLU.
    return Encoder(unet, unet.channels, taps, rectified=False, first_halving="floor")


def unet_taps(config: ModelConfig) -> dict[str, str]:
    """Scale -> module of each skip that is used, and of the bottleneck. Raises UserError for one it lacks."""
    taps = {}
    levels = SCALES[: config.unet_levels]
    for scale in SCALES:
        kind = getattr(config.skips, scale)
        if kind != "none" and (kind != "pre_pool" or scale not in levels):
            raise UserError(
                f"model.skips.{scale}: a U-Net of {config.unet_levels} levels has no {kind} tap there "
                f"(only pre_pool at {', '.join(levels)}); choose another tap or none"
            )
        if kind == "pre_pool":
            taps[scale] = f"blocks.{scale}"
    return taps | {BOTTLENECK: f"blocks.{BOTTLENECK}"}


def check_unet(config: ModelConfig) -> None:
    """Raise UserError for settings of a pretrained encoder, which a U-Net lacks."""
    unet_taps(config)
    for name, given, only in (
        ("weights", config.weights or "null", "null"),
        ("frozen", str(list(config.frozen)), "[]"),
        ("bottleneck", config.bottleneck, "norm"),
        ("batch_norm", config.batch_norm, "train"),
    ):
        if given != only:
            raise UserError(f"model.{name}: {given} needs a pretrained encoder and a U-Net has none; set it to {only}")
