"""The mirror: refilled without doubling, away without holding anything up."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from study.contract import EXPERIMENT, Layout, Outcome, masked
from study.ledger import Entry
from study.mirror import Mirror
from study.tracking import check_reachable, record_of
from trainables.runtime.durable import write_json
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig, as_dict
from trainables.settings.recipe import load_recipe


def entry_of(layout: Layout, number: int, outcome: Outcome | None) -> Entry:
    config: TrialConfig = load_recipe("densedepth", {"seed": number})[0]
    ended = datetime(2026, 1, 1, 13, number) if outcome else None
    entry = Entry("search", number, number, f"g{number}", as_dict(config), None, 1, 0, outcome, None, 0.5,
                  datetime(2026, 1, 1, 12, number), ended, {}, {}, {"optim.lr": 1e-4, "model.pool": "max"})  # fmt: skip
    folder = layout.trial(entry.key)
    reports = [
        {"images": i, "time_s": 1.7e9 + i, "metrics": {"val/rmse": 1 / i, "val/abs_rel": float("nan")}}
        for i in (10, 20)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reports.jsonl").write_text("".join(json.dumps(r) + "\n" for r in reports))
    write_json(folder / "summary.json", {"images": 20})
    (folder / "previews").mkdir(exist_ok=True)
    Image.new("RGB", (48, 12), (200, 30, number)).save(folder / "previews" / "20.jpg")
    return entry


def keep_checkpoint(layout: Layout, key: str, weights: str) -> None:
    """A checkpoint as trainings leave it, as far as the mirror reads it."""
    folder = layout.trial(key) / "checkpoints" / "best"
    folder.mkdir(parents=True, exist_ok=True)
    report = {"images": 20, "time_s": 1.7e9, "metrics": {"val/rmse": 0.05, "device/utilisation": 0.9}}
    write_json(folder / "state.json", {"report": report})
    write_json(folder / "config.json", as_dict(load_recipe("densedepth")[0]))
    (folder / "weights.safetensors").write_bytes(b"weights")
    write_json(folder / "SHA256.json", {"weights.safetensors": weights})


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
        "search-0000 lr=0.0001, pool=max": "FINISHED",
        "search-0001 lr=0.0001, pool=max": "KILLED",
        "search-0002 lr=0.0001, pool=max": "FAILED",
        "search-0003 lr=0.0001, pool=max": "RUNNING",
    }
    pictures = sorted(path.name for path in (tmp_path / "mlartifacts").glob("*/artifacts/images/*.png"))
    assert len(pictures) == 4 and all(name.startswith("validation+step+20+timestamp+") for name in pictures), pictures
    assert points == [("val/rmse", 1 / i, i, int((1.7e9 + i) * 1000)) for _ in range(4) for i in (10, 20)]
    assert parents == (1,) and digests == [("a" * 36,)]


def test_models_are_the_checkpoints_that_are_kept(store: Path) -> None:
    """Listed once with their scores and data; one that was trained on or removed is listed no more; none is copied."""
    layout, client = Layout(store.parent / "results" / "s"), MlflowClient(f"sqlite:///{store}")

    def listed() -> dict[str, str]:
        fill(store)
        return {model.name: model.model_id for model in client.search_logged_models(["1"])}

    assert listed() == {}
    keep_checkpoint(layout, "search-0000", "a" * 64)
    first = listed()
    assert list(first) == ["search-0000-best"] and listed() == first
    model = client.get_logged_model(first["search-0000-best"])
    assert model.status == "READY" and model.tags["checkpoint"] == "trials/search-0000/checkpoints/best"
    assert [(m.key, m.value, m.step, m.dataset_name) for m in model.metrics or ()] == [("val/rmse", 0.05, 20, "kaggle")]
    run = client.get_run(str(model.source_run_id))
    assert run.data.tags["trial_key"] == "search-0000" and run.info.status == "FINISHED"
    assert not list((store.parent / "mlartifacts").rglob("*.safetensors"))
    keep_checkpoint(layout, "search-0000", "b" * 64)
    second = listed()
    assert list(second) == list(first) and second != first
    shutil.rmtree(layout.trial("search-0000") / "checkpoints")
    assert listed() == {}


@pytest.mark.parametrize(
    ("phase", "origin", "words"),
    [
        ("reproduce", None, "densedepth, seed 7"),
        ("claims", [{"claim": "aug", "arm": "on"}, {"claim": "lr", "arm": "low"}], "aug: on, lr: low, seed 7"),
        ("confirm", "search-0003", "repeats search-0003, seed 7"),
    ],
)
def test_a_run_is_named_by_what_sets_it_apart(phase: str, origin: object, words: str, tmp_path: Path) -> None:
    entry = entry_of(Layout(tmp_path), 7, None)
    entry.phase, entry.origin = phase, origin
    assert record_of(entry, Layout(tmp_path)).title == f"{phase}-0007 {words}"


def test_a_store_that_is_away_holds_nothing_up_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("study.tracking", "study.mirror"):
        monkeypatch.setattr(f"{module}.TIMEOUT_S", 1)
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
    assert (
        missing is not None and missing.startswith("MLflow at http://***@127.0.0.1") and "lacks 3 trainings" in missing
    )
    assert missing.endswith("send them with --sync") and "secret" not in missing


class FailsOnce:
    """A client that has nothing to send, whose first try to end the parent fails."""

    tries = 0

    def __init__(self, *given: object) -> None: ...

    def end_parent(self, *, finished: bool) -> None:
        type(self).tries += 1
        if type(self).tries == 1:
            raise OSError("away")


class FailsAlways(FailsOnce):
    def end_parent(self, *, finished: bool) -> None:
        raise OSError("away")


def test_a_study_without_its_end_lacks_no_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.mirror.Client", FailsAlways)
    missing = Mirror("sqlite:///mlflow.db", Layout(tmp_path / "s"), {}, {}).close(0.1, finished=True)
    assert missing == "MLflow at sqlite:///mlflow.db lacks the end of the study (away); send it with --sync"


def test_the_end_of_the_parent_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.mirror.Client", FailsOnce)
    monkeypatch.setattr("study.mirror.RETRY_S", (0.1, 0.1))
    assert Mirror("sqlite:///mlflow.db", Layout(tmp_path / "s"), {}, {}).close(20.0, finished=True) is None
    assert FailsOnce.tries == 2


@contextlib.contextmanager
def answering(code: int, body: str, kind: str) -> Iterator[str]:
    """A server that is well by its /health and answers all else alike."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            well = self.path.endswith("/health")
            content = b"OK" if well else body.encode()
            self.send_response(200 if well else code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer

        def log_message(self, *words: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def refusal(uri: str) -> str:
    """What is said of a store before anything trains: one line that names it."""
    with pytest.raises(UserError) as error:
        check_reachable(uri)
    said = str(error.value)
    assert said.startswith("tracking.uri: ") and len(said.splitlines()) == 1 and len(said) < 500, said
    return said


SCHEMA = '{"error_code": "INTERNAL_ERROR", "message": "no such column: experiments.workspace\\n[SQL: SELECT ...]"}'


@pytest.mark.parametrize(
    ("code", "body", "kind", "words"),
    [
        (403, "Invalid Host header - possible DNS rebinding attack detected", "text/plain", "Invalid Host header"),
        (401, "You are not authenticated", "text/plain", "not authenticated"),
        (400, SCHEMA, "application/json", "no such column"),
        (500, SCHEMA, "application/json", "500 error"),
        (404, "<html>Not found</html>", "text/html", "404"),
        (200, "<html>Log in</html>", "text/html", "Log in"),
        (200, '{"name": "another service"}', "application/json", "no MLflow server"),
        (200, "[1]", "application/json", "not in a valid JSON format"),
    ],
    ids=["host", "login", "schema", "error", "missing", "page", "json", "list"],
)
def test_a_server_that_is_well_but_refuses_is_told_before_anything_trains(
    code: int, body: str, kind: str, words: str
) -> None:
    with answering(code, body, kind) as uri:
        said = refusal(uri)
    assert words in said and uri in said and "tracking.uri: null" in said, said


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://127.0.0.1:99999", "Invalid url"),
        ("http://127.0.0.1:http", "Invalid url"),
        ("http://127.0.0.1:9", "Connection refused"),
        ("http://nowhere.invalid:5000", "does not answer"),
        ("postgresql://me:secret@127.0.0.1:9/db", ""),
        ("postgresql://me:secret@127.0.0.1:port/db", "port"),
        ("postgresql+nothing://me:secret@127.0.0.1/db", "nothing"),
    ],
)
def test_an_address_without_a_store_is_told_before_anything_trains(uri: str, words: str) -> None:
    said = refusal(uri)
    assert words in said and "secret" not in said, said


