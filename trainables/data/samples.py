"""Samples for the network: color at the input's size, target at the output's, holes as a mask.

The two published ways to the target's size (FACTS.md section 2):
inverse_then_resize   to target space first, then the resize of DenseDepth's Keras loader (`skimage.transform.resize`,
                      anti-aliased: a Gaussian of sigma (factor - 1) / 2, then linear with half-pixel centres)
resize_then_inverse   metres resized as Pillow does (bilinear, triangle of the factor's width), then to target space;
                      the PyTorch port of the time left the filter to Pillow's default of its day
Both are separable and linear: a pair of banded matrices, made once per size by the libraries' own filters.

Holes. `mask`: holes have no weight in the resize, and a target pixel is valid where at least half of its support was.
`clamp`: a hole is 0 m, which the target clips to the nearest depth, and everything is valid (the port's). `inpaint`: as
`mask`, then each invalid target pixel takes the nearest valid one's value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage, sparse

from trainables.data.frames import BadFrame, Depth, Frame, Rgb
from trainables.data.target import depth_to_y
from trainables.models.depth_model import output_size
from trainables.settings.config import TrialConfig

INVALID_Y: Final = 1.0  # within every kind's range, so that logarithms and divisions of masked pixels stay finite
_SUPPORT: Final = 0.5 - 1e-6  # half of a pixel's support, with room for rounding
Filter = Literal["keras", "pillow"]
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Sample:
    """`rgb` uint8 (3, h, w), channels last in memory; `target` float32 and `valid` bool (1, h', w')."""

    rgb: torch.Tensor
    target: torch.Tensor
    valid: torch.Tensor


def prepare(frame: Frame, config: TrialConfig) -> Sample:
    """The frame at the input's and output's sizes, in target space; no augmentation, no chance.

    Raises BadFrame where nothing is left inside the border that is cut.
    """
    rgb = cropped(frame.rgb, config.data.crop_border_px)
    depth_m = cropped(frame.depth_m, config.data.crop_border_px)
    target, valid = prepare_target(depth_m, config, output_size(config.model, config.input))
    return Sample(resize_rgb(rgb, config.input), torch.from_numpy(target)[None], torch.from_numpy(valid)[None])


def cropped(picture: npt.NDArray[Any], border_px: int) -> npt.NDArray[Any]:
    """The picture without its border. Raises BadFrame where nothing would be left."""
    rows, columns = picture.shape[:2]
    if min(rows, columns) <= 2 * border_px:
        raise BadFrame(f"data.crop_border_px {border_px} leaves nothing of {columns}x{rows} pixels; lower it")
    return picture[border_px : rows - border_px, border_px : columns - border_px]


def resize_rgb(rgb: Rgb, size: tuple[int, int]) -> torch.Tensor:
    """Colour as uint8 (3, h, w), channels last in memory: anti-aliased bilinear, within 2 levels of Pillow's and five
    times as fast; a picture of that size is left as it is.
    """
    planes = torch.from_numpy(np.require(rgb, requirements=["C", "W"])).permute(2, 0, 1)
    if rgb.shape[:2] == size:
        return planes
    return F.interpolate(planes[None], size, mode="bilinear", antialias=True)[0]


def prepare_target(
    depth_m: Depth, config: TrialConfig, size: tuple[int, int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Target (h', w') in target space and which of its pixels are valid, of depth in metres with holes of 0."""
    target = config.target
    hole = depth_m <= 0
    masked = target.holes != "clamp" and bool(hole.any())
    known = ~hole if masked else None
    if target.resize == "inverse_then_resize":
        y = depth_to_y(torch.from_numpy(np.ascontiguousarray(depth_m)), target).numpy()
        y, valid = resize(y, size, "keras", known)
    else:
        metres, valid = resize(depth_m, size, "pillow", known)
        y = depth_to_y(torch.from_numpy(np.where(valid, metres, 0)), target).numpy()
    if valid.all():
        return y, valid
    if target.holes == "inpaint" and valid.any():
        rows, columns = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
        return y[rows, columns], np.ones_like(valid)
    return np.where(valid, y, np.float32(INVALID_Y)), valid


def resize(
    values: npt.NDArray[np.float32], size: tuple[int, int], kernel: Filter, known: npt.NDArray[np.bool_] | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Values at another size, and which of them have at least half of their support in known pixels (None: all).

    Unknown pixels have no weight, if a finite value: R(values * known) / R(known), R being the filter. What stands at
    pixels that are not valid has no meaning.
    """
    if values.shape == size:
        return np.ascontiguousarray(values), np.ones(size, np.bool_) if known is None else known
    rows, columns = (_matrix(have, want, kernel) for have, want in zip(values.shape, size, strict=True))
    if known is None:
        return _transposed(_across(values, rows, columns)), np.ones(size, np.bool_)
    weights = known.astype(np.float32)
    weight = _across(weights, rows, columns)
    total = _across(np.multiply(values, weights, out=weights), rows, columns)
    valid = weight >= _SUPPORT
    total /= np.maximum(weight, np.float32(_SUPPORT), out=weight)
    return _transposed(total), _transposed(valid)


def _across(values: npt.NDArray[np.float32], rows: Any, columns: Any) -> npt.NDArray[np.float32]:
    """The filters of both sides on values (H, W); transposed (w', h'), which saves moving it once."""
    across: npt.NDArray[np.float32] = columns @ _transposed(rows @ np.ascontiguousarray(values))
    return across


def _transposed(values: npt.NDArray[T]) -> npt.NDArray[T]:
    """A transposed copy, by torch, which moves blocks where NumPy moves single values."""
    copy: npt.NDArray[T] = torch.from_numpy(values).t().contiguous().numpy()
    return copy


@lru_cache(maxsize=64)
def _matrix(have: int, want: int, kernel: Filter) -> Any:
    """The filter along one side as a sparse (want, have) matrix: what the library makes of each unit vector."""
    if kernel == "pillow":
        image = Image.fromarray(np.eye(have, dtype=np.float32))
        return sparse.csr_matrix(np.asarray(image.resize((have, want), Image.Resampling.BILINEAR)))
    unit = np.eye(have)
    if have > want:
        unit = ndimage.gaussian_filter1d(unit, (have / want - 1) / 2, axis=0, mode="mirror")
    matrix = ndimage.zoom(unit, (want / have, 1), order=1, mode="mirror", grid_mode=True)
    return sparse.csr_matrix(matrix.astype(np.float32))
