"""HDF5 files are read as they lie, whoever else has them open."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from trainables.data.hdf5 import dataset, opened

WRITER = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"


@pytest.mark.parametrize("holder", ["a lock", "another process that writes"])
def test_a_file_that_another_holds_is_read(holder: str, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["depth"] = np.ones((4, 6), np.float32)
    if holder == "a lock":
        with path.open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with opened(path) as file:
                assert dataset(file, "depth", "f", (None, None))[:].sum() == 24
        return
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], **pipes, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "open\n"
        with opened(path) as file:
            assert dataset(file, "depth", "f", (None, None))[:].sum() == 24
        writer.communicate()
