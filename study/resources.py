"""Resources of a training: its CPUs and GPUs on a machine or a cluster, and how many trainings fit at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from study.plan import Plan
from trainables.runtime.errors import UserError

CAPACITY_S = 10.0  # how long a count of the cluster's resources is good for


@dataclass(frozen=True)
class Share:
    """What one training gets, all its processes together."""

    cpus: int
    gpus: float
    workers: int = 1

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What each of its processes gets."""
        each = {"CPU": self.cpus / self.workers} | ({"GPU": self.gpus / self.workers} if self.gpus else {})
        return [each] * self.workers

    def fits(self, resources: dict[str, float]) -> int:
        """How many trainings fit into resources at once."""
        by_cpu = int(resources.get("CPU", 0.0) // self.cpus) if self.cpus else 1 << 30
        by_gpu = int(resources.get("GPU", 0.0) / self.gpus + 1e-9) if self.gpus else 1 << 30
        return min(by_cpu, by_gpu)


def share_of(plan: Plan, resources: dict[str, float]) -> Share:
    """What a training of the plan gets of these resources. Raises UserError where it can never have it."""
    settings = plan.study.config.resources
    where = plan.study.document.where
    there = {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}
    workers = workers_of(plan)
    needed = workers * max((c.threads or int(there["CPU"]) // workers) + c.data.workers for c in plan.configs)
    cpus = needed if settings.cpus_per_trial == "auto" else int(settings.cpus_per_trial)
    on_cpu = not there["GPU"] or any(c.device == "cpu" for c in plan.configs)
    gpus = (0.0 if on_cpu else float(workers)) if settings.gpus_per_trial == "auto" else float(settings.gpus_per_trial)
    if gpus > there["GPU"]:
        raise UserError(
            f"{where('resources.gpus_per_trial')}: {gpus:g} wanted, {there['GPU']:g} there; lower it or use auto"
        )
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"{where('resources.gpus_per_trial')}: {gpus:g} is neither whole nor a part of one")
    if cpus > there["CPU"]:
        key = "trial.threads" if settings.cpus_per_trial == "auto" else "resources.cpus_per_trial"
        raise UserError(f"{where(key)}: a training needs {cpus} CPUs and there are {there['CPU']:g}; lower {key}")
    _check_batches(plan, workers)
    if cpus % workers:
        raise UserError(f"{where('resources.cpus_per_trial')}: {cpus} cannot be shared equally by {workers} workers")
    return Share(cpus, gpus, workers)


def workers_of(plan: Plan) -> int:
    """Processes that train one model together, with a whole GPU each or none. Raises UserError where that cannot be."""
    settings = plan.study.config.resources
    where = plan.study.document.where
    gpus = 0.0 if settings.gpus_per_trial == "auto" else settings.gpus_per_trial
    if settings.workers_per_trial == "auto":
        return int(gpus) if gpus > 1 and gpus == int(gpus) else 1
    workers: int = settings.workers_per_trial
    if gpus and gpus != workers and max(gpus, workers) > 1:
        raise UserError(
            f"{where('resources.workers_per_trial')}: {workers}, of which each trains on one GPU, and "
            f"resources.gpus_per_trial is {gpus:g}; make them equal, or one of them auto"
        )
    return workers


def _check_batches(plan: Plan, workers: int) -> None:
    """Refuse a batch size, known or searched, that the workers of a training cannot share equally."""
    if workers == 1:
        return
    from trainables.runtime.parallel import check_parts  # imports torch, which a driver can do without

    sizes = [("trial.batch_size", config.batch_size) for config in plan.configs]
    for settings in plan.study.config.search.first:
        sizes += [("search.first", settings["batch_size"])] if "batch_size" in settings else []
    for dimension in plan.dimensions:
        if dimension.path == "batch_size":
            values = dimension.choices or range(int(dimension.low or 1), int(dimension.high or 1) + 1)
            sizes += [("search.space.batch_size", value) for value in values]
    for key, size in sizes:
        try:
            check_parts(size, workers)
        except UserError as error:
            raise UserError(f"{plan.study.document.where(key)}: {error}") from None


def capacity_of(share: Share, *, growing: bool) -> Callable[[], int]:
    """How many trainings fit at once; counted again now and then on a cluster, which may grow or lose nodes."""
    import ray

    seen = {"at": time.monotonic(), "count": max(1, share.fits(dict(ray.cluster_resources())))}

    def capacity() -> int:
        if growing and time.monotonic() - seen["at"] > CAPACITY_S:
            seen.update(at=time.monotonic(), count=max(1, share.fits(dict(ray.cluster_resources()))))
        return int(seen["count"])

    return capacity
