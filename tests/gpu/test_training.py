"""Training on a GPU: it learns, it agrees with the CPU, it resumes, it never waits for the device, it survives
running out of memory. `make gpu` runs these.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.gpu.conftest import FAMILIES
from trainables.data.dataset import open_training
from trainables.data.loader import TrainLoader
from trainables.models.depth_model import build_model
from trainables.runtime import parallel
from trainables.runtime.device import GraphedForward
from trainables.runtime.errors import OutOfMemory, Stopped
from trainables.settings.config import TrialConfig
from trainables.training.trainer import Training, iter_fit

pytestmark = pytest.mark.gpu
Configs = Callable[..., TrialConfig]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_each_family_learns_a_tiny_set(tmp_path: Path, family_config: Configs, family: str, precision: str) -> None:
    """One frame seen 200 times: the training loss of the last reports lies below a quarter of the first steps'."""
    config = family_config(
        family, **{"precision": precision, "data.overfit": "first", "budget_images": 200, "validate_every_images": 20,
                   "checkpoint_every_images": 200, "optim.lr": 1e-3, "augment.flip": 0.0, "augment.channel_swap": 0.0,
                   "batch_size": 1}
    )  # fmt: skip
    losses = [report.metrics["train/loss"] for report in iter_fit(config, tmp_path)]
    print(f"{family}, {precision}: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize(("family", "tolerance"), [("unet", 2e-3), ("densedepth", 2e-2)])
def test_first_losses_are_the_cpus(tmp_path: Path, family_config: Configs, family: str, tolerance: float) -> None:
    """20 steps in float32 without TF32. Adam divides by small second moments, so rounding grows from step to step,
    more so through the hundred BatchNorms of a DenseNet than in a U-Net that has none.
    """
    torch.backends.cudnn.allow_tf32 = False
    losses = {}
    for name in ("cpu", "cuda"):
        settings = {"device": name, "budget_images": 80, "validate_every_images": 80, "checkpoint_every_images": 80}
        list(iter_fit(family_config(family, **settings, **{"optim.lr": 1e-4}), tmp_path / name))
        losses[name] = pd.read_parquet(tmp_path / name / "trace.parquet")["loss"].to_numpy()
    apart = abs(losses["cuda"] / losses["cpu"] - 1)
    print(f"{family}: relative difference of the first loss {apart[0]:.2e}, of 20 at most {apart.max():.2e}")
    assert len(apart) == 20
    assert apart[0] < 1e-4
    assert apart.max() < tolerance


def test_a_graphed_step_is_the_eager_step(family_config: Configs, cuda: torch.device) -> None:
    """Output, gradients and BatchNorm's statistics of one batch, in float32 without TF32; and a part of a batch."""
    torch.backends.cudnn.allow_tf32 = False
    config = family_config("densedepth")
    results = {}
    for graphed in (False, True):
        torch.manual_seed(0)
        model = build_model(config.model, config.target.kind).to(cuda).to(memory_format=torch.channels_last)
        shape = (4, 3, *config.input)
        forward = GraphedForward(model, model, shape, cuda, torch.float32) if graphed else model
        torch.manual_seed(1)
        for batch in (4, 4, 3):  # the last part of an epoch is smaller, and runs as usual
            model.zero_grad(set_to_none=True)
            y = forward(torch.rand(batch, *shape[1:], device=cuda))
            y.square().mean().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        statistics = torch.cat([b.flatten().float() for b in model.buffers()])
        results[graphed] = (y.detach().clone(), gradients, statistics)
    for eager, replayed in zip(results[False], results[True], strict=True):
        assert torch.linalg.vector_norm(eager - replayed) < 1e-4 * torch.linalg.vector_norm(eager)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_equals_straight(tmp_path: Path, family_config: Configs, accumulate: int) -> None:
    """Stopped after half and gone on: the last validation within 1% of the undisturbed one (atomic sums differ)."""
    config = family_config("unet", batch_size=4 // accumulate, accumulate=accumulate, precision="float32")
    straight = list(iter_fit(config, tmp_path / "straight"))[-1].metrics
    asked = itertools.count()
    with pytest.raises(Stopped):
        list(iter_fit(config, tmp_path / "resumed", stop=lambda: next(asked) == 6))
    resumed = list(iter_fit(config, tmp_path / "resumed"))[-1].metrics
    for name in ("val/loss", "val/rmse", "train/loss"):
        assert resumed[name] == pytest.approx(straight[name], rel=1e-2), name


@pytest.mark.parametrize("family", ["densedepth", "unet"])
def test_a_step_never_waits_for_the_device(tmp_path: Path, family_config: Configs, family: str) -> None:
    """torch refuses every synchronisation between two looks at the device."""
    config = family_config(family, precision="bfloat16", **{"optim.clip_norm": 1.0})
    training = Training(config, tmp_path, None)
    batches = iter(training.loader)
    for _ in range(3):
        training.train_step(batches)
    training.flush()
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(3):
        training.train_step(batches)
    torch.cuda.set_sync_debug_mode("default")
    training.flush()
    training.close()


def test_out_of_memory_is_an_outcome_and_the_next_training_works(tmp_path: Path, family_config: Configs) -> None:
    """A card with 600 MiB left for this process: too little for the first training, enough for the second."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 600 * 2**20) / total)
    with pytest.raises(OutOfMemory, match="memory"):
        list(iter_fit(family_config("densedepth", input=[480, 640], batch_size=16), tmp_path / "large"))
    reports = list(iter_fit(family_config("unet"), tmp_path / "small"))
    assert reports[-1].final


def test_one_process_trains_behind_nccl(tmp_path: Path, family_config: Configs, cuda: torch.device) -> None:
    """A process group of one, over NCCL: the same losses as without, and a collective on the device."""
    from torch import distributed

    config = family_config("unet", precision="float32")
    alone = list(iter_fit(config, tmp_path / "alone"))[-1].metrics["val/loss"]
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True)
    with parallel.joined(store, 0, 1, cuda):
        together = list(iter_fit(config, tmp_path / "together"))[-1].metrics["val/loss"]
        ones = torch.ones(4, device=cuda)
        distributed.all_reduce(ones)
        assert ones.tolist() == [1.0] * 4
    assert together == pytest.approx(alone, rel=1e-2)


def test_peak_memory_is_measured(tmp_path: Path, family_config: Configs) -> None:
    """Four times the batch takes half as much memory again, and a report says how much."""
    peaks = []
    for batch in (4, 16):
        config = family_config("densedepth", batch_size=batch, input=[128, 192])
        reports = list(iter_fit(config, tmp_path / str(batch)))
        peaks.append(reports[-1].metrics["memory/peak_mib"])
        torch.cuda.empty_cache()
    print(f"peak memory {peaks[0]:.0f} and {peaks[1]:.0f} MiB")
    assert peaks[1] > 1.5 * peaks[0] > 0


def test_a_training_lets_its_memory_go(tmp_path: Path, family_config: Configs) -> None:
    """The next training of the same process finds the card as empty as the first one did, captured graph and all."""
    before = torch.cuda.memory_allocated()
    list(iter_fit(family_config("densedepth"), tmp_path))
    assert torch.cuda.memory_allocated() - before < 2**20


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_pinned_memory(family_config: Configs, workers: int) -> None:
    config = family_config("unet", **{"data.workers": workers})
    batch = next(iter(TrainLoader(open_training(config).train, config, 0)))
    assert batch.images.is_pinned()
    assert batch.target.is_pinned()
    assert batch.valid.is_pinned()
