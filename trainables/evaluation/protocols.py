"""Protocols: every published way of turning depth maps and truth into a number, as values found by name.

Standard library only, so that settings are checked without the seconds that importing torch takes. Adding a protocol is
an entry of PROTOCOLS alone; docs/which-number.md shows them all, with the rows published under each. Source: FACTS.md
sections 5 and 11, and the sources that each entry names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from trainables.settings.registry import DEPTH_METRICS, NYU_MAX_DEPTH_M, REPOSITORY_METRICS, STRUCTURE_METRICS

Truth = Literal["filled", "raw"]
Average = Literal["per_image", "image_median", "pooled"]
Scaling = Literal["none", "median", "affine", "affine_disparity", "l1_scale", "l1_affine"]
Kind = Literal["metric", "inverse", "disparity", "relative"]

REFERENCE_SIZE: Final = (480, 640)  # rows, columns of NYU Depth v2
KITTI_ROWS, KITTI_COLUMNS = (370, 376), (1224, 1242)  # least and most of KITTI's frames
PREDICTION_RANGE_M = (0.1, NYU_MAX_DEPTH_M)  # where every published evaluator of DenseDepth clips the network's depth
ANY_TRUTH = (0.0, math.inf)

# What a map of each kind holds, and the alignments that give it a scale; an empty set: any, it is depth in metres.
KINDS: Final[Mapping[Kind, str]] = {
    "metric": "depth in metres",
    "inverse": "1 / depth in metres",
    "disparity": "inverse depth of unknown scale and shift",
    "relative": "depth of unknown scale and shift",
}
FITTED: Final[Mapping[Kind, frozenset[Scaling]]] = {
    "metric": frozenset(),
    "inverse": frozenset(),
    "disparity": frozenset({"affine_disparity"}),
    "relative": frozenset({"affine", "l1_affine"}),
}
ALIGNED: Final[Mapping[Scaling, str]] = {
    "none": "",
    "median": "each prediction is multiplied to the truth's median",
    "affine": "scale and shift of each prediction are fitted to the truth",
    "affine_disparity": "scale and shift of each prediction's inverse are fitted to the truth's inverse",
    "l1_scale": "each prediction is multiplied by the scale of the least absolute relative error",
    "l1_affine": "scale and shift of each prediction are those of the least absolute relative error",
}


@dataclass(frozen=True)
class Crop:
    """Part of a frame that is measured. edges: top, bottom, left, right, ends exclusive.

    size: rows and columns of the frames whose pixels the edges are; on others they scale, rounded. None: the edges are
    shares of any frame, cut down to whole pixels.
    """

    edges: tuple[float, float, float, float]
    size: tuple[int, int] | None

    def at(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the crop on frames of a size."""
        top, bottom, left, right = self.edges
        rows, columns = size
        if self.size is None:
            return slice(int(top * rows), int(bottom * rows)), slice(int(left * columns), int(right * columns))
        down, across = rows / self.size[0], columns / self.size[1]
        return slice(round(top * down), round(bottom * down)), slice(round(left * across), round(right * across))


EIGEN_CROP = Crop((20, 460, 24, 616), REFERENCE_SIZE)
BTS_CROP = Crop((45, 471, 41, 601), REFERENCE_SIZE)
GARG_CROP = Crop((0.40810811, 0.99189189, 0.03594771, 0.96405229), None)
KITTI_EIGEN_CROP = Crop((0.3324324, 0.91351351, 0.0359477, 0.96405229), None)


