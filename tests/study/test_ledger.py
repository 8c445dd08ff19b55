"""The ledger: what a new driver makes of what a killed one left in it, the pruner's answers above all."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.compose import Planned
from study.contract import Layout, Outcome
from study.ledger import Entry, Ledger
from study.plan import Plan
from study.session import FINISHED, Session
from tests.study.conftest import STUDY
from tests.study.test_config import plan_of
from trainables.message import Message
from trainables.runtime.errors import UserError

KINDS = ("successive_halving", "hyperband", "median")


def opened(plan: Plan, layout: Layout) -> Session:
    """A session of the study, with room for all trainings at once."""
    return Session(plan, Ledger(layout, None, plan.study.judge), [], lambda: 9, lambda: 0)


def asked_only(session: Session, entry: Entry) -> bool:
    """The pruner's answer, with its notes but not kept, as where the driver is killed in between."""
    store, pruner = session.ledger.store, session.pruning.pruner
    assert pruner is not None
    return pruner.prune(store.studies["search"], store.frozen("search")[entry.number])


@pytest.mark.parametrize("killed_at", ["the outcome", "the answer", "the question"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_pruner_gave_up_stays_given_up_after_a_kill(tmp_path: Path, kind: str, killed_at: str) -> None:
    """A driver killed after the pruner's answer was written, after the pruner has noted the report, or before: the next
    one ends the training instead of starting it, and goes on with one that was let through. Later ones are judged by
    both as without a kill.
    """
    plan = plan_of(
        tmp_path, STUDY.replace("trials: 6", "trials: 8").replace("kind: successive_halving", f"kind: {kind}")
    )
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    killed = opened(plan, layout)
    values = [3.0, 2.0, 2.5, 4.0, 5.0, 6.0, 0.5, 9.0]
    answers = []
    for number, value in enumerate(values):
        assert isinstance(killed.next(str(number)), dict)
        entry = killed.live[str(number)].entry
        assert killed.ledger.report(entry, 20, value)
        if number < 7 or killed_at == "the outcome":
            answers.append(killed.pruning.gives_up(entry))
        else:
            answers.append(killed_at == "the question" or asked_only(killed, entry))
        if number < 6:
            killed.endings.finish(entry, Message("pruned" if answers[-1] else "complete"))
    assert answers[6:] == [False, True]
    killed.ledger.store.close()
    for number in (0, 7):  # killed while one closed and the other wrote
        layout.trial(f"search-{number:04d}").mkdir(parents=True)
        (layout.trial(f"search-{number:04d}") / ".state.json.123.tmp").touch()

    resumed = opened(plan, layout)
    spec = resumed.next("again")
    assert isinstance(spec, dict) and Path(spec["folder"]).name == "search-0006"
    assert resumed.next("none is left") is None and resumed.stop.asked is False
    assert not list(layout.root.rglob("*.tmp"))
    last = resumed.ledger.entries["search"][7]
    assert (last.outcome, last.reason) == (Outcome.PRUNED, "stopped early by the pruner after 20 images")
    assert len(resumed.ledger.store.frozen("search")[7].system_attrs) == (0 if kind == "median" else 1)
    report = {"images": 100, "metrics": {"val/rmse": 0.4}, "final": True}
    assert resumed.take("again", Message("report", report=report))
    resumed.ended("again", error=False, detail="")
    assert resumed.next("the end") == FINISHED
    late = report | {"images": 120, "metrics": {"val/rmse": 0.1}}
    assert not resumed.take("again", Message("report", report=late))  # after its end: ignored
    assert resumed.ledger.entries["search"][6].history == {20: 0.5, 100: 0.4}
    assert [e.outcome for e in resumed.ledger.entries["search"]][6:] == [Outcome.COMPLETE, Outcome.PRUNED]
    for entry, trial in zip(resumed.ledger.entries["search"], resumed.ledger.store.frozen("search"), strict=True):
        assert entry.training() == plan.trial(trial.params)


def test_what_the_pruner_let_through_goes_on_after_a_kill_though_a_better_one_came(tmp_path: Path) -> None:
    """Asked again, it would give up the first, which it has let through when the second was not known."""
    plan = plan_of(tmp_path, STUDY)
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    killed = opened(plan, layout)
    for number, value in enumerate([3.0, 0.5, 0.4]):
        assert isinstance(killed.next(str(number)), dict)
        report = {"images": 20, "metrics": {"val/rmse": value}, "final": False}
        assert killed.take(str(number), Message("report", report=report))
        if not number:
            killed.endings.finish(killed.live.pop("0").entry, Message("complete"))
    killed.ledger.store.close()
    resumed = opened(plan, layout)
    specs = [resumed.next(worker) for worker in ("a", "b")]
    assert [Path(spec["folder"]).name for spec in specs if isinstance(spec, dict)] == ["search-0001", "search-0002"]


def test_a_report_that_crosses_two_rungs_leaves_the_notes_of_an_undisturbed_study(tmp_path: Path) -> None:
    text = STUDY.replace("min_images: 20", "min_images: 6").replace("trials: 6", "trials: 3")
    plan, notes = plan_of(tmp_path, text), []
    for kill in (False, True):
        layout = Layout(tmp_path / f"results{kill}" / "tiny")
        layout.root.mkdir(parents=True)
        session = opened(plan, layout)
        ledger = session.ledger
        for number, value in enumerate([0.1, 0.2, 0.9]):
            session.next(str(number))
            entry = session.live[str(number)].entry
            ledger.report(entry, 20, value)
            if kill and number == 2:
                asked_only(session, entry)
                assert session.pruning.gave_up(entry)
            else:
                session.pruning.gives_up(entry)
        notes.append([t.system_attrs for t in ledger.store.frozen("search")])
        ledger.store.close()
    assert notes[0] == notes[1] and notes[0][2]


def test_notes_of_an_earlier_report_stay_though_its_value_was_the_same(tmp_path: Path) -> None:
    """Killed before the answer on the second rung was kept, a training is judged on that rung again and on no other."""
    plan = plan_of(tmp_path, STUDY)
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    session = opened(plan, layout)
    for number, value in enumerate([0.5, 0.1, 0.1, 0.1]):
        session.next(str(number))
        entry = session.live[str(number)].entry
        session.ledger.report(entry, 20, value)
        assert not session.pruning.gives_up(entry)
    first = session.ledger.entries["search"][0]
    session.ledger.report(first, 60, 0.5)
    assert not asked_only(session, first)
    noted = dict(session.ledger.store.frozen("search")[0].system_attrs)
    assert len(noted) == 2
    session.ledger.store.close()
    resumed = opened(plan, layout)
    assert not resumed.pruning.gave_up(resumed.ledger.entries["search"][0])
    assert resumed.ledger.store.frozen("search")[0].system_attrs == noted


def test_what_is_written_is_read_by_the_next_owner(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, STUDY)
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    ledger = Ledger(layout, None, plan.study.judge)
    entry = ledger.add(Planned("search", "search-0000", plan.trial({"batch_size": 4}), None), (), {})
    ledger.start(entry)
    ledger.set_deaths(entry, 1)
    assert ledger.report(entry, 20, 0.5) and not ledger.report(entry, 20, 0.4)
    ledger.store.set_planned({"search": 6})
    ledger.finish(entry, Outcome.FAILED, reason="planted", summary={"seconds": 2.0})
    ledger.finish(entry, Outcome.COMPLETE)  # it has ended
    ledger.store.close()
    (found,) = Ledger(layout, None, plan.study.judge).everything()
    told = (found.key, found.attempts, found.deaths, found.outcome, found.reason, found.history, found.summary)
    assert told == ("search-0000", 1, 1, Outcome.FAILED, "planted", {20: 0.5}, {"seconds": 2.0})
    assert found.training() == plan.trial({"batch_size": 4}) and found.ended is not None


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, STUDY)
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    planned = Planned("search", "search-0000", plan.trial({}), None)
    first, second = (Ledger(layout, None, plan.study.judge) for _ in range(2))
    first.add(planned, (), {})
    with pytest.raises(UserError, match="another process writes to this ledger; end it, then --resume"):
        second.add(planned, (), {})
