"""One training: `fit` turns a `TrialConfig` into a `Result`, and leaves a folder that shows what happened.

    config.json         the settings
    reports.jsonl       one report per line
    trace.parquet       the step trace (trainables/training/telemetry.py)
    checkpoints/        latest, best, spikes (trainables/training/checkpoint.py)
    summary.json        parameters, taps, device, precision, threads, seconds, peak memory, share of clipped steps
    preview.png         rgb, truth, prediction and error of a few validation frames, at the end

A call on a folder with a checkpoint resumes from it: reports of before are yielded again, then the training continues
bit for bit (on CPU, with the same number of threads). Source: the paper's section 3; DESIGN.md "A training".

In a process group, `iter_fit` is one of several that train one model (trainables/runtime/parallel.py): all take every
step and yield every report, the leading one alone validates and writes.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.data.dataset import TrainingData, open_training, prepare_data
from trainables.data.loader import Batch, TrainLoader, augment
from trainables.data.target import data_range
from trainables.models.depth_model import build_model, parameter_counts
from trainables.models.losses import Pool, composite
from trainables.runtime import device, parallel
from trainables.runtime.device import GraphedForward, chain_concatenations
from trainables.runtime.durable import remove_unfinished, write_bytes, write_json
from trainables.runtime.errors import Blocked, Diverged, OutOfMemory, Stopped, UserError
from trainables.settings.config import TrialConfig, as_dict
from trainables.training import checkpoint
from trainables.training.checkpoint import SpikeRecorder
from trainables.training.optim import GuardedStep, build_optimiser, scheduled_lr
from trainables.training.progress import Progress, Report
from trainables.training.telemetry import StepLog, TraceWriter, target_extremes
from trainables.training.validation import validate, write_preview

PREVIEW, SUMMARY = "preview.png", "summary.json"
NAMED_FRAMES = 200  # skipped frames that the summary names; all are counted
FLUSH_STEPS = 50  # steps between two looks at the device: how late a divergence is noticed
POOL = Pool(parallel.total, parallel.largest)


@dataclass(frozen=True)
class Result:
    """What a training left: its folder, a report per validation, summary.json, and the best report's checkpoint."""

    folder: Path
    reports: tuple[Report, ...]
    summary: dict[str, Any]
    checkpoint: Path


def fit(
    config: TrialConfig,
    folder: str | Path,
    *,
    data: TrainingData | None = None,
    stop: Callable[[], bool] = lambda: False,
    own_process: bool = False,
) -> Result:
    """Train to the end, or continue from the folder's checkpoint. `stop` is asked before every step.

    data: what to train on, None for what the settings name (`rooms` are rendered where they are not there yet).

    own_process: whether the training may keep what it sets in this process: torch's number of threads
    (`config.threads`), its random state (`config.seed`), and on Linux malloc's thresholds, which make steps on a CPU
    up to a fifth faster. By default threads and random state are the caller's again when the call ends, and malloc is
    left alone. No number depends on it.

    Raises Diverged (the first non-finite loss or gradient; the weights never see it), OutOfMemory, Stopped (after a
    checkpoint), and UserError for data, weights or checkpoints that cannot be used.

    >>> result = fit(config, folder)
    >>> [report.images for report in result.reports], result.summary["images"]
    ([24, 48], 48)
    >>> result.checkpoint.relative_to(result.folder).as_posix()
    'checkpoints/best'
    """
    folder = Path(folder)
    if data is None:
        prepare_data(config.data)
    with _training(config, folder, data, device.Process(own_process)) as training:
        reports = tuple(training.run(stop))
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return Result(folder, reports, summary, folder / "checkpoints" / checkpoint.BEST)


