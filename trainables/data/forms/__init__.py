"""Published forms of NYU Depth v2, one module each, found by name.

A module has NAME, the value of `data.source`, and open_split(data, split) -> FrameList. Adding a form is adding a file
(and its name to `DataConfig.source`).
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

    NAME: str

    def open_split(self, data: DataConfig, split: Split) -> FrameList:
        """The frames of a split, none of them read yet. Raises UserError."""


def forms() -> dict[str, Form]:
    """Every form by its name."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return {module.NAME: cast(Form, module) for module in modules}
