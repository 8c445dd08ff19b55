"""Commands: `densedepth` lists and runs all of them, and every example of a --help is one that its parser takes."""

from __future__ import annotations

import argparse
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainables import __main__ as densedepth
from trainables.runtime import cli

ROOT = Path(__file__).resolve().parent.parent
AFTER_STUDY = Path("results/rooms/trials/confirm-0000")  # what `make study` leaves
MODULES = [module for module, _ in densedepth.COMMANDS.values()]


class Parsed(Exception):
    """A command's parser, instead of what the command does."""


def parser_of(module: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The argument parser that a command makes when it is run."""

    def run(arguments: argparse.ArgumentParser, *_: Any) -> int:
        raise Parsed(arguments)

    monkeypatch.setattr(cli, "run", run)
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(Parsed) as caught:
        runpy.run_module(module, run_name="__main__")
    parser: argparse.ArgumentParser = caught.value.args[0]
    return parser


@pytest.mark.parametrize("module", MODULES)
def test_the_example_of_every_help_is_taken_by_its_parser(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = parser_of(module, monkeypatch)
    example = (parser.epilog or "").removeprefix("example: ")
    commands = [shlex.split(command) for command in example.split(" && ")]
    assert module in [name for _, _, name, *_ in commands]
    made: set[str] = set()
    for python, option, name, *arguments in commands:
        assert (python, option) == ("python", "-m") and name in MODULES
        mine = parser if name == module else parser_of(name, monkeypatch)
        args = mine.parse_args(arguments)
        named = getattr(args, "study", None)
        if module.startswith("analysis.") and isinstance(named, str):  # as it stands after `make study`
            assert named == yaml.safe_load((ROOT / "study.yaml").read_text())["name"]
        read = [value for key, value in vars(args).items() if isinstance(value, Path) and key != "out"]
        for path in [*read, *getattr(args, "pictures", [])]:
            there = (ROOT / path).exists() or str(path) in made or path.is_relative_to(AFTER_STUDY)
            assert there or path == Path("nyu.h5"), path  # the authors' own file, which is not given away here
        made.add(str(getattr(args, "out", None)))
    assert " [" not in example, "a shell may read it as a pattern of file names"


def test_every_module_that_is_a_command_is_listed() -> None:
    found = set()
    for room in ("study", "trainables", "analysis"):
        for path in (ROOT / room).rglob("*.py"):
            if 'if __name__ == "__main__":' in path.read_text():
                module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
                found.add(module.removesuffix(".__main__"))
    assert found - {"trainables"} == set(MODULES)
    text = densedepth.listed()
    assert all(name in text and purpose in text for name, (_, purpose) in densedepth.COMMANDS.items())


def densedepth_says(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`densedepth ARGUMENTS`, where importing torch is an error."""
    code = "import sys; sys.modules['torch'] = None; sys.argv[0] = 'densedepth'; "
    code += "from trainables.__main__ import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_densedepth_lists_and_runs_without_torch() -> None:
    help_text = densedepth_says("--help")
    assert (help_text.returncode, help_text.stdout) == (0, densedepth.listed() + "\n"), help_text.stderr
    for words in (["study", "run"], ["predict"]):
        ran = densedepth_says(*words, "--help")
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.startswith(f"usage: densedepth {' '.join(words)} [-h]")
    assert densedepth_says("predict").returncode == 2  # what the command's own parser refuses


def test_an_unknown_command_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, near in ((["trian"], "train"), (["study", "rnu"], "study run")):
        monkeypatch.setattr(sys, "argv", ["densedepth", *words])
        assert densedepth.main() == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1
        assert f"no command {' '.join(words)} (did you mean {near}?)" in said.err
