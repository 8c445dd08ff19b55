"""What is drawn does not depend on the user's matplotlib: neither on MPLBACKEND nor on a matplotlibrc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

from trainables.drawing import own_settings

ROOT = Path(__file__).parents[2]
DRAWN = """
import hashlib, os
import analysis.page.html
import numpy as np
from trainables.predict import coloured
picture = coloured(np.ones((4, 6), np.float32), np.zeros((4, 6, 3), np.uint8), "depth (m)")
print(hashlib.sha256(picture.tobytes()).hexdigest())
"""
USERS = "text.usetex: True\nsavefig.dpi: 30\nfont.size: 30\nfigure.facecolor: red\naxes.formatter.use_locale: True\n"


def drawn(place: Path, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MPL")}
    done = subprocess.run(
        [sys.executable, "-c", DRAWN], env=clean | {"PYTHONPATH": str(ROOT)} | environment, cwd=place,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout


@pytest.mark.parametrize("backend", ["module://a_notebooks.backend_inline", "Qt4Agg"])
def test_a_backend_that_is_not_installed_here_changes_nothing(backend: str, tmp_path: Path) -> None:
    """As a notebook hands its own to the commands it starts, or an old profile of the shell."""
    assert drawn(tmp_path, MPLBACKEND=backend) == drawn(tmp_path)


def test_a_matplotlibrc_changes_nothing(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.mkdir()
    (users / "matplotlibrc").write_text(USERS)  # in the folder that a command runs in
    assert drawn(users) == drawn(tmp_path)


def test_the_callers_settings_are_back_afterwards() -> None:
    with mpl.rc_context({"text.usetex": True}):
        with own_settings():
            assert not mpl.rcParams["text.usetex"]
        assert mpl.rcParams["text.usetex"]
