"""Plan of a study: what it would leave out is refused, and nothing is planned twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.compose import compose
from study.plan import make_plan, trained
from study.search.propose import points
from tests.study.test_config import TEXT, plan_of, study_of
from trainables.runtime.errors import UserError
from trainables.settings.config import as_dict, flat

SPACE = TEXT[TEXT.index("  space:") : TEXT.index("confirm:")]
CHOICES = TEXT.replace(SPACE, "  space: {batch_size: {choices: [2, 8]}, optim.clip_norm: {choices: [null, 0.1, 1]}}\n")
GRID = CHOICES.replace("trials: 8", "trials: 8\n  sampler: grid")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "trials: 8", "trials: 1\n  first: [{optim.lr: 1e-3}]",
            "study.yaml:8: search.first: 1 settings come after the recipe's own, and search.trials is 1; raise it to 2",
        ),
        (
            "trials: 8", "trials: 8\n  first: [{optim.lr: 1e-4}]",
            "study.yaml:8: search.first.0 trains the same as the recipe's own setting, which comes before it; remove",
        ),
        (
            "trials: 8", "trials: 8\n  first: [{optim.lr: 1e-3}, {optim.lr: 0.001, loss.normal: 0}]",
            "study.yaml:8: search.first.1 trains the same as search.first.0",
        ),
        ("top: 2", "top: 9", "study.yaml:16: confirm.top: there are no 9 among 8 trials; lower it, or raise search"),
        (
            "trials: 8", "trials: 8\n  pruner: {kind: median, min_images: 100}",
            "study.yaml:8: search.pruner.min_images: trials end at budget_images, 100, so none would be stopped early "
            "after 100; lower it, or write search.pruner.kind: none",
        ),
    ],
)  # fmt: skip
def test_what_would_be_left_out_is_refused(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in TEXT
    with pytest.raises(UserError) as refusal:
        plan_of(tmp_path, TEXT.replace(old, new, 1))
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)


def test_settings_to_try_may_be_the_whole_search(tmp_path: Path) -> None:
    text = TEXT.replace(SPACE, "  first: [{optim.lr: 1e-3}, {optim.lr: 1e-2}]\n").replace("trials: 8", "trials: 3")
    assert plan_of(tmp_path, text).counts["search"] == 3
    with pytest.raises(UserError, match=r"search\.space is empty"):
        plan_of(tmp_path, text.replace("trials: 3", "trials: 4"))


def test_no_more_trials_are_planned_than_there_are_settings(tmp_path: Path) -> None:
    """Six points, one of them the recipe's own setting: batch_size 8, never clipped."""
    for sampler, trials in (("tpe", 20), ("random", 6), ("grid", 6), ("grid", 20)):
        plan = plan_of(tmp_path, GRID.replace("trials: 8\n  sampler: grid", f"trials: {trials}\n  sampler: {sampler}"))
        assert plan.counts["search"] == 6, (sampler, trials)
    assert plan_of(tmp_path, CHOICES.replace("trials: 8", "trials: 4")).counts["search"] == 4
    outside = GRID.replace("[2, 8]", "[2, 4]")  # the recipe's own setting is a seventh
    assert plan_of(tmp_path, outside).counts["search"] == 7
    with pytest.raises(UserError) as refusal:
        plan_of(tmp_path, outside.replace("trials: 8", "trials: 6"))
    assert str(refusal.value).endswith(
        "study.yaml:7: search.trials: the grid has 6 points and the recipe's own setting before them, so 6 trials "
        "leave some out; write 7, or use random"
    )
    assert plan_of(tmp_path, TEXT.replace("trials: 8", "trials: 4000")).counts["search"] == 4000  # ranges have no end
    with pytest.raises(UserError, match=r"confirm\.top: there are no 2 among 1 trials"):
        plan_of(tmp_path, CHOICES.replace("[2, 8]", "[8]").replace("[null, 0.1, 1]", "[null]"))


