"""Trainings composed of recipe, data, trial and overrides."""

from __future__ import annotations

from pathlib import Path

from study.compose import seed_of
from tests.study.test_config import TEXT, plan_of


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
