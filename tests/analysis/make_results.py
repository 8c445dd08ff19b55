"""A results folder made by hand, exact in form and planted in content, for the tests of the analysis.

    python -m tests.analysis.make_results results/planted            the planted study (its truth is printed)
    python -m tests.analysis.make_results results/big --trials 1000 --steps 5000

The ledger is a real Optuna storage; reports, summaries and traces have the trainer's own columns. No weights are made:
the sealed test has its own fixture.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from study.contract import (
    OPTUNA_STATE,
    Arm,
    Attr,
    Claim,
    Judge,
    Layout,
    Outcome,
    StudyAttr,
    claims_hash,
    judge_hash,
    trial_key,
)
from tests.analysis.ledger_rows import new_storage, write_study
from trainables.runtime.durable import write_json
from trainables.settings.config import as_dict
from trainables.settings.recipe import load_recipe, set_path
from trainables.training.telemetry import COMPACTED, trace_schema

SPACE: dict[str, BaseDistribution] = {
    "optim.lr": FloatDistribution(1e-5, 3e-3, log=True),
    "optim.clip_norm": CategoricalDistribution([None, 0.1, 1.0, 10.0]),
    "loss.depth": FloatDistribution(0.01, 1.0, log=True),
    "batch_size": CategoricalDistribution([2, 4, 8, 16]),
    "model.skips.s4": CategoricalDistribution(["post_pool", "pre_pool", "none"]),
    "model.skips.s8": CategoricalDistribution(["post_pool", "pre_pool", "none"]),
}
PAPER = {
    "optim.lr": 1e-4, "optim.clip_norm": None, "loss.depth": 0.1, "batch_size": 8,
    "model.skips.s4": "post_pool", "model.skips.s8": "post_pool",
}  # fmt: skip
TERMS = ("ssim", "gradient", "depth")
START = datetime.datetime(2026, 1, 5, 8, 0, 0)
JUDGE = {
    "metric": "rmse", "protocol": "densedepth", "report": "best",
    "margins": {"abs_rel": 0.005, "rmse": 0.02, "delta1": 0.01},
}  # fmt: skip


@dataclass(frozen=True)
class Training:
    """One training to write. `outcome` None: still running. `history`: judged metric per report, or one from `value`.

    trace: columns of the step trace (planted_trace makes one), None: no trace. metrics: further columns of each report.
    """

    phase: str
    value: float
    params: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None
    seed: int = 0
    outcome: Outcome | None = Outcome.COMPLETE
    reason: str | None = None
    step: int | None = None
    origin: Any = None
    recipe: str = "densedepth"
    history: Sequence[float] | None = None
    trace: Mapping[str, Any] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)


def make_results(
    root: Path,
    trainings: Sequence[Training],
    *,
    study: Mapping[str, Any] | None = None,
    judge: Mapping[str, Any] = JUDGE,
    planned: Mapping[str, int] | None = None,
    data: Mapping[str, Any] | None = None,
    claims: Sequence[Claim] = (),
    base: Mapping[str, Any] | None = None,
    budget_images: int = 2400,
    reports: int = 4,
) -> Layout:
    """Write the trainings, in order, as a results folder; `planned` defaults to the number given of each phase.

    data: the recorded fingerprint. base: settings of every training in place of its recipe's.
    """
    layout = Layout(root)
    root.mkdir(parents=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = new_storage(layout.ledger)
    phases = list(dict.fromkeys(t.phase for t in trainings))
    settings = dict(study or settings_of(root.name, trainings, judge)) | (
        {"claims": {"recipe": "densedepth", "test": [claim.id for claim in claims], "seeds": 3}} if claims else {}
    )
    write_json(layout.study_file, settings)  # JSON is YAML
    recipes = {name: dict(base or as_dict(load_recipe(name)[-1])) for name in {t.recipe for t in trainings}}
    for phase in phases:
        members = [t for t in trainings if t.phase == phase]
        attributes = {
            StudyAttr.STUDY: settings,
            StudyAttr.JUDGE: dict(judge),
            StudyAttr.JUDGE_HASH: judge_hash(Judge(**judge)),
            StudyAttr.CLAIMS: [asdict(claim) for claim in claims],
            StudyAttr.CLAIMS_HASH: claims_hash(claims),
            StudyAttr.DATA: dict(data or {"train": "a" * 64, "test": "b" * 64, "frames": 480}),
            StudyAttr.ENVIRONMENT: {"python": "3.12.0", "torch": "2.14.1", "host": "planted", "commit": "c" * 40},
            StudyAttr.TIMINGS: {phase: 60.0 * len(members)},
            StudyAttr.PLANNED: (planned or {}).get(phase, len(members)),
        }
        frozen = [
            _write(layout, number, t, recipes[t.recipe], budget_images, reports) for number, t in enumerate(members)
        ]
        write_study(storage, f"{root.name}/{phase}", attributes, frozen)
    storage.engine.dispose()
    return layout


def settings_of(name: str, trainings: Sequence[Training], judge: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved study.yaml that such trainings would come from."""
    of = {phase: [t for t in trainings if t.phase == phase] for phase in ("reproduce", "claims", "search", "confirm")}
    space = {
        path: {"low": d.low, "high": d.high, "scale": "log" if d.log else "linear"}
        if isinstance(d, FloatDistribution)
        else {"choices": list(d.choices)}  # type: ignore[attr-defined]
        for path, d in SPACE.items()
    }
    return {
        "name": name,
        "seed": 0,
        "data": {"source": "rooms", "root": None},
        "trial": {"budget_images": 2400},
        "reproduce": {"recipes": sorted({t.recipe for t in of["reproduce"]}), "seeds": 2},
        "claims": {"recipe": "densedepth", "test": [], "seeds": 3},
        "search": {
            "recipe": "densedepth", "trials": len(of["search"]), "sampler": "tpe", "space": space, "first": [],
            "pruner": {"kind": "successive_halving", "min_images": 600, "reduction": 3},
        },
        "confirm": {"top": len({t.group for t in of["confirm"]}), "seeds": 3},
        "judge": dict(judge),
        "resources": {"gpus_per_trial": "auto", "cpus_per_trial": "auto", "address": None, "silence_limit_s": None},
        "tracking": {"uri": None},
    }  # fmt: skip


