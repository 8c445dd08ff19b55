"""Protocols: what they measure, what they are called where the data lack something, and how rows become means."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from skimage.transform import resize
from torch.nn import functional

from trainables.data.dataset import open_training
from trainables.data.frames import FrameList, Reader
from trainables.data.samples import resize_rgb
from trainables.evaluation.evaluate import (
    Scorer,
    aggregate,
    depth_from_outputs,
    evaluate,
    evaluation_mode,
    resize_depth,
    score,
)
from trainables.evaluation.protocols import BTS_CROP, EIGEN_CROP, PROTOCOLS, resolve
from trainables.settings.config import TargetConfig, TrialConfig
from trainables.settings.registry import STRUCTURE_METRICS

SIZE = (480, 640)
METRIC = TargetConfig(kind="metric", resize="inverse_then_resize", holes="mask", min_depth_m=0.1, max_depth_m=10.0)


@pytest.mark.parametrize(
    ("name", "holes", "truth", "size", "as_run", "comparable", "note"),
    [
        ("densedepth", False, "filled", SIZE, "densedepth", True, ""),
        ("densedepth", True, "filled", SIZE, "densedepth+mask", False, "without truth are left out"),
        ("densedepth", True, "raw", SIZE, "densedepth+mask", False, "in-painted depth"),
        ("densedepth", False, "raw", SIZE, "densedepth crop, raw truth", False, "in-painted depth"),
        (
            "densedepth",
            False,
            "filled",
            (120, 160),
            "densedepth",
            False,
            "scaled from 480 x 640 to frames of 120 x 160",
        ),
        ("densedepth", False, "filled", None, "densedepth", False, "several sizes"),
        ("densedepth_repo", True, "filled", SIZE, "densedepth_repo+mask", False, "left out"),
        ("bts", True, "raw", SIZE, "bts", True, ""),
        ("bts", False, "filled", SIZE, "bts crop, in-painted truth", False, "the truth is in-painted"),
        ("bts", True, "filled", SIZE, "bts crop, in-painted truth", False, "the truth is in-painted"),
        ("densedepth_scaled", False, "filled", SIZE, "densedepth_scaled", True, "diagnostic"),
        ("densedepth_scaled", False, "filled", (120, 160), "densedepth_scaled", False, "diagnostic"),
        ("densedepth_affine", False, "filled", SIZE, "densedepth_affine", False, "diagnostic"),
        ("structure", True, "raw", (120, 160), "structure", False, "frames of 120 x 160"),
    ],
)
def test_names_as_run(
    name: str, holes: bool, truth: str, size: tuple[int, int] | None, as_run: str, comparable: bool, note: str
) -> None:
    resolved = resolve(PROTOCOLS[name], has_holes=holes, truth=truth, size=size)
    assert (resolved.name_as_run, resolved.comparable) == (as_run, comparable)
    assert note in resolved.note
    assert bool(resolved.note) == bool(note)


@pytest.mark.parametrize(("name", "crop"), [("densedepth", EIGEN_CROP.edges), ("bts", BTS_CROP.edges)])
def test_only_the_crop_is_measured_and_its_edges_scale(name: str, crop: tuple[float, float, float, float]) -> None:
    for size in (SIZE, (240, 320), (120, 160)):
        truth, pred = torch.full((1, *size), 2.0), torch.full((1, *size), 2.0)
        top, bottom, left, right = (
            round(edge * size[axis] / SIZE[axis]) for edge, axis in zip(crop, (0, 0, 1, 1), strict=True)
        )
        outside = torch.ones(size, dtype=torch.bool)
        outside[top:bottom, left:right] = False
        pred[:, outside] = 9.0
        (row,) = score(pred, truth, PROTOCOLS[name])
        assert row["abs_rel"] == 0
        assert row["pixels"] == (bottom - top) * (right - left)
        for y, x in ((top, left), (bottom - 1, right - 1)):  # the corners belong to it
            touched = torch.full((1, *size), 2.0)
            touched[0, y, x] = 3.0
            assert score(touched, truth, PROTOCOLS[name])[0]["abs_rel"] > 0


def test_masks_clips_and_swapped_arguments() -> None:
    truth = torch.full((1, *SIZE), 2.0)
    truth[0, 100, 100:104] = torch.tensor([0.0, 5e-4, 10.0, 12.0])
    pred = torch.full((1, *SIZE), 4.0)
    pixels = {name: score(pred, truth, PROTOCOLS[name])[0]["pixels"] for name in ("densedepth", "bts")}
    assert pixels["densedepth"] == 440 * 592 - 1  # a hole only
    assert pixels["bts"] == 426 * 560 - 4  # outside 1e-3 < truth < 10 m
    flat = torch.full((1, *SIZE), 2.0)
    assert score(pred, flat, PROTOCOLS["densedepth"])[0]["abs_rel"] == pytest.approx(1.0)
    assert score(pred, flat, PROTOCOLS["densedepth_repo"])[0]["abs_rel"] == pytest.approx(0.5)  # by the prediction
    tiny = torch.full((1, *SIZE), 0.01)
    assert score(tiny, flat, PROTOCOLS["densedepth"])[0]["rmse"] == pytest.approx(1.9)  # clipped to 0.1 m
    assert score(tiny, flat, PROTOCOLS["bts"])[0]["rmse"] == pytest.approx(1.99)  # clipped to 1 mm


def test_alignments() -> None:
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.uniform(1, 6, (2, *SIZE)))
    truth[0, 200:300, 200:300] = 0.0
    scaled = score(1.7 * truth, truth, PROTOCOLS["densedepth_scaled"])
    assert [row["abs_rel"] for row in scaled] == pytest.approx([0, 0], abs=1e-9)
    shifted = score(0.3 * truth + 1.1, truth, PROTOCOLS["densedepth_affine"])
    assert [row["rmse"] for row in shifted] == pytest.approx([0, 0], abs=1e-6)
    assert score(0.3 * truth + 1.1, truth, PROTOCOLS["densedepth_scaled"])[0]["rmse"] > 0.1
    pred = torch.from_numpy(rng.uniform(1, 6, (2, *SIZE)))
    for k, row in enumerate(score(pred, truth, PROTOCOLS["densedepth_affine"])):
        p, t = pred[k, 20:460, 24:616].numpy(), truth[k, 20:460, 24:616].numpy()
        slope, offset = np.polyfit(p[t > 0], t[t > 0], 1)
        assert row["rmse"] == pytest.approx(np.sqrt(((slope * p + offset - t)[t > 0] ** 2).mean()), rel=1e-9)
    constant = score(torch.full_like(truth, 3.0), truth, PROTOCOLS["densedepth_affine"])
    assert constant[1]["rmse"] == pytest.approx(float(truth[1, 20:460, 24:616].std(correction=0)), rel=1e-9)


def test_per_image_and_pooled_means_by_hand() -> None:
    """Errors of 3 m at one pixel and 1 m at three: rmse 2 per image, sqrt(12 / 4) pooled."""
    rows = [
        {"pixels": 1, **dict.fromkeys(PROTOCOLS["densedepth_repo"].metrics, 0.25), "rmse": 3.0},
        {"pixels": 3, **dict.fromkeys(PROTOCOLS["densedepth_repo"].metrics, 0.75), "rmse": 1.0},
        {"pixels": 0, **dict.fromkeys(PROTOCOLS["densedepth_repo"].metrics)},
    ]
    pooled = aggregate(rows, PROTOCOLS["densedepth_repo"])
    assert pooled["rmse"] == pytest.approx(math.sqrt(12 / 4))
    assert pooled["abs_rel"] == pytest.approx((0.25 + 3 * 0.75) / 4)
    extra = {"sq_rel": 0.0, "rmse_log": 0.0, "silog": 0.0}
    per_image = aggregate([r | (extra if r["pixels"] else dict.fromkeys(extra)) for r in rows], PROTOCOLS["densedepth"])
    assert (per_image["rmse"], per_image["abs_rel"]) == (2.0, 0.5)


def test_nothing_to_measure_is_none_and_a_nan_prediction_is_nan() -> None:
    truth = torch.full((2, *SIZE), 2.0)
    truth[0] = 0.0
    pred = truth.clone()
    pred[1, 200, 200] = torch.nan
    empty, spoilt = score(pred, truth, PROTOCOLS["densedepth"])
    assert empty == {"pixels": 0, **dict.fromkeys(PROTOCOLS["densedepth"].metrics)}
    assert math.isnan(spoilt["rmse"])
    assert math.isnan(aggregate([empty, spoilt], PROTOCOLS["densedepth"])["rmse"])
    assert (
        aggregate([empty, *score(truth[1:], truth[1:], PROTOCOLS["densedepth"])], PROTOCOLS["densedepth"])["rmse"] == 0
    )


def test_structure_row_is_of_the_whole_frame() -> None:
    truth = torch.rand(1, 40, 50, generator=torch.Generator().manual_seed(0)) * 5 + 1
    pred = truth.clone()
    assert score(pred, truth, PROTOCOLS["structure"])[0] == {"pixels": 2000, **dict.fromkeys(STRUCTURE_METRICS, 1.0)}
    pred[0, 0, 0] += 3  # a corner that every crop would hide
    assert score(pred, truth, PROTOCOLS["structure"])[0]["mssim_10"] < 1


def test_scorer_names_a_set_by_any_of_its_frames() -> None:
    truth = torch.full((3, *SIZE), 2.0)
    truth[2, 240, 320] = 0.0
    truth[1, 0, 0] = 0.0  # outside both crops: no hole of the protocol
    scorer = Scorer([PROTOCOLS["densedepth"], PROTOCOLS["bts"]], "filled")
    scorer.add(["c"], [None], 2 * truth[2:].clamp_min(1), {"filled": truth[2:]})
    whole = Scorer([PROTOCOLS["densedepth"]], "filled")
    for either in (scorer, whole):
        either.add(["a", "b"], ["room", None], truth[:2], {"filled": truth[:2]})
    assert list(whole.finish().summary) == ["densedepth"]
    evaluation = scorer.finish()
    assert list(evaluation.summary) == ["densedepth+mask", "bts crop, in-painted truth"]
    assert [(r["id"], r["scene"], r["protocol"]) for r in evaluation.rows[:3]] == [
        ("c", None, "densedepth+mask"),
        ("a", "room", "densedepth+mask"),
        ("b", None, "densedepth+mask"),
    ]
    assert evaluation.rows[0]["pixels"] == 440 * 592 - 1
    assert evaluation.summary["densedepth+mask"]["abs_rel"] == pytest.approx(1 / 3)


def test_outputs_are_averaged_in_depth_and_mirrored_back() -> None:
    inverse = METRIC.model_copy(update={"kind": "inverse"})
    y = torch.tensor([[[[2.0, 5.0]]]])
    y_mirrored = torch.tensor([[[[20.0, 2.5]]]])  # of the mirrored image: belongs to (right, left)
    depth = depth_from_outputs(y, y_mirrored, inverse, (1, 2))
    assert depth.tolist() == [[[(5 + 4) / 2, (2 + 0.5) / 2]]]
    assert depth_from_outputs(y, None, inverse, None).shape == (1, 2, 4)
    clipped = depth_from_outputs(torch.tensor([[[[0.01, -1.0, 400.0]]]]), None, inverse, (1, 3))
    assert clipped.flatten().tolist() == pytest.approx([10, 10, 0.1])


def test_resize_is_half_pixel_bilinear_and_antialiased() -> None:
    (row,) = resize_depth(torch.tensor([[[1.0, 2.0]]]), (1, 4))[0].tolist()
    assert row == [1.0, 1.25, 1.75, 2.0]
    stripes = torch.tensor([1.0, 3.0]).repeat(16).view(1, 1, 32).expand(1, 4, 32)
    assert resize_depth(stripes, (4, 8))[0, 0, 1:-1].numpy() == pytest.approx(2.0, abs=0.1)


def test_evaluation_mode_restores_each_module() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Dropout(), torch.nn.Identity())
    model.train()
    model[0].eval()  # a frozen part stays frozen
    with pytest.raises(RuntimeError, match="planted"), evaluation_mode(model):
        assert not any(m.training for m in model.modules())
        raise RuntimeError("planted")
    assert [m.training for m in model.modules()] == [True, False, True, True]


class Plane(torch.nn.Module):
    """A network whose answer leans to one side, so that mirroring, order and size all show."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        small = functional.avg_pool2d(self.norm(images), 2).mean(1, keepdim=True)
        return 3 + small + torch.linspace(0, 2, small.shape[-1])


