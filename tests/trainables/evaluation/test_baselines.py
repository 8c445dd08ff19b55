"""The random guess's expectation against Monte Carlo and against integration; the mean map with holes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from tests.trainables.evaluation.expectation import random_guess_expectation
from trainables.evaluation.baselines import mean_depth_map, random_guess
from trainables.evaluation.metrics import FUNCTIONS, Comparison
from trainables.settings.registry import NYU_MAX_DEPTH_M

PER_PIXEL = {
    "abs_rel": lambda g, t: abs(g - t) / t,
    "sq_rel": lambda g, t: (g - t) ** 2 / t,
    "log10": lambda g, t: abs(np.log10(g) - np.log10(t)),
    **{f"delta{k}": lambda g, t, k=k: float(max(g / t, t / g) < 1.25**k) for k in (1, 2, 3)},
}


@pytest.mark.parametrize("truth", [0.3, 4.0, 9.5, 13.0])
def test_expectation_is_the_integral_over_the_guess(truth: float) -> None:
    ours = random_guess_expectation(torch.full((1, 1, 1), truth), torch.ones(1, 1, 1, dtype=torch.bool))
    for name, value in PER_PIXEL.items():
        breaks = sorted(p for k in (-3, -2, -1, 0, 1, 2, 3) if 0 < (p := truth * 1.25**k) < NYU_MAX_DEPTH_M)
        integral, _ = quad(value, 0, NYU_MAX_DEPTH_M, args=(truth,), points=breaks or None, limit=200)
        assert float(ours[name]) == pytest.approx(integral / NYU_MAX_DEPTH_M, rel=1e-5), name
    square, _ = quad(lambda g: (g - truth) ** 2, 0, NYU_MAX_DEPTH_M)
    assert float(ours["rmse"]) ** 2 == pytest.approx(square / NYU_MAX_DEPTH_M, rel=1e-6)


def test_facts_formulas_hold_within_the_range() -> None:
    t = torch.linspace(0.2, 9.9, 50, dtype=torch.float64).view(1, 5, 10)
    ours = random_guess_expectation(t, t > 0)
    assert float(ours["abs_rel"]) == pytest.approx(float(((t**2 + (10 - t) ** 2) / (20 * t)).mean()), rel=1e-12)
    assert float(ours["delta1"]) == pytest.approx(float(((1.25 * t).clamp(max=10) - t / 1.25).mean() / 10), rel=1e-12)


def test_a_seeded_guess_lies_within_monte_carlo_error_per_frame() -> None:
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.uniform(0.4, 9, (3, 40, 50)))
    truth[:, :6, :9] = 0.0
    mask = truth > 0
    expected = random_guess_expectation(truth, mask)
    guesses = [random_guess(tuple(truth.shape), seed) for seed in range(40)]
    assert torch.equal(random_guess(tuple(truth.shape), 7), guesses[7])
    assert not torch.equal(guesses[0], guesses[1])
    for name, expectation in expected.items():
        drawn = torch.stack([FUNCTIONS[name](Comparison(pred=g, target=truth, mask=mask)) for g in guesses])
        error = (drawn.mean(0) - expectation).abs() / (drawn.std(0) / len(guesses) ** 0.5)
        assert bool((error < 4.5).all()), (name, error)


def test_mean_map_leaves_holes_out() -> None:
    first = np.array([[1.0, 0.0], [3.0, 0.0]], np.float32)
    second = np.array([[2.0, 4.0], [0.0, 0.0]], np.float32)
    expected = [[[1.5, 4.0], [3.0, (1 + 3 + 2 + 4) / 4]]]  # never measured: the mean of all measurements
    assert mean_depth_map([first, second], (2, 2)).tolist() == expected
    with pytest.raises(ValueError, match="no frame holds any depth"):
        mean_depth_map([first * 0], (2, 2))


def test_mean_map_of_another_size_does_not_bleed_holes() -> None:
    holed = np.full((8, 8), 5.0, np.float32)
    holed[:4] = 0.0
    result = mean_depth_map([holed], (4, 4))
    assert result.shape == (1, 4, 4)
    assert result.numpy() == pytest.approx(5.0)  # metres of valid support alone
