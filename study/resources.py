"""Resources of a training: its CPUs and GPUs on the machines that Ray has, and how many trainings fit at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from study.plan import Plan
from trainables.runtime.errors import UserError

CAPACITY_S = 10.0  # how long a count of the cluster's resources is good for
NODES_S = 60.0  # how long a cluster's machines may take to join it
LOOK_S = 1.0
Nodes = Sequence[Mapping[str, float]]  # CPUs and GPUs of each machine


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

    def fits(self, nodes: Nodes) -> int:
        """How many trainings fit on machines at once; each of their processes on one machine."""
        each = {name: amount for name, amount in self.bundles[0].items() if amount}
        fitting = [min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in each.items()) for node in nodes]
        return sum(fitting) // self.workers


class TooFew(UserError):
    """Machines that a training can never have a place on, unless others join them."""


def share_on(plan: Plan, *, growing: bool) -> Share:
    """What a training of the plan gets of Ray's machines; those of a cluster have NODES_S to join it."""
    until, said = time.monotonic() + (NODES_S if growing else 0.0), False
    while True:
        try:
            return share_of(plan, _nodes())
        except TooFew as error:
            if time.monotonic() >= until:
                raise
            if not said:
                print(f"{error}; waiting {NODES_S:.0f} s for others to join")
        said = True
        time.sleep(LOOK_S)


def here() -> Nodes:
    """CPUs and GPUs of this machine."""
    import torch

    return [{"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}]


def _nodes() -> Nodes:
    """CPUs and GPUs of every machine that Ray has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def share_of(plan: Plan, nodes: Nodes) -> Share:
    """What a training of the plan gets of these machines. Raises UserError where it can never have it."""
    settings = plan.study.config.resources
    where = plan.study.document.where
    workers = workers_of(plan)
    most_gpus = sum(node.get("GPU", 0.0) for node in nodes)
    on_cpu = not most_gpus or any(c.device == "cpu" for c in plan.configs)
    gpus = (0.0 if on_cpu else float(workers)) if settings.gpus_per_trial == "auto" else float(settings.gpus_per_trial)
    if gpus > most_gpus:
        raise TooFew(f"{where('resources.gpus_per_trial')}: {gpus:g} wanted, {most_gpus:g} there; lower it or use auto")
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"{where('resources.gpus_per_trial')}: {gpus:g} is neither whole nor a part of one")
    most_cpus = max((node.get("CPU", 0.0) for node in nodes if not gpus or node.get("GPU")), default=0.0)
    needed = workers * max((c.threads or max(1, int(most_cpus) // workers)) + c.data.workers for c in plan.configs)
    cpus = needed if settings.cpus_per_trial == "auto" else int(settings.cpus_per_trial)
    if cpus != settings.cpus_per_trial != "auto":
        raise UserError(f"{where('resources.cpus_per_trial')}: {settings.cpus_per_trial} is not a whole number of CPUs")
    _check_batches(plan, workers)
    if cpus % workers:
        raise UserError(f"{where('resources.cpus_per_trial')}: {cpus} cannot be shared equally by {workers} workers")
    share = Share(cpus, gpus, workers)
    if not share.fits(nodes):
        key = "trial.threads" if settings.cpus_per_trial == "auto" else "resources.cpus_per_trial"
        asked = f"a training needs {cpus} CPUs" + (f" in {workers} processes" if workers > 1 else "")
        asked += f" and {gpus:g} GPUs on one machine" if gpus else ""
        there = f"there are {most_cpus:g}" if len(nodes) == 1 else f"the largest machine has {most_cpus:g}"
        raise TooFew(f"{where(key)}: {asked} and {there}; lower {key}")
    return share


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
    seen = {"at": time.monotonic(), "count": max(1, share.fits(_nodes()))}

    def capacity() -> int:
        if growing and time.monotonic() - seen["at"] > CAPACITY_S:
            seen.update(at=time.monotonic(), count=max(1, share.fits(_nodes())))
        return int(seen["count"])

    return capacity