@dataclass(frozen=True)
class Holed:
    """A reader whose depth lacks the corner of every frame."""

    reader: Reader

    def rgb(self, index: int) -> np.ndarray:
        return self.reader.rgb(index)

    def depth_m(self, index: int) -> np.ndarray:
        depth = self.reader.depth_m(index).copy()
        depth[: 5 + index, :20] = 0
        return depth


def by_hand(model: torch.nn.Module, frames: FrameList, mirrored: bool, border: int) -> list[float]:
    """abs_rel of each frame, restated with numpy and scikit-image."""
    result = []
    for i in range(len(frames)):
        frame = frames.read(i)
        rows, columns = frame.depth_m.shape
        inside = frame.rgb[border : rows - border, border : columns - border]
        image = resize_rgb(inside, (48, 64))[None].float() / 255
        pictures = [image, image.flip(-1)] if mirrored else [image]
        with torch.no_grad():
            depths = [np.clip(10 / model(p)[0, 0].double().numpy(), 0.1, 10) for p in pictures]
        if mirrored:
            depths[1] = depths[1][:, ::-1]
        large = [resize(d, inside.shape[:2], order=1, mode="edge", anti_aliasing=False) for d in depths]
        pred = np.pad(np.mean(large, axis=0), border, mode="edge")[2:46, 2:62]  # the Eigen crop at a tenth
        truth = frame.depth_m[2:46, 2:62]
        result.append(float((np.abs(pred - truth)[truth > 0] / truth[truth > 0]).mean()))
    return result


