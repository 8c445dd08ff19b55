"""Kills with -9, at random moments, of every process that a study has. The seed of a drill stands in its failures."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from study.contract import Attr
from tests.drills import judge
from tests.drills.table import record
from tests.study.conftest import REAL, STUDY, Workplace, command, wait_until
from tests.study.standin import value_of
from tests.study.test_run import params, undisturbed
from trainables.training.checkpoint import read_weights

KINDS = ("driver", "worker", "raylet", "gcs_server", "mlflow")
ENDED_S = 60.0  # by then a study whose Ray has gone has said so
LASTING = STUDY.replace("trials: 6", "trials: 24") + "confirm: {top: 2, seeds: 2}\n"


class Driven:
    """A study that is killed and resumed until it has ended."""

    def __init__(self, place: Workplace, moments: random.Random, server: Server | None) -> None:
        self.place, self.moments, self.server = place, moments, server
        self.driver = place.start("--resume")

    def kill(self, kind: str) -> None:
        """Kill one process of the kind, some moment after the study has gone on; resume it where that ends it."""
        before = self.computed()
        wait_until(lambda: self.computed() > before, self.driver, f"nothing went on before the kill of {kind}")
        time.sleep(self.moments.uniform(0, 1.5))
        assert self.driver.poll() is None, f"the study ended before the kill of {kind}: {self.driver.communicate()}"
        if kind == "mlflow":
            assert self.server is not None
            self.begun()  # while it starts, a study refuses a server that is not there
            self.server.kill()
            self.server.start()
        elif kind == "worker":
            self.kill_worker()
        else:
            self.kill_and_resume(kind)

    def kill_worker(self) -> None:
        """It has to get further before the next kill: twice without anything new and it would have failed."""
        worker, log = self.moments.choice(self.begun())
        family = [" ".join(p.cmdline()) for p in psutil.Process(self.driver.pid).children(recursive=True)]
        assert any("raylet" in line for line in family), family
        lines = log.with_name("computed.log")
        lines.touch()  # it may not have computed anything yet
        starts = log.read_text().count("\n")
        worker.kill()
        before = lines.read_text().count("\n")
        wait_until(
            lambda: (
                self.ended(log.parent.name)
                or (log.read_text().count("\n") > starts and lines.read_text().count("\n") > before)
            ),
            self.driver,
            f"{log.parent.name} did not go on after its worker's death",
        )

    def kill_and_resume(self, kind: str) -> None:
        victim = self.driver if kind == "driver" else self.children(kind)[0]
        started = bool(self.training())
        victim.kill()
        out, err = self.driver.communicate(timeout=ENDED_S)
        if kind != "driver":
            *before, last = err.splitlines()  # where it was just starting, Ray may have words of its own
            assert self.driver.returncode == 1 and "--resume" in last and "Traceback" not in err, (out, err)
            assert not before or not started, (out, err)
        if self.server is not None:
            self.server.wait()
        self.driver = self.place.start("--resume")

    def begun(self) -> list[tuple[psutil.Process, Path]]:
        """Wait for the first worker that trains."""
        found: list[tuple[psutil.Process, Path]] = []

        def there() -> bool:
            found[:] = self.training()
            return bool(found)

        wait_until(there, self.driver, "no training")
        return found

    def training(self) -> list[tuple[psutil.Process, Path]]:
        """The driver's workers that train, each with its training's log of starts."""
        logs = sorted(self.place.root.glob("results/*/trials/*/starts.log"), key=lambda p: p.stat().st_mtime)
        last = {int(line.split()[0]): log for log in logs for line in log.read_text().splitlines()}
        family = psutil.Process(self.driver.pid).children(recursive=True)
        workers = [p for p in family if p.pid in last and p.name().startswith("ray::StandIn")]
        return [(p, last[p.pid]) for p in workers if not self.ended(last[p.pid].parent.name)]

    def ended(self, key: str) -> bool:
        """Whether the ledger knows how a training has ended."""
        told = """SELECT 1 FROM trial_user_attributes AS key JOIN trial_user_attributes AS outcome USING (trial_id)
            WHERE key.key = ? AND key.value_json = ? AND outcome.key = ?"""
        database = self.place.root / "results" / "tiny" / "ledger.db"
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return connection.execute(told, (Attr.KEY, json.dumps(key), Attr.OUTCOME)).fetchone() is not None

    def children(self, name: str) -> list[psutil.Process]:
        """The driver's descendants of that name; waits for the first."""
        found: list[psutil.Process] = []

        def there() -> bool:
            family = psutil.Process(self.driver.pid).children(recursive=True)
            found[:] = [p for p in family if p.name().startswith(name)]
            return bool(found)

        wait_until(there, self.driver, f"no {name}")
        return found

    def computed(self) -> int:
        return sum(p.read_text().count("\n") for p in self.place.root.glob("results/*/trials/*/computed.log"))

    def end(self) -> None:
        """Let the study come to its end."""
        (self.place.root / "pause").write_text("0.01")
        out, err = self.driver.communicate(timeout=240)
        assert self.driver.returncode == 0, (out, err)


