"""A training's settings as a table's row holds them, and those that differ from another set of settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.page.section import plain
from trainables.settings.recipe import OPEN_MAPPINGS

COLUMN = "config."  # before a setting's path


def held_settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a row of StudyTables.trials by path, None where it has none."""
    return {name.removeprefix(COLUMN): _whole(plain(v)) for name, v in row.items() if name.startswith(COLUMN)}


def differing(held: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The held settings that are not the usual ones, by path as --set and a claim's arm take them.

    A mapping with keys of its own (the loss) is given whole: what it does not name is not there.
    """
    result: dict[str, Any] = {}
    for path in sorted(held.keys() | usual.keys()):
        value = held.get(path)
        if value == plain(usual.get(path)):
            continue
        section = next((name for name in OPEN_MAPPINGS if f"{path}.".startswith(f"{name}.")), None)
        if section is None:
            result[path] = value
        else:
            inner = {p.removeprefix(f"{section}."): v for p, v in held.items() if p.startswith(f"{section}.")}
            result[section] = {name: v for name, v in inner.items() if v is not None}
    return result


def _whole(value: Any) -> Any:
    """The value; a whole number as one, which a column with gaps keeps as a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
