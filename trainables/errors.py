"""What can go wrong, told apart: a user's mistake, a training that diverged, memory that ran out, a call to stop.

A bug is none of these and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend; its text is one sentence naming file and key and what to do (exit code 2)."""


class Diverged(Exception):
    """A loss or gradient stopped being finite. `step` is the optimiser step (0-based) and `reason` says what."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step = step
        self.reason = reason


class Stopped(Exception):
    """The training was told to stop, and did at a checkpoint from which it goes on."""


class PeerLost(Exception):
    """One of the processes that train together has ended; its own error says why, if it had the time to tell one."""


class OutOfMemory(Exception):
    """The device or the host had no memory left for the training."""