def test_a_proxy_that_mlflow_obeys_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    with answering(403, "Invalid Host header", "text/plain") as uri:
        said = refusal(uri)
        assert "through the proxy http://***@127.0.0.1:9, which NO_PROXY=127.0.0.1" in said and "secret" not in said
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert "Invalid Host header" in refusal(uri)  # the server itself


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> Path:
    """A store with a study of one training, whose client is MLflow's own."""
    (tmp_path / "home").mkdir()
    file = tmp_path / "home" / "mlflow.db"
    shutil.copy(empty_store, file)
    fill(file)
    return file


def fill(file: Path) -> None:
    layout = Layout(file.parent / "results" / "s")
    mirror = Mirror(f"sqlite:///{file}", layout, {}, {})
    mirror.ended(entry_of(layout, 0, Outcome.COMPLETE))
    assert mirror.close(60.0, finished=True) is None


def test_a_run_and_an_experiment_of_the_environment_are_left_alone(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `mlflow run` and job schedulers set them for what they start."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    for name, value in {"RUN_ID": "9" * 32, "EXPERIMENT_NAME": "other", "EXPERIMENT_ID": "7"}.items():
        monkeypatch.setenv(f"MLFLOW_{name}", value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    fill(tmp_path / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    counts = {one.name: len(client.search_runs([one.experiment_id])) for one in client.search_experiments()}
    assert counts == {"Default": 0, "DenseDepth": 2}


def test_a_file_that_is_no_store_is_told_before_anything_trains(store: Path) -> None:
    check_reachable(f"sqlite:///{store}")
    check_reachable(f"sqlite:///{store.with_name('new.db')}")
    assert not store.with_name("new.db").exists()
    other = store.with_name("other.db")
    other.write_text("not a database " * 100)
    assert "file is not a database" in refusal(f"sqlite:///{other}")
    other.unlink()
    other.mkdir()
    assert "is a folder" in refusal(f"sqlite:///{other}")
    assert "not a writable folder" in refusal(f"sqlite:///{store.parent / 'missing' / 'mlflow.db'}")
    with contextlib.closing(sqlite3.connect(store)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'of_another_version'")
        connection.commit()
    shutil.copy(store, store.with_name("older.db"))  # MLflow does not look twice at a store
    assert "out-of-date database schema" in refusal(f"sqlite:///{store.with_name('older.db')}")


def test_an_experiment_deleted_in_the_ui_is_told_with_its_cure(store: Path) -> None:
    client = MlflowClient(f"sqlite:///{store}")
    found = client.get_experiment_by_name(EXPERIMENT)
    assert found is not None
    client.delete_experiment(found.experiment_id)
    said = refusal(f"sqlite:///{store}")
    assert "was deleted" in said
    cure = said.partition("restore it: ")[2]
    assert cure == f"MLFLOW_TRACKING_URI=sqlite:///{store} mlflow experiments restore --experiment-id 1"
    client.restore_experiment("1")
    check_reachable(f"sqlite:///{store}")


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_store_that_was_moved_from_its_files_is_told(
    store: Path, empty_store: Path, tmp_path: Path, move: Callable[[Path, Path], object]
) -> None:
    move(store.parent, tmp_path / "elsewhere")
    said = refusal(f"sqlite:///{tmp_path / 'elsewhere' / 'mlflow.db'}")
    assert f"still those in {store.parent / 'mlartifacts'}; rename it" in said
    assert (store.parent).exists() == (move is shutil.copytree)  # the old place is not made again
    shutil.copy(empty_store, tmp_path / "elsewhere" / "new.db")
    fill(tmp_path / "elsewhere" / "new.db")  # the cure


def test_a_parent_that_was_deleted_and_refilled_is_the_childrens_parent(store: Path) -> None:
    client = MlflowClient(f"sqlite:///{store}")
    (old,) = client.search_runs(["1"], "tags.phase = 'study'")
    client.delete_run(old.info.run_id)
    fill(store)
    (new,) = client.search_runs(["1"], "tags.phase = 'study'")
    (child,) = client.search_runs(["1"], "tags.trial_key = 'search-0000'")
    assert new.info.run_id != old.info.run_id
    assert child.data.tags["mlflow.parentRunId"] == new.info.run_id


def test_a_run_deleted_while_it_trains_holds_nothing_up(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.mirror.RETRY_S", (0.1, 0.1))
    layout, client = Layout(store.parent / "results" / "s"), MlflowClient(f"sqlite:///{store}")

    def runs(number: int) -> list[Run]:
        return list(client.search_runs(["1"], f"tags.trial_key = 'search-000{number}'"))

    mirror = Mirror(f"sqlite:///{store}", layout, {}, {})
    mirror.reported(entry_of(layout, 1, None), 20, {})
    deadline = time.monotonic() + 30
    while not (runs(1) and runs(1)[0].data.metrics) and time.monotonic() < deadline:
        time.sleep(0.05)
    client.delete_run(runs(1)[0].info.run_id)
    for number in (1, 2):
        mirror.ended(entry_of(layout, number, Outcome.COMPLETE))
    assert mirror.close(30.0, finished=True) is None
    assert [run.info.status for number in (1, 2) for run in runs(number)] == ["FINISHED", "FINISHED"]


def test_secrets_are_masked() -> None:
    assert masked("postgresql://me:pass@host/db") == "postgresql://***@host/db"