def _write(
    layout: Layout, number: int, training: Training, recipe: Mapping[str, Any], budget: int, reports: int
) -> optuna.trial.FrozenTrial:
    key = trial_key(training.phase, number)
    config = json.loads(json.dumps(recipe))
    overrides = {"budget_images": budget, "seed": training.seed, **training.params, **training.overrides}
    for path, value in overrides.items():
        set_path(config, path, value, "planted")
    history = list(training.history) if training.history is not None else _curve(training, reports)
    folder = layout.trial(key)
    write_json(folder / "config.json", config)
    start = START + datetime.timedelta(minutes=number)
    rows = [_report(training, i, len(history), value, config, budget, start) for i, value in enumerate(history)]
    with (folder / "reports.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    if training.trace is not None:
        write_trace(folder, training.trace)
    images = rows[-1]["images"] if rows else 0
    summary = {
        "parameters_total": 42_657_689, "parameters_trainable": 42_657_689, "taps": {"s4": "features.pool0"},
        "device": "cpu", "precision": "float32", "threads": 1, "steps": images // config["batch_size"],
        "images": images, "epochs": images / 400, "train_frames": 400, "validation_frames": 40, "seconds": 50.0,
        "images_per_s": images / 50.0, "peak_memory_mib": 900.0,
        "clipped_share": _clipped_share(training.trace, config), **training.summary,
    }  # fmt: skip
    if rows:
        write_json(folder / "summary.json", summary)
    return _frozen(key, training, config, history, summary, start)


def _frozen(
    key: str, training: Training, config: Any, history: list[float], summary: Any, start: datetime.datetime
) -> optuna.trial.FrozenTrial:
    outcome = training.outcome
    attrs = {
        Attr.KEY: key, Attr.CONFIG: config, Attr.GROUP: training.group or key, Attr.ATTEMPTS: 1,
        Attr.ORIGIN: training.origin,
    }  # fmt: skip
    state = TrialState.RUNNING
    if outcome is not None:
        state = TrialState[OPTUNA_STATE.get(outcome, "FAIL")]
        attrs |= {Attr.OUTCOME: str(outcome), Attr.REASON: training.reason, Attr.STEP: training.step}
        attrs |= {Attr.SUMMARY: summary}
    told = min(history) if history and state in (TrialState.COMPLETE, TrialState.PRUNED) else None
    trial = optuna.trial.create_trial(
        state=state if state.is_finished() else TrialState.FAIL,
        value=told,
        params=dict(training.params),
        distributions={path: SPACE[path] for path in training.params},
        user_attrs=attrs,
        intermediate_values={i + 1: v for i, v in enumerate(history)},
    )
    trial.state = state
    trial.datetime_start = start
    trial.datetime_complete = start + datetime.timedelta(seconds=55) if state.is_finished() else None
    return trial


def _curve(training: Training, reports: int) -> list[float]:
    share = {None: 0.5, Outcome.PRUNED: 0.25, Outcome.DIVERGED: 0.5, Outcome.FAILED: 0.0, Outcome.OUT_OF_MEMORY: 0.0}
    count = int(reports * share.get(training.outcome, 1.0))
    return [training.value * (1 + (reports - i - 1) / (2 * (i + 1))) for i in range(count)]


def _report(
    training: Training, index: int, count: int, value: float, config: Any, budget: int, start: datetime.datetime
) -> dict[str, Any]:
    images = budget * (index + 1) // max(count, 4)
    metrics = {
        "train/loss": 2 * value, "val/loss": 2.1 * value, "val/rmse": value, "val/abs_rel": value / 4,
        "val/delta1": max(0.0, 1 - value / 3), "val/delta2": 0.97, "val/delta3": 0.99, "val/log10": value / 9,
        "optim/lr": config["optim"]["lr"], "optim/clipped_share": 0.0, "optim/grad_norm": 1.0,
        "speed/images_per_s": 48.0, "speed/data_wait_share": 0.05, "memory/peak_mib": 900.0,
        "time/validation_s": 1.0, "time/seconds": 12.5 * (index + 1), **training.metrics,
    }  # fmt: skip
    stamp = start.replace(tzinfo=datetime.UTC).timestamp() + 12.5 * (index + 1)
    step = images // config["batch_size"]
    return {
        "step": step, "images": images, "epoch": images / 400, "time_s": stamp, "metrics": metrics,
        "final": index == count - 1,
    }  # fmt: skip


def _clipped_share(trace: Mapping[str, Any] | None, config: Any) -> float:
    if trace is not None:
        return float(np.mean(trace["clipped"]))
    clip = config["optim"]["clip_norm"]
    return 0.0 if clip is None else {0.1: 1.0, 1.0: 0.4, 10.0: 0.01}.get(clip, 0.1)


def planted_trace(
    rng: np.random.Generator,
    *,
    steps: int,
    batch_size: int,
    samples: Sequence[str],
    bad: Mapping[str, float] | None = None,
    spikes: Mapping[int, float] | None = None,
    listed: bool = False,
    lr: float = 1e-4,
    clip_norm: float | None = None,
    noise: float = 0.15,
) -> dict[str, Any]:
    """Columns of a step trace: a falling loss with lognormal noise.

    `bad` multiplies those samples' own losses whenever they are seen, `spikes` multiplies whole steps. Batches go
    through epochs of `samples`, shuffled or as listed.
    """
    count, seen = len(samples), steps * batch_size
    epochs = -(-seen // count)
    order = np.concatenate([np.arange(count) if listed else rng.permutation(count) for _ in range(epochs)])[:seen]
    factor = np.array([(bad or {}).get(name, 1.0) for name in samples])
    step = np.arange(steps)
    base = 0.4 + 1.6 * np.exp(-step / max(1.0, steps / 5))
    own = base[:, None] * np.exp(noise * rng.standard_normal((steps, batch_size))) * factor[order].reshape(steps, -1)
    for at, multiple in (spikes or {}).items():
        own[at] *= multiple
    loss = own.mean(1)
    norm = loss * np.exp(0.1 * rng.standard_normal(steps))
    images = (step + 1) * batch_size
    return {
        "step": step, "images": images, "epoch": (images - batch_size) // count, "loss": loss, "ssim": 0.5 * loss,
        "gradient": 0.3 * loss, "depth": 2.0 * loss, "lr": np.full(steps, lr), "grad_norm": norm,
        "clipped": norm > (math.inf if clip_norm is None else clip_norm), "target_min": np.full(steps, 1.0),
        "target_max": np.full(steps, 20.0), "hole_share": np.zeros(steps), "seconds": 0.02 * (step + 1),
        "names": list(samples), "order": order, "sample_losses": own,
    }  # fmt: skip


def write_trace(folder: Path, trace: Mapping[str, Any]) -> None:
    """Write planted_trace's columns as the trainer's compacted file."""
    schema = trace_schema(TERMS)
    steps, batch = trace["sample_losses"].shape
    offsets = pa.array(np.arange(steps + 1) * batch, pa.int32())
    names = pa.DictionaryArray.from_arrays(pa.array(trace["order"], pa.int32()), pa.array(trace["names"], pa.string()))
    lists = {
        "samples": pa.ListArray.from_arrays(offsets, names),
        "sample_losses": pa.ListArray.from_arrays(offsets, pa.array(trace["sample_losses"].ravel(), pa.float32())),
    }
    arrays = [lists[f.name] if f.name in lists else pa.array(trace[f.name]).cast(f.type, safe=False) for f in schema]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays, schema=schema), folder / COMPACTED, compression="zstd", write_page_checksum=True)


