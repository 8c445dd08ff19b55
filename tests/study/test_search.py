"""A session over its ledger, without Ray: what a new driver makes of what a killed one left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study.contract import Layout, Outcome
from study.ledger import Ledger
from study.search import FINISHED, Session
from study.space import make_pruner
from tests.study.conftest import STUDY
from tests.study.test_config import plan_of

KINDS = ("successive_halving", "hyperband", "median")


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_pruner_gave_up_stays_given_up_after_a_kill(tmp_path: Path, kind: str) -> None:
    """A driver killed between the pruner's answer and the outcome: the next one ends the training instead of starting
    it, and goes on with one that was let through.
    """
    plan = plan_of(
        tmp_path, STUDY.replace("trials: 6", "trials: 8").replace("kind: successive_halving", f"kind: {kind}")
    )
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)

    def session() -> Session:
        ledger = Ledger(layout, None, plan.study.judge, make_pruner(plan.study))
        return Session(plan, ledger, [], lambda: 9, lambda: 0)

    killed = session()
    values = [3.0, 2.0, 2.5, 4.0, 5.0, 6.0, 0.5, 9.0]
    answers = []
    for number, value in enumerate(values):
        assert isinstance(killed.next(str(number)), dict)
        entry = killed.live[str(number)].entry
        assert killed.ledger.report(entry, 20, value)
        answers.append(killed.ledger.should_prune(entry))
        if number < 6:
            killed._finish(entry, {"outcome": Outcome.PRUNED if answers[-1] else Outcome.COMPLETE}, None)
    assert answers[6:] == [False, True]
    killed.ledger.close()

    resumed = session()
    spec = resumed.next("again")
    assert isinstance(spec, dict) and Path(spec["folder"]).name == "search-0006"
    assert resumed.next("none is left") is None and resumed.stopping is False
    last = resumed.ledger.entries["search"][7]
    assert (last.outcome, last.reason) == (Outcome.PRUNED, "stopped early by the pruner after 20 images")
    report = {"images": 100, "metrics": {"val/rmse": 0.4}, "final": True}
    assert resumed.result("again", {"report": json.dumps(report)})
    resumed.ended("again", error=False, detail="", result={})
    assert resumed.next("the end") == FINISHED
    assert [e.outcome for e in resumed.ledger.entries["search"]][6:] == [Outcome.COMPLETE, Outcome.PRUNED]
