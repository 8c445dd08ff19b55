"""`--plan`: the trainings of a study and their cost; refuses what cannot fit, and starts nothing.

Without --measure, time is counted from the model's multiplications and this machine's speed at a matrix product, and
memory from the maps that a step keeps: both good to a factor of about two. With --measure, a few real steps are timed,
and on a CPU two trainings beside each other against one with their threads together, so that `threads` can be chosen:
it is part of a training's settings, and no command changes it by itself.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.config import Study
from study.contract import PHASES
from study.display import duration
from study.ledger import Entry
from study.plan import Plan
from study.resources import here, share_of, workers_of
from trainables.runtime.errors import UserError
from trainables.settings.config import ModelConfig, TargetKind, TrialConfig

GIB = 2**30
EFFICIENCY = 0.35  # share of a large matrix product's speed that these convolutions reach
BACKWARD = 3.0  # forward and backward, over forward
STATE_BYTES = 16  # per parameter while training: weight, gradient, two moments
RUNNING_BYTES = 4 * (3 + 1 + 3)  # of disk per parameter: latest with two moments, best, and latest's next while written
KEPT_BYTES = 4  # of disk per parameter when a training has ended (study/endings.py)
TRACE_BYTES = 300  # per step and sample
PICTURES_BYTES = 1 << 20  # of a training: preview.png and its most pictures of reports, of 50 KB each
START_S = 6.0  # a worker's start, and the model's
BESIDE_PAIRS, BESIDE_STEPS = 3, 8  # of trainings beside each other, and of one


@dataclass(frozen=True)
class Cost:
    """Cost of one training."""

    seconds: float
    memory_bytes: float
    trace_bytes: float
    parameters: int
    measured: bool


def show_plan(plan: Plan, *, measure: bool, begun: Mapping[str, Sequence[Entry]] | None = None) -> dict[str, Any]:
    """Print the phases' trainings and costs. Raises UserError where they cannot fit on this machine.

    begun: the trainings of a study that is resumed; what they have done is not counted.
    """
    if measure:
        _prepared(plan)
    known: dict[str, Cost] = {}
    rows: list[dict[str, Any]] = []
    concurrency, workers = _concurrency(plan)
    for phase, parts in _trainings(plan, begun or {}).items():
        costs = []
        for config, trainings, budgets in parts:
            key = config.model_copy(update={"seed": 0}).model_dump_json()
            if key not in known:
                part = config.model_copy(update={"batch_size": config.batch_size // workers})  # of one of its processes
                known[key] = _measured(part) if measure else _counted(part)
            costs.append((known[key], trainings, budgets))
        seconds = sum(cost.seconds * budgets for cost, _, budgets in costs) / concurrency / workers
        rows.append(
            {
                "phase": phase,
                "trainings": sum(trainings for _, trainings, _ in parts),
                "images": round(sum(config.budget_images * budgets for config, _, budgets in parts)),
                "hours": round(seconds / 3600, 3),
                "disk_gib": round(_disk(plan, phase, costs) / GIB, 3),
                "memory_gib": round(max((cost.memory_bytes for cost, _, _ in costs), default=0.0) / GIB, 2),
            }
        )
    free = shutil.disk_usage(Path.cwd()).free
    running = concurrency * RUNNING_BYTES * max((c.parameters for c in known.values()), default=0) / GIB
    disk, memory = sum(r["disk_gib"] for r in rows) + running, max(r["memory_gib"] for r in rows)
    ended = {phase: sum(e.outcome is not None for e in entries) for phase, entries in (begun or {}).items()}
    if begun is not None:
        print(f"{sum(ended.values())} trainings of {plan.study.config.name} have ended; this is left:")
    _print(plan, rows, concurrency, measure=measure)
    beside = _beside(plan) if measure else None
    if beside is not None:
        print(_advice(beside))
    _refuse(plan.study, disk, free / GIB, memory, concurrency * workers)
    hours = sum(r["hours"] for r in rows)
    return {
        "study": plan.study.config.name,
        "phases": rows,
        "ended": ended,
        "at_once": concurrency,
        "hours": hours,
        "measured": measure,
        "beside": beside,
        "claims": {claim.id: claim.untestable or "to be tested" for claim in plan.stated},
    }


def _prepared(plan: Plan) -> None:
    """The data that trainings are timed on, and what a run refuses once it has them."""
    from study.search.inert import refuse_inert
    from trainables.data.dataset import prepare_data

    for config in plan.configs:
        prepare_data(config.data)
    for note in refuse_inert(plan):
        print(note)


def _trainings(plan: Plan, begun: Mapping[str, Sequence[Entry]]) -> dict[str, list[tuple[TrialConfig, int, float]]]:
    """Each phase's settings with the number of trainings, and of whole budgets, that are left of them.

    Those of search and confirmation that are not known yet count as the recipe's own.
    """
    more = plan.study.config.confirm.images
    parts: dict[str, list[tuple[TrialConfig, int, float]]] = {}
    for phase, planned in (("reproduce", plan.reproduce), ("claims", plan.claims)):
        known = {entry.identity for entry in begun.get(phase, ())}
        parts[phase] = [(p.config, 1, 1.0) for p in planned if p.identity not in known]
    for phase in ("search", "confirm"):
        new = max(plan.counts[phase] - len(begun.get(phase, ())), 0)
        if plan.search_base is not None and new:
            longer = {"budget_images": more} if more and phase == "confirm" else {}
            parts[phase] = [(plan.search_base.model_copy(update=longer), new, float(new))]
    for phase, entries in begun.items():
        running = [entry for entry in entries if entry.outcome is None]
        rest = [(e.training(), 1, 1 - max(e.history, default=0) / e.budget_images) for e in running]
        parts[phase] = [*parts.get(phase, []), *rest]
    return {phase: parts.get(phase, []) for phase in PHASES}


def _concurrency(plan: Plan) -> tuple[int, int]:
    """Trainings at once, and the processes of each: on this machine; of a cluster, which is not asked, one."""
    if plan.study.config.resources.address is not None:
        return 1, workers_of(plan)
    share = share_of(plan, here())
    return share.fits(here()), share.workers


def _counted(config: TrialConfig) -> Cost:
    """From a forward pass without numbers: no memory, no data."""
    flops, kept, parameters = _forward(config.model.model_dump_json(), config.target.kind, config.input)
    seconds = config.budget_images * flops * BACKWARD / _matrix_rate(config) / EFFICIENCY
    memory = parameters * STATE_BYTES + 2 * kept * config.batch_size
    return Cost(seconds + START_S, memory, _trace(config), parameters, measured=False)


@functools.lru_cache
def _forward(settings: str, kind: TargetKind, input_hw: tuple[int, int]) -> tuple[float, float, int]:
    """Multiplications and additions, bytes of all layers' outputs (both per image), and parameters of a model."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainables.models.depth_model import build_model

    kept = 0

    def keep(module: Any, inputs: Any, output: Any) -> None:
        nonlocal kept
        kept += output.numel() * output.element_size() if isinstance(output, torch.Tensor) else 0

    with torch.device("meta"), torch.no_grad():
        model = build_model(ModelConfig.model_validate_json(settings), kind, pretrained=False).eval()
        for module in model.modules():
            if not list(module.children()):
                module.register_forward_hook(keep)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, *input_hw))
    return counter.get_total_flops(), kept, sum(p.numel() for p in model.parameters())


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


