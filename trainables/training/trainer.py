"""One training: `fit` turns a `TrialConfig` into a `Result`, and leaves a folder that shows what happened.

    config.json         the settings
    reports.jsonl       one report per line
    trace.parquet       the step trace (trainables/training/telemetry.py)
    checkpoints/        latest, best, spikes (trainables/training/checkpoint.py)
    summary.json        parameters, taps, device, precision, threads, seconds, peak memory, share of clipped steps
    previews/IMAGES.jpg rgb, truth and prediction of a few validation frames, at each report
    preview.png         rgb, truth, prediction and error of a few validation frames, at the end

A call on a folder with a checkpoint resumes from it: reports of before are yielded again, then the training continues
bit for bit (on CPU, with the same number of threads). Source: the paper's section 3; DESIGN.md "A training".

In a process group, `iter_fit` is one of several that train one model (trainables/runtime/parallel.py): all take every
step and yield every report, the leading one alone validates and writes.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.data.dataset import TrainingData, open_training, prepare_data
from trainables.data.loader import Batch, TrainLoader, augment
from trainables.data.target import data_range
from trainables.models.losses import Pool, composite
from trainables.runtime import device, parallel
from trainables.runtime.durable import remove_unfinished, write_json
from trainables.runtime.errors import Blocked, OutOfMemory, Stopped
from trainables.settings.config import TrialConfig, as_dict
from trainables.training import checkpoint
from trainables.training.checkpoint import SpikeRecorder
from trainables.training.learner import Learner
from trainables.training.optim import scheduled_lr
from trainables.training.pictures import PREVIEW, write_preview
from trainables.training.progress import Progress, Report
from trainables.training.report import REPORTS, SUMMARY, Reporter
from trainables.training.telemetry import StepLog, TraceWriter, target_extremes

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
    """One training: its order of steps, reports and checkpoints."""

    def __init__(self, config: TrialConfig, folder: Path, data: TrainingData | None, *, replay: bool = False) -> None:
        """`replay`: the folder has a checkpoint and nothing of what came before it, and no trace is written."""
        self.config, self.folder, processes = config, folder, parallel.size()
        parallel.check_parts(config.batch_size, processes)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.reporter = Reporter(config, folder)
        self.data = data or open_training(config)
        self.learner = Learner(config)
        if parallel.leads():
            remove_unfinished(folder)
        self.progress = self._resume(replay)
        parallel.start_alike(self.learner.model)
        self.learner.prepare()
        self.loader = TrainLoader(self.data.train, config, self.progress.images, rank=parallel.rank(), size=processes)
        self.log, self.recorder = StepLog(config.terms), SpikeRecorder(config, self._checkpoint(checkpoint.SPIKES))
        self.trace: TraceWriter | None = None
        if parallel.leads():
            if config.trace and not replay:
                self.trace = TraceWriter(folder, config.terms, self.progress.step)
            write_json(folder / "config.json", as_dict(config))
            self.reporter.write_reports(self.progress.history)

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
        preview = self.folder / PREVIEW
        if parallel.leads() and not preview.exists():
            write_preview(preview, self.learner.model, self.data.validation, config, self.learner.device)

    def close(self) -> None:
        """Stop sampling, compact the trace of the steps that were looked at, and let a captured graph go."""
        self.reporter.meter.close()
        self._close_trace()
        self.learner.close()

    def train_step(self, batches: Iterator[Batch]) -> None:
        """One optimizer step over `accumulate` batches; nothing is read back from the device."""
        config, learner, progress = self.config, self.learner, self.progress
        group = self.reporter.batches(batches, config.accumulate)
        if parallel.leads():
            self.recorder.before_step(progress.step, self.snapshot)
        first_of_epoch = progress.images % len(self.data.train) < config.batch_size * config.accumulate
        learner.set_mode(first_of_epoch=first_of_epoch)
        count = sum(batch.whole for batch in group)
        scalars: dict[str, Tensor] = {name: torch.zeros((), device=learner.device) for name in ("loss", *config.terms)}
        sample_losses, targets = [], []
        for batch in group:
            images, target, valid = augment(batch, learner.device)
            result = composite(learner(images), target, valid, config.loss, data_range(config.target), POOL)
            share = batch.whole / count
            torch.autograd.backward(result.total * share)
            for name, value in {"loss": result.total, **result.terms}.items():
                scalars[name] = scalars[name] + share * value.detach()
            sample_losses.append(result.per_sample.detach()[: len(batch.ids)])
            targets.append((target, valid, len(batch.ids)))
        parallel.sum_step(learner.model, list(scalars.values()))
        lr = scheduled_lr(config.optim, progress.images / config.budget_images) * progress.plateau.scale
        norm, clipped = learner.update(scalars["loss"], lr)
        scalars |= {"grad_norm": norm, "clipped": clipped, "failed": learner.update.failed}
        if config.trace:
            scalars |= target_extremes(targets)
        self.log.add(self._row(group, count, lr), scalars, sample_losses)
        progress.step += 1
        progress.images += count

    def _row(self, group: Sequence[Batch], count: int, lr: float) -> dict[str, Any]:
        """A step's row of the trace, as far as this process knows it without the device."""
        progress = self.progress
        return {
            "step": progress.step,
            "images": progress.images + count,
            "lr": lr,
            "seconds": progress.seconds,
            "epoch": progress.images // len(self.data.train),
            "samples": [name for batch in group for name in batch.ids],
            "places": [batch.position + batch.first + k for batch in group for k in range(len(batch.ids))],
        }

    def flush(self) -> None:
        """Look at the steps since the last flush: one transfer. Raises Diverged for the first that was not finite."""
        rows, divergence = self.log.flush()
        if self.trace is not None:
            for row in rows:
                self.trace.append(row)
        if divergence is not None:
            raise divergence
        self.progress.add(rows, self.config.terms)
        if parallel.leads():
            self.recorder.observe(rows)

    def _report(self) -> Report:
        """Validate, checkpoint, then report: a checkpoint is written before its report is given out."""
        config, progress = self.config, self.progress
        metrics = self.reporter.metrics(self.learner, self.data, progress)
        if config.optim.schedule == "plateau":
            progress.plateau.update(config.optim.plateau, config.optim.lr, metrics["val/loss"])
        epoch, final = progress.images / len(self.data.train), progress.images >= config.budget_images
        report = Report(progress.step, progress.images, epoch, time.time(), metrics, final)
        progress.history.append(report)
        progress.sums = {}
        if progress.is_best(config.best_metric, metrics[f"val/{config.best_metric}"]) and parallel.leads():
            best = checkpoint.take_snapshot(self.learner.model, None, {"report": asdict(report)})
            checkpoint.write_checkpoint(self._checkpoint(checkpoint.BEST), best, config)
        self._save_latest()
        self.reporter.write(self.learner, self.data, progress, self.loader.skipped)
        return report

    def snapshot(self) -> checkpoint.Snapshot:
        """A copy of all that a resumed training needs."""
        return self.learner.snapshot(self.progress.to_state())

    def _save_latest(self) -> None:
        if not parallel.leads():
            return
        if self.trace is not None:
            self.trace.flush()
        checkpoint.write_checkpoint(self._checkpoint(checkpoint.LATEST), self.snapshot(), self.config)

    def _resume(self, replay: bool) -> Progress:
        """The position of the folder's checkpoint, from which the learner then continues, or the beginning."""
        latest, best = self._checkpoint(checkpoint.LATEST), self._checkpoint(checkpoint.BEST)
        if parallel.leads():
            for folder in (latest, best):
                checkpoint.heal(folder)
            reports = self.folder / REPORTS
            if not latest.exists() and reports.exists() and reports.stat().st_size:
                raise Blocked(f"{latest}: is missing, but there are reports beside it; {checkpoint.ADVICE}")
        if not parallel.from_first(latest.exists()):
            return Progress()
        checkpoint.check_settings(latest, self.config)
        state = self.learner.restore(latest)
        if state["best"] is not None and not replay:
            checkpoint.verify(best)
        return Progress.from_state(state)

    def _checkpoint(self, name: str) -> Path:
        return self.folder / "checkpoints" / name

    def _close_trace(self) -> None:
        if self.trace is not None:
            self.trace.close()
            self.trace = None


def _crossed(before: int, now: int, every: int) -> bool:
    return before // every < now // every
