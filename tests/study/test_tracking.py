"""The mirror: refilled without doubling, away without holding anything up."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import time
from datetime import datetime
from pathlib import Path

import pytest

from study.contract import Layout, Outcome, masked
from study.ledger import Entry
from study.tracking import Mirror, check_reachable
from trainables.runtime.durable import write_json
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig, as_dict
from trainables.settings.recipe import load_recipe


def entry_of(layout: Layout, number: int, outcome: Outcome | None) -> Entry:
    config: TrialConfig = load_recipe("densedepth", {"seed": number})[0]
    ended = datetime(2026, 1, 1, 13, number) if outcome else None
    entry = Entry("search", number, number, f"g{number}", as_dict(config), None, 1, 0, outcome, None, 0.5,
                  datetime(2026, 1, 1, 12, number), ended, {})  # fmt: skip
    folder = layout.trial(entry.key)
    reports = [
        {"images": i, "time_s": 1.7e9 + i, "metrics": {"val/rmse": 1 / i, "val/abs_rel": float("nan")}}
        for i in (10, 20)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reports.jsonl").write_text("".join(json.dumps(r) + "\n" for r in reports))
    write_json(folder / "summary.json", {"images": 20})
    return entry


def test_refilled_twice_nothing_is_doubled(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    layout = Layout(tmp_path / "results" / "two")
    ends = [Outcome.COMPLETE, Outcome.PRUNED, Outcome.OUT_OF_MEMORY, None]
    entries = [entry_of(layout, number, outcome) for number, outcome in enumerate(ends)]
    for _ in range(2):
        mirror = Mirror("sqlite:///mlflow.db", layout, {}, {"train": "a" * 64})
        for entry in entries:
            mirror.reported(entry, 20, {})
        assert mirror.close(60.0, finished=True) is None
    with sqlite3.connect("mlflow.db") as store:
        runs = dict(store.execute("SELECT name, status FROM runs"))
        points = store.execute("SELECT key, value, step, timestamp FROM metrics ORDER BY run_uuid, step").fetchall()
        parents = store.execute("SELECT count(DISTINCT value) FROM tags WHERE key = 'mlflow.parentRunId'").fetchone()
        digests = store.execute("SELECT DISTINCT digest FROM datasets").fetchall()
    assert runs == {
        "two": "FINISHED",
        "search-0000": "FINISHED",
        "search-0001": "KILLED",
        "search-0002": "FAILED",
        "search-0003": "RUNNING",
    }
    assert points == [("val/rmse", 1 / i, i, int((1.7e9 + i) * 1000)) for _ in range(4) for i in (10, 20)]
    assert parents == (1,) and digests == [("a" * 36,)]


def test_a_store_that_is_away_holds_nothing_up_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.tracking.TIMEOUT_S", 1)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    layout = Layout(tmp_path / "results" / "away")
    with socket.socket() as listener:  # takes connections and never answers
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        uri = f"http://user:secret@127.0.0.1:{listener.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(UserError, match="does not answer") as refusal:
            check_reachable(uri)
        assert "secret" not in str(refusal.value) and time.monotonic() - began < 10
        mirror = Mirror(uri, layout, {}, {})
        began = time.monotonic()
        for number in range(3):
            mirror.ended(entry_of(layout, number, Outcome.COMPLETE))
        assert time.monotonic() - began < 1.0
        missing = mirror.close(1.5, finished=True)
    assert missing is not None and missing.startswith("MLflow at http://***@127.0.0.1") and "3 trainings" in missing
    assert "--sync" in missing and "secret" not in missing


class FailsOnce:
    """A client that has nothing to send, whose first try to end the parent fails."""

    tries = 0

    def __init__(self, *given: object) -> None: ...

    def end_parent(self, *, finished: bool) -> None:
        type(self).tries += 1
        if type(self).tries == 1:
            raise OSError("away")


def test_the_end_of_the_parent_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.tracking.Client", FailsOnce)
    monkeypatch.setattr("study.tracking.RETRY_S", (0.1, 0.1))
    assert Mirror("sqlite:///mlflow.db", Layout(tmp_path / "s"), {}, {}).close(20.0, finished=True) is None
    assert FailsOnce.tries == 2


def test_secrets_are_masked() -> None:
    assert masked("postgresql://me:pass@host/db") == "postgresql://***@host/db"
