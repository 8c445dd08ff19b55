"""What Tune keeps of a study, and owners of a study."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from study.lock import owned
from study.search import _forget_ended
from trainables.errors import UserError


def test_tune_forgets_ended_trials_whose_worker_is_let_go_of() -> None:
    class Trial:
        def __init__(self, *, ended: bool) -> None:
            self.is_finished = lambda: ended

    stopped, failed, stopping = (Trial(ended=True) for _ in range(3))
    running, pending = (Trial(ended=False) for _ in range(2))
    listed = [stopped, running, failed, stopping, pending]
    controller = SimpleNamespace(
        _trials=listed,
        _trial_to_actor={running: "actor", stopping: "actor"},
        _stopped_trials={stopped, stopping},
        _failed_trials={failed},
        _trials_to_cache=set(listed),
        _live_trials={running, pending, failed},
        _resetting_trials={failed, running},
        _actor_manager=SimpleNamespace(
            _pending_actors_to_enqueued_actor_tasks={"asked for": [1], "starting": [2], "not needed": [3]},
            _pending_actors_to_attrs={"asked for": ()},
            _live_actors_to_ray_actors_resources={"starting": (), "actor": ()},
        ),
    )
    _forget_ended(controller)
    assert controller._trials is listed and listed == [running, stopping, pending]
    assert (controller._stopped_trials, controller._failed_trials) == ({stopping}, set())
    assert controller._trials_to_cache == {running, stopping, pending}
    assert (controller._live_trials, controller._resetting_trials) == ({running, pending}, {running})
    assert list(controller._actor_manager._pending_actors_to_enqueued_actor_tasks) == ["asked for", "starting"]


def test_a_dead_owners_lock_is_taken_over_a_living_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "study.lock"
    path.write_text(json.dumps({"pid": 1, "host": socket.gethostname(), "since": "2026"}))
    with owned(path) as alive:
        alive()
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* wait for it or end it"), owned(path):
            pass
    assert path.read_text() == ""
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "2026"}))
    with pytest.raises(UserError, match=r"alive [0-9]+ s ago"), owned(path):
        pass
    os.utime(path, (0, 0))
    with owned(path):
        pass
