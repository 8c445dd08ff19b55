"""A study's settings: what is refused, in one sentence with file, line and key, before anything starts."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

from study.compose import seed_of
from study.config import Study, load_study
from study.plan import Plan, make_plan
from study.propose import propose
from study.space import STARTUP_TRIALS, fits, label, make_pruner, read_space
from trainables.runtime.errors import UserError
from trainables.settings.config import flat

TEXT = """\
name: tiny
data: {source: rooms}
trial: {model.weights: null, model.encoder: densenet121, threads: 1, budget_images: 100}
reproduce: {recipes: [densedepth, {michigan: {batch_size: 2}}], seeds: 2}
claims: {test: [{id: gradient, statement: It matters., a: {loss.gradient: 0.0}}], seeds: 2}
search:
  trials: 8
  space:
    optim.lr: {low: 1e-5, high: 1e-2, scale: log}
    optim.clip_norm: {choices: [null, 0.1, 1.0]}
    batch_size: {low: 2, high: 16, scale: log}
    input: {choices: [[96, 128], [64, 96]]}
    model.skips.s4: {choices: [post_pool, pre_pool, none]}
    loss.gradient: {choices: [0.0, 1.0]}
    loss.sobel: {low: 0.1, high: 1.0, scale: linear, when: {loss.gradient: [0.0]}}
