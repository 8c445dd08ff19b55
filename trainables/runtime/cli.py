"""Conventions of every command: exit codes, one sentence for a user's mistake, `--json` on a clean stdout."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import gc
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainables.runtime.errors import UserError, refused_by_disk

Body = Callable[[argparse.Namespace], Any]


def parser(command: str, purpose: str, example: str) -> argparse.ArgumentParser:
    """An argument parser whose --help ends with an example."""
    through = sys.argv[0].startswith("densedepth ")  # by trainables/__main__.py
    result = argparse.ArgumentParser(
        prog=sys.argv[0] if through else f"python -m {command}",
        description=purpose,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--json", action="store_true", help="print one JSON document on stdout and nothing else there")
    return result


def path(text: str) -> Path:
    """The type of an argument that names a file or folder; `~` is the home folder in `--out=~/x`, too."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 (pathlib raises for the home of a user that there is not)


class _Output(io.FileIO):
    """A standard stream that never ends the command that writes to it: once its reader is gone or its disk is full,
    what is written is dropped, and `failure` says why.
    """

    failure: OSError | None = None

    def write(self, content: Any, /) -> int:
        if self.failure is None:
            try:
                return super().write(content)
            except OSError as error:
                self.failure = error
        return len(content)


def guarded(name: str, call: Callable[[], int]) -> int:
    """Run the call of a command with standard streams that lose nothing of its work, and return its exit code.

    Any name can be printed: what the stream's encoding has no letter for becomes an escape. A reader that closes the
    pipe has seen what it wanted; where stdout cannot be written for another reason, that is said, and the code is 2.
    A stream that is not the process's own (a test's, a notebook's) stays as it is.
    """
    stdout = _replace("stdout", 1)
    _replace("stderr", 2)
    try:
        code = call()
    except SystemExit as error:  # the parser's, for --help or a wrong argument
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    sys.stdout.flush()
    if stdout is None or stdout.failure is None or stdout.failure.errno == errno.EPIPE:
        return code
    print(f"{name}: stdout: {stdout.failure.strerror}; what was printed is lost", file=sys.stderr)
    return code or 2


def _replace(name: str, number: int) -> _Output | None:
    """Put an `_Output` behind the process's own sys.stdout (1) or sys.stderr (2)."""
    stream: Any = getattr(sys, name)
    if stream is None:  # closed by the shell: a file opened later must not take its number
        while (null := os.open(os.devnull, os.O_RDWR)) < number:
            pass
        setattr(sys, name, io.TextIOWrapper(io.FileIO(null, "w")))
        return None
    if stream is not getattr(sys, f"__{name}__"):
        return None
    stream.flush()
    raw = _Output(number, "wb", closefd=False)
    buffer = raw if stream.write_through else io.BufferedWriter(raw)
    text = io.TextIOWrapper(
        buffer, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering, write_through=True
    )
    setattr(sys, name, text)
    return raw


def run(arguments: argparse.ArgumentParser, body: Body, argv: list[str] | None = None) -> int:
    """Run a command's body and return its exit code: 0 success, 2 a user's mistake, 130 interrupted.

    The body returns the JSON document (printed under --json), or an int to end with that exit code, or a pair of both.
    Under --json everything else that is printed goes to stderr. A bug keeps its traceback (exit code 1).
    """
    return guarded(arguments.prog, lambda: _run(arguments, body, argv))


def _run(arguments: argparse.ArgumentParser, body: Body, argv: list[str] | None) -> int:
    args = arguments.parse_args(argv)
    atexit.register(gc.freeze)  # or the collections at exit look through all that was imported, for up to a second
    from threadpoolctl import threadpool_limits

    try:
        # Where numpy is loaded by now (analysis, the doctor) its products are small: a second thread only waits for the
        # first, and takes a core from who needs it.
        with (
            _seldom_collected(),
            threadpool_limits(1, user_api="blas"),
            contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext(),
        ):
            result = body(args)
    except UserError as error:
        return _refuse(arguments, args, str(error))
    except Exception as error:
        sentence = refused_by_disk(error)
        if sentence is None:
            raise
        return _refuse(arguments, args, sentence)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    document, code = result if isinstance(result, tuple) else (result, 0)
    if isinstance(document, int) and not isinstance(document, bool):
        return document
    if args.json:
        print(json.dumps(document, indent=1, sort_keys=False, allow_nan=False, default=str))
    return int(code)


@contextlib.contextmanager
def _seldom_collected() -> Iterator[None]:
    """Rarer searches for unreachable cycles while a block runs: imports and lists of frames make objects by the
    million that stay, and looking through them again and again takes a tenth of a plan's time.
    """
    before = gc.get_threshold()
    gc.set_threshold(10_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that whatever is open is closed."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse(arguments: argparse.ArgumentParser, args: argparse.Namespace, sentence: str) -> int:
    print(f"{arguments.prog}: {sentence}", file=sys.stderr)
    if args.json:
        print(json.dumps({"error": sentence}))
    return 2
