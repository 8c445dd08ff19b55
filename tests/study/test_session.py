"""A session over its ledger, without Ray: what a new driver makes of what a killed one left."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.contract import Layout, Outcome
from study.ledger import Ledger
from study.session import Session
from tests.study.conftest import STUDY
from tests.study.test_config import plan_of
from trainables.message import Message
from trainables.runtime import locks

KINDS = ("successive_halving", "hyperband", "median")


def test_a_folder_that_an_orphan_owns_is_left_alone(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, STUDY.replace("trials: 6", "trials: 1"))
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    session = Session(plan, Ledger(layout, None, plan.study.judge), [], lambda: 1, lambda: 0)
    assert isinstance(session.next("only"), dict)
    folder = layout.trial("search-0000")
    (folder / ".latest.tmp").mkdir(parents=True)
    with locks.exclusive(folder / ".lock"):
        session.endings.clear(session.live["only"].entry)
        assert (folder / ".latest.tmp").exists()
    session.endings.clear(session.live["only"].entry)
    assert not (folder / ".latest.tmp").exists()


def test_a_training_fails_when_two_workers_die_without_anything_new_between_them(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, STUDY.replace("trials: 6", "trials: 1"))
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    session = Session(plan, Ledger(layout, None, plan.study.judge), [], lambda: 1, lambda: 0)
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


def test_a_worker_starts_in_the_folder_that_the_study_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths of the settings begin there; Tune would put its workers elsewhere."""
    plan = plan_of(tmp_path, STUDY.replace("trials: 6", "trials: 1"))
    monkeypatch.chdir(tmp_path)
    layout = Layout(Path("results") / "tiny")
    layout.root.mkdir(parents=True)
    session = Session(plan, Ledger(layout, None, plan.study.judge), [], lambda: 1, lambda: 0)
    handed = session.next("only")
    assert isinstance(handed, dict) and handed["cwd"] == str(tmp_path.resolve())
    assert handed["folder"] == str(tmp_path.resolve() / "results" / "tiny" / "trials" / "search-0000")
