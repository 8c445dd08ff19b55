"""One training: `fit` turns a `TrialConfig` into reports and leaves a folder behind that shows what happened.

    config.json         the settings
    reports.jsonl       one report per line
    trace.parquet       the step trace (trainables/trace.py)
    checkpoints/        latest, best, spikes (trainables/checkpoint.py)
    summary.json        parameters, taps, device, precision, threads, seconds, peak memory, share of clipped steps
    preview.png         rgb, truth, prediction and error of a few validation frames, at the end

A call on a folder with a checkpoint goes on from it: reports of before are yielded again, then the training continues
bit for bit (on CPU, with the same number of threads). Source: the paper's section 3; DESIGN.md "A training".
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables import checkpoint, device
from trainables.config import TrialConfig, as_dict, flat
from trainables.data.dataset import TrainingData, open_training
from trainables.data.loader import Batch, TrainLoader, augment
from trainables.durable import write_bytes, write_json
from trainables.errors import Diverged, OutOfMemory, UserError
from trainables.losses import composite
from trainables.models import build_model, parameter_counts
from trainables.optim import GuardedStep, Plateau, build_optimiser, scheduled_lr
from trainables.preview import write_preview
from trainables.snapshots import SpikeRecorder
from trainables.steplog import StepLog, target_extremes
from trainables.target import DATA_RANGE
from trainables.trace import TraceWriter
from trainables.validation import validate

FLUSH_STEPS = 50  # steps between two looks at the device: how late a divergence is noticed


@dataclass(frozen=True)
class Report:
    """What a training tells at a validation. `images` counts images seen, `time_s` is the wall clock of its making."""

    step: int
    images: int
    epoch: float
    time_s: float
    metrics: dict[str, float]
    final: bool


def fit(config: TrialConfig, folder: Path, *, data: TrainingData | None = None) -> Iterator[Report]:
    """Train, yielding a report per validation; the last one has `final`.

    Raises Diverged (the first non-finite loss or gradient; the weights never see it), OutOfMemory, and UserError for
    data, weights or checkpoints that cannot be used. Closing the iterator early keeps everything up to the last flush.
    """
    try:
        with contextlib.closing(_Training(config, folder, data)) as training:
            yield from training.run()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(str(error).splitlines()[0] if str(error) else "the host had no memory left") from error
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise OutOfMemory(str(error).splitlines()[0]) from error


class _Training:
    def __init__(self, config: TrialConfig, folder: Path, data: TrainingData | None) -> None:
        self.config, self.folder, self.checkpoints = config, folder, folder / "checkpoints"
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.device = device.choose_device(config)
        self.dtype = device.choose_dtype(config, self.device)
        self.data = data or open_training(config)
        self.terms = tuple(name for name, weight in config.loss.items() if weight > 0)
        torch.manual_seed(config.seed)
        model = build_model(config.model, config.target.kind)
        if config.start_from is not None:
            _start_from(model, Path(config.start_from))
        self.taps = dict(model.taps)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.optimiser = build_optimiser(config.optim, self.model.parameters())
        self.guarded = GuardedStep(self.optimiser, config.optim.clip_norm, self.device)
        self.forward = torch.compile(self.model) if config.compile else self.model
        self.step = self.images = self.clipped = 0
        self.seconds_before = self.wait_s = 0.0
        self.plateau, self.best = Plateau(), None
        self.history: list[Report] = []
        self.log = StepLog(self.terms)
        self.sums: dict[str, float] = {}  # of the steps since the last report
        self._resume()
        self.recorder = SpikeRecorder(config, self.checkpoints)
        self.trace = TraceWriter(folder, self.terms, self.step) if config.trace else None
        write_json(folder / "config.json", as_dict(config))
        self._write_reports()
        self.meter = device.Meter(self.device)
        self.started = self.reported = time.perf_counter()

    def run(self) -> Iterator[Report]:
        """The reports of before a resume, then the training."""
        yield from self.history
        config = self.config
        batches = iter(TrainLoader(self.data.train, config, self.images))
        while self.images < config.budget_images:
            before = self.images
            self._train_step(batches)
            report = self._crossed(before, config.validate_every_images) or self.images >= config.budget_images
            save = self._crossed(before, config.checkpoint_every_images)
            if report or save or len(self.log) >= FLUSH_STEPS:
                self._flush()
            if report:
                yield self._report()
            elif save:
                self._save_latest()
        self._close_trace()
        write_preview(self.folder / "preview.png", self.model, self.data.validation, config, self.device)

    def close(self) -> None:
        """Stop sampling and compact the trace of the steps that were looked at."""
        self.meter.close()
        self._close_trace()

    def _train_step(self, batches: Iterator[Batch]) -> None:
        config, waiting = self.config, time.perf_counter()
        group = [next(batches) for _ in range(config.accumulate)]
        self.wait_s += time.perf_counter() - waiting
        self.recorder.before_step(self.step, lambda: checkpoint.take_snapshot(self.model, self.optimiser, self._state()))
        self._set_mode()
        count = sum(len(batch.ids) for batch in group)
        scalars: dict[str, Tensor] = {name: torch.zeros((), device=self.device) for name in ("loss", *self.terms)}
        sample_losses, targets = [], []
        for batch in group:
            images, target, valid = augment(batch, self.device)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                pred = self.forward(images)
            result = composite(pred, target, valid, config.loss, DATA_RANGE[config.target.kind])
            share = len(batch.ids) / count
            (result.total * share).backward()
            for name, value in (("loss", result.total), *((name, result.terms[name]) for name in self.terms)):
                scalars[name] = scalars[name] + share * value.detach()
            sample_losses.append(result.per_sample.detach())
            targets.append((target, valid))
        lr = scheduled_lr(config.optim, self.images / config.budget_images) * self.plateau.scale
        norm, clipped = self.guarded(scalars["loss"], lr)
        scalars |= {"grad_norm": norm, "clipped": clipped, "failed": self.guarded.failed}
        if config.trace:
            scalars |= target_extremes(targets)
        row = {"step": self.step, "images": self.images + count, "epoch": self.images // len(self.data.train), "lr": lr}
        row |= {"seconds": self._seconds(), "samples": [name for batch in group for name in batch.ids]}
        self.log.add(row, scalars, sample_losses)
        self.step += 1
        self.images += count

    def _flush(self) -> None:
        """Look at the steps since the last flush: one transfer. Raises Diverged for the first that was not finite."""
        rows, divergence = self.log.flush()
        if self.trace is not None:
            for row in rows:
                self.trace.append(row)
        if divergence is not None:
            raise divergence
        for row in rows:
            for name in ("loss", *self.terms, "grad_norm", "clipped"):
                self.sums[name] = self.sums.get(name, 0.0) + float(row[name])
            self.sums["steps"] = self.sums.get("steps", 0) + 1
            self.sums["images"] = self.sums.get("images", 0) + len(row["samples"])
            self.sums["lr"] = row["lr"]
        self.clipped += sum(row["clipped"] for row in rows)
        self.recorder.observe(rows)

    def _report(self) -> Report:
        """Validate, checkpoint, then report: a checkpoint is written before its report is told."""
        config = self.config
        metrics = self._training_metrics()
        validating = time.perf_counter()
        metrics |= validate(self.model, self.data.validation, config, self.device, self.dtype)
        metrics |= {"time/validation_s": time.perf_counter() - validating, "time/seconds": self._seconds()}
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise Diverged(self.step - 1, f"the validation is not finite ({', '.join(broken)})")
        if config.optim.schedule == "plateau":
            self.plateau.update(config.optim.plateau, config.optim.lr, metrics["val/loss"])
        final = self.images >= config.budget_images
        report = Report(self.step, self.images, self.images / len(self.data.train), time.time(), metrics, final)
        self.history.append(report)
        value = metrics[f"val/{config.best_metric}"] * (-1 if config.best_metric.startswith("delta") else 1)
        if self.best is None or value < self.best:
            self.best = value
            snapshot = checkpoint.take_snapshot(self.model, None, {"report": asdict(report)})
            checkpoint.write_checkpoint(self.checkpoints / checkpoint.BEST, snapshot, config)
        self.sums, self.wait_s, self.reported = {}, 0.0, time.perf_counter()
        self._save_latest()
        self._write_reports()
        write_json(self.folder / "summary.json", self._summary())
        return report

    def _training_metrics(self) -> dict[str, float]:
        sums, busy_s = self.sums, time.perf_counter() - self.reported
        steps = sums["steps"]
        return {
            **{f"train/{name}": sums[name] / steps for name in ("loss", *self.terms)},
            "optim/lr": sums["lr"],
            "optim/grad_norm": sums["grad_norm"] / steps,
            "optim/clipped_share": sums["clipped"] / steps,
            "speed/images_per_s": sums["images"] / busy_s,
            "speed/data_wait_share": self.wait_s / busy_s,
            "memory/peak_mib": device.peak_memory_mib(self.device),
            "device/utilisation": self.meter.read(),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "images": self.images,
            "clipped": self.clipped,
            "seconds": self._seconds(),
            "best": self.best,
            "sums": dict(self.sums),
            "plateau": asdict(self.plateau) | {"best": None if self.plateau.best == float("inf") else self.plateau.best},
            "threads": torch.get_num_threads(),
            "history": [asdict(report) for report in self.history],
        }

    def _save_latest(self) -> None:
        if self.trace is not None:
            self.trace.flush()
        snapshot = checkpoint.take_snapshot(self.model, self.optimiser, self._state())
        checkpoint.write_checkpoint(self.checkpoints / checkpoint.LATEST, snapshot, self.config)

    def _resume(self) -> None:
        latest = self.checkpoints / checkpoint.LATEST
        for folder in (latest, self.checkpoints / checkpoint.BEST):
            checkpoint.heal(folder)
        if not latest.exists():
            return
        _same_settings(checkpoint.read_config(latest), self.config, latest)
        state = checkpoint.restore(latest, self.model, self.optimiser)
        if state["threads"] != torch.get_num_threads() and self.device.type == "cpu":
            raise UserError(
                f"{latest}: was trained with {state['threads']} threads and this process has {torch.get_num_threads()}, "
                f"which changes the numbers; set threads: {state['threads']}"
            )
        self.step, self.images, self.clipped = state["step"], state["images"], state["clipped"]
        self.seconds_before, self.best, self.sums = state["seconds"], state["best"], state["sums"]
        plateau = state["plateau"]
        self.plateau = Plateau(plateau["scale"], float("inf") if plateau["best"] is None else plateau["best"], plateau["waited"])
        self.history = [Report(**report) for report in state["history"]]

    def _write_reports(self) -> None:
        lines = "".join(json.dumps(asdict(report), allow_nan=False) + "\n" for report in self.history)
        write_bytes(self.folder / "reports.jsonl", lines.encode())

    def _summary(self) -> dict[str, Any]:
        seconds = self._seconds()
        return {
            **{f"parameters_{name}": count for name, count in parameter_counts(self.model).items()},
            "taps": self.taps,
            "device": device.describe(self.device),
            "precision": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "steps": self.step,
            "images": self.images,
            "epochs": self.images / len(self.data.train),
            "train_frames": len(self.data.train),
            "validation_frames": len(self.data.validation),
            "data_fingerprint": self.data.fingerprint,
            "seconds": seconds,
            "images_per_s": self.images / seconds,
            "clipped_share": self.clipped / self.step,
            "peak_memory_mib": device.peak_memory_mib(self.device),
        }

    def _set_mode(self) -> None:
        first_of_epoch = self.images % len(self.data.train) < self.config.batch_size * self.config.accumulate
        self.model.train(self.config.train_mode == "train" or first_of_epoch)

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def _crossed(self, before: int, every: int) -> bool:
        return before // every < self.images // every

    def _close_trace(self) -> None:
        if self.trace is not None:
            self.trace.close()
            self.trace = None


def _start_from(model: torch.nn.Module, folder: Path) -> None:
    try:
        model.load_state_dict(checkpoint.read_weights(folder))
    except RuntimeError as error:
        raise UserError(f"start_from: the weights of {folder} do not fit this model ({str(error).splitlines()[1].strip()})") from error


def _same_settings(then: TrialConfig, now: TrialConfig, folder: Path) -> None:
    old, new = flat(then), flat(now)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise UserError(
                f"{folder}: was trained with {key} = {old.get(key)}, not {new.get(key)}; "
                "use another folder, or put the setting back"
            )
