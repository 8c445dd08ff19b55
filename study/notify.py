"""Notice of a study's end to a web address: `notify` of the study, a POST of JSON that chat services take, too.

    {"text": "...", "study": NAME, "event": "ended" | "stopped" | "failed", "reason": null or a sentence, ...}

`text` is what Slack, Mattermost and Teams show; the rest is what study.run prints with --json. The address holds a
secret as a rule, so it is kept out of the results folder and of every message. A notice that fails is a line on stderr:
it never changes how the study ended.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from trainables.runtime.errors import UserError

TIMEOUT_S = 10
Answer = tuple[dict[str, Any], int]


def noticed(url: str | None, study: str, run: Callable[[], Answer]) -> Answer:
    """What `run` answers, its JSON document and exit code; its end, or what ended it, is sent to the address."""
    if url is None:
        return run()
    try:
        document, code = run()
    except UserError as error:
        send(url, {"study": study, "event": "failed", "reason": str(error)})
        raise
    except KeyboardInterrupt:
        send(url, {"study": study, "event": "stopped", "reason": "interrupted before its trainings began or ended"})
        raise
    except Exception as error:
        send(url, {"study": study, "event": "failed", "reason": f"{type(error).__name__}: {error}"})
        raise
    event = "stopped" if not document["ended"] else "ended" if code == 0 else "failed"
    reason = None if code == 0 or event == "stopped" else "no training came to its end"
    send(url, document | {"event": event, "reason": reason})
    return document, code


def send(url: str, facts: dict[str, Any]) -> bool:
    """Post the facts with a `text` of them; whether the address took it. One that does not is told on stderr."""
    content = json.dumps({"text": _text(facts), **facts}).encode()
    request = Request(url, content, {"Content-Type": "application/json"})  # noqa: S310  (http or https: study/config.py)
    try:
        with build_opener(_Stay).open(request, timeout=TIMEOUT_S):
            return True
    except (HTTPError, URLError, OSError, ValueError) as error:
        why = f"it answers {error.code}" if isinstance(error, HTTPError) else getattr(error, "reason", error)
        print(f"notify: {urlsplit(url).hostname} was not told that the study {facts['event']} ({why})", file=sys.stderr)
        return False


class _Stay(HTTPRedirectHandler):
    """A redirect is a failure: the notice goes to the address that was written down, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _text(facts: dict[str, Any]) -> str:
    counts: dict[str, int] = {}
    for outcomes in facts.get("trainings", {}).values():
        for outcome, count in outcomes.items():
            counts[outcome] = counts.get(outcome, 0) + count
    said = f"Study {facts['study']} {facts['event']}"
    if counts:
        said += ": " + ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in counts.items())
    if best := facts.get("best"):
        metric, value = next((name, value) for name, value in best.items() if name != "key")
        said += f"; best {best['key']}, {metric} {value:.4g}"
    return f"{said} ({facts['reason']})" if facts.get("reason") else said
