"""Proposals of a search: what they depend on, what Optuna would draw, and what an earlier study teaches."""

from __future__ import annotations

import copy
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from study.contract import Layout, StudyAttr
from study.ledger import Ledger
from study.methods import STARTUP_TRIALS
from study.search.propose import propose
from study.search.space import fits, label
from study.session import Session
from tests.study.conftest import STUDY
from tests.study.test_config import TEXT, plan_of
from trainables.message import Message
from trainables.runtime.errors import UserError
from trainables.settings.config import flat


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
    tried: list[Any] = []
    for number in range(9):
        point = propose(
            search, plan.dimensions, base, [None] * number, seed=0, directions=["minimize"],  # type: ignore[list-item]
            wanted=lambda settings: settings not in tried,
        )  # fmt: skip
        tried.append(point)
    assert tried[0] == {} and len({str(p) for p in tried[1:7]}) == 6 and tried[7:] == [None, None]
    sobol = search.model_copy(update={"sampler": "quasi_random"})
    drawn = [propose(sobol, plan.dimensions, base, [None] * n, seed=0, directions=["minimize"]) for n in range(1, 9)]  # type: ignore[list-item]
    assert [sum(p["batch_size"] == b for p in drawn if p) for b in (2, 4)] == [4, 4]


def test_a_search_starts_from_an_earlier_ones_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty complete trials say that a small lr is best: the sampler proposes one where it knew nothing before."""
    monkeypatch.chdir(tmp_path)
    text = STUDY.replace("trials: 6", "trials: 40\n  sampler: random")
    plan = plan_of(tmp_path, text)
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    ledger = Ledger(layout, None, plan.study.judge)
    ledger.store.set_attributes({StudyAttr.JUDGE: {"metric": "rmse"}})
    session = Session(plan, ledger, [], lambda: 1, lambda: 0)
    while isinstance(session.next("w"), dict):
        entry = session.live.pop("w").entry
        ledger.report(entry, 100, abs(math.log10(entry.config["optim"]["lr"]) + 4.5))
        session.endings.finish(entry, Message("complete"))
    proposed = {}
    for warm in ("null", "tiny"):
        other = plan_of(tmp_path, text.replace("sampler: random", f"sampler: tpe\n  warm_start: {warm}"))
        assert other.search_base is not None and len(other.earlier) == (40 if warm == "tiny" else 0)
        base, search = flat(other.search_base), other.study.config.search
        drawn = [
            propose(
                search,
                other.dimensions,
                base,
                ledger.store.frozen("search")[:1],
                other.earlier,
                seed=s,
                directions=["minimize"],
            )
            for s in range(9)
        ]
        proposed[warm] = [abs(math.log10(d["optim.lr"]) + 4.5) for d in drawn if d]
    assert statistics.median(proposed["tiny"]) < 0.5 < statistics.median(proposed["null"])
    for change, sentence in (
        ("sampler: random\n  warm_start: tiny", "random learns nothing from trials"),
        ("sampler: tpe\n  warm_start: nowhere", "there is no ledger in nowhere"),
    ):
        with pytest.raises(UserError, match=sentence):
            plan_of(tmp_path, text.replace("sampler: random", change))
    narrower = text.replace("sampler: random", "sampler: tpe\n  warm_start: tiny").replace("low: 1e-5", "low: 1e-6")
    with pytest.raises(UserError, match=r"searched optim\.lr over .* make them equal"):
        plan_of(tmp_path, narrower)