@dataclass(frozen=True)
class Protocol:
    """How predictions meet the truth: frames, crop, mask, kind of truth, resize, alignment, clip, average.

    A pixel is measured inside the crop where valid_m[0] < truth < valid_m[1]. resize: what is brought to the other's
    size; a prediction bilinearly, the truth by its nearest pixel. `pooled` takes each mean over the pixels of all
    frames, `image_median` the median of the frames. arguments_swapped: the metrics take the truth for the prediction.
    """

    name: str
    source: str
    conditions: str  # under which a number may be called by this name
    crop: Crop | None
    valid_m: tuple[float, float]
    truth: Truth | None  # None: any
    clip_m: tuple[float, float]
    metrics: tuple[str, ...] = DEPTH_METRICS
    average: Average = "per_image"
    arguments_swapped: bool = False
    scaling: Scaling = "none"
    resize: Literal["prediction", "truth"] = "prediction"
    frames: Literal["official", "last_654"] = "official"  # of the 1449 labelled frames
    data: Literal["any", "nyu", "kitti"] = "nyu"  # whose frames it was written for
    unpublished: str = ""  # why no published number may stand beside it

    @property
    def diagnostic(self) -> str:
        """Why its rows never decide: they use the truth, or have nothing published beside them; empty: they may."""
        return "; ".join(filter(None, (ALIGNED[self.scaling], self.unpublished)))

    @property
    def measured(self) -> tuple[object, ...]:
        """What decides a frame's values: protocols that agree in it differ in their average and their metrics alone."""
        return self.crop, self.valid_m, self.truth, self.clip_m, self.arguments_swapped, self.scaling, self.resize

    def crop_at(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns that are measured on frames of a size."""
        return (slice(0, size[0]), slice(0, size[1])) if self.crop is None else self.crop.at(size)

    def reaching(self, max_depth_m: float) -> Protocol:
        """The same protocol on data of another largest depth: its limits at NYU's largest depth move there."""

        def moved(limits: tuple[float, float]) -> tuple[float, float]:
            return limits[0], max_depth_m if limits[1] == NYU_MAX_DEPTH_M else limits[1]

        return replace(self, valid_m=moved(self.valid_m), clip_m=moved(self.clip_m))

    def fits(self, kind: Kind) -> bool:
        """Whether a map of a kind means anything under this protocol."""
        return not FITTED[kind] or self.scaling in FITTED[kind]


_DD = "ialhashim/DenseDepth@2e15107"
_PAPER = "arXiv 1812.11941, section 4"
_BTS = "cleinc/bts@5e3406b, pytorch/bts_eval.py"
_MARIGOLD = "prs-eth/Marigold@b1dffaa, script/depth/eval.py"
_MOGE = "microsoft/MoGe@0744441, moge/test/metrics.py"
_EULER = "euler-eval (PyPI)"
_OFFICIAL = "the 654 test frames of NYU Depth v2 at 480 x 640"
_EVERYTHING = (1e-3, math.inf)
_POOLED = tuple(name for name in DEPTH_METRICS if name != "silog")  # whose pool does not follow from frames' values
_OWN_CUT = "MoGe scores its own cut of NYU Depth v2, whose frames and masks differ from every other copy's"
_NO_NYU = "no number published on NYU Depth v2 is known to be measured so"

PROTOCOLS: Final[Mapping[str, Protocol]] = {
    p.name: p
    for p in (
        Protocol(
            "densedepth", f"{_PAPER}; {_DD}", f"{_OFFICIAL}, in-painted truth", EIGEN_CROP, ANY_TRUTH, "filled",
            PREDICTION_RANGE_M,
        ),
        Protocol(
            "densedepth_repo", f"{_DD}, Tensorflow/evaluate.py", f"{_OFFICIAL}, in-painted truth", EIGEN_CROP,
            ANY_TRUTH, "filled", PREDICTION_RANGE_M, REPOSITORY_METRICS, "pooled", arguments_swapped=True,
        ),
        Protocol(
            "densedepth_scaled", "ialhashim/DenseDepth issue 142", f"{_OFFICIAL}, in-painted truth", EIGEN_CROP,
            ANY_TRUTH, "filled", PREDICTION_RANGE_M, scaling="median",
        ),
        Protocol(
            "densedepth_affine", "this project, for relative depth", "none: a diagnosis", EIGEN_CROP, ANY_TRUTH,
            "filled", PREDICTION_RANGE_M, scaling="affine", unpublished="nothing is published under it",
        ),
        Protocol(
            "bts", _BTS, f"{_OFFICIAL}, measured truth (holes are 0)", BTS_CROP, (1e-3, 10.0), "raw", (1e-3, 10.0),
        ),
        Protocol(
            "kitti_garg", f"{_BTS}, --garg_crop", "KITTI's Eigen test frames, measured truth, 80 m", GARG_CROP,
            (1e-3, 80.0), "raw", (1e-3, 80.0), data="kitti",
        ),
        Protocol(
            "kitti_eigen", f"{_BTS}, --eigen_crop", "KITTI's Eigen test frames, measured truth, 80 m",
            KITTI_EIGEN_CROP, (1e-3, 80.0), "raw", (1e-3, 80.0), data="kitti",
        ),
        Protocol(
            "marigold", f"{_MARIGOLD} --alignment least_square", f"{_OFFICIAL}, measured truth", BTS_CROP,
            (1e-3, 10.0), "raw", (1e-3, 10.0), scaling="affine",
        ),
        Protocol(
            "marigold_disparity", f"{_MARIGOLD} --alignment least_square_disparity",
            f"{_OFFICIAL}, measured truth, a model that predicts disparity", BTS_CROP, (1e-3, 10.0), "raw",
            (1e-3, 10.0), scaling="affine_disparity",
        ),
        Protocol(
            "ultralytics", "ultralytics 8.4, models/yolo/depth/val.py and utils/metrics.py",
            "the 654 test frames of NYU Depth v2, maps as large as the network's input, largest depth 100 m", None,
            (1e-3, 100.0), None, (1e-3, 100.0), ("delta1", "delta2", "delta3", "abs_rel", "rmse", "silog"),
            scaling="median", resize="truth",
        ),
        Protocol(
            "moge_scale", f"{_MOGE}, depth_scale_invariant", "MoGe's own cut of NYU Depth v2", None, ANY_TRUTH, None,
            (1e-6, math.inf), ("abs_rel", "delta1"), scaling="l1_scale", unpublished=_OWN_CUT,
        ),
        Protocol(
            "moge_affine", f"{_MOGE}, depth_affine_invariant", "MoGe's own cut of NYU Depth v2", None, ANY_TRUTH,
            None, (1e-6, math.inf), ("abs_rel", "delta1"), scaling="l1_affine", unpublished=_OWN_CUT,
        ),
        Protocol(
            "depth_estimation", "depth-estimation 0.1.3 (PyPI)",
            "the last 654 of the 1449 labelled frames, in-painted truth", None, ANY_TRUTH, "filled", _EVERYTHING,
            _POOLED, "pooled", frames="last_654",
        ),
        Protocol(
            "image_mean", _EULER, "none: a diagnosis", None, ANY_TRUTH, None, _EVERYTHING, data="any",
            unpublished=_NO_NYU,
        ),
        Protocol(
            "image_median", _EULER, "none: a diagnosis", None, ANY_TRUTH, None, _EVERYTHING, average="image_median",
            data="any", unpublished=_NO_NYU,
        ),
        Protocol(
            "pixel_pool", _EULER, "none: a diagnosis", None, ANY_TRUTH, None, _EVERYTHING, _POOLED, "pooled",
            data="any", unpublished=_NO_NYU,
        ),
        Protocol(
            "structure", "arXiv 1812.11941, section 4; the Michigan report", "none: a diagnosis", None, ANY_TRUTH,
            None, PREDICTION_RANGE_M, STRUCTURE_METRICS, data="any",
            unpublished="full frame at the truth's size; windows and pixels that touch a hole are left out; nothing "
            "published states data range, size, crop or holes",
        ),
    )
}  # fmt: skip
RELATIVE_PROTOCOL = "densedepth_affine"  # of a network whose target has no scale that another protocol could measure


@dataclass(frozen=True)
class Resolved:
    """A protocol as it was run: another name and not comparable where the data lack what it needs."""

    protocol: Protocol
    name_as_run: str
    comparable: bool
    note: str  # one sentence per condition; empty for the protocol as published


def resolve(protocol: Protocol, *, has_holes: bool, truth: Truth, size: tuple[int, int] | None) -> Resolved:
    """The name of a protocol on given truth (holes inside its crop, kind, rows and columns; None: mixed sizes)."""
    name, notes = protocol.name, []
    if protocol.truth == "raw" and truth == "filled":
        name = f"{protocol.name} crop, in-painted truth"
        notes.append("the truth is in-painted where the protocol scores measured depth")
    elif protocol.truth == "filled" and (has_holes or truth == "raw"):
        name = f"{protocol.name}+mask" if has_holes else f"{protocol.name} crop, raw truth"
        if has_holes:
            notes.append("pixels without truth are left out; the published evaluation has none")
        if truth == "raw":
            notes.append("the truth is measured where the protocol scores in-painted depth")
    if protocol.frames == "last_654":
        notes.append("the frames are those of the test list, the protocol's the last 654 of the labelled ones")
    notes += _frames(protocol, size)
    published = PROTOCOLS.get(protocol.name, protocol)
    if (protocol.valid_m, protocol.clip_m) != (published.valid_m, published.clip_m):
        name, reach_m = f"{name}, to {protocol.clip_m[1]:g} m", published.clip_m[1]
        notes.append(f"depth counts to {protocol.clip_m[1]:g} m, the largest of the data, not {reach_m:g} m")
    if protocol.diagnostic:
        notes.append(f"diagnostic: {protocol.diagnostic}")
        if protocol.unpublished and protocol.crop is None and size is not None:
            notes.append(f"frames of {size[0]} x {size[1]}")
    aligned_alone = bool(protocol.scaling != "none" and not protocol.unpublished)  # as its published rows are
    return Resolved(protocol, name, len(notes) == aligned_alone, "; ".join(notes))


def _frames(protocol: Protocol, size: tuple[int, int] | None) -> list[str]:
    """What of the frames' size is not as in the protocol's source."""
    found = "several sizes" if size is None else f"{size[0]} x {size[1]}"
    if protocol.data == "kitti":
        rows, columns = KITTI_ROWS, KITTI_COLUMNS
        if size is None or (rows[0] <= size[0] <= rows[1] and columns[0] <= size[1] <= columns[1]):
            return []
        return [f"frames of {found} are not KITTI's ({rows[0]} to {rows[1]} x {columns[0]} to {columns[1]})"]
    if protocol.data == "any" or size == REFERENCE_SIZE:
        return []
    if protocol.crop is None:
        return [] if protocol.unpublished else [f"frames of {found} are not NYU Depth v2's"]
    return [f"the crop's edges are scaled from {REFERENCE_SIZE[0]} x {REFERENCE_SIZE[1]} to frames of {found}"]
