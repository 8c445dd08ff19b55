"""A command's output: any name in any encoding, closed pipes, full disks; folders that no output fits into."""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainables import parity, predict, train, weights_keras
from trainables.data.doctor import diagnosis
from trainables.data.rooms import writer
from trainables.runtime import cli
from trainables.runtime.cli import path
from trainables.runtime.durable import check_folder, write_bytes
from trainables.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
# A command that prints its argument more often than a pipe holds, writes a file at its end, and answers.
COMMAND = """
import sys
from pathlib import Path
from trainables.runtime import cli
parser = cli.parser("x", "A test.", "python -m x a")
parser.add_argument("name")
parser.add_argument("--done", type=Path)
def body(args):
    for _ in range(3000):
        print(args.name, "x" * 60)
        print(args.name, file=sys.stderr)
    args.done.write_text("done")
    return {"name": args.name}
sys.exit(cli.run(parser, body))
"""
NAMES = ["Küche", "厨房", "a\udcff\udc80b", "\u202egnp.exe", "two\nlines", "\x1b[31mred"]


def shell(line: str, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A shell's line, in which "$@" is the command with the words."""
    command = ["bash", "-c", line, "bash", sys.executable, "-c", COMMAND, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, env=os.environ | environment)


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1", "utf-8:strict", "cp1252"])
def test_any_name_is_printed_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    name = "".join(NAMES)
    for option in ([], ["--json"]):
        ran = shell('"$@"', name, "--done", str(tmp_path / "done"), *option, PYTHONIOENCODING=encoding)
        assert ran.returncode == 0 and b"Traceback" not in ran.stderr, ran.stderr[-300:]
        said = ran.stdout.decode(encoding.partition(":")[0])
        assert json.loads(said)["name"] == name if option else len(said.splitlines()) >= 3000
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ('"$@" 2>/dev/null | head -c 0; exit ${PIPESTATUS[0]}', 0, b""),
        ('"$@" 2>&1 | head -c 100; exit ${PIPESTATUS[0]}', 0, None),
        ('"$@" --json 2>/dev/null | head -c 0; exit ${PIPESTATUS[0]}', 0, b""),
        ('"$@" 2>&1 >/dev/full | tail -n 1; exit ${PIPESTATUS[0]}', 2, b""),
        ('"$@" --json 2>/dev/null >/dev/full', 2, b""),
        ('"$@" 2>/dev/full', 0, None),
        ('"$@" >/dev/full 2>/dev/full', 2, b""),
        ('"$@" >&- 2>&-', 0, b""),
        ('"$@" <&- >&-', 0, None),
        ('"$@" 2>&- >/dev/null', 0, b""),
    ],
)
def test_neither_a_closed_pipe_nor_a_full_disk_loses_what_a_command_does(
    line: str, code: int, says: bytes | None, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    ran = shell(line, "name", "--done", str(done))
    assert ran.returncode == code, (ran.stdout[-300:], ran.stderr[-300:])
    assert b"Traceback" not in ran.stdout + ran.stderr and b"Error" not in ran.stdout + ran.stderr
    assert done.read_text() == "done"
    if says == b"" and "tail" in line:
        assert ran.stdout == b"python -m x: stdout: No space left on device; what was printed is lost\n"
    elif says is not None:
        assert ran.stdout + ran.stderr == says


def test_collections_are_rare_within_a_command_and_as_the_caller_had_them_after() -> None:
    before, within = gc.get_threshold(), list[tuple[int, int, int]]()

    def body(_: argparse.Namespace) -> None:
        within.append(gc.get_threshold())
        raise UserError("a mistake")

    assert cli.run(cli.parser("x", "A test.", "python -m x"), body, []) == 2
    assert within[0][0] > before[0] and gc.get_threshold() == before


def test_help_into_a_full_disk_or_a_closed_pipe_is_no_traceback() -> None:
    for line, code in (('"$@" --help >/dev/full', 2), ('"$@" --help | head -c 0; exit ${PIPESTATUS[0]}', 0)):
        ran = shell(line)
        assert ran.returncode == code and b"Traceback" not in ran.stderr


def test_a_bug_keeps_its_traceback_in_any_encoding() -> None:
    bug = COMMAND.replace("    for _", "    raise ValueError(args.name)\n    for _")
    command = [sys.executable, "-c", bug, "Küche\udcff"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert ran.returncode == 1 and b"Traceback" in ran.stderr and b"ValueError: K\\xfcche\\udcff" in ran.stderr


def test_the_home_folder_of_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert (path("~/x"), path("a~/x")) == (Path("/home/someone/x"), Path("a~/x"))
    assert path("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")


def commands(out: Path) -> dict[str, tuple[Any, list[str]]]:
    """Every command that takes --out, with arguments that are refused later than the folder is."""
    return {
        "train": (train, ["densedepth", "--set", "data.root=/none", "--out", str(out)]),
        "predict": (predict, [str(ROOT / "docs/report.png"), "--checkpoint", "/none", "--out", str(out)]),
        "doctor": (diagnosis, [str(ROOT / "docs"), "--out", str(out)]),
        "rooms": (writer, ["--set", "train_scenes=1", "--out", str(out)]),
        "weights_keras": (weights_keras, ["/none.h5", "--out", str(out)]),
    }


@pytest.mark.parametrize("name", commands(Path()))
def test_an_output_that_no_folder_can_be_made_for_is_refused_first(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    cases = {
        "file/below": "file is a file where a folder",
        "link/below": "is a link to nothing",
        "x" * 300: "File name too long",
        "new/" + "x" * 300: "is longer than 255 bytes",
    }
    for below, says in cases.items():
        module, arguments = commands(tmp_path / below)[name]
        assert module.main(arguments) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error
        assert module.main([*arguments, "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["error"] in error
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "link"]


def test_a_folder_of_something_else_is_not_trained_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("config.json", '{"mine": 1}'), ("config.json", "[]"), ("notes.txt", "x")):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / name).write_text(text)
        (folder / ".mine.tmp").write_text("x")  # what a training would clear as a leftover
        assert train.main(["densedepth", "--set", "data.root=/none", "--out", str(folder)]) == 2
        assert "holds files of something other than a training" in capsys.readouterr().err
        assert (folder / ".mine.tmp").exists() and (folder / name).read_text() == text


def test_a_file_of_the_doctors_name_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("doctor.json", "doctor.png"):
        (tmp_path / name).write_text("{}")
        assert diagnosis.main([str(ROOT / "docs"), "--out", str(tmp_path)]) == 2
        assert f"{name} is not a doctor's and would be replaced" in capsys.readouterr().err
        (tmp_path / name).unlink()


def test_rooms_are_not_written_over_a_folder_named_by_a_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".", "..", "/"):
        assert writer.main(["--out", name]) == 2
        assert "is there without a readable" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_any_allowed_length_is_written(tmp_path: Path) -> None:
    check_folder(tmp_path, "x" * 255)
    write_bytes(tmp_path / ("x" * 255), b"1")
    assert (tmp_path / ("x" * 255)).read_bytes() == b"1"
    with pytest.raises(UserError, match="is longer than 255 bytes"):
        check_folder(tmp_path, "é" * 128)


def test_parity_of_a_file_that_is_a_folder_is_one_sentence(tmp_path: Path) -> None:
    assert parity.main([str(tmp_path)]) == 2