def claim(
    name: str,
    a: str,
    b: str = "base",
    *,
    recipe: str = "densedepth",
    seeds: Sequence[int] = (1000, 1001, 1002),
    **fields: Any,
) -> Claim:
    """A claim on the trainings of two groups, a question about the RMSE where nothing else is said."""
    arms = {side: Arm(words, words, f"{recipe}: {words}", 0) for side, words in (("a", a), ("b", b))}
    said = {"who": "the tests", "statement": f"{name} matters.", "source": None, "measured": ("rmse",)}
    rule = {"expected": "open", "margin": None, "untestable": None}
    return Claim(id=name, seeds=tuple(seeds), **{**said, **arms, **rule, **fields})


PLANTED = (  # of planted_study, whose gradient term is worth 0.1 m and whose mirroring nothing
    claim("gradient", "base", "loss.gradient=0.0", expected="a_better"),
    claim("flip", "base", "augment.flip=0.0", expected="a_better"),
)


@dataclass(frozen=True)
class Truth:
    """What planted_study hid: keys of search trials, and the group that deserves to win."""

    best: str
    lucky: str
    twin: str | None
    winner: str
    diverged: str
    pruned: str
    failed: str
    out_of_memory: str
    unfinished: str | None


def planted_value(params: Mapping[str, Any]) -> float:
    """The true RMSE of a setting: the learning rate matters much, s4 a little, the other dimensions not at all."""
    penalty = {"post_pool": 0.0, "pre_pool": 0.0, "none": 0.05}[params["model.skips.s4"]]
    return 0.5 + 0.3 * math.log10(params["optim.lr"] / 4e-4) ** 2 + penalty


