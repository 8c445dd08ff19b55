"""MLflow away in every way: no call holds a training up, and nothing is lost or doubled after `--sync`.

As a program (`python -m tests.drills.test_mlflow study.yaml ...`) this is the study's command with stand-in trainings;
it notes how long the mirror's calls take in the driver.
"""

from __future__ import annotations

import http.client
import http.server
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from study import run
from study.contract import Attr, Layout, Outcome
from study.mirror import Mirror
from study.tracking import check_reachable
from tests.drills.table import record
from tests.study.conftest import STUDY, Workplace
from tests.study.test_tracking import entry_of
from trainables.runtime.errors import UserError

PAUSE_S = 0.5
CALLS = "calls.log"


class Server:
    """An HTTP server in front of MLflow's that lets calls through, refuses, hangs, answers with error 500, or
    lets calls through and loses their answers.
    """

    def __init__(self, behind: int | None) -> None:
        self.mode, outer = "through" if behind else "error", self
        self.calls: dict[str, int] = {}

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                outer.calls[outer.mode] = outer.calls.get(outer.mode, 0) + 1
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if outer.mode == "hanging":
                    time.sleep(20)
                    return
                if outer.mode == "error":
                    self.send_error(500)
                    return
                connection = http.client.HTTPConnection("127.0.0.1", behind, timeout=30)
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
                if outer.mode == "lost":
                    time.sleep(20)
                    return
                self.send_response(answer.status)
                for name in ("Content-Type",):
                    self.send_header(name, answer.headers.get(name, "application/json"))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                connection.close()

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *words: Any) -> None:
                """Nothing."""

        self.handler, self.port = Handler, 0
        self.listen()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def listen(self) -> None:
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), self.handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def become(self, mode: str) -> None:
        """'refused' closes the port, so that nothing listens there."""
        if mode == "refused":
            self.server.shutdown()
            self.server.server_close()
        elif self.mode == "refused":
            self.listen()
        self.mode = mode

    def close(self) -> None:
        self.become("refused")


