"""Which checkpoints stay when trainings have ended."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from study.contract import Layout, Outcome
from study.endings import sweep
from study.ledger import Ledger
from study.session import Session
from tests.study.test_config import plan_of
from trainables.message import Kind, Message

TEXT = """\
name: tiny
data: {source: rooms}
trial: {model.weights: null, threads: 1, budget_images: 100}
reproduce: {recipes: [densedepth, psiml_unet], seeds: 1}
search: {trials: 5, space: {optim.lr: {low: 1e-5, high: 1e-2, scale: log}}}
confirm: {top: 2, seeds: 1}
"""


def test_what_judge_stages_and_replay_need_stays_and_nothing_else(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TEXT)
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    ledger = Ledger(layout, None, plan.study.judge)
    session = Session(plan, ledger, [], lambda: 99, lambda: 0)
    values = {"reproduce-0000": 1.0, "reproduce-0001": 1.0, "search-0000": 3.0, "search-0001": 1.0, "search-0002": 2.0,
              "search-0003": 0.5, "search-0004": 0.1}  # fmt: skip
    ends = {"search-0003": Outcome.PRUNED, "search-0004": None}
    for number in range(len(values)):
        assert isinstance(session.next(str(number)), dict)
    entered = {live.entry.key: live.entry for live in session.live.values()}
    assert entered.keys() == values.keys()
    for key, entry in entered.items():
        for part in ("latest", "best", "spikes/step-3"):
            (layout.trial(key) / "checkpoints" / part).mkdir(parents=True)
        ledger.report(entry, 100, values[key])
        outcome = ends.get(key, Outcome.COMPLETE)
        if outcome is not None:
            session.endings.finish(entry, Message(cast(Kind, outcome.value)))
    sweep(ledger, plan)
    left = {p.parent.parent.name + " " + p.name for p in layout.trials.glob("*/checkpoints/*") if p.name != "spikes"}
    assert left == {
        "reproduce-0000 best", "reproduce-0001 best", "search-0001 best", "search-0002 best", "search-0004 best",
        "search-0004 latest",
    }  # fmt: skip
    assert len(list(layout.trials.glob("*/checkpoints/spikes/step-3"))) == len(values)
