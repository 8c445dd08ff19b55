"""The guarded step, the schedules and the plateau, each against torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainables.settings.config import TrialConfig
from trainables.training.optim import GuardedStep, Plateau, scheduled_lr

Make = Callable[..., TrialConfig]


@settings(max_examples=20, deadline=None)
@given(clip=st.sampled_from([None, 0.01, 1.0, 1e6]), seed=st.integers(0, 99), amsgrad=st.booleans())
def test_guarded_step_equals_clip_then_step(clip: float | None, seed: int, amsgrad: bool) -> None:
    torch.manual_seed(seed)
    left = nn.Linear(5, 3)
    right = nn.Linear(5, 3)
    right.load_state_dict(left.state_dict())
    ours = torch.optim.Adam(left.parameters(), 0.1, amsgrad=amsgrad, fused=True)
    plain = torch.optim.Adam(right.parameters(), 0.1, amsgrad=amsgrad)
    guarded = GuardedStep(ours, clip, torch.device("cpu"))
    for _ in range(3):
        x = torch.randn(4, 5)
        loss = left(x).square().sum()
        loss.backward()
        norm, clipped = guarded(loss.detach(), 0.1)
        right(x).square().sum().backward()
        expected = nn.utils.clip_grad_norm_(right.parameters(), math.inf if clip is None else clip)
        plain.step()
        plain.zero_grad()
        assert float(norm) == pytest.approx(float(expected), rel=1e-5)
        assert bool(clipped) == (clip is not None and float(expected) + 1e-6 > clip)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(left.parameters(), right.parameters(), strict=True))


def test_schedules(tiny_config: Make) -> None:
    def rate(schedule: str, share: float) -> float:
        return scheduled_lr(tiny_config(**{"optim.schedule": schedule, "optim.lr": 1.0}).optim, share)

    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), 1.0)
    oracle = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.0, total_steps=1001)
    for step in range(0, 1001):
        if step % 100 == 0 and step != 300:
            assert rate("one_cycle", step / 1000) == pytest.approx(oracle.get_last_lr()[0], rel=0.02, abs=1e-5)
        optimiser.step()
        if step < 1000:
            oracle.step()
    assert [rate("cosine", s) for s in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert [rate("step", s) for s in (0.49, 0.5)] == pytest.approx([1.0, 0.1])
    assert rate("constant", 0.9) == 1.0


def test_plateau_equals_torch(tiny_config: Make) -> None:
    config = tiny_config(**{"optim.plateau": {"factor": 0.7, "patience": 2, "min_lr": 0.3}, "optim.lr": 1.0}).optim
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), 1.0)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.7, patience=2, min_lr=0.3)
    ours = Plateau()
    for value in (5.0, 4.0, 4.1, 4.2, 4.3, 4.0, 3.0, 3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 3.7, 3.8, 3.9, 4.0, 4.1):
        oracle.step(value)
        ours.update(config.plateau, config.lr, value)
        assert ours.scale == pytest.approx(optimiser.param_groups[0]["lr"])