def planted_study(
    root: Path, seed: int, *, trials: int = 30, twins: bool = False, unfinished: bool = False, steps: int = 0
) -> tuple[Layout, Truth]:
    """A study with every kind of training. `twins`: the two confirmed settings are equal. `steps` > 0: with traces."""
    rng = np.random.default_rng(seed)
    noise, luck = 0.004, 0.12
    search = [_random_training(rng, noise, steps) for _ in range(trials - 8)]
    good = {**PAPER, "optim.lr": 4e-4}
    lucky = {**PAPER, "optim.lr": 4e-4 if twins else 1.2e-4, "loss.depth": 0.3}
    special = {
        "paper": Training("search", planted_value(PAPER), PAPER),
        "best": Training("search", planted_value(good) - 0.02, good),
        "lucky": Training("search", planted_value(lucky) - luck, lucky),
        "diverged": Training("search", 1.0, {**PAPER, "optim.lr": 2.9e-3}, outcome=Outcome.DIVERGED, step=41,
                             reason="loss is not finite at step 41"),
        "pruned": Training("search", 0.9, {**PAPER, "optim.lr": 1.1e-5}, outcome=Outcome.PRUNED, reason="behind"),
        "failed": Training("search", 0.9, PAPER, outcome=Outcome.FAILED, reason="RuntimeError: planted"),
        "out_of_memory": Training("search", 0.9, {**PAPER, "batch_size": 16}, outcome=Outcome.OUT_OF_MEMORY),
        "last": Training("search", 0.9, PAPER, outcome=None if unfinished else Outcome.FAILED, reason="planted"),
    }  # fmt: skip
    search = [special.pop("paper"), *search, *special.values()]
    keys = {name: trial_key("search", len(search) - len(special) + i) for i, name in enumerate(special)}
    confirm = [
        Training("confirm", planted_value(params) + noise * float(rng.standard_normal()), {}, dict(params), group=group,
                 seed=100 + s, origin=keys[group])
        for group, params in (("best", good), ("lucky", lucky)) for s in range(3)
    ]  # fmt: skip
    confirm = [Training(**{**vars(t), "group": keys[str(t.group)]}) for t in confirm]
    reproduce = [
        Training("reproduce", base + noise * s, group=recipe, seed=s, recipe=recipe)
        for recipe, base in (("densedepth", 0.47),)
        for s in range(2)
    ]
    paired = [
        Training("claims", 0.6 + effect + 0.01 * s, group=f"densedepth: {arm}", seed=1000 + s, overrides=change)
        for s in range(3)
        for arm, change, effect in (
            ("base", {}, 0.0), ("loss.gradient=0.0", {"loss.gradient": 0.0}, 0.1 + 0.002 * s),
            ("augment.flip=0.0", {"augment.flip": 0.0}, 0.01 * (s - 1)),
        )
    ]  # fmt: skip
    layout = make_results(root, [*reproduce, *paired, *search, *confirm], claims=PLANTED)
    truth = Truth(
        best=keys["best"], lucky=keys["lucky"], twin=keys["lucky"] if twins else None, winner=keys["best"],
        diverged=keys["diverged"], pruned=keys["pruned"], failed=keys["failed"],
        out_of_memory=keys["out_of_memory"], unfinished=keys["last"] if unfinished else None,
    )  # fmt: skip
    return layout, truth


def _random_training(rng: np.random.Generator, noise: float, steps: int) -> Training:
    params = {
        path: float(np.exp(rng.uniform(np.log(d.low), np.log(d.high))))
        if isinstance(d, FloatDistribution)
        else d.choices[rng.integers(len(d.choices))]  # type: ignore[attr-defined]
        for path, d in SPACE.items()
    }
    params["optim.lr"] = min(params["optim.lr"], 2e-3)
    trace = None
    if steps:
        ids = [f"data/nyu2_train/room{i // 12}_out/{i % 12}.jpg" for i in range(400)]
        trace = planted_trace(rng, steps=steps, batch_size=4, samples=ids, lr=params["optim.lr"],
                              clip_norm=params["optim.clip_norm"])  # fmt: skip
    return Training("search", planted_value(params) + noise * float(rng.standard_normal()), params, trace=trace)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    _, truth = planted_study(args.root, args.seed, trials=args.trials, steps=args.steps)
    print(truth)


if __name__ == "__main__":
    main()
