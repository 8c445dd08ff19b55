"""Each way of not having learned is planted and found; a model that learned is left alone."""

from __future__ import annotations

import pytest
import torch

from trainables.evaluation.sanity import Diagnosis, diagnose


@pytest.fixture
def frames() -> dict[str, torch.Tensor]:
    """Eight frames of sloping rooms at different distances, with images whose brightness knows nothing of depth."""
    generator = torch.Generator().manual_seed(3)
    near = torch.rand(8, 1, 1, generator=generator) * 2 + 1
    slope = torch.rand(8, 1, 1, generator=generator) * 4
    tilt = torch.rand(8, 1, 1, generator=generator)
    rows, columns = torch.linspace(1, 0, 24)[:, None], torch.linspace(0, 1, 32)[None]
    truth = near + slope * rows + tilt * columns
    truth[:, 3:6, 4:9] = 0.0  # holes
    images = torch.rand(8, 3, 24, 32, generator=generator)
    noise = torch.randn(truth.shape, generator=generator) * 0.1
    mean_map = (truth.sum(0) / (truth > 0).sum(0).clamp_min(1)).where(
        (truth > 0).any(0), truth.sum() / (truth > 0).sum()
    )
    return {"truth_m": truth, "images": images, "mean_map_m": mean_map[None], "noise": noise}


def run(frames: dict[str, torch.Tensor], pred_m: torch.Tensor) -> Diagnosis:
    return diagnose(pred_m, frames["truth_m"], frames["images"], frames["mean_map_m"], relative=False)


def test_a_model_that_learned_has_no_verdict(frames: dict[str, torch.Tensor]) -> None:
    pred = torch.where(frames["truth_m"] > 0, frames["truth_m"], 2.0) * frames["noise"].exp()
    diagnosis = run(frames, pred)
    assert diagnosis.verdicts == ()
    assert diagnosis.depth_correlation > 0.8
    assert diagnosis.error_ratio < 0.5


def test_all_grey_is_constant(frames: dict[str, torch.Tensor]) -> None:
    diagnosis = run(frames, torch.full_like(frames["truth_m"], 2.7) + 1e-3 * frames["noise"])
    assert diagnosis.verdicts[0].startswith("constant")
    assert diagnosis.spread_ratio < 0.02


def test_the_mean_map_is_blind_and_no_better_than_itself(frames: dict[str, torch.Tensor]) -> None:
    diagnosis = run(frames, frames["mean_map_m"].expand_as(frames["truth_m"]) * (1 + 1e-4 * frames["noise"]))
    assert [v.split(":")[0] for v in diagnosis.verdicts] == [
        "blind to its input",
        "no better than the training set's mean depth map",
    ]
    assert diagnosis.error_ratio == pytest.approx(1, abs=1e-3)


def test_noise_is_no_better_than_the_mean_map(frames: dict[str, torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(frames["truth_m"].shape, generator=generator) * 9 + 0.5
    (verdict,) = run(frames, noise).verdicts
    assert verdict.startswith("no better than the training set's mean")


def test_copied_brightness_is_named(frames: dict[str, torch.Tensor]) -> None:
    luminance = (frames["images"] * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    diagnosis = run(frames, 1 + 4 * luminance)
    assert any(v.startswith("follows brightness") for v in diagnosis.verdicts)
    assert diagnosis.luminance_correlation > 0.9
    # Where brightness does tell depth (fog), following it is no fault.
    truth = frames["truth_m"].where(frames["truth_m"] > 0, 2.0)
    foggy = frames | {"images": (truth / truth.max())[:, None].expand(-1, 3, -1, -1)}
    assert run(foggy, truth * frames["noise"].exp()).verdicts == ()
    hazy = foggy | {"images": foggy["images"] + 0.3 * frames["noise"][:, None]}
    copied = run(hazy, 1 + 4 * (hazy["images"] * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1))
    assert copied.luminance_correlation > copied.depth_correlation > 0.8
    assert not any(v.startswith("follows brightness") for v in copied.verdicts)


def test_nan_predictions_do_not_pass(frames: dict[str, torch.Tensor]) -> None:
    verdicts = run(frames, torch.full_like(frames["truth_m"], torch.nan)).verdicts
    assert [v.split(":")[0] for v in verdicts] == ["constant", "no better than the training set's mean depth map"]


def test_relative_depth_is_compared_after_fitting_it_to_each_frame(frames: dict[str, torch.Tensor]) -> None:
    """A perfect shape on an arbitrary scale learned; the mean map's shape on any scale is no better than the map."""
    truth, mean = frames["truth_m"], frames["mean_map_m"].expand_as(frames["truth_m"])
    arbitrary = 0.4 + 0.1 * torch.where(truth > 0, truth, 2.0) * (0.1 * frames["noise"]).exp()
    inputs = truth, frames["images"], frames["mean_map_m"]
    assert diagnose(arbitrary, *inputs, relative=False).error_ratio > 1
    assert diagnose(arbitrary, *inputs, relative=True).verdicts == ()
    blind = diagnose(0.4 + 0.1 * mean, *inputs, relative=True)
    assert blind.error_ratio == pytest.approx(1, abs=1e-6) and blind.verdicts[0].startswith("blind")
