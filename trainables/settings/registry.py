"""Registry of names and their facts: metrics, protocols, loss terms and published forms of the data.

Standard library only, so that settings are checked without the seconds that importing torch takes. The functions behind
the names are bound to them by `bind`, in trainables/evaluation/metrics.py and trainables/models/losses.py; a form is a
module found by its name (trainables/data/formats). Adding a metric or a loss term is an entry here and its function
there; a protocol is an entry here alone, a form a file alone.

Source of the protocols: FACTS.md section 5.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

T = TypeVar("T")


def bind(names: Collection[str], functions: Mapping[str, T]) -> Mapping[str, T]:
    """The functions of registered names; each name has one, and no function lacks a name."""
    assert functions.keys() == set(names), sorted(functions.keys() ^ set(names))
    return functions


@dataclass(frozen=True)
class Metric:
    """Something measured of a prediction or a training. unit: empty for a share or a ratio.

    root: a mean over the pixels of all frames is the root of the pooled mean of squares.
    """

    unit: str
    higher_is_better: bool
    root: bool = False


_DEPTH = {
    "abs_rel": Metric("", higher_is_better=False),
    "sq_rel": Metric("m", higher_is_better=False),
    "rmse": Metric("m", higher_is_better=False, root=True),
    "rmse_log": Metric("", higher_is_better=False, root=True),
    "log10": Metric("", higher_is_better=False),
    "delta1": Metric("", higher_is_better=True),
    "delta2": Metric("", higher_is_better=True),
    "delta3": Metric("", higher_is_better=True),
    "silog": Metric("", higher_is_better=False),
}
_STRUCTURE = {
    "mssim_10": Metric("", higher_is_better=True),
    "mssim_255": Metric("", higher_is_better=True),
    "edge_f1_0.5": Metric("", higher_is_better=True),
    "edge_f1_0.2": Metric("", higher_is_better=True),
    "edge_f1_0.05": Metric("", higher_is_better=True),
}
METRICS: dict[str, Metric] = _DEPTH | _STRUCTURE
DEPTH_METRICS, STRUCTURE_METRICS = tuple(_DEPTH), tuple(_STRUCTURE)
REPOSITORY_METRICS = ("delta1", "delta2", "delta3", "abs_rel", "rmse", "log10")  # that the authors' evaluator prints

NYU_MAX_DEPTH_M = 10.0  # the largest depth of NYU Depth v2, and what 255 of its 8-bit depth stands for (Kinect v1)
REFERENCE_SIZE = (480, 640)  # rows, columns that the crops are written for
PREDICTION_RANGE_M = (0.1, NYU_MAX_DEPTH_M)  # where every published evaluator of DenseDepth clips the network's depth
EIGEN_CROP = (20, 460, 24, 616)  # top, bottom, left, right; ends exclusive
BTS_CROP = (45, 471, 41, 601)


@dataclass(frozen=True)
class Protocol:
    """How a prediction meets the truth: crop + mask rule + kind of truth, then clip, scaling, averaging.

    A pixel is measured inside the crop where valid_m[0] < truth < valid_m[1]. `pooled` takes each mean over the pixels
    of all frames. `diagnostic` rows use the truth, or have nothing published to compare with: they never decide.
    """

    name: str
    crop: tuple[int, int, int, int] | None
    valid_m: tuple[float, float]
    truth: Literal["filled", "raw"] | None  # None: any
    clip_m: tuple[float, float]
    average: Literal["per_image", "pooled"]
    arguments_swapped: bool
    scaling: Literal["none", "median", "affine"]
    metrics: tuple[str, ...]
    diagnostic: str | None  # why the row is a diagnosis only

    def crop_at(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the crop on frames of a size; the edges scale with it."""
        if self.crop is None:
            return slice(0, size[0]), slice(0, size[1])
        top, bottom, left, right = self.crop
        rows, columns = size[0] / REFERENCE_SIZE[0], size[1] / REFERENCE_SIZE[1]
        return slice(round(top * rows), round(bottom * rows)), slice(round(left * columns), round(right * columns))

    def reaching(self, max_depth_m: float) -> Protocol:
        """The same protocol on data of another largest depth: its limits at NYU's largest depth move there."""

        def moved(limits: tuple[float, float]) -> tuple[float, float]:
            return limits[0], max_depth_m if limits[1] == NYU_MAX_DEPTH_M else limits[1]

        return replace(self, valid_m=moved(self.valid_m), clip_m=moved(self.clip_m))


ANY_TRUTH = (0.0, math.inf)
PROTOCOLS: Mapping[str, Protocol] = {
    p.name: p
    for p in (
        Protocol("densedepth", EIGEN_CROP, ANY_TRUTH, "filled", PREDICTION_RANGE_M, "per_image", False, "none",
                 DEPTH_METRICS, None),
        Protocol("densedepth_repo", EIGEN_CROP, ANY_TRUTH, "filled", PREDICTION_RANGE_M, "pooled", True, "none",
                 REPOSITORY_METRICS, None),
        Protocol("bts", BTS_CROP, (1e-3, NYU_MAX_DEPTH_M), "raw", (1e-3, NYU_MAX_DEPTH_M), "per_image", False, "none",
                 DEPTH_METRICS, None),
        Protocol("densedepth_scaled", EIGEN_CROP, ANY_TRUTH, "filled", PREDICTION_RANGE_M, "per_image", False, "median",
                 DEPTH_METRICS, "each prediction is multiplied to the truth's median"),
        Protocol("densedepth_affine", EIGEN_CROP, ANY_TRUTH, "filled", PREDICTION_RANGE_M, "per_image", False, "affine",
                 DEPTH_METRICS, "scale and shift of each prediction are fitted to the truth"),
        Protocol("structure", None, ANY_TRUTH, None, PREDICTION_RANGE_M, "per_image", False, "none", STRUCTURE_METRICS,
                 "full frame at the truth's size; windows and pixels that touch a hole are left out; nothing published "
                 "states data range, size, crop or holes"),
    )
}  # fmt: skip
RELATIVE_PROTOCOL = "densedepth_affine"  # of a network whose target has no scale that another protocol could measure


@dataclass(frozen=True)
class LossTerm:
    """A term of the loss. whole_batch: it has to know its whole batch before it can add up."""

    whole_batch: bool = False


LOSS_TERMS: Mapping[str, LossTerm] = {
    "depth": LossTerm(),
    "mse": LossTerm(),
    "berhu": LossTerm(whole_batch=True),
    "gradient": LossTerm(),
    "sobel": LossTerm(),
    "normal": LossTerm(),
    "ssim": LossTerm(),
    "silog": LossTerm(),
}
# A published form of the data is a module there.
FORMS = tuple(sorted(path.stem for path in (Path(__file__).parent.parent / "data" / "formats").glob("[!_]*.py")))
