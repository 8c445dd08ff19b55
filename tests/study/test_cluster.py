"""Ray as it is started and joined, in surroundings that it does not expect; without starting it."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayError
from ray.tune.constants import TUNE_ENV_VARS

from study import cluster
from study.cluster import ENVIRONMENT
from trainables.runtime.errors import UserError

# Named by Ray's documentation, but in no list that can be imported.
DOCUMENTED = {"RAY_CHDIR_TO_TRIAL_DIR", "RAY_USAGE_STATS_ENABLED"}


@pytest.fixture
def rays(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Ray as it would be started: the arguments, and the environment of its processes."""
    started: dict[str, Any] = {}

    def init(**given: Any) -> None:
        started.update(given, environment=dict(os.environ))

    context = SimpleNamespace(gcs_address="127.0.0.1:1", get_node_id=lambda: "here")
    monkeypatch.setattr(os, "environ", {**os.environ})
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_TMPDIR", "TMPDIR"):
        os.environ.pop(name, None)
    for name, stand_in in (("init", init), ("is_initialized", lambda: False), ("nodes", list), ("shutdown", list),
                           ("get_runtime_context", lambda: context)):  # fmt: skip
        monkeypatch.setattr(ray, name, stand_in)
    return started


@pytest.mark.parametrize(
    ("folder", "expected"),
    [(None, None), ("/tmp/" + "x" * 30, None), ("/tmp/" + "x" * 70, "/tmp"), ("/tmp/" + "ü" * 30, "/tmp")],
    ids=["none", "short", "70", "bytes"],
)
def test_rays_sockets_have_short_paths(rays: dict[str, Any], folder: str | None, expected: str | None) -> None:
    if folder is not None:
        os.environ["TMPDIR"] = folder
    with cluster.ray_running(None):
        assert rays["environment"].get("TMPDIR") == (expected or folder)
    used = expected or folder or "/tmp"
    assert len(os.fsencode(used + cluster.SOCKET.format(pid=os.getpid()))) <= 107


def test_what_ray_lacks_is_told_before_it_starts(rays: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    os.environ["RAY_TMPDIR"] = "/tmp/" + "x" * 70
    with pytest.raises(UserError, match=r"RAY_TMPDIR: .* too long for Ray's sockets; set it to a folder"):
        cluster.ray_running(None).__enter__()
    monkeypatch.setattr(cluster, "SHORT", ("/nowhere",))
    os.environ["TMPDIR"] = os.environ.pop("RAY_TMPDIR")
    with pytest.raises(UserError, match=r"^TMPDIR: .* too long for Ray's sockets"):
        cluster.ray_running(None).__enter__()
    assert not rays


def test_few_files_are_told_but_refused_by_nobody(
    rays: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """How many Ray needs depends on the machine: on two CPUs 256 are enough."""
    for hard, told in ((256, True), (4096, False), (resource.RLIM_INFINITY, False)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, hard=hard: (256, hard))
        with cluster.ray_running(None):
            assert ("ulimit -n: 256 open files may be too few" in capsys.readouterr().out) == told


@pytest.mark.parametrize("home", [None, "/nonexistent"])
def test_a_ray_of_this_machine_needs_no_home(rays: dict[str, Any], home: str | None) -> None:
    """Ray would write its token there, and end where that file is empty."""
    os.environ.pop("HOME", None)
    if home is not None:
        os.environ["HOME"] = home
    with cluster.ray_running(None):
        assert len(rays["environment"]["RAY_AUTH_TOKEN"]) == 64


def test_a_clusters_token_is_used_and_an_empty_one_is_told(
    rays: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_answers", lambda head: head == "head:6379")
    os.environ["HOME"] = str(tmp_path)
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    with cluster.ray_running("head:6379"):
        assert "RAY_AUTH_MODE" not in rays["environment"] and rays["address"] == "head:6379"
    token.write_text("")
    with pytest.raises(UserError, match="auth_token is empty; copy the token"):
        cluster.ray_running("head:6379").__enter__()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with cluster.ray_running("head:6379"):
        assert rays["environment"]["RAY_AUTH_MODE"] == "disabled"
    del os.environ["RAY_AUTH_MODE"]
    token.write_text("secret")
    token.chmod(0o644)
    with cluster.ray_running("head:6379"):
        assert rays["environment"]["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in rays["environment"]
    assert token.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere.invalid:6379", "head", "[::1]:x", "ray://127.0.0.1:9"])
def test_an_address_where_nothing_listens_is_told_at_once(rays: dict[str, Any], address: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=re.escape(f"resources.address: nothing answers at {address}; start the")):
        cluster.ray_running(address).__enter__()
    assert not rays and time.monotonic() - began < 2 * cluster.CONNECT_S


@pytest.mark.parametrize("error", [RuntimeError("a\nb"), RayError("a b"), OSError("a b"), Exception("a b")])
def test_a_ray_that_does_not_start_is_a_sentence(
    rays: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def init(**given: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(cluster, "_answers", lambda head: True)
    with pytest.raises(SystemExit, match=r"Ray did not start \(a b\); see its logs; nothing is lost: continue with"):
        cluster.ray_running(None).__enter__()
    with pytest.raises(UserError, match=r"no Ray cluster answers at head:1 \(a b\); start it or use null"):
        cluster.ray_running("head:1").__enter__()


def test_what_listens_but_is_no_cluster_ends_the_study_with_a_sentence(
    rays: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray would ask it for ten minutes, inside a call that nothing interrupts."""
    ended = threading.Event()
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), ended.set()))
    monkeypatch.setattr(cluster, "JOIN_S", 0.1)
    monkeypatch.setattr(cluster, "_answers", lambda head: True)
    monkeypatch.setattr(ray, "init", lambda **given: ended.wait(20))
    with cluster.ray_running("web:80"):
        assert codes == [2]
    said = capsys.readouterr().err
    assert "what listens at web:80 has let nobody join a Ray cluster for 0 s; nothing is lost" in said


@pytest.mark.parametrize("code", [1, 15, None])
def test_sigterm_while_ray_starts_is_an_interruption(
    rays: dict[str, Any], monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    """Ray's own handlers exit with 1 or 15, silently; or it starts all the same."""

    def init(**given: Any) -> None:
        def ended(number: int, frame: Any) -> None:
            if code is not None:
                sys.exit(code)

        signal.signal(signal.SIGTERM, ended)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ray, "init", init)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        cluster.ray_running(None).__enter__()
    assert signal.getsignal(signal.SIGTERM) is before

    def leave(**given: Any) -> None:
        sys.exit(3)

    monkeypatch.setattr(ray, "init", leave)
    with pytest.raises(SystemExit, match="3"):
        cluster.ray_running(None).__enter__()


def test_ray_is_set_by_documented_variables_alone() -> None:
    assert ENVIRONMENT.keys() <= TUNE_ENV_VARS | DOCUMENTED
