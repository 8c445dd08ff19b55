"""The trainer: bit equality, exact resume, divergence as an outcome; each searched setting does what it names."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import write_tiny
from trainables import train as train_command
from trainables.runtime.errors import Diverged, Stopped, UserError
from trainables.settings.config import TrialConfig, as_dict, flat
from trainables.training import checkpoint, trainer
from trainables.training.learner import Learner

Make = Callable[..., TrialConfig]


def train(config: TrialConfig, folder: Path) -> list[trainer.Report]:
    return list(trainer.iter_fit(config, folder))


def trace(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "trace.parquet").to_pylist()
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_training_leaves_what_it_promises(tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config()
    reports = train(config, tmp_path)
    assert [r.images for r in reports] == [24, 48]
    assert [r.final for r in reports] == [False, True]
    rows = trace(tmp_path)
    assert [row["step"] for row in rows] == list(range(12))
    assert rows[-1]["images"] == 48
    assert all(len(row["samples"]) == len(row["sample_losses"]) for row in rows)
    for row in rows:
        total = sum(config.loss[name] * row[name] for name in config.loss)
        assert row["loss"] == pytest.approx(total, rel=1e-5)
        assert sum(row["sample_losses"]) / len(row["samples"]) == pytest.approx(row["loss"], rel=1e-3)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["images"] == 48
    assert summary["train_frames"] + summary["validation_frames"] == 30
    lines = (tmp_path / "reports.jsonl").read_text().splitlines()
    assert [json.loads(line)["images"] for line in lines] == [24, 48]
    model, read = checkpoint.read_model(tmp_path / "checkpoints" / "best")
    assert read == config
    assert not model.training
    assert summary["taps"] == dict(model.taps)
    assert (tmp_path / "preview.png").stat().st_size > 1000
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == ["24.jpg", "48.jpg"]
    assert summary["energy_wh"] is None  # no GPU was used


def test_same_seed_and_threads_give_the_same_bits(tiny_config: Make, tmp_path: Path) -> None:
    train(tiny_config(), tmp_path / "a")
    train(tiny_config(), tmp_path / "b")
    train(tiny_config(seed=1), tmp_path / "c")
    assert trace(tmp_path / "a") == trace(tmp_path / "b")
    assert trace(tmp_path / "a")[0]["loss"] != trace(tmp_path / "c")[0]["loss"]


KILLED = """
import os, signal, sys
from pathlib import Path
from trainables.training import trainer
from trainables.settings.config import TrialConfig
step = trainer.Training.train_step
def dying(self, batches):
    if self.progress.step == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, batches)
trainer.Training.train_step = dying
list(trainer.iter_fit(TrialConfig.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2])))
"""


def test_resumed_after_a_kill_in_mid_epoch_equals_uninterrupted(tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config(**{"optim.schedule": "plateau", "optim.plateau.patience": 0, "optim.clip_norm": 0.5})
    step = 5
    (tmp_path / "config.json").write_text(json.dumps(as_dict(config)))
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "config.json"), str(tmp_path / "killed"), str(step)]
    process = subprocess.run(arguments, check=False, cwd=Path(__file__).parents[3], capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    state = checkpoint.read_state(tmp_path / "killed" / "checkpoints" / "latest")
    assert 0 < state["step"] <= step
    straight, resumed = train(config, tmp_path / "straight"), train(config, tmp_path / "killed")
    assert_same(tmp_path / "straight", straight, tmp_path / "killed", resumed)


def test_a_folded_encoder_resumes_bit_for_bit(tiny_config: Make, tmp_path: Path) -> None:
    """The copy that a frozen encoder runs as is made anew from the checkpoint's weights."""
    frozen = {
        "model.family": "densedepth", "model.encoder": "timm/mobilenetv3_small_050", "model.width": 0.05,
        "model.frozen": ["*"], "model.batch_norm": "frozen", "batch_size": 2,
        "model.skips": dict.fromkeys(("s4", "s8"), "post_pool") | dict.fromkeys(("s1", "s2", "s16", "s32"), "none"),
    }  # fmt: skip
    config = tiny_config(**frozen)
    steps = iter([False] * 9 + [True])
    with pytest.raises(Stopped):
        trainer.fit(config, tmp_path / "stopped", stop=lambda: next(steps))
    straight, resumed = train(config, tmp_path / "straight"), train(config, tmp_path / "stopped")
    assert_same(tmp_path / "straight", straight, tmp_path / "stopped", resumed)


