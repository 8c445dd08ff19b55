"""A training as a Ray Tune trainable: each `step` hands on the next report of `iter_fit`.

How a training ended reaches the driver as one more message, and then the error is raised, so that Tune, too, sees it
and never gives this worker to another training. Nothing durable passes through Ray: the training's folder holds
its checkpoints, and a lock in it keeps an orphaned worker and its successor from writing together.

A trial whose placement group has several bundles trains in several processes: the trial's own leads, each further
bundle holds an actor of it. They are plain actors, not Ray Train's: a TorchTrainer reserves a placement group of its
own beside the trial's, so that Tune does not count its workers, and they outlive a killed trial by seconds. An actor in
the trial's group is counted there, and Ray ends it with the process that made it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.result import DONE
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from trainables.message import RESULT_KEY, Message
from trainables.runtime.errors import Blocked, Diverged, OutOfMemory, PeerLost, Stopped, UserError, refused_by_disk
from trainables.runtime.locks import FolderLock

if TYPE_CHECKING:
    from trainables.settings.config import TrialConfig

LOCK_WAIT_S = 20.0  # an orphaned worker lives a few seconds, one of a hung node as long as that hangs
LAST_WORDS_S = 20.0  # for the other processes of a training to say why one of them has ended


class TrainingWorker(tune.Trainable):
    """One process that trains, reused for one training after another.

    config: {'config': TrialConfig as JSON, 'folder': where it is kept, 'metric': the judge's, 'stop': the file whose
    appearance stops it, 'cwd': the folder that paths of the settings start from}.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take up a training; nothing is done before the first step, where errors become messages."""
        self._spec = config
        os.chdir(config["cwd"])  # a cluster's workers start elsewhere
        self._iterator: Iterator[dict[str, Any]] | None = None
        self._lock: FolderLock | None = None
        self._error: BaseException | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Let go of the training before, take up another."""
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Close the training, which keeps what it has done, and unlock its folder."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()
        self._iterator = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def step(self) -> dict[str, Any]:
        """The next report, how it ended, or the end."""
        if self._error is not None:
            raise self._error
        try:
            report = next(self._open(), None)
        except (RayActorError, PeerLost):
            raise  # one of its processes died silently, and so does it
        except (Exception, SystemExit) as error:  # told to the driver here, raised in the next step: nothing is caught
            self._error = error if isinstance(error, Exception) else RuntimeError(f"the training called exit ({error})")
            return {RESULT_KEY: _ending(error).to_json()}
        if report is not None:
            value = report["metrics"][self._spec["metric"]]
            if math.isfinite(value):
                return {RESULT_KEY: Message("report", report=report).to_json()}
            self._error = Diverged(report["step"], f"{self._spec['metric']} is {value}")
            return {RESULT_KEY: _ending(self._error).to_json()}
        path = Path(self._spec["folder"]) / "summary.json"
        self.cleanup()
        summary = json.loads(path.read_text()) if path.exists() else {}
        return {RESULT_KEY: Message("complete", summary=summary).to_json(), DONE: True}

    def reports(self, config: str, folder: Path) -> Iterator[dict[str, Any]]:
        """The reports of a training as JSON types."""
        from dataclasses import asdict

        from trainables.settings.config import stored_config
        from trainables.training.trainer import iter_fit

        settings = stored_config(config)
        with _company(self._spec, settings):
            for report in iter_fit(settings, folder, stop=self.told_to_stop, own_process=True):
                yield asdict(report)

    def told_to_stop(self) -> bool:
        """Whether the driver wants every training to stop at a checkpoint."""
        return Path(self._spec["stop"]).exists()

    def _open(self) -> Iterator[dict[str, Any]]:
        if self._iterator is None:
            folder = Path(self._spec["folder"])
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(folder, LOCK_WAIT_S)
            self._iterator = self.reports(self._spec["config"], folder)
        return self._iterator


class Peer:
    """A further process of a training, in a bundle of its trial's placement group; it ends with the trial's process."""

    def ready(self) -> None:
        """Import what training needs, so that nothing but the meeting is left to fail."""
        importlib.import_module("trainables.training.trainer")

    def train(self, spec: dict[str, Any], meeting: tuple[str, int], rank: int, size: int) -> None:
        """Take part in the training, to its end."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        from trainables.runtime import parallel
        from trainables.runtime.device import choose_device
        from trainables.settings.config import stored_config
        from trainables.training.trainer import iter_fit

        os.chdir(spec["cwd"])
        settings = stored_config(spec["config"])
        store = TCPStore(*meeting, is_master=False)
        with parallel.joined(store, rank, size, choose_device(settings)):
            for _ in iter_fit(settings, Path(spec["folder"]), own_process=True):
                pass


@contextlib.contextmanager
def _company(spec: dict[str, Any], settings: TrialConfig) -> Iterator[None]:
    """The other processes of a training, one in each further bundle of the trial's placement group."""
    group = ray.util.get_current_placement_group()
    bundles = group.bundle_specs if group is not None else [{}]
    if len(bundles) == 1:
        yield
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from trainables.runtime import parallel
    from trainables.runtime.device import choose_device

    size, peers = len(bundles), []
    try:
        for rank, bundle in enumerate(bundles[1:], start=1):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
            needs = {"num_cpus": bundle.get("CPU", 0), "num_gpus": bundle.get("GPU", 0)}
            peers.append(ray.remote(Peer).options(scheduling_strategy=place, **needs).remote())
        ray.get([peer.ready.remote() for peer in peers])
        host = ray.util.get_node_ip_address()
        store = TCPStore(host, 0, is_master=True)  # 0: a port that is free
        ends = [p.train.remote(spec, (host, store.port), rank, size) for rank, p in enumerate(peers, start=1)]
        try:
            with parallel.joined(store, 0, size, choose_device(settings)):
                yield
                ray.get(ends)
        except PeerLost:
            _last_words(ends)
            raise
    finally:
        for peer in peers:
            ray.kill(peer)


def _last_words(ends: list[Any]) -> None:
    """Raise the error of the process that ended first: another's is only that it has lost that one."""
    ended, _ = ray.wait(ends, num_returns=len(ends), timeout=LAST_WORDS_S)
    for end in ended:
        try:
            ray.get(end)
        except RayTaskError as error:
            if not isinstance(error.cause, PeerLost):
                raise error.cause from error


def _ending(error: BaseException) -> Message:
    """How a training ended, by the error that ended it."""
    if isinstance(error, Stopped):
        return Message("stopped")
    blocked = str(error) if isinstance(error, Blocked) else refused_by_disk(error)
    if blocked:
        return Message("blocked", reason=blocked)
    detail = "".join(traceback.format_exception(error))[-8000:]
    if isinstance(error, Diverged):
        return Message("diverged", reason=error.reason, step=error.step)
    if isinstance(error, (OutOfMemory, MemoryError)):
        return Message("out_of_memory", reason=str(error) or "no memory left", detail=detail)
    if isinstance(error, UserError):
        return Message("failed", reason=str(error))
    if isinstance(error, SystemExit):
        return Message("failed", reason=f"it called exit ({error.code})", detail=detail)
    return Message("failed", reason=f"{type(error).__name__}: {error}"[:500], detail=detail)
