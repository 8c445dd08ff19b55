"""Owners of a study."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from study.lock import owned
from trainables.runtime.errors import UserError


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
