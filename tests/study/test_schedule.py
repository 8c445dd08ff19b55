"""Which training comes next: within the budget, and after a search that was extended."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis import runs
from study.compose import Planned
from study.contract import Layout, Outcome, StudyAttr
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


def searched(
    tmp_path: Path, space: str, trials: int, sampler: str, *, limit: int | None = None, more: str = ""
) -> Ledger:
    """A search to its end, one training at a time; `limit`: a larger batch runs out of memory."""
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True, exist_ok=True)
    text = STUDY[: STUDY.index("  trials: 6")] + f"  trials: {trials}\n  sampler: {sampler}\n  space: {space}\n{more}"
    plan = plan_of(tmp_path, text)
    ledger = Ledger(layout, None, plan.study.judge)
    ledger.store.set_attributes({StudyAttr.STUDY: plan.study.resolved})
    session = Session(plan, ledger, [], lambda: 1, lambda: 0)
    while isinstance(session.next("w"), dict):
        entry = session.live["w"].entry
        if limit is not None and entry.batch_size > limit:
            session.take("w", Message("out_of_memory", reason="no memory left"))
            session.ended("w", error=True, detail="")
            continue
        value = entry.batch_size + (entry.config["optim"]["clip_norm"] or 0)
        session.take("w", Message("report", report={"images": 100, "metrics": {"val/rmse": value}, "final": True}))
        session.ended("w", error=False, detail="")
    ledger.store.close()
    return ledger


SIX = "{batch_size: {choices: [2, 8]}, optim.clip_norm: {choices: [null, 0.1, 1]}}"


@pytest.mark.parametrize("trials", [6, 40])
@pytest.mark.parametrize("sampler", ["grid", "random", "tpe", "gp", "quasi_random"])
def test_no_training_is_repeated_and_none_is_left_out(tmp_path: Path, sampler: str, trials: int) -> None:
    """The recipe's own setting, batch 8 and never clipped, is one of the six."""
    ledger = searched(tmp_path, SIX, trials, sampler, more="confirm: {top: 2, seeds: 2}\n")
    found = [(e.batch_size, e.config["optim"]["clip_norm"]) for e in ledger.entries["search"]]
    assert len(found) == 6 == len(set(found)) and found[0] == (8, None)
    assert {type(clip) for _, clip in found} == {type(None), float}
    assert [set(t.params) for t in ledger.store.frozen("search")] == 6 * [{"batch_size", "optim.clip_norm"}]
    assert [e.group for e in ledger.entries["confirm"]] == [
        f"search-{found.index(best):04d}" for best in ((2, None), (2, 0.1)) for _ in range(2)
    ]
    assert runs.load(ledger.layout.root).unfinished() == []


def test_a_training_that_an_earlier_version_repeated_is_confirmed_once(tmp_path: Path) -> None:
    ledger = searched(tmp_path, SIX, 6, "random")
    plan = plan_of(tmp_path, (tmp_path / "study.yaml").read_text() + "confirm: {top: 2, seeds: 1}\n")
    again = Ledger(ledger.layout, None, plan.study.judge)
    best = next(e for e in again.entries["search"] if e.value == 2.0)
    twin = again.add(Planned("search", "search-0006", best.training(), None), (), {})
    again.report(twin, 100, 2.0)
    again.finish(twin, Outcome.COMPLETE)
    session = Session(plan, again, [], lambda: 9, lambda: 0)
    specs = [session.next(worker) for worker in "abc"]
    assert [isinstance(spec, dict) for spec in specs] == [True, True, False]
    assert [e.group for e in again.entries["confirm"]] == [
        best.key,
        next(e.key for e in again.entries["search"] if e.value == 2.1),
    ]


@pytest.mark.parametrize("sampler", ["random", "tpe", "grid", "quasi_random"])
def test_what_needs_as_much_memory_as_what_ran_out_is_not_tried(tmp_path: Path, sampler: str) -> None:
    """The recipe's own batch of 8 fits, 16 does not: neither 32 nor 64 is begun once any has run out of memory."""
    space = "{batch_size: {choices: [4, 16, 32, 64]}, optim.clip_norm: {choices: [null, 0.1]}}"
    ledger = searched(tmp_path, space, 9, sampler, limit=8)
    begun = [e.batch_size for e in ledger.entries["search"]]
    failed = [size for size in begun if size > 8]
    assert begun.count(4) == 2 and failed == sorted(set(failed), reverse=True)
    if sampler == "grid":
        assert begun == [8, 4, 4, 16]


def test_settings_that_do_not_go_together_are_drawn_again(tmp_path: Path) -> None:
    terms = ", ".join(f"loss.{name}: {{choices: [0, 1]}}" for name in ("depth", "gradient", "ssim"))
    ledger = searched(tmp_path, f"{{{terms}, optim.lr: {{low: 1e-5, high: 1e-3, scale: log}}}}", 30, "random")
    losses = [e.config["loss"] for e in ledger.entries["search"]]
    assert len(losses) == 30 and all(any(weight > 0 for weight in loss.values()) for loss in losses)
