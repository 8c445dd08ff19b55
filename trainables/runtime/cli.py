"""Conventions of every command: exit codes, one sentence for a user's mistake, `--json` on a clean stdout."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import json
import signal
import sys
from collections.abc import Callable, Iterator
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


def run(arguments: argparse.ArgumentParser, body: Body, argv: list[str] | None = None) -> int:
    """Run a command's body and return its exit code: 0 success, 2 a user's mistake, 130 interrupted.

    The body returns the JSON document (printed under --json), or an int to end with that exit code, or a pair of both.
    Under --json everything else that is printed goes to stderr. A bug keeps its traceback (exit code 1).
    """
    args = arguments.parse_args(argv)
    atexit.register(gc.freeze)  # or the collections at exit look through all that was imported, for up to a second
    try:
        with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
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
