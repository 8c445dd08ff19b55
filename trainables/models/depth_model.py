"""Models: an encoder that is tapped by node, and a decoder built from the channels of the taps.

build_model(config, kind)       the model a training starts from
check_model(config)             the same refusals, without building it
output_size(config, input)      rows and columns of its answer
parameter_counts(model)         total, trainable, encoder, decoder
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.models.backbone import BOTTLENECK, INPUT, STRIDE, Halving
from trainables.models.backbone import Training as Statistics
from trainables.models.cpu_forms import FoldedEncoder, is_frozen, with_pointwise
from trainables.models.decoder import Decoder, DispNetDecoder
from trainables.models.encoder import (
    Encoder,
    build_encoder,
    check_encoder,
    first_halving,
    halved,
    input_statistics,
    last_block_channels,
)
from trainables.models.unet import UNetDecoder, check_unet, unet_encoder
from trainables.runtime.errors import UserError
from trainables.settings.config import ModelConfig, TargetKind

__all__ = ["DepthModel", "build_model", "check_model", "output_size", "parameter_counts"]


@dataclass(frozen=True)
class Scale:
    """Sizes of a model: images are max-pooled by `pool`, the encoder reduces them by `stride`, and the answer is the
    pooled image's size, halved once as `halving` says (None: not halved).
    """

    pool: int
    stride: int
    halving: Halving | None

    def output_size(self, input_hw: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the answer to an image of that many. Raises UserError where the image is too small."""
        rows, columns = (side // self.pool for side in input_hw)
        if min(rows, columns) < self.stride:
            pooled = f", pooled to {rows} x {columns}," if self.pool > 1 else ""
            raise UserError(
                f"input: {input_hw[0]} x {input_hw[1]}{pooled} is too small for the encoder, "
                f"which halves it to 1/{self.stride}; enlarge it to at least {self.stride * self.pool} on both sides"
            )
        if self.halving is None:
            return rows, columns
        return halved(rows, self.halving), halved(columns, self.halving)


class DepthModel(nn.Module):
    """Image -> y. `taps`: scale -> node of the encoder; `kind`: the target space that y is in.

    project: between the encoder's bottleneck and the decoder; statistics: mean and std that images are normalised by;
    scale: how images and answers are sized; batch_norm_frozen: the encoder keeps its running statistics.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        project: nn.Module,
        decoder: nn.Module,
        *,
        kind: TargetKind,
        statistics: Statistics | None,
        scale: Scale,
        batch_norm_frozen: bool,
    ) -> None:
        super().__init__()
        self.kind, self.scale, self.batch_norm_frozen = kind, scale, batch_norm_frozen
        self.encoder, self.taps, self.rectified = encoder.features, dict(encoder.taps), encoder.rectified
        self.folded = FoldedEncoder(self.encoder) if batch_norm_frozen and is_frozen(self.encoder) else None
        self.input_is_skip = self.taps.get("s1") == INPUT
        self.project, self.decoder = project, decoder
        self.normalised = statistics is not None
        if statistics is not None:
            self.register_buffer("mean", torch.tensor(statistics.mean).view(1, 3, 1, 1), persistent=False)
            self.register_buffer("std", torch.tensor(statistics.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images: N x 3 x H x W float, 0 to 1. Returns y: N x 1 x rows x columns (`output_size`), float32.

        Raises UserError for images that are too small.
        """
        size = self.scale.output_size((images.shape[-2], images.shape[-1]))
        if self.scale.pool > 1:
            images = F.max_pool2d(images, self.scale.pool)
        if self.normalised:
            images = (images - self.mean) / self.std
        self._refuse_single_pixel(images)
        folded = self.folded if self.folded is not None and self.folded.serves(images) else None
        maps = (folded or self.encoder)(images)
        if self.input_is_skip:
            maps = maps | {"s1": images}
        bottleneck = self.project(maps[BOTTLENECK])
        if self.rectified:
            bottleneck = F.relu(bottleneck)  # the published decoder sees the final BatchNorm's ReLU
        skips = {scale: value for scale, value in maps.items() if scale != BOTTLENECK}
        y: Tensor = self.decoder(bottleneck, skips, size)
        return y

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's, except that the encoder's BatchNorm stays in eval mode where `batch_norm` is frozen."""
        super().train(mode)
        if self.batch_norm_frozen:
            for module in self.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def _refuse_single_pixel(self, images: Tensor) -> None:
        """BatchNorm cannot train on one value per channel: one image with a bottleneck of one pixel."""
        side = 2 * self.scale.stride
        if not self.training or images.shape[0] > 1 or max(images.shape[-2:]) >= side:
            return
        if any(isinstance(module, nn.BatchNorm2d) and module.training for module in self.encoder.modules()):
            raise UserError(
                f"batch_size: one image of {images.shape[-2]} x {images.shape[-1]} has a single bottleneck pixel, "
                f"over which BatchNorm cannot train; enlarge input to {side}, or avoid batches of one (batch_size)"
            )


def build_model(config: ModelConfig, kind: TargetKind, *, pretrained: bool = True) -> DepthModel:
    """A model in train mode, initialised from torch's global random state, with the encoder's weights loaded.

    Not `pretrained`: the same model, whose weights come from elsewhere (a checkpoint). Raises UserError for what the
    encoder lacks and for weights that cannot be had or do not fit.
    """
    encoder = unet_encoder(config) if config.family == "unet" else build_encoder(config, pretrained=pretrained)
    bottleneck = encoder.channels[BOTTLENECK]
    project: nn.Module = nn.Identity()
    if config.bottleneck == "last_layer_input":
        whole = last_block_channels(str(config.encoder))
        project, bottleneck = nn.Conv2d(bottleneck, whole, 1), whole
    model = DepthModel(
        encoder,
        project,
        _decoder(config, bottleneck, encoder),
        kind=kind,
        statistics=input_statistics(config),
        scale=_scale(config, encoder.first_halving),
        batch_norm_frozen=config.batch_norm == "frozen",
    )
    with_pointwise(model)
    return model.train()


def check_model(config: ModelConfig) -> None:
    """Raise UserError for what `build_model` would refuse. Weights named by a library are fetched if need be."""
    if config.family == "unet":
        check_unet(config)
        input_statistics(config)
    else:
        check_encoder(config)


def output_size(config: ModelConfig, input_hw: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the answer to an image of that many. Raises UserError where the image is too small."""
    return _scale(config, "floor" if config.encoder is None else first_halving(config.encoder)).output_size(input_hw)


def parameter_counts(model: DepthModel) -> dict[str, int]:
    """Numbers of parameters: total, trainable, of the encoder, of all the rest."""
    total = sum(p.numel() for p in model.parameters())
    encoder = sum(p.numel() for p in model.encoder.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"total": total, "trainable": trainable, "encoder": encoder, "decoder": total - encoder}


def _decoder(config: ModelConfig, bottleneck: int, encoder: Encoder) -> nn.Module:
    """The decoder of a family, for the channels of an encoder's taps."""
    taps = {scale: node for scale, node in encoder.taps.items() if scale != BOTTLENECK}
    skips = {scale: 3 if node == INPUT else encoder.channels[scale] for scale, node in taps.items()}
    shared = {
        "activation_between": config.activation_between,
        "transposed": config.upsampling == "transposed",
        "align_corners": config.align_corners,
        "pad_top": config.match == "pad_top",
    }
    if config.family == "unet":
        channels, levels = config.unet_channels, config.unet_levels
        return UNetDecoder(bottleneck, skips, first_channels=channels, levels=levels, width=config.width, **shared)
    decoder = {"densedepth": Decoder, "dispnet": DispNetDecoder}[config.family]
    return decoder(bottleneck, skips, width=config.width, **shared)


def _scale(config: ModelConfig, halving: Halving) -> Scale:
    if config.family == "unet":
        return Scale(config.input_pool, 2**config.unet_levels, None)
    return Scale(config.input_pool, STRIDE, halving if config.skips.s1 == "none" else None)