def assert_same(one: Path, reports: list[trainer.Report], other: Path, others: list[trainer.Report]) -> None:
    """Losses, metrics and weights of two trainings are equal bit for bit."""
    assert trace(one) == trace(other)
    timed = ("speed/", "time/", "memory/", "device/")
    for report, twin in zip(reports, others, strict=True):
        assert {k: v for k, v in report.metrics.items() if not k.startswith(timed)} == {
            k: v for k, v in twin.metrics.items() if not k.startswith(timed)
        }
    left, right = (checkpoint.read_weights(folder / "checkpoints" / "latest") for folder in (one, other))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_told_to_stop_the_command_stops_at_a_checkpoint_and_goes_on_from_it(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM, as schedulers of clusters send it, in the middle of a step; the checkpoint is of that very step."""
    config = tiny_config(**{"optim.name": "sgd", "checkpoint_every_images": 48})
    monkeypatch.setattr("trainables.settings.recipe.load_recipe", lambda name, settings: (config,))
    step, handler = trainer.Training.train_step, signal.getsignal(signal.SIGTERM)

    def terminated(self: trainer.Training, batches: object) -> None:
        step(self, batches)  # type: ignore[arg-type]
        if self.progress.step == 4:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(trainer.Training, "train_step", terminated)
    command = ["densedepth", "--out", str(tmp_path / "stopped")]
    assert train_command.main(command) == 130
    assert "stopped after 16 of 48 images; the same command continues" in capsys.readouterr().err
    assert checkpoint.read_state(tmp_path / "stopped" / "checkpoints" / "latest")["step"] == 4
    monkeypatch.setattr(trainer.Training, "train_step", step)
    assert train_command.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"][0]["images"] == 48
    assert signal.getsignal(signal.SIGTERM) == handler
    straight = train(config, tmp_path / "straight")
    assert_same(tmp_path / "straight", straight, tmp_path / "stopped", train(config, tmp_path / "stopped"))


def test_a_finished_training_is_told_again_not_trained_again(tiny_config: Make, tmp_path: Path) -> None:
    first = train(tiny_config(), tmp_path)
    stamp = (tmp_path / "checkpoints" / "latest" / "SHA256.json").stat().st_mtime_ns
    assert train(tiny_config(), tmp_path) == first
    assert (tmp_path / "checkpoints" / "latest" / "SHA256.json").stat().st_mtime_ns == stamp
    assert len(trace(tmp_path)) == 12


def test_resume_refuses_other_settings_and_damaged_checkpoints(tiny_config: Make, tmp_path: Path) -> None:
    train(tiny_config(), tmp_path)
    with pytest.raises(UserError, match=r"optim\.lr = 0\.001, not 0\.002"):
        train(tiny_config(**{"optim.lr": 0.002}), tmp_path)
    weights = tmp_path / "checkpoints" / "latest" / checkpoint.WEIGHTS
    damaged = bytearray(weights.read_bytes())
    damaged[-5] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(UserError, match=r"weights\.safetensors has changed"):
        train(tiny_config(), tmp_path)


def test_divergence_names_its_step_and_never_reaches_the_weights(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = trainer.composite

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        poisoned.calls += 1  # type: ignore[attr-defined]
        result = honest(*args, **kwargs)
        if poisoned.calls == 5:  # type: ignore[attr-defined]
            return type(result)(result.total * math.nan, result.terms, result.per_sample)
        return result

    poisoned.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(trainer, "composite", poisoned)
    training = trainer.Training(tiny_config(), tmp_path, None)
    batches = iter(trainer.TrainLoader(training.data.train, training.config, 0))
    for _ in range(4):
        training.train_step(batches)
    before = [p.detach().clone() for p in training.learner.model.parameters()]
    for _ in range(3):
        training.train_step(batches)
    assert all(torch.equal(a, b) for a, b in zip(before, training.learner.model.parameters(), strict=True))
    with pytest.raises(Diverged) as caught:
        training.flush()
    assert caught.value.step == 4
    training.close()
    assert [row["step"] for row in trace(tmp_path)] == [0, 1, 2, 3, 4]


def test_the_search_dimensions_move_what_they_name(tiny_config: Make, tmp_path: Path) -> None:
    """One seed, two values of each setting: the mechanism it names differs, and nothing else in the config moved."""
    short = {"optim.schedule": "constant", "budget_images": 24}
    base = tiny_config(**short)
    changes: dict[str, Any] = {
        "optim.lr": 2e-3,
        "optim.clip_norm": 0.01,
        "loss.depth": 0.5,
        "loss.gradient": 3.0,
        "batch_size": 2,
    }
    train(base, tmp_path / "base")
    before = trace(tmp_path / "base")
    for path, value in changes.items():
        config = tiny_config(**short | {path: value})
        moved = {k for k, v in flat(config).items() if v != flat(base)[k]}
        assert moved == {path}
        folder = tmp_path / path
        train(config, folder)
        after = trace(folder)
        if path == "optim.lr":
            assert after[0]["lr"] == pytest.approx(2 * before[0]["lr"])
            assert after[0]["loss"] == before[0]["loss"]
        elif path == "optim.clip_norm":
            assert not any(row["clipped"] for row in before)
            assert all(row["clipped"] == (row["grad_norm"] + 1e-6 > value) for row in after)
            assert any(row["clipped"] for row in after)
        elif path == "batch_size":
            assert {len(row["samples"]) for row in after} == {2}
        else:
            term = path.removeprefix("loss.")
            assert after[0][term] == before[0][term]
            gain = (value - base.loss[term]) * before[0][term]
            assert after[0]["loss"] == pytest.approx(before[0]["loss"] + gain, rel=1e-5)


def test_accumulation_equals_the_big_batch_without_batch_norm(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 x 2 and 2 x 4; batch statistics would differ by nature, so the training runs in eval mode."""
    monkeypatch.setattr(Learner, "set_mode", lambda self, **_: self.model.eval())
    rows = {}
    for batch, accumulate in ((4, 2), (8, 1)):
        config = tiny_config(batch_size=batch, accumulate=accumulate, train_mode="eval_after_first_step")
        folder = tmp_path / f"{batch}x{accumulate}"
        training = trainer.Training(config, folder, None)
        batches = iter(trainer.TrainLoader(training.data.train, config, 0))
        for _ in range(3):
            training.train_step(batches)
        training.flush()
        training.close()
        rows[batch] = trace(folder)
    for one, other in zip(rows[4], rows[8], strict=True):
        assert one["samples"] == other["samples"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_a_spike_leaves_the_snapshot_before_it(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = trainer.composite
    calls = {"n": 0}

    def spiking(*args: Any, **kwargs: Any) -> Any:
        calls["n"] += 1
        result = honest(*args, **kwargs)
        return type(result)(result.total * (50 if calls["n"] == 46 else 1), result.terms, result.per_sample)

    monkeypatch.setattr(trainer, "composite", spiking)
    config = tiny_config(
        budget_images=240, validate_every_images=240, checkpoint_every_images=240, snapshot_every_steps=10
    )
    train(config, tmp_path)
    (folder,) = (tmp_path / "checkpoints" / "spikes").iterdir()
    state = checkpoint.read_state(folder)
    assert state["spike_step"] == 45
    assert folder.name == "step-40"
    assert state["step"] == 40
    assert state["spike_samples"] == trace(tmp_path)[45]["samples"]


def test_a_searched_skip_moves_its_own_tap_alone(tiny_config: Make, tmp_path: Path) -> None:
    """As the summary names them (test_a_training_leaves_what_it_promises)."""
    paper = dict.fromkeys(("s2", "s4", "s8", "s16"), "post_pool") | {"s1": "none", "s32": "none"}

    def taps(**changed: str) -> dict[str, str]:
        config = tiny_config(
            **{
                "model.family": "densedepth",
                "model.encoder": "densenet121",
                "model.width": 0.1,
                "model.skips": paper | changed,
                "trace": False,
            }
        )
        with contextlib.closing(trainer.Training(config, tmp_path, None)) as training:
            return training.learner.taps

    base = taps()
    for scale, node in (("s4", "denseblock1"), ("s8", "denseblock2"), ("s16", "denseblock3")):
        assert base | {scale: f"features.{node}.cat"} == taps(**{scale: "pre_pool"}) != base
    assert taps(s8="none") == {scale: node for scale, node in base.items() if scale != "s8"}


def test_skipped_frames_are_counted_and_named(tiny_config: Make, tmp_path: Path) -> None:
    root = write_tiny(tmp_path / "data")
    bad = [f"data/nyu2_train/scene_{scene:04d}_out/1.jpg" for scene in range(2)]
    (root / bad[0]).write_bytes(b"")  # found before training
    picture = (root / bad[1]).read_bytes()
    (root / bad[1]).write_bytes(picture[: len(picture) * 3 // 4])  # found when it is decoded
    config = tiny_config(**{"data.root": str(root), "data.on_bad_frame": "skip"})
    train(config, tmp_path / "t")
    summary = json.loads((tmp_path / "t/summary.json").read_text())
    assert summary["skipped_frames"] == 2 and [name for name, _ in summary["skipped"]] == bad