confirm: {top: 2, seeds: 2}
"""


def study_of(tmp_path: Path, text: str = TEXT, *assignments: str) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return load_study(path, list(assignments))


def plan_of(tmp_path: Path, text: str = TEXT, *assignments: str) -> Plan:
    return make_plan(study_of(tmp_path, text, *assignments))


def test_layers_compose_in_order(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    michigan = [p.config for p in plan.reproduce if p.config.recipe == "michigan"]
    assert [c.batch_size for c in michigan] == [2, 2] and [c.seed for c in michigan] == [0, 1]
    assert {c.model.encoder for c in plan.configs} == {"densenet121"}
    assert plan.search_base is not None and plan.search_base.best_metric == "rmse"
    seeds = {name: {p.config.seed for p in getattr(plan, name)} for name in ("reproduce", "claims")}
    seeds["search"] = {plan.search_base.seed}
    seeds["confirm"] = {seed_of(plan.study, "confirm", index) for index in range(2)}
    assert len(set.union(*seeds.values())) == sum(len(s) for s in seeds.values())
    assert [p.origin for p in plan.claims] == [[{"claim": "gradient", "arm": arm}] for arm in "abab"]


def test_relative_depth_is_validated_after_fitting_it(tmp_path: Path) -> None:
    text = TEXT.replace("model.encoder: densenet121, ", "").replace("[densedepth, {", "[densedepth, relative_unet, {")
    plan = plan_of(tmp_path, text)
    found = {p.config.recipe: p.config.protocol for p in plan.reproduce}
    assert found == {"densedepth": "densedepth", "relative_unet": "densedepth_affine", "michigan": "densedepth"}


def test_each_dimension_moves_only_what_it_names(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    base = flat(plan.trial({}))
    for dimension in plan.dimensions:
        values = [flat(plan.trial({dimension.path: value})) for value in dimension.extremes()]
        moved = {path for one in values for path in one if one[path] != base.get(path)}
        assert moved == {dimension.path}, dimension.path
        assert len({str(one[dimension.path]) for one in values}) == len(values)


def test_proposals_are_valid_and_depend_on_number_and_history_alone(tmp_path: Path) -> None:
    import optuna

    for sampler in ("tpe", "random"):
        plan = plan_of(tmp_path, TEXT, f"search.sampler={sampler}")
        assert plan.search_base is not None
        base, search = flat(plan.search_base), plan.study.config.search
        history: list[optuna.trial.FrozenTrial] = []
        conditional = set()
        for number in range(16):
            drawn = [propose(search, plan.dimensions, base, history, seed=3, directions=["minimize"]) for _ in range(2)]
            assert drawn[0] == drawn[1] is not None
            config = flat(plan.trial(drawn[0]))
            conditional.add(("loss.sobel" in drawn[0], config["loss.gradient"] == 0.0))
            params = fits(plan.dimensions, config)
            spaces = {d.path: d.distribution() for d in plan.dimensions if d.path in params}
            labels = {path: label(value) for path, value in params.items()}
            made = optuna.trial.create_trial(params=labels, distributions=spaces, value=float(number % 5))
            made.number = number
            history.append(made)
        assert propose(search, plan.dimensions, base, [], seed=3, directions=["minimize"]) == {}
        assert (True, False) not in conditional and (True, True) in conditional


@pytest.mark.parametrize("warm", [0, 7])
def test_a_proposal_is_what_optuna_draws_of_a_study_that_holds_the_trials(tmp_path: Path, warm: int) -> None:
    import optuna

    plan = plan_of(tmp_path, TEXT)
    assert plan.search_base is not None
    base, random = flat(plan.search_base), plan.study.config.search.model_copy(update={"sampler": "random"})
    trials: list[optuna.trial.FrozenTrial] = []
    for number in range(40):
        settings = propose(random, plan.dimensions, base, [None] * number, seed=5, directions=["minimize"])  # type: ignore[list-item]
        assert settings is not None
        params = fits(plan.dimensions, flat(plan.trial(settings)))
        spaces = {d.path: d.distribution() for d in plan.dimensions if d.path in params}
        state = optuna.trial.TrialState.RUNNING if number == 38 else optuna.trial.TrialState.COMPLETE
        value = None if number == 38 else float(number * 7 % 11)
        labels = {path: label(chosen) for path, chosen in params.items()}
        trials.append(optuna.trial.create_trial(state=state, params=labels, distributions=spaces, value=value))
        trials[-1].number = number if number < warm else number - warm
    history, before = trials[warm:], copy.deepcopy(trials)
    drawn = propose(
        plan.study.config.search, plan.dimensions, base, history, trials[:warm], seed=3, directions=["minimize"]
    )
    seed = int(np.random.SeedSequence((3, len(history))).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    study.add_trials(trials)
    asked, settings = study.ask(), dict(base)
    for dimension in plan.dimensions:
        if dimension.active(settings):
            settings[dimension.path] = dimension.value(asked._suggest(dimension.path, dimension.distribution()))
    assert drawn is not None and settings == base | drawn
    assert trials == before


def test_grid_and_quasi_random_cover_the_space(tmp_path: Path) -> None:
    text = TEXT.split("search:")[0] + (
        "search:\n  trials: 9\n  sampler: grid\n"
        "  space: {batch_size: {choices: [2, 4]}, optim.clip_norm: {choices: [null, 0.1, 1.0]}}\n"
    )
    plan = plan_of(tmp_path, text)
    assert plan.search_base is not None
    base, search = flat(plan.search_base), plan.study.config.search
    points = [propose(search, plan.dimensions, base, [None] * n, seed=0, directions=["minimize"]) for n in range(9)]  # type: ignore[list-item]
    assert points[0] == {} and len({str(p) for p in points[1:7]}) == 6 and points[7:] == [None, None]
    sobol = search.model_copy(update={"sampler": "quasi_random"})
    drawn = [propose(sobol, plan.dimensions, base, [None] * n, seed=0, directions=["minimize"]) for n in range(1, 9)]  # type: ignore[list-item]
    assert [sum(p["batch_size"] == b for p in drawn if p) for b in (2, 4)] == [4, 4]


def test_pruner_counts_images(tmp_path: Path) -> None:
    import optuna

    study = study_of(tmp_path, TEXT, "search.pruner.kind=successive_halving", "search.pruner.min_images=30")
    pruner = make_pruner(study)
    assert isinstance(pruner, optuna.pruners.SuccessiveHalvingPruner) and pruner._min_resource == 30


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("trials: 8", "trails: 8", "study.yaml:7: search.trails is not a setting (did you mean trials?)"),
        ("trials: 8", "trials: many", "study.yaml:7: search.trials: input should be a valid integer"),
        ("trials: 8", "trials: -1", "study.yaml:7: search.trials: input should be greater than or equal to 0"),
        ("name: tiny", "name: ../up", "study.yaml:1: name: a name is letters"),
        ("name: tiny", "seed: 3", "name is missing"),
        ("threads: 1", "threads: 0", "study.yaml:3: trial.threads: input should be greater"),
        ("threads: 1", "thread: 1", "study.yaml:3: trial.thread: no setting thread (did you mean threads?)"),
        (
            "{source: rooms}",
            "{source: roms}",
            "study.yaml:2: data.source: unknown form of the data roms (did you mean rooms?); write eigen, h5, kaggle, "
            "labeled or rooms",
        ),
        ("densedepth, {", "densdepth, {", "no recipe densdepth (did you mean densedepth?)"),
        ("batch_size: 2}", "batch_size: 0}", "study.yaml:4: reproduce.recipes.1.michigan.batch_size"),
        (
            "{loss.gradient: 0.0}",
            "{loss.gradient: 1.0}",
            "study.yaml:5: claims.test.0: the arms of gradient train the same",
        ),
        ("low: 1e-5", "low: 1e-1", "study.yaml:9: search.space.optim.lr.low: low (0.1) must be below high (0.01)"),
        ("low: 1e-5", "low: 0", "study.yaml:9: search.space.optim.lr.low: a log range starts above 0"),
        ("low: 1e-5", "low: nan", "study.yaml:9: search.space.optim.lr.low: write a finite number, not 'nan'"),
        ("scale: log}\n    optim", "scale: ln}\n    optim", "search.space.optim.lr.scale: write linear or log"),
        ("[null, 0.1, 1.0]", "[]", "study.yaml:10: search.space.optim.clip_norm.choices: write a list"),
        ("[null, 0.1, 1.0]", "[null, 0.1, 0.1]", "a value is given twice"),
        ("[null, 0.1, 1.0]", "[null, -0.1]", "study.yaml:10: search.space.optim.clip_norm: input should be greater"),
        ("optim.lr:", "optim.lrr:", "study.yaml:9: search.space.optim.lrr names no setting (did you mean optim.lr?)"),
        ("optim.lr:", "optim:", "study.yaml:9: search.space.optim is a group of settings"),
        ("optim.lr:", "seed:", "study.yaml:9: search.space.seed cannot be searched"),
        ("model.skips.s4: {choices: [post_pool,", "model.skips.s2: {choices: [deep,", "search.space.model.skips.s2"),
        (
            "model.skips.s4: {choices: [post_pool, pre_pool,",
            "model.skips.s32: {choices: [pre_pool,",
            "has no pre_pool tap",
        ),
        ("when: {loss.gradient: [0.0]}", "when: {loss.sobel: [0.0]}", "cannot depend on itself"),
        ("trials: 8", "trials: 8\n  sampler: grid", "study.yaml:8: search.sampler: a grid needs choices"),
        ("trials: 8", "trials: 8\n  sampler: gp", "gp cannot search loss.sobel, which has `when`"),
        (
            "trials: 8",
            "trials: 8\n  objectives: [device_seconds, rmse]",
            "study.yaml:8: search.objectives: write [rmse, device_seconds], or null for rmse alone",
        ),
        (
            "trials: 8",
            "trials: 8\n  objectives: [rmse, device_seconds]\n  pruner: {kind: median}",
            "study.yaml:9: search.pruner.kind: median cannot weigh two objectives; use none",
        ),
        ("trials: 8", "trials: 0", "study.yaml:16: confirm.top: there is no search to confirm"),
        (
            "confirm:",
            "judge: {metric: mse}\nconfirm:",
            "study.yaml:16: judge.metric: unknown metric mse (did you mean rmse?)",
        ),
        (
            "confirm:",
            "resources: {gpus_per_trial: -1}\nconfirm:",
            "study.yaml:16: resources.gpus_per_trial: write auto",
        ),
        ("confirm:", "tracking: {uri: file:///x}\nconfirm:", "study.yaml:16: tracking.uri: write sqlite:///FILE"),
        ("name: tiny", "name: tiny\nname: two", "study.yaml:2: the key name is given twice"),
        ("name: tiny", "name: !!python/object:os.system x", "is not allowed"),
        ("name: tiny", "name: &a tiny", "anchors and aliases"),
        ("name: tiny", "name:\ttiny\n\tx", "is not valid YAML"),
    ],
)
def test_refused_with_file_line_and_key(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in TEXT
    with pytest.raises(UserError) as refusal:
        plan_of(tmp_path, TEXT.replace(old, new, 1))
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("serch.trials=3", "--set serch.trials: no setting serch.trials (did you mean search?)"),
        ("search.trials=x", "--set search.trials: input should be a valid integer"),
        ("search.trials", "write PATH=VALUE"),
        ("trial.threads.a=1", "trial.threads is a value"),
        ("search.space.optim.lr.low=1", "--set search.space.optim.lr.low: low (1) must be below"),
        ("trial.model={encoder: vgg16}", None),
    ],
)
def test_set_takes_the_longest_existing_key(tmp_path: Path, assignment: str, sentence: str | None) -> None:
    if sentence is None:  # now model > encoder and model.encoder both exist
        with pytest.raises(UserError, match="could mean"):
            study_of(
                tmp_path, TEXT.replace("threads: 1", "threads: 1, model: {encoder: vgg16}"), "trial.model.encoder=x"
            )
        return
    with pytest.raises(UserError) as refusal:
        plan_of(tmp_path, TEXT, assignment)
    assert sentence in str(refusal.value)


def test_set_reaches_into_the_space(tmp_path: Path) -> None:
    study = study_of(tmp_path, TEXT, "search.space.optim.lr.low=1e-4", "data.rooms.train_scenes=3")
    lr = next(d for d in read_space(study, flat(make_plan(study).configs[-1])) if d.path == "optim.lr")
    assert lr.low == 1e-4
    assert make_plan(study).configs[0].data.rooms.train_scenes == 3
