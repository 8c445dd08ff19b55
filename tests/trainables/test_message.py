"""What a worker says to its session survives its way as JSON."""

from __future__ import annotations

from typing import get_args

import pytest

from study.contract import Outcome
from trainables.message import Kind, Message


@pytest.mark.parametrize(
    "message",
    [
        Message("report", report={"images": 20, "metrics": {"val/rmse": 0.5}, "final": False}),
        Message("blocked", reason="no room"),
        Message("diverged", reason="the loss is not finite", step=0),
        Message("complete", summary={}),
    ],
    ids=lambda message: message.kind,
)
def test_a_message_comes_back_from_json_as_it_was(message: Message) -> None:
    assert Message.from_json(message.to_json()) == message


def test_a_message_of_unknown_fields_is_refused() -> None:
    with pytest.raises(TypeError):
        Message.from_json('{"kind": "report", "told": {}}')


def test_every_end_is_an_outcome_or_resumable() -> None:
    ends = {message for message in map(Message, get_args(Kind)) if message.ends}
    assert {message.kind for message in ends if not message.resumable} == {outcome.value for outcome in Outcome}
    assert {message.kind for message in ends if message.resumable} == {"stopped", "blocked"}
