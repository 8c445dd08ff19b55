"""Notice of a study's end, sent to a local server: how it ended, once, and never to another address."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from study.config import load_study
from study.notify import noticed, send
from trainables.runtime.errors import UserError

ENDED: dict[str, Any] = {
    "study": "s", "ended": True, "best": {"key": "search-0001", "rmse": 0.43219},
    "trainings": {"search": {"complete": 2, "out_of_memory": 1}, "confirm": {"complete": 1}},
}  # fmt: skip


class Server(HTTPServer):
    answer, got = 200, []  # type: list[Any]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, self.headers["Content-Type"], json.loads(content)))
        self.send_response(self.server.answer)
        if self.server.answer == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as one:
        one.got = []
        thread = threading.Thread(target=one.serve_forever, daemon=True)
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/hook/SECRET"


def test_an_end_is_told_once_with_its_numbers(server: Server) -> None:
    assert noticed(address(server), "s", lambda: (dict(ENDED), 0)) == (ENDED, 0)
    ((path, kind, body),) = server.got
    assert path == "/hook/SECRET" and kind == "application/json"
    assert body["event"] == "ended" and body["reason"] is None and body["trainings"] == ENDED["trainings"]
    assert body["text"] == "Study s ended: 3 complete, 1 out of memory; best search-0001, rmse 0.4322"


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("error", "event", "reason"),
    [
        (UserError("data.root x does not exist; correct it"), "failed", "data.root x does not exist; correct it"),
        (ZeroDivisionError("a bug"), "failed", "ZeroDivisionError: a bug"),
        (KeyboardInterrupt(), "stopped", "interrupted before its trainings began or ended"),
    ],
)
def test_what_ends_a_study_early_is_told_and_goes_on(
    server: Server, error: BaseException, event: str, reason: str
) -> None:
    with pytest.raises(type(error)):
        noticed(address(server), "s", lambda: _raise(error))
    ((_, _, body),) = server.got
    assert (body["event"], body["reason"]) == (event, reason) and reason in body["text"]


def test_a_stop_and_a_study_without_a_result_are_called_so(server: Server) -> None:
    noticed(address(server), "s", lambda: (ENDED | {"ended": False}, 130))
    noticed(address(server), "s", lambda: (ENDED | {"best": None}, 1))
    assert [(body["event"], body["reason"]) for _, _, body in server.got] == [
        ("stopped", None), ("failed", "no training came to its end"),
    ]  # fmt: skip


@pytest.mark.parametrize("answer", [302, 404, 500])
def test_a_refusal_is_a_line_without_the_secret(
    server: Server, answer: int, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = answer
    assert noticed(address(server), "s", lambda: (dict(ENDED), 0))[1] == 0
    assert len(server.got) == 1  # a redirect is followed nowhere
    said = capsys.readouterr()
    assert said.err == f"notify: 127.0.0.1 was not told that the study ended (it answers {answer})\n" and not said.out


def test_an_address_where_nobody_listens_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert not send("http://127.0.0.1:9/SECRET", {"study": "s", "event": "ended"})
    said = capsys.readouterr().err
    assert said.startswith("notify: 127.0.0.1 was not told") and "SECRET" not in said


def test_the_address_is_checked_and_not_stored(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: s\nnotify: ftp://x/y\n")
    with pytest.raises(UserError, match=r"study.yaml:2: notify: an address that begins with https://"):
        load_study(path, [])
    study = load_study(path, ["notify=https://hooks.example/SECRET"])
    assert study.config.notify == "https://hooks.example/SECRET"
    assert "SECRET" not in json.dumps(study.resolved)