class Server:
    """MLflow's server over the workplace's store."""

    def __init__(self, place: Workplace) -> None:
        self.place = place
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def wait(self) -> None:
        wait_until(self.answers, self.process, "MLflow's server did not answer", 300.0)

    def start(self) -> None:
        store, artifacts = self.place.root / "mlflow.db", self.place.root / "mlartifacts"
        words = ["--backend-store-uri", f"sqlite:///{store}", "--artifacts-destination", str(artifacts)]
        words += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command = [sys.executable, "-m", "mlflow", "server", *words]
        quiet, environment = (
            subprocess.DEVNULL,
            self.place.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
        self.process = subprocess.Popen(command, cwd="/", stdout=quiet, stderr=quiet, env=environment)

    def answers(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"{self.uri}/health", timeout=1).status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for process in family:
            process.kill()
        psutil.wait_procs(family, 10)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_ten_kills_of_a_study(workplace: Workplace, tmp_path: Path, number: int, seed: int) -> None:
    """Two of each kind in random order."""
    at_once, began = 1 if number < 2 else 2, time.monotonic()
    moments = random.Random(seed)
    kinds = moments.sample([*KINDS, *KINDS], 2 * len(KINDS))
    server = Server(workplace)
    try:
        server.wait()
        text = f"{LASTING}tracking: {{uri: '{server.uri}'}}\n"
        killed(workplace, tmp_path / "calm", text, kinds, at_once, moments, server)
    except BaseException as error:
        record(f"kills, {at_once} at once", seed, len(kinds), f"failed: {error!r:.200}", time.monotonic() - began)
        raise AssertionError(f"seed {seed}, {kinds}") from error
    finally:
        server.kill()
    record(f"kills, {at_once} at once", seed, len(kinds), "nothing wrong", time.monotonic() - began)


@pytest.mark.slow
def test_one_kill_of_a_study(workplace: Workplace, tmp_path: Path, seed: int) -> None:
    """A small share of the drill above, without a server."""
    moments = random.Random(seed)
    kind, at_once = moments.choice([kind for kind in KINDS if kind != "mlflow"]), moments.choice((1, 2))
    try:
        killed(workplace, tmp_path / "calm", STUDY, [kind], at_once, moments, None)
    except BaseException as error:
        raise AssertionError(f"seed {seed}, {kind}, {at_once} at once") from error
    the_judge_sees_what_is_spoilt(workplace)


def the_judge_sees_what_is_spoilt(place: Workplace) -> None:
    """One thing after another, each found and named."""
    root, key = place.root / "results/tiny", "search-0000"

    def stored(database: Path, statement: str) -> None:
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            assert connection.execute(statement).rowcount == 1, statement

    def append(name: str, text: str) -> None:
        with (root / name).open("a") as file:
            file.write(text)

    mlflow, ledger, folder = place.root / "mlflow.db", root / "ledger.db", f"trials/{key}"
    run = f"(SELECT run_uuid FROM tags WHERE key = 'trial_key' AND value = '{key}')"
    wrong: list[tuple[str, Callable[[], object]]] = [
        ("left behind", lambda: append(".torn.tmp", "")),
        ("still names an owner", lambda: append("study.lock", "me")),
        ("computed again", lambda: append(f"{folder}/computed.log", "1 20\n" * 9)),
        ("after its successor", lambda: append(f"{folder}/computed.log", "2 20\n1 20\n")),
        ("FAILED", lambda: stored(mlflow, f"UPDATE runs SET status = 'FAILED' WHERE run_uuid = {run}")),
        (
            "in MLflow",
            lambda: stored(mlflow, f"DELETE FROM metrics WHERE key = 'val/rmse' AND step = 20 AND run_uuid = {run}"),
        ),
        (
            "0 runs in MLflow",
            lambda: stored(mlflow, f"UPDATE tags SET value = 'lost' WHERE key = 'trial_key' AND value = '{key}'"),
        ),
        ("planned", lambda: stored(ledger, "DELETE FROM trials WHERE number = 5")),
        ("files are short", lambda: append(f"{folder}/reports.jsonl", '{"images"')),
    ]
    seen: set[str] = set()
    for name, spoil in wrong:
        spoil()
        found = set(judge.faults(place, replay=value_of))
        assert any(name in fault for fault in found - seen), (name, found - seen)
        seen |= found


def killed(
    place: Workplace,
    calm: Path,
    text: str,
    kinds: list[str],
    at_once: int,
    moments: random.Random,
    server: Server | None,
) -> None:
    """A study after these kills has nothing wrong. One training at a time, it is the undisturbed study bit for bit; two
    at once, each training has the losses of its own replay.
    """
    cpus = max(1, (os.cpu_count() or 1) // at_once)
    place.write(f"{text}resources: {{cpus_per_trial: {cpus}}}\n")
    (place.root / "pause").write_text("0.4")
    study = Driven(place, moments, server)
    try:
        for kind in kinds:
            study.kill(kind)
        study.end()
    finally:
        study.driver.kill()
    wrong = judge.faults(place, repeats=at_once * len(kinds), replay=value_of)
    if at_once == 1:
        other = Workplace(calm)
        calm.mkdir()
        undisturbed(other, text)
        told, expected = params(place), params(other)
        wrong += [
            f"{key}: {told.get(key)}, undisturbed {alone}" for key, alone in expected.items() if told.get(key) != alone
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_five_kills_of_the_driver_with_the_real_trainer(
    tiny_root: Path, workplace: Workplace, tmp_path: Path, seed: int
) -> None:
    """One training at a time: same trials, none lost or doubled, the same losses and weights bit for bit."""
    text = REAL.format(root=tiny_root, threads=os.cpu_count())
    calm = Workplace(tmp_path / "calm")
    calm.root.mkdir()
    for place in (calm, workplace):
        (place.root / "study.yaml").write_text(text)
    began = time.monotonic()
    assert command(calm).wait() == 0, (calm.root / "driver.log").read_text()[-2000:]
    moments, kills = random.Random(seed), 0
    while kills < 5:
        driver = command(workplace, "--resume")
        time.sleep(moments.uniform(6, 16))
        if driver.poll() is not None:
            break
        driver.kill()
        driver.wait()
        kills += 1
    assert kills >= 3, f"the study ended after {kills} kills (seed {seed})"
    assert command(workplace, "--resume").wait() == 0, f"seed {seed}"
    assert not judge.faults(workplace), f"seed {seed}"
    told, expected = params(workplace), params(calm)
    assert told == expected, f"seed {seed}"
    for key in expected:
        one, other = (place.root / "results/tiny/trials" / key for place in (workplace, calm))
        left, right = (pq.read_table(f / "trace.parquet").drop_columns(["seconds"]) for f in (one, other))
        assert left.equals(right), f"{key}: the losses differ (seed {seed})"
        weights = [
            read_weights(f / "checkpoints" / "latest") for f in (one, other) if (f / "checkpoints/latest").exists()
        ]
        assert not weights or all(weights[0][name].equal(weights[1][name]) for name in weights[0]), (
            f"{key} (seed {seed})"
        )
    record("kills of the driver, real trainer", seed, kills, "nothing wrong", time.monotonic() - began)
