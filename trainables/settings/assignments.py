"""Values of `--set PATH=VALUE`: YAML, except that text stays text where a setting is text, as a path or a name is.

A shell's word `/x/set #2`, `a: b`, `2018` or `@x` is a fine name of a folder and means something else in YAML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from trainables.runtime.errors import UserError
from trainables.settings.config import Section, TrialConfig
from trainables.settings.yamlfile import parse_texts, parse_value

QUOTED = re.compile(r"""'([^']|'')*'|"([^"\\]|\\.)*\"""", re.DOTALL)  # as in YAML, around the whole


def annotation_of(kind: type[Section], path: str) -> Any:
    """The type of a setting by its dotted path; Any for a key that a mapping is free to have, or that there is not."""
    annotation: Any = kind
    for part in path.split("."):
        if not (isinstance(annotation, type) and issubclass(annotation, Section)):
            return Any
        if part not in annotation.model_fields:
            return Any
        annotation = annotation.model_fields[part].annotation
    return annotation


def of_training(path: str) -> Any:
    """The type of a training's setting by its dotted path."""
    return annotation_of(TrialConfig, path)


def parse_assignments(pairs: Sequence[str], annotation: Callable[[str], Any] = of_training) -> dict[str, Any]:
    """['optim.lr=1e-3', 'data.root=/x/set #2'] -> {'optim.lr': 0.001, 'data.root': '/x/set #2'}.

    annotation: the type of the setting at a path. Where it is text, the value is taken as
    it stands, without quotes around the whole, and `null` is none. Raises UserError for what is no assignment and for
    what could mean two things.
    """
    result: dict[str, Any] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        if not equals or not path:
            raise UserError(f"--set {pair}: write PATH=VALUE, for example optim.lr=1e-3")
        if path in result:
            raise UserError(f"--set {path} is given twice; keep one")
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # how Python holds bytes that are no text
            raise UserError(f"--set {path}: the value is not UTF-8 text; rename what it names")
        if not text.strip():
            raise UserError(f"--set {path}: the value is empty; write null for none, or '' for an empty text")
        result[path] = _value(text, path, annotation(path))
    return result


def _value(text: str, path: str, annotation: Any) -> Any:
    name, kinds = f"--set {path}", _alternatives(annotation)
    if str in kinds and all(kind in (str, type(None)) for kind in kinds):
        return _text(text, name, nullable=type(None) in kinds)
    if any(get_origin(kind) is tuple and _alternatives(get_args(kind)[0]) == [str] for kind in kinds):
        found = text if text.strip() == "*" else parse_texts(text, name)  # * alone is an alias in YAML
        if found is not None and not isinstance(found, list) and str not in kinds:
            one = found if isinstance(found, str) else " ".join(text.split())
            raise UserError(f"{name}: write a list, for example {json.dumps([one], ensure_ascii=False)}, not {one}")
        return found
    return parse_value(text, name)


def _text(text: str, name: str, *, nullable: bool) -> str | None:
    if QUOTED.fullmatch(text):
        return str(parse_value(text, name))
    if nullable and text == "null":
        return None
    if nullable and text.lower() in ("none", "null"):
        raise UserError(f"{name}: {text} could be none or a name; write null for none, or '{text}' in quotes")
    if nullable and text == "~":
        raise UserError(f"{name}: ~ could be none or your home folder; write null or ~/")
    return text


def _alternatives(annotation: Any) -> list[Any]:
    """The types of which a value has one; a literal text is text."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin is Literal:
        return [type(value) for value in get_args(annotation)]
    if origin is None or origin in (tuple, list, dict):
        return [annotation]
    return [one for part in get_args(annotation) for one in _alternatives(part)]
