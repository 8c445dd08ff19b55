"""Published forms of NYU Depth v2, one module each, found by name.

A module's name is the value of `data.source` (registry.FORMS). It has open_split(data, split) -> FrameList, whose
reader says what its frames are kept in; MARK, what tells the form in a root; and DEPTHS, the kinds of depth it holds.
Adding a form is adding a file.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Literal, Protocol, cast

from trainables.data.frames import FrameList
from trainables.settings.config import DataConfig
from trainables.settings.registry import FORMS

Split = Literal["train", "test"]


class Form(Protocol):
    """A module of this package."""

    MARK: str
    DEPTHS: Collection[Literal["filled", "raw"]]

    def open_split(self, data: DataConfig, split: Split) -> FrameList:
        """The frames of a split, none of them read yet. Raises UserError."""


def forms() -> dict[str, Form]:
    """Every form by its name."""
    return {name: cast(Form, importlib.import_module(f"{__name__}.{name}")) for name in FORMS}