def iter_fit(
    config: TrialConfig,
    folder: str | Path,
    *,
    data: TrainingData | None = None,
    stop: Callable[[], bool] = lambda: False,
    own_process: bool = False,
) -> Iterator[Report]:
    """`fit` step by step: yields a report per validation, the last one with `final`; `rooms` must be there already.

    Between reports, too, threads and random state are the caller's unless the process is the training's own. Closing
    the iterator early keeps everything up to the last look at the device.

    >>> for report in iter_fit(config, folder):
    ...     print(report.images, sorted(name for name in report.metrics if name.startswith("val/delta")))
    24 ['val/delta1', 'val/delta2', 'val/delta3']
    48 ['val/delta1', 'val/delta2', 'val/delta3']
    """
    process = device.Process(own_process)
    with _training(config, Path(folder), data, process) as training:
        for report in training.run(stop):
            with process.given_back():
                yield report


@contextlib.contextmanager
def _training(
    config: TrialConfig, folder: Path, data: TrainingData | None, process: device.Process
) -> Iterator[Training]:
    """An open training; memory that runs out is OutOfMemory, and the process is the caller's again afterwards."""
    try:
        with contextlib.closing(Training(config, folder, data)) as training:
            yield training
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(str(error).splitlines()[0] if str(error) else "the host had no memory left") from error
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise OutOfMemory(str(error).splitlines()[0]) from error
    finally:
        process.swap()