def _beside(plan: Plan) -> dict[str, Any] | None:
    """Two trainings at once, of t threads each, against one with 2 t: {threads, two_over_one}, images together over
    images of the one. None where no training of the plan has a number of threads that the CPUs hold twice, or on a GPU.
    """
    import torch

    from trainables.bench.measurements import bench_together
    from trainables.data.dataset import prepare_data

    config = next(iter(plan.configs))
    cores = os.cpu_count() or 1
    if config.threads is None or 2 * config.threads > cores or (torch.cuda.is_available() and config.device != "cpu"):
        return None
    prepare_data(config.data)
    whole = config.model_copy(update={"threads": 2 * config.threads, "start_from": None})
    return {"threads": config.threads} | bench_together(whole, BESIDE_PAIRS, BESIDE_STEPS)


def _advice(beside: dict[str, Any]) -> str:
    """What the measurement says about `threads`."""
    threads, ratio = int(beside["threads"]), beside["two_over_one"]
    said = (
        f"two trainings of {threads} thread{'s' if threads > 1 else ''} beside each other see {ratio['median']:.2f} "
        f"times the images of one with {2 * threads} (min {ratio['min']:.2f}, max {ratio['max']:.2f}, n = {ratio['n']})"
    )
    if ratio["max"] < 1:
        return f"{said}: trial.threads: {2 * threads} is faster here"
    if ratio["min"] > 1:
        return f"{said}: trial.threads: {threads} is the faster choice here"
    return f"{said}: no difference that could be told"


