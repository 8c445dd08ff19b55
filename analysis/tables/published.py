"""Published numbers on NYU Depth v2, each with source and protocol (FACTS.md section 6).

protocol: the name under which this project measures the same thing; None where the source does not state what it did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NYU_TEST_FRAMES = 654
ELSEWHERE = (
    "Published numbers are of NYU Depth v2 and are not set beside numbers of other data; they stand in docs/FACTS.md, "
    "section 6."
)


@dataclass(frozen=True)
class Published:
    """One published row. key: its short name. recipe: what of this project reproduces it, None for context.

    mirrored: whether predictions were averaged with the mirrored image's; None where the source does not state it.
    """

    key: str
    who: str
    recipe: str | None
    protocol: str | None
    metrics: Mapping[str, float]
    source: str
    note: str = ""
    mirrored: bool | None = None


def comparable(entry: Mapping[str, Any], asked: str) -> tuple[bool, str]:
    """Whether an entry's row under a protocol may stand beside numbers published under it, and the row's note."""
    run, against = entry["protocols"][asked], obstacles(entry)
    return run["comparable"] and not against, "; ".join([*against, *([run["note"]] if run["note"] else [])])


def on_nyu(entry: Mapping[str, Any]) -> bool:
    """Whether an entry was scored on the test frames of NYU Depth v2, beside whose numbers published ones may stand."""
    return bool(entry["source"] != "rooms" and entry["frames"] == NYU_TEST_FRAMES)


def obstacles(entry: Mapping[str, Any]) -> list[str]:
    """Why no protocol makes an entry comparable with numbers published on NYU Depth v2: its data, its kind of depth."""
    against = []
    if entry["source"] == "rooms":
        against.append("the data are rendered rooms, not NYU Depth v2")
    elif entry["frames"] != NYU_TEST_FRAMES:
        against.append(f"the test split has {entry['frames']} frames, that of NYU Depth v2 {NYU_TEST_FRAMES}")
    if entry["target"] == "relative":
        against.append("relative depth has no scale, so only affine-aligned scores of it mean anything")
    return against


def _six(delta1: float, delta2: float, delta3: float, abs_rel: float, rmse: float, log10: float) -> dict[str, float]:
    return {"delta1": delta1, "delta2": delta2, "delta3": delta3, "abs_rel": abs_rel, "rmse": rmse, "log10": log10}


PAPER = Published(
    "densedepth_paper", "DenseDepth, paper", "densedepth", "densedepth",
    _six(0.846, 0.974, 0.994, 0.123, 0.465, 0.053), "ialhashim/DenseDepth issue 75", mirrored=True,
)  # fmt: skip
SCALED = Published(
    "densedepth_median_scaled", "DenseDepth, median-scaled to the ground truth", "densedepth", "densedepth_scaled",
    _six(0.895, 0.980, 0.996, 0.103, 0.390, 0.043), "ialhashim/DenseDepth issue 142 and its follow-ups", mirrored=True,
)  # fmt: skip
MIXED = Published(
    "michigan_comparison", '"Alhashim-Wonka" row of the Michigan report', None, None,
    _six(0.846, 0.980, 0.996, 0.103, 0.390, 0.043), "Michigan report, Table 2",
    "delta1 from the paper's row, the rest from the median-scaled row",
)  # fmt: skip
MICHIGAN = Published(
    "michigan", "Michigan reproduction", "michigan", None, _six(0.326, 0.598, 0.790, 0.435, 1.591, 0.185),
    "Michigan report, Tables 2 and 3", "evaluation size, crop and target are not stated",
)  # fmt: skip
MICHIGAN_GUESS = Published(
    "michigan_guess", "random guess U(0, 10 m), Michigan", None, None,
    _six(0.126, 0.255, 0.389, 1.527, 3.897, 0.412), "Michigan report, Tables 2 and 3",
)  # fmt: skip
_ULTRALYTICS = "docs.ultralytics.com, tasks/depth"
_DEPTH_ANYTHING = "Depth-Anything metric_depth README"
ROWS: tuple[Published, ...] = (
    PAPER,
    SCALED,
    Published("densedepth_released", "released weights, repository's evaluator today", "densedepth", "densedepth_repo",
              _six(0.8471, 0.9731, 0.9937, 0.1274, 0.5485, 0.0535), "ialhashim/DenseDepth issues 75, 98",
              "abs_rel .1234 with the arguments un-swapped", mirrored=True),
    MIXED,
    MICHIGAN,
    MICHIGAN_GUESS,
    Published("wavelet_monodepth", "Wavelet-MonoDepth's PyTorch DenseDepth, DenseNet-161, no SSIM", None, None,
              {"delta1": 0.8430, "abs_rel": 0.1277, "rmse": 0.5479}, "nianticlabs/wavelet-monodepth NYUv2/README"),
    Published("karoly_hars", "DenseNet-169 U-Net, PyTorch (karoly-hars)", None, None,
              _six(0.833, 0.962, 0.990, 0.129, 0.588, 0.056), "its README"),
    Published("bts_densenet161", "BTS DenseNet-161", None, "bts", _six(0.885, 0.978, 0.994, 0.110, 0.392, 0.047),
              "cleinc/bts README", mirrored=False),
    Published("adabins", "AdaBins", None, "bts", _six(0.903, 0.984, 0.997, 0.103, 0.364, 0.044), "its README",
              "delta and log10 unverified"),
    Published("zoedepth", "ZoeDepth", None, "bts", _six(0.951, 0.994, 0.999, 0.077, 0.282, 0.033), _DEPTH_ANYTHING),
    Published("depth_anything", "Depth Anything v1, NYU-tuned", None, "bts",
              _six(0.984, 0.998, 1.000, 0.056, 0.206, 0.024), _DEPTH_ANYTHING),
    Published("yolo26n_depth", "YOLO26n-depth, its own command", None, "ultralytics", {"delta1": 0.783},
              _ULTRALYTICS, mirrored=False),
    Published("yolo26x_depth", "YOLO26x-depth, its own command", None, "ultralytics", {"delta1": 0.860},
              _ULTRALYTICS, mirrored=False),
    Published("yolo26n_depth_table", "YOLO26n-depth, its table", None, None,
              {"delta1": 0.882, "abs_rel": 0.109, "rmse": 0.414}, _ULTRALYTICS,
              "several sizes and mirrored images averaged, least squares in the logarithm", mirrored=True),
    Published("yolo26x_depth_table", "YOLO26x-depth, its table", None, None,
              {"delta1": 0.933, "abs_rel": 0.080, "rmse": 0.344}, _ULTRALYTICS,
              "several sizes and mirrored images averaged, least squares in the logarithm", mirrored=True),
    Published("marigold_paper", "Marigold, ten predictions averaged", None, "marigold",
              {"delta1": 0.964, "abs_rel": 0.055}, "arXiv 2312.02145, Table 1", "unverified", mirrored=False),
)  # fmt: skip
# Michigan's Table 2: mSSIM and edge F1, data range, size, crop and threshold not stated.
STRUCTURE: Mapping[str, Mapping[str, float]] = {
    "DenseDepth, paper": {"mssim": 0.968, "edge_f1": 0.519},
    "Michigan reproduction": {"mssim": 0.974, "edge_f1": 0.316},
    "random guess U(0, 10 m), Michigan": {"mssim": 0.745, "edge_f1": 0.206},
}
