"""`--plan`: the trainings of a study and their cost; refuses what cannot fit, and starts nothing.

Without --measure, time is counted from the model's multiplications and this machine's speed at a matrix product, and
memory from the maps that a step keeps: both good to a factor of about two. With --measure, a few real steps are timed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.config import Study
from study.display import duration
from study.plan import Plan
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig

GIB = 2**30
EFFICIENCY = 0.35  # share of a large matrix product's speed that these convolutions reach
BACKWARD = 3.0  # forward and backward, over forward
STATE_BYTES = 16  # per parameter while training: weight, gradient, two moments
RUNNING_BYTES = 4 * (3 + 1 + 3)  # of disk per parameter: latest with two moments, best, and latest's next while written
KEPT_BYTES = 4  # of disk per parameter when a training has ended (study/endings.py)
TRACE_BYTES = 300  # per step and sample
PICTURES_BYTES = 1 << 20  # of a training: preview.png and its most pictures of reports, of 50 KB each
START_S = 6.0  # a worker's start, and the model's


@dataclass(frozen=True)
class Cost:
    """Cost of one training."""

    seconds: float
    memory_bytes: float
    trace_bytes: float
    parameters: int
    measured: bool


def show_plan(plan: Plan, *, measure: bool) -> dict[str, Any]:
    """Print the phases' trainings and costs. Raises UserError where they cannot fit on this machine."""
    known: dict[str, Cost] = {}
    rows: list[dict[str, Any]] = []
    concurrency, workers = _concurrency(plan)
    for phase, configs in _trainings(plan).items():
        costs = []
        for config in configs:
            key = config.model_copy(update={"seed": 0}).model_dump_json()
            if key not in known:
                part = config.model_copy(update={"batch_size": config.batch_size // workers})  # of one of its processes
                known[key] = _measured(part) if measure else _counted(part)
            costs.append(known[key])
        seconds = sum(c.seconds for c in costs) / concurrency / workers
        rows.append(
            {
                "phase": phase,
                "trainings": len(configs),
                "images": sum(c.budget_images for c in configs),
                "hours": round(seconds / 3600, 3),
                "disk_gib": round(_disk(plan, phase, costs) / GIB, 3),
                "memory_gib": round(max((c.memory_bytes for c in costs), default=0.0) / GIB, 2),
            }
        )
    free = shutil.disk_usage(Path.cwd()).free
    running = concurrency * RUNNING_BYTES * max((c.parameters for c in known.values()), default=0) / GIB
    disk, memory = sum(r["disk_gib"] for r in rows) + running, max(r["memory_gib"] for r in rows)
    _print(plan, rows, concurrency, measure=measure)
    _refuse(plan.study, disk, free / GIB, memory, concurrency * workers)
    hours = sum(r["hours"] for r in rows)
    return {
        "study": plan.study.config.name,
        "phases": rows,
        "at_once": concurrency,
        "hours": hours,
        "measured": measure,
        "claims": {claim.id: claim.untestable or "to be tested" for claim in plan.stated},
    }


def _trainings(plan: Plan) -> dict[str, list[TrialConfig]]:
    """Each phase's settings; those of search and confirmation that are not known yet count as the recipe's own."""
    base, counts = plan.search_base, plan.counts
    unknown = [base] if base is not None else []
    more = plan.study.config.confirm.images
    longer = [c.model_copy(update={"budget_images": more}) for c in unknown] if more else unknown
    return {
        "reproduce": [p.config for p in plan.reproduce],
        "claims": [p.config for p in plan.claims],
        "search": unknown * counts["search"],
        "confirm": longer * counts["confirm"],
    }


def _concurrency(plan: Plan) -> tuple[int, int]:
    """Trainings at once, and the processes of each."""
    import torch

    from study.resources import share_of

    here = [{"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}]
    share = share_of(plan, here)
    return share.fits(here), share.workers


def _counted(config: TrialConfig) -> Cost:
    """From the model on the meta device: no memory, no data."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainables.models.depth_model import build_model

    kept = 0

    def keep(module: Any, inputs: Any, output: Any) -> None:
        nonlocal kept
        kept += output.numel() * output.element_size() if isinstance(output, torch.Tensor) else 0

    with torch.device("meta"):
        model = build_model(config.model, config.target.kind, pretrained=False)
        for module in model.modules():
            if not list(module.children()):
                module.register_forward_hook(keep)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(2, 3, *config.input))
    parameters = sum(p.numel() for p in model.parameters())
    seconds = config.budget_images * counter.get_total_flops() / 2 * BACKWARD / _matrix_rate(config) / EFFICIENCY
    memory = parameters * STATE_BYTES + 2 * kept / 2 * config.batch_size
    return Cost(seconds + START_S, memory, _trace(config), parameters, measured=False)


def _measured(config: TrialConfig) -> Cost:
    """From a few steps of the real training, validation included."""
    from trainables.data.dataset import prepare_data
    from trainables.training.trainer import iter_fit

    prepare_data(config.data)
    interval = 3 * config.batch_size * config.accumulate
    short = {"budget_images": 2 * interval, "validate_every_images": interval, "checkpoint_every_images": 10**9}
    with tempfile.TemporaryDirectory() as folder:
        *_, last = iter_fit(config.model_copy(update=short | {"start_from": None}), Path(folder), own_process=True)
    speed, validation_s = last.metrics["speed/images_per_s"], last.metrics["time/validation_s"]
    validations = max(1, config.budget_images // config.validate_every_images)
    seconds = config.budget_images / speed + validations * validation_s + START_S
    memory = last.metrics["memory/peak_mib"] * 2**20
    return Cost(seconds, memory, _trace(config), _parameters(config), measured=True)


def _parameters(config: TrialConfig) -> int:
    import torch

    from trainables.models.depth_model import build_model

    with torch.device("meta"):
        model = build_model(config.model, config.target.kind, pretrained=False)
    return sum(p.numel() for p in model.parameters())


def _trace(config: TrialConfig) -> float:
    return config.budget_images * TRACE_BYTES if config.trace else 0.0


def _disk(plan: Plan, phase: str, costs: list[Cost]) -> float:
    """What a phase leaves on the disk: every trace, all pictures, the checkpoints that are kept."""
    best = max(1, plan.study.config.confirm.top) if phase == "search" else len(costs)
    kept = sorted((c.parameters * KEPT_BYTES for c in costs), reverse=True)[:best]
    return sum(kept) + sum(c.trace_bytes + PICTURES_BYTES for c in costs)


def _matrix_rate(config: TrialConfig) -> float:
    """Floating-point operations per second of a matrix product on the device that trains."""
    import torch

    if torch.cuda.is_available() and config.device != "cpu":
        size = 4096
        a = torch.ones(size, size, device="cuda", dtype=torch.bfloat16)
        return 2 * size**3 / min(_seconds(lambda: float((a @ a)[0, 0]), time.perf_counter) for _ in range(4))
    size, threads = 768, torch.get_num_threads()
    torch.set_num_threads(1)  # and this thread's own time, so that other processes do not slow the machine down
    a = torch.ones(size, size)
    fastest = min(_seconds(lambda: float((a @ a)[0, 0]), time.thread_time) for _ in range(6))
    torch.set_num_threads(threads)
    return 2 * size**3 / fastest * (config.threads or threads)


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    work()
    return clock() - began


def _print(plan: Plan, rows: list[dict[str, Any]], concurrency: int, *, measure: bool) -> None:
    print(f"{plan.study.config.name}: {concurrency} training{'s' if concurrency > 1 else ''} at once")
    print(f"{'phase':<10}{'trainings':>10}{'images':>12}{'time':>18}{'disk GiB':>10}{'memory GiB each':>17}")
    for r in rows:
        if r["trainings"]:
            took = duration(r["hours"] * 3600)
            cells = f"{r['trainings']:>10}{r['images']:>12,}{took:>18}{r['disk_gib']:>10.2f}{r['memory_gib']:>17.2f}"
            print(f"{r['phase']:<10}{cells}")
    total = duration(sum(r["hours"] for r in rows) * 3600)
    how = "measured" if measure else "estimated, good to a factor of about two; --measure times a few steps"
    print(f"{total} in all ({how}; pruning shortens it)")
    for dimension in plan.dimensions:
        print(f"  searched: {dimension.path} {_range(dimension)}")
    for claim in plan.stated:
        how = f"{len(claim.seeds)} pairs" if claim.untestable is None else f"not testable here: {claim.untestable}"
        print(f"  claim {claim.id}: {claim.a.name} against {claim.b.name}, {how}")


def _range(dimension: Any) -> str:
    if dimension.choices:
        return "of " + ", ".join("null" if c is None else str(c) for c in dimension.choices)
    return f"from {dimension.low:g} to {dimension.high:g}, {'log' if dimension.log else 'linear'}"


def _refuse(study: Study, disk: float, free: float, memory: float, concurrency: int) -> None:
    import psutil
    import torch

    if disk > free:
        raise UserError(
            f"{study.document.name}: the trainings need {disk:.1f} GiB of disk and {free:.1f} are free; "
            "make room, or lower search.trials, seeds or trial.model.width"
        )
    gpu = torch.cuda.is_available() and study.config.resources.gpus_per_trial != 0
    there = (torch.cuda.get_device_properties(0).total_memory if gpu else psutil.virtual_memory().total) / GIB
    if memory * (1 if gpu else concurrency) > there:
        raise UserError(
            f"{study.document.name}: a training needs about {memory:.1f} GiB of memory, {concurrency} run at once, and "
            f"there are {there:.1f}; lower trial.batch_size or trial.input, or raise resources.cpus_per_trial"
        )
