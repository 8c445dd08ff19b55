"""The search space: what each dimension moves, and the pruner's unit."""

from __future__ import annotations

from pathlib import Path

from study.search.space import make_pruner
from tests.study.test_config import TEXT, plan_of, study_of
from trainables.settings.config import flat


def test_each_dimension_moves_only_what_it_names(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    base = flat(plan.trial({}))
    for dimension in plan.dimensions:
        values = [flat(plan.trial({dimension.path: value})) for value in dimension.extremes()]
        moved = {path for one in values for path in one if one[path] != base.get(path)}
        assert moved == {dimension.path}, dimension.path
        assert len({str(one[dimension.path]) for one in values}) == len(values)


def test_pruner_counts_images(tmp_path: Path) -> None:
    import optuna

    study = study_of(tmp_path, TEXT, "search.pruner.kind=successive_halving", "search.pruner.min_images=30")
    pruner = make_pruner(study)
    assert isinstance(pruner, optuna.pruners.SuccessiveHalvingPruner) and pruner._min_resource == 30
