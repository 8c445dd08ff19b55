"""Names that settings refer to: each is of a registry, and a wrong one is refused with file, line, key and nearest."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import AfterValidator

from study.claims import LIBRARY, read_claims
from study.config import StudyConfig, load_study
from study.contract import QUANTITIES
from study.methods import PRUNERS, SAMPLERS
from study.plan import make_plan
from study.search.space import fits, read_space
from tests.study.test_config import TEXT, plan_of, study_of
from trainables.evaluation.metrics import FUNCTIONS
from trainables.evaluation.protocols import PROTOCOLS
from trainables.models.losses import TERMS
from trainables.runtime.errors import UserError
from trainables.settings.config import Mark, NameOf, Section, TrialConfig, flat, mark_of
from trainables.settings.recipe import load_recipe, recipe_names
from trainables.settings.registry import FORMS, LOSS_TERMS, METRICS
from trainables.settings.yamlfile import read_yaml
from trainables.train import main

ROOT = Path(__file__).resolve().parent.parent.parent
STUDIES = [ROOT / "study.yaml", *sorted((ROOT / "studies").glob("*.yaml"))]
REGISTRIES = {
    "metric": METRICS, "protocol": PROTOCOLS, "loss term": LOSS_TERMS, "form of the data": FORMS,
    "sampler": SAMPLERS, "pruner": PRUNERS, "quantity": QUANTITIES,
}  # fmt: skip


def validators(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[NameOf]:
    """Those of a field, of its items and of its keys."""
    for one in (*metadata, *getattr(annotation, "__metadata__", ())):
        if isinstance(one, AfterValidator) and isinstance(one.func, NameOf):
            yield one.func
    for inner in typing.get_args(annotation):
        yield from validators(inner)


def named(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, NameOf]]:
    for name, field in kind.model_fields.items():
        yield from ((f"{prefix}{name}", one) for one in validators(field.annotation, tuple(field.metadata)))
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from named(field.annotation, f"{prefix}{name}.")


def test_every_field_that_names_something_is_checked_against_its_registry() -> None:
    found = {path: validator.what for kind in (TrialConfig, StudyConfig) for path, validator in named(kind)}
    assert found == {
        "best_metric": "metric", "protocol": "protocol", "loss": "loss term", "data.source": "form of the data",
        "search.sampler": "sampler", "search.pruner.kind": "pruner", "judge.metric": "metric",
        "judge.protocol": "protocol", "judge.margins": "metric",
    }  # fmt: skip
    for kind in (TrialConfig, StudyConfig):
        for _, validator in named(kind):
            assert validator.names is REGISTRIES[validator.what]


def test_every_name_has_its_function_and_fits() -> None:
    assert set(FUNCTIONS) == set(METRICS) and set(TERMS) == set(LOSS_TERMS)
    assert all(set(protocol.metrics) <= set(METRICS) for protocol in PROTOCOLS.values())
    assert {m for protocol in PROTOCOLS.values() for m in protocol.metrics} == set(METRICS)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_every_name_in_a_shipped_study_is_known(path: Path) -> None:
    study = load_study(path, [])
    judge = study.config.judge
    assert judge.metric in PROTOCOLS[judge.protocol].metrics and set(judge.margins) <= set(METRICS)
    for config, _ in read_claims(study):
        assert set(config.measured or ()) <= set(QUANTITIES)
    form = study.config.data.get("source", "rooms")
    assert form in FORMS
    for term in re.findall(r"\bloss\.(\w+)|\bloss: {(\w+):", path.read_text()):
        assert "".join(term) in LOSS_TERMS


def test_every_name_in_the_list_of_claims_is_known(tmp_path: Path) -> None:
    listed = read_yaml(LIBRARY).value["claims"]
    study = study_of(tmp_path, f"name: all\nclaims: {{test: [{', '.join(listed)}]}}\n")
    read = {config.id: config for config, _ in read_claims(study)}
    assert set(read) == set(listed)
    for config in read.values():
        settings = [config.both, config.a, config.b, *config.a.get("stages", ()), *config.b.get("stages", ())]
        terms = {term for one in settings for term in one.get("loss", {})}
        terms |= {path.removeprefix("loss.") for one in settings for path in one if path.startswith("loss.")}
        assert terms <= set(LOSS_TERMS) and config.measured is not None


@pytest.mark.parametrize("name", recipe_names())
def test_every_name_in_a_recipe_is_known(name: str) -> None:
    for config in load_recipe(name):
        assert config.best_metric in PROTOCOLS[config.protocol].metrics
        assert set(config.loss) <= set(LOSS_TERMS) and config.data.source in FORMS


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "confirm:", "judge: {protocol: densdepth}\nconfirm:",
            "study.yaml:16: judge.protocol: unknown protocol densdepth (did you mean densedepth?); write densedepth, ",
        ),
        (
            "confirm:", "judge: {metric: silog, protocol: densedepth_repo}\nconfirm:",
            "study.yaml:16: judge.protocol: densedepth_repo yields no silog, which is the metric to judge by; write "
            "densedepth, densedepth_scaled, densedepth_affine, bts, ",
        ),
        (
            "confirm:", "judge: {metric: rmse, protocol: structure}\nconfirm:",
            "study.yaml:16: judge.protocol: structure yields no rmse",
        ),
        (
            "confirm:", "judge: {margins: {rsme: 0.02}}\nconfirm:",
            "study.yaml:16: judge.margins.rsme: unknown metric rsme (did you mean rmse?)",
        ),
        ("threads: 1", "threads: 1, seed: 77", "study.yaml:3: trial.seed is decided by the study's own seed; set that"),
        ("threads: 1", "threads: 1, protocol: bts", "study.yaml:3: trial.protocol is decided by judge.protocol"),
        ("threads: 1", "threads: 1, best_metric: log10", "study.yaml:3: trial.best_metric is decided by judge.metric"),
        ("threads: 1", "threads: 1, stage: 2", "study.yaml:3: trial.stage is decided by the recipe that is named"),
        (
            "batch_size: 2}", "batch_size: 2, seed: 3}",
            "study.yaml:4: reproduce.recipes.1.michigan.seed is decided by the study's own seed",
        ),
        (
            "{loss.gradient: 0.0}", "{loss.gradient: 0.0, protocol: bts}",
            "study.yaml:5: claims.test.0.a.protocol is decided by judge.protocol",
        ),
        (
            "{loss.gradient: 0.0}}", "{loss.gradient: 0.0}, measured: [rsme]}",
            "study.yaml:5: claims.test.0.measured.0: unknown quantity rsme (did you mean rmse?)",
        ),
        (
            "threads: 1", "threads: 1, loss.gradiant: 1.0",
            "study.yaml:3: trial.loss.gradiant: unknown loss term gradiant (did you mean gradient?)",
        ),
        ("threads: 1", "threads: 1, optim.schedule: onecycle", "not \"onecycle\" (did you mean one_cycle?)"),
        ("trials: 8", "trials: 8\n  sampler: tpee", "study.yaml:8: search.sampler: unknown sampler tpee (did you mean"),
        (
            "trials: 8", "trials: 8\n  pruner: {kind: halving}",
            "study.yaml:8: search.pruner.kind: unknown pruner halving (did you mean successive_halving?)",
        ),
        (
            "when: {loss.gradient: [0.0]}", "when: {optim.schedule: [onecycle]}",
            "study.yaml:15: search.space.loss.sobel.when.optim.schedule: loss.sobel is never searched, because "
            "optim.schedule is \"plateau\" in every trial, not \"onecycle\"",
        ),
        (
            "when: {loss.gradient: [0.0]}", "when: {model.skips.s4: [postpool]}",
            "model.skips.s4 is never \"postpool\" in this search (did you mean post_pool?)",
        ),
        (
            "when: {loss.gradient: [0.0]}", "when: {loss.normal: [0.0]}",
            "study.yaml:15: search.space.loss.sobel.when: the recipe has no loss.normal",
        ),
        (
            "when: {loss.gradient: [0.0]}", "when: {optim.lr: [0.001]}",
            "study.yaml:15: search.space.loss.sobel.when.optim.lr: optim.lr is searched over a continuous range, in "
            "which no trial has exactly 0.001",
        ),
        (
            "when: {loss.gradient: [0.0]}", "when: {batch_size: [2.5]}",
            "study.yaml:15: search.space.loss.sobel.when.batch_size: batch_size is never 2.5 in this search",
        ),
        (
            "when: {loss.gradient: [0.0]}", "when: {mirrored: [1]}",
            "loss.sobel is never searched, because mirrored is true in every trial, not 1",
        ),
        (
            "[null, 0.1, 1.0]}", "[null, 0.1]}\n    model.input_pool: {low: 1, high: 4, scale: linear}",
            "study.yaml:11: search.space.model.input_pool: model.input_pool takes 1, 2, 4 alone; write choices: [1, 2",
        ),
        ("densedepth, {", "densdepth, {", "study.yaml:4: reproduce.recipes.0: no recipe densdepth"),
        ("trials: 8", "trials: 8\n  recipe: densdepth", "study.yaml:8: search.recipe: no recipe densdepth (did you"),
        ("claims: {", "claims: {recipe: densdepth, ", "study.yaml:5: claims.recipe: no recipe densdepth (did you mean"),
        ("optim.lr:", "trace:", "study.yaml:9: search.space.trace cannot be searched: it changes no training"),
        (
            "[null, 0.1, 1.0]", "[null, 1, 1.0]",
            "study.yaml:10: search.space.optim.clip_norm.choices: a value is given twice (1 and 1.0 are equal)",
        ),
    ],
)  # fmt: skip
def test_a_wrong_name_or_pair_is_refused(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in TEXT
    with pytest.raises(UserError) as refusal:
        plan_of(tmp_path, TEXT.replace(old, new, 1))
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("assignments", "sentence"),
    [
        (["protocol=densdepth"], "protocol: unknown protocol densdepth (did you mean densedepth?)"),
        (["best_metric=rsme"], "best_metric: unknown metric rsme (did you mean rmse?)"),
        (["protocol=structure"], "protocol: structure yields no rmse"),
        (["best_metric=silog", "protocol=densedepth_repo"], "protocol: densedepth_repo yields no silog"),
        (["data.source=roms"], "data.source: unknown form of the data roms (did you mean rooms?)"),
    ],
)
def test_a_training_alone_refuses_them_too(
    assignments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for one in assignments for word in ("--set", one)]
    assert main(["densedepth", *words, "--out", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err


def test_a_whole_number_among_other_choices_is_the_same_parameter(tmp_path: Path) -> None:
    study = study_of(tmp_path, TEXT.replace("[null, 0.1, 1.0]", "[null, 0.1, 1]"))
    plan = make_plan(study)
    clip = next(d for d in plan.dimensions if d.path == "optim.clip_norm")
    config = flat(plan.trial({"optim.clip_norm": 1}))
    assert clip.choices == (None, 0.1, 1.0) and [type(c) for c in clip.choices] == [type(None), float, float]
    assert fits(plan.dimensions, config)["optim.clip_norm"] == 1.0
    base = flat(plan.trial({}))
    assert read_space(study, base)[1] == clip and not clip.holds(True)


def test_a_mark_says_what_a_setting_is_for() -> None:
    marks = {path: mark_of(TrialConfig, path) for path in flat(load_recipe("densedepth")[0])}
    searchable = {path for path, mark in marks.items() if Mark.SEARCHABLE in mark}
    assert {path for path in searchable if path.startswith("data.")} == {
        "data.subset", "data.order", "data.pairing", "data.crop_border_px", "data.workers",
    }  # fmt: skip
    assert {"optim.lr", "loss.depth", "model.skips.s4", "batch_size", "precision"} <= searchable
    assert {path for path, mark in marks.items() if Mark.BOOKKEEPING in mark} == {
        "seed", "trace", "variant", "best_metric", "protocol", "checkpoint_every_images", "snapshot_every_steps",
        "validate_structure", "data.workers", "data.cache", "data.cache_gb", "data.root",
    }  # fmt: skip
    assert Mark.PLACE in marks["data.rooms.train_scenes"] and mark_of(TrialConfig, "data.source") == Mark.FIXED
    free = {name for name in StudyConfig.model_fields if Mark.BOOKKEEPING in mark_of(StudyConfig, name)}
    assert free == {"resources", "tracking", "reproduce", "confirm", "budget", "notify"}
    assert Mark.BOOKKEEPING in mark_of(StudyConfig, "search.trials")
    assert Mark.BOOKKEEPING not in mark_of(StudyConfig, "search.sampler")