class Training:
    def __init__(self, config: TrialConfig, folder: Path, data: TrainingData | None, *, replay: bool = False) -> None:
        """`replay`: the folder has a checkpoint and nothing of what came before it, and no trace is written."""
        self.config, self.folder, self.checkpoints = config, folder, folder / "checkpoints"
        self.leads, processes = parallel.rank() == 0, parallel.size()
        parallel.check_parts(config.batch_size, processes)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.device = device.choose_device(config)
        self.dtype = device.choose_dtype(config, self.device)
        self.meter = device.Meter(self.device)
        self.data = data or open_training(config)
        self.terms = tuple(name for name, weight in config.loss.items() if weight > 0)
        torch.manual_seed(config.seed)
        model = build_model(config.model, config.target.kind)
        if config.start_from is not None:
            checkpoint.start_from(model, Path(config.start_from))
        self.taps = dict(model.taps)
        if self.device.type == "cuda":
            chain_concatenations(model)  # a CPU's numbers stay as they were, to the bit
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.optimiser = build_optimiser(config.optim, self.model.parameters())
        self.guarded = GuardedStep(self.optimiser, config.optim.clip_norm, self.device)
        if self.leads:
            remove_unfinished(folder)
        self.progress = self._resume(replay)
        parallel.start_alike(self.model)
        self.forward = self._forward()
        self.skipped = dict(self.data.skipped)  # bad frames met so far, id -> reason
        self.loader = TrainLoader(self.data.train, config, self.progress.images, rank=parallel.rank(), size=processes)
        self.log = StepLog(self.terms)
        self.recorder = SpikeRecorder(config, self.checkpoints)
        self.trace: TraceWriter | None = None
        if self.leads:
            self.trace = TraceWriter(folder, self.terms, self.progress.step) if config.trace and not replay else None
            write_json(folder / "config.json", as_dict(config))
            self._write_reports()
        self.wait_s, self.reported = 0.0, time.perf_counter()

    def run(self, stop: Callable[[], bool]) -> Iterator[Report]:
        """The reports of before a resume, then the training."""
        config, progress = self.config, self.progress
        yield from progress.history
        batches = iter(self.loader)
        while progress.images < config.budget_images:
            if parallel.any_of(stop()):
                self.flush()
                self._save_latest()
                raise Stopped(f"stopped after {progress.images} of {config.budget_images} images")
            before = progress.images
            self.train_step(batches)
            report = _crossed(before, progress.images, config.validate_every_images)
            report |= progress.images >= config.budget_images
            save = _crossed(before, progress.images, config.checkpoint_every_images)
            if report or save or len(self.log) >= FLUSH_STEPS:
                self.flush()
            if report:
                yield self._report()
            elif save:
                self._save_latest()
        self._close_trace()
        if self.leads and not (self.folder / PREVIEW).exists():
            write_preview(self.folder / PREVIEW, self.model, self.data.validation, config, self.device)

    def _forward(self) -> Callable[[Tensor], Tensor]:
        """The model as the steps call it."""
        forward: Callable[[Tensor], Tensor] = torch.compile(self.model) if self.config.compile else self.model
        # Where a step adds up several batches, the next replay would overwrite gradients that are still to be added to.
        if self.device.type != "cuda" or self.config.accumulate > 1:
            return forward
        shape = (self.config.batch_size // parallel.size(), 3, *self.config.input)
        return GraphedForward(self.model, forward, shape, self.device, self.dtype)

    def close(self) -> None:
        """Stop sampling, compact the trace of the steps that were looked at, and let a captured graph go."""
        self.meter.close()
        self._close_trace()
        if isinstance(self.forward, GraphedForward):  # it refers to itself: its memory is free after a collection alone
            self.forward = self.model
            gc.collect()

    def train_step(self, batches: Iterator[Batch]) -> None:
        """One optimiser step over `accumulate` batches; nothing is read back from the device."""
        config, progress, waiting = self.config, self.progress, time.perf_counter()
        group = [next(batches) for _ in range(config.accumulate)]
        self.wait_s += time.perf_counter() - waiting
        if self.leads:
            self.recorder.before_step(progress.step, self._snapshot)
        self._set_mode()
        count = sum(batch.whole for batch in group)
        scalars: dict[str, Tensor] = {name: torch.zeros((), device=self.device) for name in ("loss", *self.terms)}
        sample_losses, targets = [], []
        for batch in group:
            images, target, valid = augment(batch, self.device)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                pred = self.forward(images)
            result = composite(pred, target, valid, config.loss, data_range(config.target), POOL)
            share = batch.whole / count
            torch.autograd.backward(result.total * share)
            for name, value in {"loss": result.total, **result.terms}.items():
                scalars[name] = scalars[name] + share * value.detach()
            sample_losses.append(result.per_sample.detach()[: len(batch.ids)])
            targets.append((target, valid, len(batch.ids)))
        parallel.sum_step(self.model, list(scalars.values()))
        lr = scheduled_lr(config.optim, progress.images / config.budget_images) * progress.plateau.scale
        norm, clipped = self.guarded(scalars["loss"], lr)
        scalars |= {"grad_norm": norm, "clipped": clipped, "failed": self.guarded.failed}
        if config.trace:
            scalars |= target_extremes(targets)
        row: dict[str, Any] = {
            "step": progress.step,
            "images": progress.images + count,
            "lr": lr,
            "seconds": progress.seconds,
        }
        row |= {"epoch": progress.images // len(self.data.train)}
        row |= {"samples": [name for batch in group for name in batch.ids]}
        row |= {"places": [batch.position + batch.first + k for batch in group for k in range(len(batch.ids))]}
        self.log.add(row, scalars, sample_losses)
        progress.step += 1
        progress.images += count

    def flush(self) -> None:
        """Look at the steps since the last flush: one transfer. Raises Diverged for the first that was not finite."""
        rows, divergence = self.log.flush()
        if self.trace is not None:
            for row in rows:
                self.trace.append(row)
        if divergence is not None:
            raise divergence
        self.progress.add(rows, self.terms)
        if self.leads:
            self.recorder.observe(rows)

    def _report(self) -> Report:
        """Validate, checkpoint, then report: a checkpoint is written before its report is given out."""
        config, progress = self.config, self.progress
        metrics = progress.training_metrics(self.terms) | self._device_metrics()
        validating = time.perf_counter()
        if self.leads:
            metrics |= validate(self.model, self.data.validation, config, self.device, self.dtype, self.skipped)
        metrics = parallel.from_first(metrics)
        metrics |= {"time/validation_s": time.perf_counter() - validating, "time/seconds": progress.seconds}
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise Diverged(progress.step - 1, f"the validation is not finite ({', '.join(broken)})")
        if config.optim.schedule == "plateau":
            progress.plateau.update(config.optim.plateau, config.optim.lr, metrics["val/loss"])
        epoch, final = progress.images / len(self.data.train), progress.images >= config.budget_images
        report = Report(progress.step, progress.images, epoch, time.time(), metrics, final)
        progress.history.append(report)
        progress.sums, self.wait_s = {}, 0.0
        if progress.is_best(config.best_metric, metrics[f"val/{config.best_metric}"]) and self.leads:
            best = checkpoint.take_snapshot(self.model, None, {"report": asdict(report)})
            checkpoint.write_checkpoint(self.checkpoints / checkpoint.BEST, best, config)
        self._save_latest()
        for skipped in parallel.gather(self.loader.skipped):
            self.skipped |= skipped
        if self.leads:
            self._write_reports()
            write_json(self.folder / SUMMARY, self._summary())
        self.reported = time.perf_counter()
        return report

    def _device_metrics(self) -> dict[str, float]:
        busy_s = time.perf_counter() - self.reported
        return {
            "speed/images_per_s": self.progress.sums["images"] / busy_s,
            "speed/data_wait_share": self.wait_s / busy_s,
            "memory/peak_mib": device.peak_memory_mib(self.device),
            "device/utilisation": self.meter.read(),
        }

    def _snapshot(self) -> checkpoint.Snapshot:
        state = self.progress.to_state() | {"threads": torch.get_num_threads()}
        return checkpoint.take_snapshot(self.model, self.optimiser, state)

    def _save_latest(self) -> None:
        if not self.leads:
            return
        if self.trace is not None:
            self.trace.flush()
        checkpoint.write_checkpoint(self.checkpoints / checkpoint.LATEST, self._snapshot(), self.config)

    def _resume(self, replay: bool) -> Progress:
        latest = self.checkpoints / checkpoint.LATEST
        if self.leads:
            for folder in (latest, self.checkpoints / checkpoint.BEST):
                checkpoint.heal(folder)
            reports = self.folder / "reports.jsonl"
            if not latest.exists() and reports.exists() and reports.stat().st_size:
                raise Blocked(f"{latest}: is missing, but there are reports beside it; {checkpoint.ADVICE}")
        if not parallel.from_first(latest.exists()):
            return Progress()
        checkpoint.check_settings(latest, self.config)
        state = checkpoint.restore(latest, self.model, self.optimiser)
        if state["best"] is not None and not replay:
            checkpoint.verify(self.checkpoints / checkpoint.BEST)
        if state["threads"] != torch.get_num_threads() and self.device.type == "cpu":
            raise UserError(
                f"{latest}: was trained with {state['threads']} threads and this process has "
                f"{torch.get_num_threads()}, which changes the numbers; set threads: {state['threads']}"
            )
        return Progress.from_state(state)

    def _write_reports(self) -> None:
        lines = "".join(json.dumps(asdict(report), allow_nan=False) + "\n" for report in self.progress.history)
        write_bytes(self.folder / "reports.jsonl", lines.encode())

    def _summary(self) -> dict[str, Any]:
        progress, seconds = self.progress, self.progress.seconds
        skipped = sorted(self.skipped.items())
        return {
            **{f"parameters_{name}": count for name, count in parameter_counts(self.model).items()},
            "taps": self.taps,
            "device": device.describe(self.device),
            "precision": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "processes": parallel.size(),
            "steps": progress.step,
            "images": progress.images,
            "epochs": progress.images / len(self.data.train),
            "train_frames": len(self.data.train),
            "validation_frames": len(self.data.validation),
            "data_fingerprint": self.data.fingerprint,
            "skipped_frames": len(skipped),
            "skipped": [list(pair) for pair in skipped[:NAMED_FRAMES]],
            "seconds": seconds,
            "images_per_s": progress.images / seconds,
            "clipped_share": progress.clipped / progress.step,
            "peak_memory_mib": device.peak_memory_mib(self.device),
        }

    def _set_mode(self) -> None:
        group = self.config.batch_size * self.config.accumulate
        first_of_epoch = self.progress.images % len(self.data.train) < group
        self.model.train(self.config.train_mode == "train" or first_of_epoch)

    def _close_trace(self) -> None:
        if self.trace is not None:
            self.trace.close()
            self.trace = None


def _crossed(before: int, now: int, every: int) -> bool:
    return before // every < now // every
