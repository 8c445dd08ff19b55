"""Which training comes next: within the budget, and after a search that was extended."""

from __future__ import annotations

from pathlib import Path

from analysis import runs
from study.contract import Layout, StudyAttr
from study.ledger import Ledger
from study.schedule import limits
from study.session import FINISHED, Session
from tests.study.conftest import STUDY
from tests.study.test_config import plan_of
from trainables.message import Message


def test_a_spent_budget_begins_nothing_more_and_a_raised_one_goes_on(tmp_path: Path) -> None:
    """Images counted over all phases; what runs is finished. The study has not ended, and its reader is told why."""
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)

    def session(images: int) -> Session:
        plan = plan_of(tmp_path, STUDY + f"budget: {{images: {images}}}\n")
        ledger = Ledger(layout, None, plan.study.judge)
        ledger.store.set_attributes({StudyAttr.STUDY: plan.study.resolved})
        return Session(plan, ledger, [], lambda: 2, lambda: 0, limits(plan.study.config.budget, ledger, 1.0))

    def end(running: Session, worker: str) -> None:
        report = {"images": 100, "metrics": {"val/rmse": 1.0}, "final": True}
        assert running.take(worker, Message("report", report=report))
        running.ended(worker, error=False, detail="")

    first = session(150)
    assert isinstance(first.next("a"), dict) and isinstance(first.next("b"), dict)
    end(first, "a")
    assert isinstance(first.next("c"), dict)  # 100 images of 150 are spent
    end(first, "b")
    assert first.next("d") is None and first.schedule.spent == "budget.images is 150, and 200 are spent"
    end(first, "c")
    assert first.next("d") == FINISHED
    first.ledger.store.close()
    assert runs.load(layout.root).unfinished()[:2] == [
        "its budget is spent (budget.images is 150, and 200 are spent); raise it",
        "search has ended 3 of 6 trainings",
    ]
    raised = session(1000)
    assert isinstance(raised.next("e"), dict) and raised.live["e"].entry.number == 3
    assert runs.load(layout.root).unfinished()[0] == "search has ended 3 of 6 trainings"


def test_old_confirmations_do_not_stand_for_those_of_a_search_that_went_on(tmp_path: Path) -> None:
    """One setting confirmed on two seeds, then a longer search finds a better one: four trainings, not two, are due."""
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    values = iter([1.0, 0.9, 0.8, 0.8, 0.5, 0.6, 0.6])

    def go_on(trials: int, trainings: int) -> Ledger:
        text = STUDY.replace("trials: 6", f"trials: {trials}") + "confirm: {top: 1, seeds: 2}\n"
        plan = plan_of(tmp_path, text)
        ledger = Ledger(layout, None, plan.study.judge)
        ledger.store.set_attributes({StudyAttr.STUDY: plan.study.resolved})
        session = Session(plan, ledger, [], lambda: 1, lambda: 0)
        for _ in range(trainings):
            assert isinstance(session.next("w"), dict)
            entry = session.live.pop("w").entry
            ledger.report(entry, 100, next(values))
            session.endings.finish(entry, Message("complete"))
        ledger.store.close()
        return ledger

    go_on(2, 4)
    assert runs.load(layout.root).unfinished() == []
    go_on(3, 1)
    assert runs.load(layout.root).unfinished() == ["confirm has ended 2 of 4 trainings"]
    go_on(3, 1)
    assert runs.load(layout.root).unfinished() == ["confirm has ended 3 of 4 trainings"]
    assert [e.group for e in go_on(3, 1).entries["confirm"]] == 2 * ["search-0001"] + 2 * ["search-0002"]
    assert runs.load(layout.root).unfinished() == []
