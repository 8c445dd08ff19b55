"""Durable files on file systems that cannot flush folders or keep permissions."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from trainables.runtime import durable


def refusing(code: int) -> object:
    def refuse(*given: object, **named: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("code", durable.NO_FLUSH, ids=lambda code: errno.errorcode[code])
def test_what_a_file_system_cannot_flush_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "fsync", refusing(code))
    durable.write_json(tmp_path / "new" / "a.json", {"a": 1})
    assert (tmp_path / "new" / "a.json").read_text() == '{\n "a": 1\n}\n'
    durable.replace_folder(tmp_path / "new", tmp_path / "final")
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["a.json"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=lambda code: errno.errorcode[code])
def test_a_flush_that_fails_is_an_error_that_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", refusing(code))
    for write in (lambda: durable.write_bytes(tmp_path / "a", b"new"), lambda: durable.sync_folder(tmp_path)):
        with pytest.raises(OSError, match=os.strerror(code)) as error:
            write()
        assert str(error.value.filename).startswith(str(tmp_path))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_a_folder_that_cannot_be_opened_is_not_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refusing(errno.EACCES))
        durable.sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        durable.sync_folder(tmp_path / "missing")


def test_a_folder_is_closed_to_others_or_it_is_said_that_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir(mode=0o755)
    (tmp_path / "file").touch(mode=0o644)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", refusing(errno.EPERM))  # exFAT, SMB
        sentence = durable.make_private(tmp_path / "folder")
        assert sentence is not None and "cannot be kept out (Operation not permitted)" in sentence
        patch.setattr(Path, "chmod", lambda *given: None)  # drvfs says nothing
        assert "keeps no permissions" in str(durable.make_private(tmp_path / "file"))
    assert durable.make_private(tmp_path / "folder") is None and durable.make_private(tmp_path / "file") is None
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("folder", "file")] == [0o700, 0o600]
