"""Checks before the first training: the data, the environment, and that a resumed study is the same."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from study.config import Study, StudyConfig
from study.contract import PHASES, Claim, StudyAttr, claims_hash, judge_hash
from study.plan import Plan
from study.resources import here, share_of
from study.store import Store
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig, Mark, TrialConfig, flatten, mark_of
from trainables.settings.recipe import recipe_names

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "numpy", "timm", "kornia", "safetensors")


def refuse(plan: Plan) -> None:
    """Raise UserError for what this machine lacks where it trains: CPUs, GPUs, a place for the cache."""
    from trainables.data.cache import check_place

    study = plan.study
    if study.config.resources.address is not None:
        return  # that is the cluster's to say
    share_of(plan, here())
    for config in (*plan.configs, *plan.tried):
        if config.device == "cuda" and not here()[0]["GPU"]:
            raise UserError(f"{study.document.where('trial.device')}: cuda, and there is no GPU here; use auto")
        check_place(config.data)


def check_data(plan: Plan) -> None:
    """Raise UserError for data that a training could not be given; nothing is rendered or written."""
    from trainables.data import dataset

    for config in _distinct((*plan.configs, *plan.tried)):
        dataset.check_data(config)


def _distinct(configs: Iterable[TrialConfig]) -> list[TrialConfig]:
    """One training of each choice of data."""
    same = {"workers": 0, "cache": None, "cache_gb": None}  # whatever these are, the data are the same
    return list({config.data.model_copy(update=same).model_dump_json(): config for config in configs}.values())


def prepare(plan: Plan) -> dict[str, Any]:
    """Make the data ready and look at all of it that a training will read: {'train': sha, 'test': sha, 'frames': n}.

    The data of trainings that read something else (a recipe's own source or subset) stand under their recipes' names;
    the second of a recipe under 'NAME, 2'.
    """
    from trainables.data.dataset import fingerprint, open_training, prepare_data

    found: dict[str, Any] = {}
    seen: list[DataConfig] = []
    for config in plan.configs:
        if config.data in seen:
            continue
        prepare_data(config.data)
        open_training(config)
        prints = fingerprint(config.data)
        if not seen:
            found |= prints
        elif any(found.get(name) != value for name, value in prints.items()):
            own = [found[name] for name in found if name.partition(", ")[0] == config.recipe]
            if prints not in own:
                found[f"{config.recipe}, {len(own) + 1}" if own else config.recipe] = prints
        seen.append(config.data)
    for config in _distinct(plan.tried):
        prepare_data(config.data)
        open_training(config)
    return found


def environment() -> dict[str, Any]:
    """Versions, machine and code that the study runs on."""
    import psutil
    import torch

    versions = {d.name.lower(): d.version for d in distributions() if d.name and d.name.lower() in PACKAGES}
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "packages": dict(sorted(versions.items())),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "devices": devices or ["cpu"],
        "commit": _commit(),
        "recipes": recipe_names(),
        "command": " ".join(["python -m study.run", *sys.argv[1:]]),
    }


def record(store: Store, plan: Plan, data: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Write what the study is into the ledger, or compare it with what it was; sentences about allowed changes.

    Raises UserError naming key, old and new value for a change that would make the trainings incomparable, or a claim
    another one than was written down before its trainings.
    """
    study = plan.study
    judge = study.config.judge.model_dump(mode="json")
    before = store.attribute(StudyAttr.STUDY)
    if before is None or not any(store.frozen(phase) for phase in PHASES):  # a start that was refused left it
        store.set_attributes(
            {
                StudyAttr.STUDY: study.resolved,
                StudyAttr.JUDGE: judge,
                StudyAttr.JUDGE_HASH: judge_hash(study.judge),
                StudyAttr.CLAIMS: [asdict(claim) for claim in plan.stated],
                StudyAttr.CLAIMS_HASH: claims_hash(plan.stated),
                StudyAttr.DATA: dict(data),
                StudyAttr.ENVIRONMENT: dict(now),
            }
        )
        return []
    notes = compare(plan, before, store.attribute(StudyAttr.CLAIMS))
    if "ablate" in before:
        store.set_attributes({StudyAttr.CLAIMS_HASH: claims_hash(())})
    for name, old in (store.attribute(StudyAttr.DATA) or {}).items():
        if name in data and data[name] != old:
            raise UserError(
                f"the data have changed since the study began ({name} is {data[name]}, was {old}); "
                "put the old data back, or give the study another name"
            )
    past = store.attribute(StudyAttr.ENVIRONMENT) or {}
    watched = ("python", "packages", "host", "devices", "commit")
    old_flat, new_flat = (flatten({k: e.get(k) for k in watched}) for e in (past, now))
    moved = [
        f"{path} is {new_flat.get(path)!r} now, was {old!r}"
        for path, old in old_flat.items()
        if new_flat.get(path) != old
    ]
    history = [*past.get("changes", []), *([{"now": dict(now), "changed": moved}] if moved else [])]
    recorded = dict(now) | {"changes": history} if moved else past
    known = dict(data) | (store.attribute(StudyAttr.DATA) or {})  # a recipe that was added may have data of its own
    store.set_attributes(
        {
            StudyAttr.STUDY: study.resolved,
            StudyAttr.ENVIRONMENT: recorded,
            StudyAttr.DATA: known,
            StudyAttr.CLAIMS: [asdict(claim) for claim in plan.stated],
        }
    )
    return notes + moved


def compare(plan: Plan, before: Mapping[str, Any], claims: Any) -> list[str]:
    """Sentences about allowed changes of settings and claims since a study began; raises UserError for others."""
    known = _earlier(plan, before)
    notes = [f"{path} is {new!r} now, was {old!r}" for path, old, new in _changes(plan.study, known)]
    return notes + _testable(plan.study, [Claim.of(value) for value in claims or ()], plan.stated)


def _earlier(plan: Plan, before: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse a study that was begun when paired trainings were the phase `ablate`; without any it continues."""
    known = dict(before)
    if known.pop("ablate", {}).get("settings"):
        raise UserError(
            f"{plan.study.config.name}: this study was begun with the phase ablate, which is claims now; finish it "
            "with the version that began it, or give the study another name"
        )
    return known | {"claims": plan.study.resolved["claims"] | {"test": []}} if "ablate" in before else known


def _testable(study: Study, before: Sequence[Claim], now: Sequence[Claim]) -> list[str]:
    """Sentences about claims that can be tested now or not any more; raises for one that states something else."""
    old = {claim.id: claim for claim in before}
    for claim in now:
        was = asdict(old[claim.id])
        for name, value in asdict(claim).items():
            if name != "untestable" and was[name] != value:
                raise UserError(
                    f"{study.document.where('claims.test')}: {name} of {claim.id} is {value!r}, but the study began "
                    f"with {was[name]!r}; set it back, or give the study another name"
                )
    return [
        f"{claim.id} is {'not testable' if claim.untestable else 'testable'} now"
        for claim in now
        if claim.untestable != old[claim.id].untestable
    ]


def _changes(study: Study, before: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Allowed changes of the study's settings; raises for others."""
    old, new = flatten(dict(before)), flatten(study.resolved)
    changed = [(path, old.get(path), new.get(path)) for path in {**old, **new} if old.get(path) != new.get(path)]
    for path, was, now in changed:
        if Mark.BOOKKEEPING not in mark_of(StudyConfig, path):
            raise UserError(
                f"{study.document.where(path)} is {now!r}, but the study began with {was!r}; "
                "set it back, or give the study another name"
            )
    return changed


def _commit() -> str:
    """The code's git commit, with '+' where files differ from it; 'unknown' outside a checkout of this code."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        ours = git("ls-files", str(Path(__file__).resolve()))  # an installed copy may lie in another project's checkout
        head = git("rev-parse", "HEAD") if ours else ""
        return (head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")) if head else "unknown"
    except FileNotFoundError:
        return "unknown"
