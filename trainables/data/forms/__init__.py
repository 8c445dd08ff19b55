"""Published forms of NYU Depth v2, one module each, found by name.

A module's name is the value of `data.source`, and it has open_split(data, split) -> FrameList. Adding a form is adding
a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Literal, Protocol, cast

from trainables.config import DataConfig
from trainables.data.frames import FrameList

Split = Literal["train", "test"]


class Form(Protocol):
    """A module of this package."""

    def open_split(self, data: DataConfig, split: Split) -> FrameList:
        """The frames of a split, none of them read yet. Raises UserError."""


def forms() -> dict[str, Form]:
    """Every form by its name."""
    names = [info.name for info in pkgutil.iter_modules(__path__)]
    return {name: cast(Form, importlib.import_module(f"{__name__}.{name}")) for name in names}
