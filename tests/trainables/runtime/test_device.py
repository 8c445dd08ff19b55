"""Power and energy of a training's devices."""

from __future__ import annotations

import pytest
import torch

from trainables.runtime import device


def test_energy_is_mean_power_times_time_of_all_devices() -> None:
    assert device.energy_wh([300.0, 100.0], 1800.0) == pytest.approx(200.0)
    assert device.energy_wh([300.0, None], 1800.0) is None


def test_power_is_the_mean_since_the_last_reading_and_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a driver that tells it, in milliwatts, and no time to sample it between."""
    told = iter([90_000, 100_000, 200_000])
    monkeypatch.setattr(torch.cuda, "power_draw", lambda _: next(told))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(device, "SAMPLE_SECONDS", 3600.0)
    meter = device.Meter(torch.device("cuda"))
    assert meter.mean_power_w() is None
    assert [meter.read_power_w(), meter.read_power_w()] == [100.0, 200.0]
    assert meter.mean_power_w() == 150.0
    meter.close()


def test_a_device_that_does_not_tell_its_power_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from pynvml import NVML_ERROR_NOT_SUPPORTED, NVMLError

    def refuse(_: torch.device) -> int:
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(torch.cuda, "power_draw", refuse)
    assert not device.tells_power(torch.device("cuda"))
    meter = device.Meter(torch.device("cpu"))
    assert meter.read_power_w() is None and meter.mean_power_w() is None
