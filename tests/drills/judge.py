"""The judge of every drill: what is wrong with a study that has ended, by its ledger, MLflow, files and processes."""

from __future__ import annotations

import itertools
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil

from study.contract import MLFLOW_STATUS, OPTUNA_STATE, PHASES, Attr, Outcome, StudyAttr
from tests.study.conftest import Workplace
from trainables.runtime.locks import held

GONE_S = 10.0  # trainings and Ray's own processes have ended so long after their study
# Helpers of a raylet that was killed: they train nothing, and look once in a minute and a half whether it is there.
AGENTS = ("ray::DashboardA", "ray::RuntimeEnv")


def faults(
    place: Workplace,
    name: str = "tiny",
    *,
    repeats: int = 0,
    replay: Callable[[dict[str, Any], int], float] | None = None,
) -> list[str]:
    """What is wrong with the study; empty: nothing.

    repeats: how many reports may have been computed twice (at most one per training that a kill ended). replay: the
    judged metric of a training by its settings and images seen, as it is when the training is run alone.
    """
    trials = ledger(place, name)
    root = place.root / "results" / name
    return [
        *_ledger(place, name, trials),
        *_mlflow(place, name, trials),
        *(fault for phase in trials.values() for trial in phase for fault in _training(root, trial, replay)),
        *_computed(root, trials, repeats),
        *_leftovers(root, trials),
        *_processes(place.root),
    ]


def ledger(place: Workplace, name: str) -> dict[str, list[optuna.trial.FrozenTrial]]:
    """Every trial of every phase, in order."""
    url = place.ledger_url(name)
    return {phase: optuna.load_study(study_name=f"{name}/{phase}", storage=url).get_trials() for phase in PHASES}


def _ledger(place: Workplace, name: str, trials: dict[str, list[optuna.trial.FrozenTrial]]) -> Iterator[str]:
    for phase, members in trials.items():
        study = optuna.load_study(study_name=f"{name}/{phase}", storage=place.ledger_url(name))
        planned = study.user_attrs.get(StudyAttr.PLANNED, 0)
        if len(members) != planned:
            yield f"{phase}: {planned} trainings planned, {len(members)} in the ledger"
        keys = [t.user_attrs[Attr.KEY] for t in members]
        if keys != [f"{phase}-{number:04d}" for number in range(len(keys))]:
            yield f"{phase}: keys lost or doubled: {keys}"
        same = Counter(
            (t.user_attrs[Attr.GROUP], t.user_attrs[Attr.CONFIG]["seed"], t.user_attrs[Attr.CONFIG]["stage"])
            for t in members
        )
        yield from (f"{phase}: {identity} entered {n} times" for identity, n in same.items() if n > 1)
        for trial in members:
            outcome = trial.user_attrs.get(Attr.OUTCOME)
            state = OPTUNA_STATE.get(Outcome(outcome), "FAIL") if outcome else "an end"
            if trial.state.name != state:
                yield f"{trial.user_attrs[Attr.KEY]}: {outcome or 'no outcome'}, but {trial.state.name} in the ledger"


def _mlflow(place: Workplace, name: str, trials: dict[str, list[optuna.trial.FrozenTrial]]) -> Iterator[str]:
    with sqlite3.connect(f"file:{place.root / 'mlflow.db'}?mode=ro", uri=True) as store:
        parents = store.execute("SELECT status FROM runs WHERE name = ?", (name,)).fetchall()
    if parents != [("FINISHED",)]:
        yield f"MLflow: the study's own runs are {parents}"
    runs = place.mlflow()
    expected = {t.user_attrs[Attr.KEY]: t for members in trials.values() for t in members}
    counts = Counter(run["name"] for run in runs)
    yield from (f"{key}: {counts[key]} runs in MLflow" for key in expected if counts[key] != 1)
    yield from (f"{key}: a run in MLflow that the ledger does not have" for key in counts if key not in expected)
    for run in runs:
        trial = expected.get(run["name"])
        if trial is None:
            continue
        outcome = trial.user_attrs.get(Attr.OUTCOME)
        told = (run["tags"].get("outcome"), run["status"])
        if told != (outcome, MLFLOW_STATUS.get(outcome, "FAILED")):
            yield f"{run['name']}: {outcome} in the ledger, {told} in MLflow"
        points = sorted((step, value) for metric, step, value, _ in run["metrics"] if metric == "val/rmse")
        known = sorted(trial.intermediate_values.items())
        if points != known:
            yield f"{run['name']}: reports {known} in the ledger, {points} in MLflow"