def test_settings_that_do_not_go_together_are_no_trials(tmp_path: Path) -> None:
    """Three terms that are each searched with a weight of 0: all at 0 nothing is left to learn from."""
    terms = "".join(f"    loss.{name}: {{choices: [0, 1]}}\n" for name in ("depth", "gradient", "ssim"))
    plan = plan_of(tmp_path, TEXT.replace(SPACE, f"  space:\n{terms}"))
    assert plan.trainable({"loss.depth": 0, "loss.gradient": 0, "loss.ssim": 0}) is None
    assert plan.counts["search"] == 8  # seven, and the recipe's own, whose weight of depth is 0.1
    lacks = {"model.encoder": "vgg16", "model.bottleneck": "last_layer_input"}
    assert plan.trainable(lacks) is None and plan.trainable({"model.encoder": "vgg16"}) is not None


def test_points_are_every_combination_once(tmp_path: Path) -> None:
    space = """  space:
    batch_size: {low: 2, high: 4, scale: linear}
    optim.schedule: {choices: [constant, step]}
    optim.step.at: {choices: [0.2, 0.5], when: {optim.schedule: [step]}}
"""
    plan = plan_of(tmp_path, TEXT.replace(SPACE, space))
    assert plan.search_base is not None
    found = list(points(plan.dimensions, flat(plan.search_base)))
    assert len(found) == 9 == len({str(p) for p in found})
    assert all(("optim.step.at" in p) == (p["optim.schedule"] == "step") for p in found)
    assert {p["batch_size"] for p in found} == {2, 3, 4}


def test_equal_trainings_have_one_digest(tmp_path: Path) -> None:
    study = study_of(tmp_path)

    def digest(**settings: object) -> str:
        (config,) = compose(study, "densedepth", settings, study.within(""), 0)
        return trained(as_dict(config))

    assert digest() == digest(**{"optim.lr": 1e-4, "loss.normal": 0.0})
    assert len({digest(), digest(**{"optim.lr": 1e-3}), digest(**{"loss.normal": 1.0}), digest(mirrored=False)}) == 4


def test_what_ran_out_of_memory_rules_out_what_needs_as_much(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    ran_out = [plan.trial({"batch_size": 8})]
    for settings, starved in (
        ({"batch_size": 8}, True), ({"batch_size": 16}, True), ({"batch_size": 8, "optim.lr": 1e-3}, True),
        ({"batch_size": 4}, False), ({"batch_size": 16, "input": [64, 96]}, False),
        ({"batch_size": 16, "model.encoder": "resnet50"}, False), ({"batch_size": 16, "model.width": 0.5}, False),
    ):  # fmt: skip
        assert plan.starved(plan.trial(settings), ran_out) is starved, settings
    assert not plan.starved(plan.trial({"batch_size": 16}), [])
    alone = plan_of(tmp_path, TEXT.replace(SPACE, "  space: {optim.lr: {low: 1e-5, high: 1e-2, scale: log}}\n"))
    assert not alone.starved(alone.trial({}), [alone.trial({})])  # another one took the memory: all need as much


@pytest.mark.parametrize("where", ["trial", "reproduce", "claims", "search"])
def test_a_start_that_cannot_be_is_refused(tmp_path: Path, where: str) -> None:
    changed = {
        "trial": ("threads: 1", "threads: 1, start_from: {}"),
        "reproduce": ("batch_size: 2}", "batch_size: 2, start_from: {}}}"),
        "claims": ("{loss.gradient: 0.0}", "{{loss.gradient: 0.0, start_from: {}}}"),
        "search": ("trials: 8", "trials: 8\n  first: [{{start_from: {}}}]"),
    }[where]
    for start, sentence in (
        ("previous_stage", "start_from: the first stage has none before it; name a checkpoint folder, or use null"),
        (str(tmp_path / "nowhere"), "nowhere: no such checkpoint folder; name one that a training wrote"),
    ):
        text = TEXT.replace(changed[0], changed[1].format(start) if "{}" in changed[1] else changed[1])
        with pytest.raises(UserError) as refusal:
            make_plan(study_of(tmp_path, text))
        assert sentence in str(refusal.value) and "study.yaml" in str(refusal.value)
