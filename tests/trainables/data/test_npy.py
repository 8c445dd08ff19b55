"""Damaged headers of .npy files are one sentence, whoever reads them: a stack, a map, a depth."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest

from trainables.data.depth_coding import DepthCoding
from trainables.data.frames import BadFrame
from trainables.data.npy import Stack, read_npy_header
from trainables.evaluation.maps import open_maps
from trainables.runtime.errors import UserError

HEADERS = [
    "{",  # tokenize.TokenError
    "{" * 5000,  # MemoryError or SyntaxError, by the version of Python
    "-" * 5000 + "1",  # RecursionError
    "\n x\n y",  # IndentationError
    "{'descr': [[]], 'fortran_order': False, 'shape': (2,)}",
    "{'descr': None, 'fortran_order': False, 'shape': (2,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 3)}",
    "{'descr': '<f4'}",
    "",
]


def damaged(header: str) -> bytes:
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode() + bytes(24)


@pytest.mark.parametrize("header", HEADERS)
def test_a_damaged_header_is_one_sentence(header: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(damaged(header))
    with pytest.raises(UserError, match=r"x\.npy .*(replace it|refused)"):
        Stack.open(tmp_path, "x.npy", str(path))
    with pytest.raises(BadFrame, match=r"^x\.npy .*(replace it|convert it)"):
        DepthCoding(None, 10.0, ()).decode(damaged(header), "x.npy")
    with pytest.raises(UserError) as refusal:
        open_maps(path, ["a", "b"])
    assert "x.npy" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_whole_header_is_read_as_it_was_written() -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((2, 3), np.float32))
    file.seek(0)
    assert read_npy_header(file) == ((2, 3), False, np.dtype(np.float32))