def _training(root: Path, trial: optuna.trial.FrozenTrial, replay: Callable[..., float] | None) -> Iterator[str]:
    """One training's folder against the ledger."""
    key, config = trial.user_attrs[Attr.KEY], trial.user_attrs[Attr.CONFIG]
    try:
        lines = (root / "trials" / key / "reports.jsonl").read_text().splitlines()
        reports = [(r["images"], r["metrics"]["val/rmse"]) for r in map(json.loads, lines)]
        json.loads((root / "trials" / key / "summary.json").read_text())
    except (OSError, ValueError, KeyError) as error:
        yield f"{key}: its files are short: {error!r}"
        return
    known = sorted(trial.intermediate_values.items())
    complete = trial.user_attrs.get(Attr.OUTCOME) == Outcome.COMPLETE
    if reports != known:
        yield f"{key}: reports {known} in the ledger, {reports} in its folder"
    if complete and (not known or known[-1][0] != config["budget_images"]):
        yield f"{key}: complete at {known[-1:]} of {config['budget_images']} images"
    if replay is not None and any(value != replay(config, images) for images, value in reports):
        yield f"{key}: its reports differ from a training alone: {reports}"


def _computed(root: Path, trials: dict[str, list[optuna.trial.FrozenTrial]], allowed: int) -> Iterator[str]:
    """Stand-ins note each report that they compute; one that is computed again had been lost."""
    again = 0
    for trial in (t for members in trials.values() for t in members):
        key, path = trial.user_attrs[Attr.KEY], root / "trials" / trial.user_attrs[Attr.KEY] / "computed.log"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        extra = len(lines) - len({images for _, images in lines})
        again += extra
        if extra > max(trial.user_attrs[Attr.ATTEMPTS] - 1, 0):
            yield f"{key}: reports computed again: {lines}"
        owners = [process for process, _ in itertools.groupby(process for process, _ in lines)]
        if len(owners) > len(set(owners)):
            yield f"{key}: a process wrote after its successor: {lines}"
    if again > allowed:
        yield f"{again} reports were computed again, {allowed} allowed"


def _leftovers(root: Path, trials: dict[str, list[optuna.trial.FrozenTrial]]) -> Iterator[str]:
    keys = {t.user_attrs[Attr.KEY] for members in trials.values() for t in members}
    folders = {path.name for path in (root / "trials").iterdir()}
    if folders != keys:
        yield f"folders of trainings: {sorted(folders ^ keys)} are too many or missing"
    for path in root.rglob("*"):
        if path.suffix in (".tmp", ".old") or path.name in ("stop", ".ray"):
            yield f"left behind: {path.relative_to(root)}"
        if path.name == ".lock" and held(path):
            yield f"still locked: {path.relative_to(root)}"
    if (root / "study.lock").read_text():
        yield f"study.lock still names an owner: {(root / 'study.lock').read_text()}"
    for database in root.glob("*.db"):
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            found = connection.execute("PRAGMA integrity_check").fetchone()[0]
        if found != "ok":
            yield f"{database.name}: {found}"


def _processes(root: Path) -> Iterator[str]:
    """Processes that the study started and that work in its folder, Ray's included."""
    until = time.monotonic() + GONE_S
    while processes(root) and time.monotonic() < until:
        time.sleep(0.2)
    yield from (f"still there after {GONE_S:.0f} s: {p.pid} {p.info['name']}" for p in processes(root))


def processes(root: Path) -> list[psutil.Process]:
    """Processes that live in a folder."""
    here = str(root.resolve())
    found = [p for p in psutil.process_iter(["name", "cwd", "status"]) if p.info["cwd"] == here]
    return [p for p in found if p.info["status"] != psutil.STATUS_ZOMBIE and not p.info["name"].startswith(AGENTS)]
