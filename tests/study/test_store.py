"""Storage of a ledger: a file that is damaged, changed, missing or empty, and its copy."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path

import pytest
from optuna.storages import RDBStorage

from study.contract import PHASES, Layout
from study.store import Store, damage, readable
from trainables.runtime.errors import UserError


def closed(root: Path, *, copied: bool = True) -> Layout:
    """A study's folder with a ledger that its owner has closed, and one training beside it."""
    layout = Layout(root / "tiny")
    layout.trial("search-0000").mkdir(parents=True)
    layout.trials.rename(root / "aside")  # a ledger is made before the first training
    store = Store(layout, None, "rmse", "minimize")
    (root / "aside").rename(layout.trials)
    if copied:
        store.backup()
    store.close()
    return layout


def refusal(layout: Layout) -> str:
    with pytest.raises(UserError) as refused:
        Store(layout, None, "rmse", "minimize")
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_closed_ledger_opens_again_and_its_copy_in_its_place_too(tmp_path: Path) -> None:
    layout = closed(tmp_path)
    store = Store(layout, None, "rmse", "minimize")
    assert {phase: study.study_name for phase, study in store.studies.items()} == {p: f"tiny/{p}" for p in PHASES}
    store.close()
    (layout.root / "ledger.backup.db").replace(layout.ledger)
    Store(layout, None, "rmse", "minimize").close()


def test_attributes_reach_every_phase_and_are_read_by_the_next_owner(tmp_path: Path) -> None:
    layout = closed(tmp_path)
    store = Store(layout, None, "rmse", "maximize", ["delta1", "device_seconds"])
    store.set_attributes({"judge": {"metric": "delta1"}})
    store.set_planned({"search": 3})
    store.close()
    again = Store(layout, None, "rmse", "maximize", ["delta1", "device_seconds"])
    assert again.attribute("judge") == {"metric": "delta1"} and again.attribute("claims") is None
    assert all(study.user_attrs["judge"] == {"metric": "delta1"} for study in again.studies.values())
    assert again.studies["search"].user_attrs["planned"] == 3
    assert again.directions == ["maximize", "minimize"] and len(again.studies["confirm"].directions) == 1
    assert again.studies["confirm"].metric_names == ["rmse"]  # of the one who made it
    again.close()


@pytest.mark.parametrize("copied", [True, False])
def test_what_happened_to_a_file_is_said_with_its_cure(tmp_path: Path, copied: bool) -> None:
    layout = closed(tmp_path, copied=copied)
    cure = r"put .*ledger\.backup\.db in its place, then --resume" if copied else "move .*tiny away and start again"
    whole = layout.ledger.read_bytes()
    layout.ledger.write_bytes(whole.replace(b"tiny/search", b"tiny/searcg"))
    found = "tiny/searcg, tiny/search" if copied else "SHA-256 differs"
    assert re.search(rf"has changed since its study ended \({found}\); {cure}", refusal(layout))
    (layout.root / "ledger.db.sha256").unlink()  # as after a kill
    layout.ledger.write_bytes(whole[: len(whole) // 2])
    assert re.search(rf"the ledger is damaged \(.+\); {cure}", refusal(layout))
    layout.ledger.write_bytes(b"")
    assert re.search(rf"the ledger is damaged \(it is empty\); {cure}", refusal(layout))
    layout.ledger.unlink()
    assert re.search(rf"the ledger is missing, but there are trainings beside it; {cure}", refusal(layout))


def noted(layout: Layout, *, trial: bool = False) -> None:
    """A note, as optuna-dashboard keeps it: in system attributes, whose names begin alike."""
    storage = RDBStorage(f"sqlite:///{layout.ledger}")
    study = storage.get_study_id_from_name("tiny/search")
    storage.set_study_system_attr(study, "dashboard:note_ver", 1)
    storage.set_study_system_attr(study, "dashboard:note_str:0", "the second one is odd")
    if trial:
        storage.create_new_trial(study)
    storage.remove_session()
    storage.engine.dispose()


def test_a_note_of_optuna_dashboard_is_said_as_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = closed(tmp_path)
    noted(layout)
    store = Store(layout, None, "rmse", "minimize")
    assert "optuna-dashboard has kept notes in it since the study ended" in capsys.readouterr().out
    store.close()
    Store(layout, None, "rmse", "minimize").close()
    assert capsys.readouterr().out == ""  # said once


def test_a_training_that_came_with_a_note_is_a_change(tmp_path: Path) -> None:
    layout = closed(tmp_path)
    noted(layout, trial=True)
    assert "has changed since its study ended (tiny/search, trial 0)" in refusal(layout)
    (tmp_path / "other").mkdir()
    other = closed(tmp_path / "other", copied=False)
    noted(other)
    assert "(SHA-256 differs)" in refusal(other)  # nothing to compare it with


def test_a_change_outside_of_what_is_read_is_a_change(tmp_path: Path) -> None:
    layout = closed(tmp_path)
    with contextlib.closing(sqlite3.connect(layout.ledger)) as connection:
        connection.execute("PRAGMA user_version = 7")
        connection.commit()
    assert "(SHA-256 differs)" in refusal(layout)


def test_an_empty_file_without_trainings_is_made_anew(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "tiny")
    layout.root.mkdir()
    layout.ledger.touch()  # killed while it was made
    assert damage(layout.ledger) == "it is empty"
    Store(layout, None, "rmse", "minimize").close()
    assert damage(layout.ledger) is None


def test_impossible_content_is_damage_and_a_bug_elsewhere_is_not(tmp_path: Path) -> None:
    layout = closed(tmp_path)
    with pytest.raises(UserError, match=r"the ledger is damaged \(KeyError: 'key'\)"), readable(layout):
        raise KeyError("key")
    with pytest.raises(AttributeError), readable(layout):
        raise AttributeError("a bug")