@pytest.mark.parametrize("mode", ["error", pytest.param("refused", marks=pytest.mark.slow)])
def test_away_from_the_start_it_is_a_sentence_and_later_it_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """A server that hangs: tests/study/test_tracking.py."""
    for name in ("tracking",):
        monkeypatch.setattr(f"study.{name}.TIMEOUT_S", 1)
    server, layout = Server(None), Layout(tmp_path / "results" / "away")
    server.become(mode)
    with pytest.raises(UserError, match="does not answer" if mode == "refused" else "500 error responses"):
        check_reachable(server.uri)
    mirror, began = Mirror(server.uri, layout, {}, {}), time.monotonic()
    for number in range(3):
        mirror.ended(entry_of(layout, number, Outcome.COMPLETE))
    assert time.monotonic() - began < 1.0
    missing = mirror.close(1.0, finished=True)
    assert missing is not None and "lacks 3 trainings" in missing and missing.endswith("send them with --sync")
    if mode == "error":
        server.close()


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[tuple[int, Path]]:
    """MLflow's own server, its port and its folder."""
    root = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, root / "mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{root}/mlflow.db"]
    command += ["--artifacts-destination", str(root / "artifacts"), "--port", str(port), "--workers", "1"]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=root, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(600):
            try:
                check_reachable(f"http://127.0.0.1:{port}")
                break
            except UserError:
                assert process.poll() is None, (root / "log").read_text()
                time.sleep(0.2)
        yield port, root
    finally:
        os.killpg(process.pid, 9)
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["through", "refused", "hanging", "error", "lost", "absent"])
def test_gone_in_the_middle_or_absent_nothing_waits_and_sync_completes_it(
    workplace: Workplace, cluster: str, mlflow_server: tuple[int, Path], mode: str
) -> None:
    """Once in the middle until the end, then refilled twice; 'through' is the study that had MLflow all the time."""
    began, (port, root), name = time.monotonic(), mlflow_server, f"with-{mode}"
    server = Server(port)
    text = STUDY.replace("name: tiny", f"name: {name}").replace("trials: 6", "trials: 16\n  sampler: random")
    text += f"tracking: {{uri: '{server.uri}'}}\nresources: {{address: '{cluster}'}}\n"
    workplace.write(text)
    (workplace.root / "pause").write_text(str(PAUSE_S))
    absent = ["--set", "tracking.uri=null"] if mode == "absent" else []
    command = [sys.executable, "-m", "tests.drills.test_mlflow", "study.yaml", *absent]
    pipe, folder = subprocess.PIPE, workplace.root / "results" / name
    study = subprocess.Popen(
        command, cwd=workplace.root, env=workplace.environment, stdout=pipe, stderr=pipe, text=True
    )
    if mode not in ("through", "absent"):
        while server.calls.get("through", 0) < 12:
            assert study.poll() is None, study.communicate()
            time.sleep(0.02)
        server.become(mode)
    out, err = study.communicate(timeout=300)
    assert study.returncode == 0 and "Traceback" not in err, err
    assert mode in ("through", "absent") or server.calls.get(mode, 0) > 0 or mode == "refused"
    assert ("send them with --sync" in out) == (mode not in ("through", "absent")), out
    calls = [float(line) for line in (workplace.root / CALLS).read_text().split()] if mode != "absent" else [0.0]
    trials = workplace.ledger(name)
    gaps = [gap for key in trials for gap in report_gaps(folder / "trials" / key / "reports.jsonl")]
    if mode not in ("through", "absent"):
        server.become("through")
        assert told(root, name) != expected(folder, trials)
    for _ in range(2):
        if mode != "through":
            done = workplace.run("--sync")
            assert done.returncode == 0, done.stderr
    server.close()
    result = f"longest call {max(calls) * 1000:.1f} ms of {len(calls)}, longest gap {max(gaps):.2f} s of {len(gaps)}"
    record(f"MLflow {mode}", 0, len(trials), f"{result}; equal after --sync", time.monotonic() - began)
    assert max(calls) < 1.0 and max(gaps) < PAUSE_S + 1.0, result
    assert told(root, name) == expected(folder, trials)


def report_gaps(path: Path) -> list[float]:
    times = [json.loads(line)["time_s"] for line in path.read_text().splitlines()]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def told(root: Path, name: str) -> list[Any]:
    """What MLflow's store holds of a study: outcome, status and points with their times, of every run, doubles too."""
    store = Workplace(root)
    return sorted(
        [run["name"], run["tags"].get("outcome"), run["status"], sorted(map(list, run["metrics"]))]
        for run in store.mlflow()
        if run["tags"]["study"] == name
    )


def expected(folder: Path, trials: dict[str, Any]) -> list[Any]:
    """The same from ledger and reports."""
    status = {"complete": "FINISHED", "pruned": "KILLED"}
    runs = []
    for key, trial in trials.items():
        lines = (folder / "trials" / key / "reports.jsonl").read_text().splitlines()
        points = sorted(
            [metric, report["images"], value, int(report["time_s"] * 1000)]
            for report in map(json.loads, lines)
            for metric, value in report["metrics"].items()
        )
        outcome = trial.user_attrs[Attr.OUTCOME]
        runs.append([key, outcome, status[outcome], points])
    return sorted(runs)


def main(argv: list[str]) -> int:
    from tests.study import standin

    def timed(call: Any) -> Any:
        def noted(self: Mirror, *args: Any) -> None:
            began = time.perf_counter()
            call(self, *args)
            with Path(CALLS).open("a") as file:
                file.write(f"{time.perf_counter() - began}\n")

        return noted

    for name in ("started", "reported", "ended"):
        setattr(Mirror, name, timed(getattr(Mirror, name)))
    run.MIRROR_WAIT_S = 5.0
    return standin.main(argv)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
