"""Reports of a training: validation and means since the last report, summary.json and reports.jsonl."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.data.dataset import TrainingData
from trainables.data.frames import FrameList
from trainables.data.loader import Batch, EvalLoader
from trainables.data.samples import cropped, prepare_target
from trainables.data.target import data_range
from trainables.evaluation.evaluate import Outputs, outputs, scorer_of
from trainables.evaluation.metrics import checkerboard
from trainables.models.depth_model import parameter_counts
from trainables.models.losses import composite
from trainables.runtime import device, parallel
from trainables.runtime.durable import write_bytes, write_json
from trainables.runtime.errors import Diverged, UserError
from trainables.settings.config import TrialConfig
from trainables.settings.registry import STRUCTURE_METRICS
from trainables.training.learner import Learner
from trainables.training.pictures import ReportPictures, Watch
from trainables.training.progress import Progress, Report

REPORTS, SUMMARY = "reports.jsonl", "summary.json"
NAMED_FRAMES = 200  # skipped frames that the summary names; all are counted


class Reporter:
    """What a reader of a training's folder sees. Made before the model, whose memory counts as the training's."""

    def __init__(self, config: TrialConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.meter = device.Meter(device.choose_device(config))
        self.pictures = ReportPictures(config, folder)
        self.skipped: dict[str, str] = {}  # bad frames met so far, id -> reason
        self.wait_s, self.since = 0.0, time.perf_counter()  # waited for data, since the last report

    def batches(self, source: Iterator[Batch], count: int) -> list[Batch]:
        """The next batches; what they are waited for is counted."""
        waiting = time.perf_counter()
        group = [next(source) for _ in range(count)]
        self.wait_s += time.perf_counter() - waiting
        return group

    def metrics(self, learner: Learner, data: TrainingData, progress: Progress) -> dict[str, float]:
        """A report's metrics: of the steps since the last one, of the device, and of the validation frames.

        Raises Diverged where one is not finite.
        """
        busy_s = time.perf_counter() - self.since
        metrics = progress.training_metrics(self.config.terms) | {
            "speed/images_per_s": progress.sums["images"] / busy_s,
            "speed/data_wait_share": self.wait_s / busy_s,
            "memory/peak_mib": device.peak_memory_mib(learner.device),
            "device/utilisation": self.meter.read(),
        }
        power_w = self.meter.read_power_w()
        metrics |= {} if power_w is None else {"device/power_w": power_w}
        validating = time.perf_counter()
        if parallel.leads():
            watch = self.pictures.watch(data.validation, progress.images)
            metrics |= validate(learner.model, data.validation, self.config, learner.device, self.skipped, watch)
        metrics = parallel.from_first(metrics)
        metrics |= {"time/validation_s": time.perf_counter() - validating, "time/seconds": progress.seconds}
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise Diverged(progress.step - 1, f"the validation is not finite ({', '.join(broken)})")
        if parallel.leads():
            self.pictures.write(data.validation, progress.images)
        return metrics

    def write(self, learner: Learner, data: TrainingData, progress: Progress, skipped: dict[str, str]) -> None:
        """Write reports and summary after a report; skipped: the frames that this process's loader left out."""
        for frames in parallel.gather(skipped):
            self.skipped |= frames
        powers_w = parallel.gather(self.meter.mean_power_w())
        if parallel.leads():
            self.write_reports(progress.history)
            energy_wh = device.energy_wh(powers_w, progress.seconds)
            write_json(self.folder / SUMMARY, self._summary(learner, data, progress) | {"energy_wh": energy_wh})
        self.wait_s, self.since = 0.0, time.perf_counter()

    def write_reports(self, history: list[Report]) -> None:
        """Write all reports so far, one a line."""
        lines = "".join(json.dumps(asdict(report), allow_nan=False) + "\n" for report in history)
        write_bytes(self.folder / REPORTS, lines.encode())

    def _summary(self, learner: Learner, data: TrainingData, progress: Progress) -> dict[str, Any]:
        seconds, skipped = progress.seconds, sorted((dict(data.skipped) | self.skipped).items())
        return {
            **{f"parameters_{name}": count for name, count in parameter_counts(learner.model).items()},
            "taps": learner.taps,
            "device": device.describe(learner.device),
            "precision": str(learner.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "processes": parallel.size(),
            "steps": progress.step,
            "images": progress.images,
            "epochs": progress.images / len(data.train),
            "train_frames": len(data.train),
            "validation_frames": len(data.validation),
            "data_fingerprint": data.fingerprint,
            "skipped_frames": len(skipped),
            "skipped": [list(pair) for pair in skipped[:NAMED_FRAMES]],
            "seconds": seconds,
            "images_per_s": progress.images / seconds,
            "clipped_share": progress.clipped / progress.step,
            "peak_memory_mib": device.peak_memory_mib(learner.device),
        }


def validate(
    model: nn.Module,
    frames: FrameList,
    config: TrialConfig,
    device: torch.device,
    skipped: dict[str, str],
    watch: Watch | None = None,
) -> dict[str, float]:
    """{'val/loss': ..., 'val/<metric>': ...} over all validation frames; the model's mode is restored.

    One pass over the frames gives all, in float32: 'val/loss' is the training loss without augmentation, averaged over
    the frames' own losses, and 'val/checkerboard' is measured on the network's own outputs, before anything resizes
    them. With validate_structure the metrics of protocol `structure` are added, those that no frame had anything to
    measure of (edges) left out. Bad frames that were left out are added to `skipped`, id -> reason; `watch` is given
    predictions and truth. Raises UserError where every frame is bad.
    """
    protocols = dict.fromkeys([config.protocol, *(["structure"] if config.validate_structure else [])])
    scorer, loader = scorer_of(frames, list(protocols)), EvalLoader(frames, config, config.batch_size)
    losses: list[Tensor] = []
    patterns: list[Tensor] = []
    for batch in outputs(model, loader, config, device):
        losses.append(_losses(batch, config))
        patterns.append(checkerboard(batch.y[:, 0]))
        for indices, pred, truth in batch.in_metres(config):
            ids, scenes = [frames.ids[i] for i in indices], [frames.scenes[i] for i in indices]
            scorer.add(ids, scenes, pred, {frames.truth: truth})
            if watch is not None:
                watch(indices, pred, truth)
    skipped.update(loader.skipped)
    if not losses:
        first = next(iter(loader.skipped.values()))
        raise UserError(f"every validation frame is bad, the first because {first}; run the doctor on the data")
    result = {"val/loss": float(torch.cat(losses).mean()), "val/checkerboard": float(torch.cat(patterns).mean())}
    for found in scorer.finish().summary.values():
        for name, value in found.items():
            if math.isfinite(value) or name not in STRUCTURE_METRICS or name == config.best_metric:
                result[f"val/{name}"] = float(value)
    return result


def _losses(batch: Outputs, config: TrialConfig) -> Tensor:
    """The training loss of each frame of a batch, (N,)."""
    size = (batch.y.shape[-2], batch.y.shape[-1])
    prepared = [prepare_target(cropped(depth, config.data.crop_border_px), config, size) for depth in batch.depths_m]
    target, valid = (
        torch.from_numpy(np.stack(maps)[:, None]).to(batch.y.device) for maps in zip(*prepared, strict=True)
    )
    return composite(batch.y, target, valid, config.loss, data_range(config.target)).per_sample