@pytest.mark.parametrize(("mirrored", "border"), [(True, 0), (False, 0), (True, 4)])
def test_evaluate_equals_an_independent_restatement(
    mirrored: bool, border: int, tiny_config: Callable[..., TrialConfig]
) -> None:
    config = tiny_config(**{"mirrored": mirrored, "data.crop_border_px": border})
    frames = open_training(config).train
    frames = replace(frames.subset(range(7)), reader=Holed(frames.reader))
    model = Plane()
    model.norm.running_mean += 0.3
    model.train()
    wide = evaluate(model, frames, config, ["densedepth", "bts"], torch.device("cpu"), batch_size=7)
    narrow = evaluate(model, frames, config, ["densedepth", "bts"], torch.device("cpu"), batch_size=3)
    assert model.training
    assert model.norm.num_batches_tracked == 0  # statistics untouched
    assert [r["id"] for r in narrow.rows[:7]] == list(frames.ids)  # the last partial batch counts
    assert [r["scene"] for r in narrow.rows[:7]] == list(frames.scenes)
    ours = [r["abs_rel"] for r in narrow.rows[:7]]
    assert ours == pytest.approx([r["abs_rel"] for r in wide.rows[:7]], rel=1e-6)
    assert ours == pytest.approx(by_hand(model.eval(), frames, mirrored, border), rel=1e-4)
    assert list(narrow.summary) == ["densedepth+mask", "bts crop, in-painted truth"]
    assert narrow.summary["densedepth+mask"]["abs_rel"] == pytest.approx(np.mean(ours))
    assert "frames of 48 x 64" in narrow.resolved["densedepth"].note
