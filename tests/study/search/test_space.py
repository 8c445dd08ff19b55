"""The search space: what each dimension moves, and the pruner's unit."""

from __future__ import annotations

from pathlib import Path

import pytest

from study import preflight
from study.contract import Layout
from study.ledger import Ledger
from study.search.space import make_pruner
from tests.study.test_config import TEXT, plan_of, study_of
from trainables.runtime.errors import UserError
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


def test_choices_that_are_added_to_a_study_that_has_begun_are_refused(tmp_path: Path) -> None:
    """Optuna cannot keep two lists of choices of one setting; another study's trials can be started from."""
    changed = TEXT.replace("choices: [null, 0.1, 1.0]", "choices: [null, 0.1, 1.0, 5.0]")
    assert changed != TEXT
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    plan = plan_of(tmp_path)
    ledger = Ledger(layout, None, plan.study.judge)
    assert preflight.record(ledger.store, plan, {}, {}) == []
    ledger.add(plan.reproduce[0], (), {})
    with pytest.raises(UserError, match=r"optim\.clip_norm\.choices is .*5\.0\], but the study began with .*1\.0\]"):
        preflight.record(ledger.store, plan_of(tmp_path, changed), {}, {})
    ledger.store.close()
