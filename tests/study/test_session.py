"""A session over its ledger, without Ray: what a new driver makes of what a killed one left."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest

from analysis import runs
from study.budget import limits
from study.contract import Layout, Outcome, StudyAttr
from study.ledger import RUNG, Ledger
from study.plan import Plan
from study.propose import propose
from study.session import FINISHED, Session
from study.space import make_pruner
from tests.study.conftest import STUDY
from tests.study.test_config import plan_of
from trainables.message import Message
from trainables.runtime import locks
from trainables.runtime.errors import UserError
from trainables.settings.config import flat

KINDS = ("successive_halving", "hyperband", "median")


def opened(plan: Plan, layout: Layout) -> Session:
    """A session of the study with its own pruner, with room for all trainings at once."""
    ledger = Ledger(layout, None, plan.study.judge, make_pruner(plan.study))
    return Session(plan, ledger, [], lambda: 9, lambda: 0)


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
            answers.append(killed.ledger.should_prune(entry))
        else:
            answers.append(killed_at == "the question" or killed.ledger._trial(entry).should_prune())
        if number < 6:
            killed._finish(entry, Message("pruned" if answers[-1] else "complete"))
    assert answers[6:] == [False, True]
    killed.ledger.close()
    for number in (0, 7):  # killed while one closed and the other wrote
        layout.trial(f"search-{number:04d}").mkdir(parents=True)
        (layout.trial(f"search-{number:04d}") / ".state.json.123.tmp").touch()

    resumed = opened(plan, layout)
    spec = resumed.next("again")
    assert isinstance(spec, dict) and Path(spec["folder"]).name == "search-0006"
    assert resumed.next("none is left") is None and resumed.stopping is False
    assert not list(layout.root.rglob("*.tmp"))
    last = resumed.ledger.entries["search"][7]
    assert (last.outcome, last.reason) == (Outcome.PRUNED, "stopped early by the pruner after 20 images")
    judged = [n for n in resumed.ledger.frozen("search")[7].system_attrs if n.startswith(RUNG)]
    assert len(judged) == (0 if kind == "median" else 1)
    report = {"images": 100, "metrics": {"val/rmse": 0.4}, "final": True}
    assert resumed.take("again", Message("report", report=report))
    resumed.ended("again", error=False, detail="")
    assert resumed.next("the end") == FINISHED
    late = report | {"images": 120, "metrics": {"val/rmse": 0.1}}
    assert not resumed.take("again", Message("report", report=late))  # after its end: ignored
    assert resumed.ledger.entries["search"][6].history == {20: 0.5, 100: 0.4}
    assert [e.outcome for e in resumed.ledger.entries["search"]][6:] == [Outcome.COMPLETE, Outcome.PRUNED]
    for entry, trial in zip(resumed.ledger.entries["search"], resumed.ledger.frozen("search"), strict=True):
        assert not (entry.config or entry.summary or trial.user_attrs)  # in memory: they have ended
        assert resumed.ledger.training(entry) == plan.trial(trial.params)


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
            killed._finish(killed.live.pop("0").entry, Message("complete"))
    killed.ledger.close()
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
                ledger._trial(entry).should_prune()
                assert ledger.should_have_pruned(entry)
            else:
                ledger.should_prune(entry)
        notes.append([t.system_attrs for t in ledger.frozen("search")])
        ledger.close()
    assert notes[0] == notes[1] and notes[0][2]


def test_a_folder_that_an_orphan_owns_is_left_alone(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, STUDY.replace("trials: 6", "trials: 1"))
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    session = Session(plan, Ledger(layout, None, plan.study.judge, None), [], lambda: 1, lambda: 0)
    assert isinstance(session.next("only"), dict)
    folder = layout.trial("search-0000")
    (folder / ".latest.tmp").mkdir(parents=True)
    with locks.exclusive(folder / ".lock"):
        session._clear(session.live["only"].entry)
        assert (folder / ".latest.tmp").exists()
    session._clear(session.live["only"].entry)
    assert not (folder / ".latest.tmp").exists()


def test_a_training_fails_when_two_workers_die_without_anything_new_between_them(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, STUDY.replace("trials: 6", "trials: 1"))
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    session = Session(plan, Ledger(layout, None, plan.study.judge, None), [], lambda: 1, lambda: 0)
    for images in (20, 40, 60, None):
        assert isinstance(session.next("only"), dict)
        if images is not None:
            report = {"images": images, "metrics": {"val/rmse": 0.5}, "final": False}
            session.take("only", Message("report", report=report))
        (layout.trial("search-0000") / "checkpoints" / ".latest.tmp").mkdir(parents=True, exist_ok=True)
        session.ended("only", error=True, detail="")
    assert not list(layout.root.rglob("*.tmp"))
    (entry,) = session.ledger.entries["search"]
    assert (entry.attempts, entry.outcome, entry.reason) == (
        4,
        Outcome.FAILED,
        "its process died 2 times without an error",
    )


def test_a_spent_budget_begins_nothing_more_and_a_raised_one_goes_on(tmp_path: Path) -> None:
    """Images counted over all phases; what runs is finished. The study has not ended, and its reader is told why."""
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)

    def session(images: int) -> Session:
        plan = plan_of(tmp_path, STUDY + f"budget: {{images: {images}}}\n")
        ledger = Ledger(layout, None, plan.study.judge, None)
        ledger.set_attributes({StudyAttr.STUDY: plan.study.resolved})
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
    assert first.next("d") is None and first.spent == "budget.images is 150, and 200 are spent"
    end(first, "c")
    assert first.next("d") == FINISHED
    first.ledger.close()
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
        ledger = Ledger(layout, None, plan.study.judge, None)
        ledger.set_attributes({StudyAttr.STUDY: plan.study.resolved})
        session = Session(plan, ledger, [], lambda: 1, lambda: 0)
        for _ in range(trainings):
            assert isinstance(session.next("w"), dict)
            entry = session.live.pop("w").entry
            ledger.report(entry, 100, next(values))
            session._finish(entry, Message("complete"))
        ledger.close()
        return ledger

    go_on(2, 4)
    assert runs.load(layout.root).unfinished() == []
    go_on(3, 1)
    assert runs.load(layout.root).unfinished() == ["confirm has ended 2 of 4 trainings"]
    go_on(3, 1)
    assert runs.load(layout.root).unfinished() == ["confirm has ended 3 of 4 trainings"]
    assert [e.group for e in go_on(3, 1).entries["confirm"]] == 2 * ["search-0001"] + 2 * ["search-0002"]
    assert runs.load(layout.root).unfinished() == []


def test_a_search_starts_from_an_earlier_ones_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty complete trials say that a small lr is best: the sampler proposes one where it knew nothing before."""
    monkeypatch.chdir(tmp_path)
    text = STUDY.replace("trials: 6", "trials: 40\n  sampler: random")
    plan = plan_of(tmp_path, text)
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    ledger = Ledger(layout, None, plan.study.judge, None)
    ledger.set_attributes({StudyAttr.JUDGE: {"metric": "rmse"}})
    session = Session(plan, ledger, [], lambda: 1, lambda: 0)
    while isinstance(session.next("w"), dict):
        entry = session.live.pop("w").entry
        ledger.report(entry, 100, abs(math.log10(entry.config["optim"]["lr"]) + 4.5))
        session._finish(entry, Message("complete"))
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
                ledger.frozen("search")[:1],
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