def _parameters(config: TrialConfig) -> int:
    import torch

    from trainables.models.depth_model import build_model

    with torch.device("meta"):
        model = build_model(config.model, config.target.kind, pretrained=False)
    return sum(p.numel() for p in model.parameters())


def _trace(config: TrialConfig) -> float:
    return config.budget_images * TRACE_BYTES if config.trace else 0.0


def _disk(plan: Plan, phase: str, costs: Sequence[tuple[Cost, int, float]]) -> float:
    """What a phase leaves on the disk: every trace, all pictures, the checkpoints that are kept."""
    kept, room = 0.0, max(1, plan.study.config.confirm.top) if phase == "search" else math.inf
    for cost, trainings, _ in sorted(costs, key=lambda one: one[0].parameters, reverse=True):
        kept += min(room, trainings) * cost.parameters * KEPT_BYTES
        room -= min(room, trainings)
    return kept + sum(cost.trace_bytes * budgets + PICTURES_BYTES * trainings for cost, trainings, budgets in costs)


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
    address = plan.study.config.resources.address
    where = (
        "" if address is None else f" at this machine's speed; the cluster at {address} is asked when the study starts"
    )
    print(f"{plan.study.config.name}: {concurrency} training{'s' if concurrency > 1 else ''} at once{where}")
    print(table(rows))
    for line in _limits(plan, rows):
        print(f"  {line}")
    total = duration(sum(r["hours"] for r in rows) * 3600)
    how = "measured" if measure else "estimated, good to a factor of about two; --measure times a few steps"
    print(f"{total} in all ({how}; pruning shortens it)")
    for dimension in plan.dimensions:
        print(f"  searched: {dimension.path} {_range(dimension)}")
    for claim in plan.stated:
        how = f"{len(claim.seeds)} pairs" if claim.untestable is None else f"not testable here: {claim.untestable}"
        print(f"  claim {claim.id}: {claim.a.name} against {claim.b.name}, {how}")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The phases' costs; columns are as wide as what stands in them."""
    lines = [["phase", "trainings", "images", "time", "disk GiB", "memory GiB each"]]
    for r in rows:
        if r["trainings"]:
            numbers = [f"{r['trainings']:,}", f"{r['images']:,}", duration(r["hours"] * 3600)]
            lines.append([r["phase"], *numbers, f"{r['disk_gib']:,.2f}", f"{r['memory_gib']:,.2f}"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = []
    for first, *others in lines:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        shown.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(shown)


def _limits(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Limits that end the study before all of its trainings, as far as they can be told."""
    whole = {"images": sum(r["images"] for r in rows), "hours": sum(r["hours"] for r in rows)}
    for name, amount in whole.items():
        limit = getattr(plan.study.config.budget, name)
        if limit is not None and amount > limit:
            yield f"budget.{name} is {limit:,g} and these take {amount:,.4g}: it ends the study before them all"


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
    if study.config.resources.address is not None:
        return  # memory is the cluster's
    gpu = torch.cuda.is_available() and study.config.resources.gpus_per_trial != 0
    there = (torch.cuda.get_device_properties(0).total_memory if gpu else psutil.virtual_memory().total) / GIB
    if memory * (1 if gpu else concurrency) > there:
        raise UserError(
            f"{study.document.name}: a training needs about {memory:.1f} GiB of memory, {concurrency} run at once, and "
            f"there are {there:.1f}; lower trial.batch_size or trial.input, or raise resources.cpus_per_trial"
        )
