"""Message from a worker to its session: a report, or how its training ended, as one JSON text through Ray Tune."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

# The last five are the names of study.contract's outcomes; a training that has stopped or is blocked has no outcome
# yet, because it continues with --resume.
Kind = Literal["report", "stopped", "blocked", "complete", "pruned", "diverged", "out_of_memory", "failed"]
RESULT_KEY = "message"  # under which a result of Tune holds it


@dataclass(frozen=True)
class Message:
    """One message. `report`: a validation's (trainables.training.progress.Report as JSON types), with kind 'report'
    alone.
    """

    kind: Kind
    report: Mapping[str, Any] | None = None
    reason: str | None = None  # of any other end than 'complete'
    detail: str | None = None  # the traceback
    step: int | None = None  # at which it diverged
    summary: Mapping[str, Any] | None = None  # of a complete training: the content of summary.json

    @property
    def ends(self) -> bool:
        """Whether the training has ended, for now or for good."""
        return self.kind != "report"

    @property
    def resumable(self) -> bool:
        """Whether the training continues with --resume."""
        return self.kind in ("stopped", "blocked")

    def to_json(self) -> str:
        """The message as JSON; fields that are None are left out."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None})

    @classmethod
    def from_json(cls, text: str) -> Message:
        """The message behind `to_json`. Raises TypeError for fields that no message has."""
        return cls(**json.loads(text))
