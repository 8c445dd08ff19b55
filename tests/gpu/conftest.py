"""Fixtures of the tests that need a GPU: each is skipped, saying so, where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from trainables.settings.config import TrialConfig


@pytest.fixture(autouse=True)
def cuda() -> Iterator[torch.device]:
    """The GPU, with what a test changed of it put back."""
    if not torch.cuda.is_available():
        pytest.skip("this machine has no usable GPU")
    tf32 = torch.backends.cudnn.allow_tf32
    yield torch.device("cuda")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.set_per_process_memory_fraction(1.0)


# Settings of a small training of each family; the encoders start from random weights.
FAMILIES: dict[str, dict[str, Any]] = {
    "densedepth": {"model.family": "densedepth", "model.encoder": "densenet121"},
    "dispnet": {"model.family": "dispnet", "model.encoder": "vgg16"},
    "resnet": {"model.family": "densedepth", "model.encoder": "resnet50"},
    "unet": {"model.family": "unet", "model.unet_channels": 16},
}
ENCODED = {
    "model.skips": dict.fromkeys(("s2", "s4", "s8", "s16"), "post_pool") | dict.fromkeys(("s1", "s32"), "none"),
    "model.width": 0.25,
    "input": [64, 96],
}  # fmt: skip


@pytest.fixture(scope="session")
def family_config(tiny_config: Callable[..., TrialConfig]) -> Callable[..., TrialConfig]:
    """Settings of a family by its name, on the GPU: family_config('unet', batch_size=2)."""

    def make(family: str, **overrides: Any) -> TrialConfig:
        encoded = ENCODED if family != "unet" else {}
        return tiny_config(**{"device": "cuda"} | FAMILIES[family] | encoded | overrides)

    return make
