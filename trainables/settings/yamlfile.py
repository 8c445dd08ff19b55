"""YAML with this project's rules: `1e-5` is a number, `no` stays a word, a key given twice is an error.

Every value remembers its line, so that whoever validates it can say where it stands. Anchors, aliases and tags are
refused: settings are plain, and a cycle or a Python object has no place in them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainables.runtime.errors import UserError

MAX_DEPTH = 12
_NUMBER = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?$")


class _PlainLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own registry)


@dataclass(frozen=True)
class Document:
    """A parsed mapping, the file's name for messages, and the line of each dotted path."""

    name: str
    value: dict[str, Any]
    lines: dict[str, int]

    def where(self, path: str) -> str:
        """'study.yaml:12: search.trials', by the nearest known line."""
        probe = path
        while probe and probe not in self.lines:
            probe = probe.rpartition(".")[0]
        line = f":{self.lines[probe]}" if probe in self.lines else ""
        return f"{self.name}{line}: {path}" if path else f"{self.name}{line}"


def read_yaml(path: Path) -> Document:
    """The mapping in a file. Raises UserError naming file and line for anything that is not one."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); name an existing YAML file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Document:
    """The mapping in a text; `name` stands in messages."""
    node = _compose(text, name)
    lines: dict[str, int] = {}
    value = _convert(node, "", lines, name, 0)
    if not isinstance(value, dict):
        raise UserError(f"{name} must be a mapping of settings, not {_kind(value)}")
    return Document(name, value, lines)


def parse_value(text: str, name: str) -> Any:
    """One value, as on the right of `--set PATH=`."""
    return _convert(_compose(text, name), "", {}, name, 0)


def parse_texts(text: str, name: str) -> Any:
    """One value, which as a list holds texts: `[2018, no]` are two names. Another kind of value is as in YAML."""
    node = _compose(text, name)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [item.value for item in node.value]
    return _convert(node, "", {}, name, 0)


def nearest(name: str, valid: Iterable[str]) -> str:
    """' (did you mean X?)' for the nearest valid name, or nothing."""
    match = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_PlainLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise UserError(f"{name}:{line}: anchors and aliases are not used in settings; write the value out")
            tag = getattr(event, "tag", None)
            if tag:
                raise UserError(f"{name}:{line}: the tag {tag} is not allowed; write a plain value")
            if depth > MAX_DEPTH:
                raise UserError(f"{name}:{line}: nested deeper than {MAX_DEPTH} levels; settings never are")
        return yaml.compose(text, Loader=_PlainLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{name}{at} is not valid YAML ({problem}); correct that line") from error


def _convert(node: yaml.Node | None, path: str, lines: dict[str, int], name: str, depth: int) -> Any:
    if node is None:
        return None
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        items = []
        for i, item in enumerate(node.value):
            here = f"{path}.{i}".lstrip(".")
            lines[here] = item.start_mark.line + 1
            items.append(_convert(item, here, lines, name, depth + 1))
        return items
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{name}:{line}: a key must be a word, not a list or mapping")
        key = str(key_node.value)
        here = f"{path}.{key}".lstrip(".")
        if key in mapping:
            raise UserError(f"{name}:{line}: the key {here} is given twice; keep one")
        lines[here] = line
        mapping[key] = _convert(value_node, here, lines, name, depth + 1)
    return mapping


def _scalar(text: str) -> Any:
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _NUMBER.match(text):
        plain = text.replace("_", "")
        return int(plain) if re.fullmatch(r"[-+]?\d+", plain) and len(plain) < 20 else float(plain)
    return text


def _kind(value: Any) -> str:
    return "an empty file" if value is None else f"a {type(value).__name__}"
