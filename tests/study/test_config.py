"""A study's settings: what is refused, in one sentence with file, line and key, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.config import Study, load_study
from study.plan import Plan, make_plan
from study.search.space import read_space
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
            "study.yaml:2: data.source: unknown form of the data roms (did you mean rooms?); write bts, eigen, h5, "
            "kaggle, labeled, list, marigold, moge, parquet, rooms or unidepth",
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
        (
            "scale: log}\n    optim",
            "log: true}\n    optim",
            "optim.lr.log is not a setting; write low, high and scale (l",
        ),
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
        ("confirm:", "ledger: foo\nconfirm:", "study.yaml:16: ledger: write postgresql://USER@HOST/DATABASE, or null"),
        ("confirm:", "ledger: sqlite:///x\nconfirm:", "study.yaml:16: ledger: write postgresql://USER@HOST"),
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
