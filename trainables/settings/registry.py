"""Registry of names and their facts: metrics, loss terms and published forms of the data.

Standard library only, so that settings are checked without the seconds that importing torch takes. The functions behind
the names are bound to them by `bind`, in trainables/evaluation/metrics.py and trainables/models/losses.py; a form is a
module found by its name (trainables/data/formats). Adding a metric or a loss term is an entry here and its function
there, adding a form a file alone. Protocols stand in trainables/evaluation/protocols.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

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
