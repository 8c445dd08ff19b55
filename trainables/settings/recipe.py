"""Recipes: a published system is one YAML file that fills a `TrialConfig`, or several when it has stages.

A recipe `extends` another (null for the paper's, which fills everything), may list `stages` and name `variants`; each
is a mapping of the settings that differ. Overrides are given by dotted path, and the longest existing key wins.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from trainables.runtime.errors import UserError
from trainables.settings.config import Section, TrialConfig, reaching
from trainables.settings.yamlfile import Document, nearest, read_yaml

RECIPES = Path(__file__).parent / "recipes"
T = TypeVar("T", bound=Section)
OPEN_MAPPINGS = frozenset({"loss", "data.rooms.defects"})  # their keys are names that the validation checks


def recipe_names() -> list[str]:
    """The published systems that can be trained by name.

    >>> "densedepth" in recipe_names()
    True
    """
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_stages(name: str) -> list[dict[str, Any]]:
    """The complete, not yet validated settings of each stage of a recipe; `name` may be 'recipe+variant'."""
    base, _, variant = name.partition("+")
    document = _read_recipe(base)
    body = dict(document.value)
    stages, variants = body.pop("stages", [{}]), body.pop("variants", {})
    parent = body.pop("extends")
    if variant and variant not in variants:
        raise UserError(
            f"recipe {base} has no variant {variant}{nearest(variant, variants)}; it has {sorted(variants)}"
        )
    settings = recipe_stages(parent)[0] if parent else {}
    result = []
    for number, stage in enumerate(stages):
        filled = copy.deepcopy(settings)
        for layer in (body, stage, variants[variant] if variant else {}):
            merge(filled, layer, document, complete=parent is None)
        filled |= {"recipe": base, "stage": number, "variant": variant or None}
        result.append(filled)
    return result


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None, source: str = "--set") -> list[TrialConfig]:
    """The validated trainings of a recipe, one per stage, with overrides {'optim.lr': 1e-3} applied to each.

    Raises UserError for a recipe, a path or a value that there is not, with the nearest valid name.

    >>> (config,) = load_recipe("densedepth", {"optim.lr": 1e-3})
    >>> config.model.encoder, config.optim.lr, config.batch_size
    ('densenet169', 0.001, 8)
    >>> [stage.start_from for stage in load_recipe("relative_unet")]
    [None, None, 'previous_stage']
    """
    result = []
    for settings in recipe_stages(name):
        for path, value in (overrides or {}).items():
            set_path(settings, path, value, source)
        result.append(validate(TrialConfig, settings, Document(f"recipe {name} with {source}", settings, {})))
    return result


def merge(settings: dict[str, Any], layer: Mapping[str, Any], document: Document, *, complete: bool = False) -> None:
    """Put a layer's values into settings, in place; keys may be dotted paths. `complete` layers may add keys."""
    for key, value in layer.items():
        if complete and "." not in key:
            settings[key] = copy.deepcopy(value)
        elif (
            isinstance(value, Mapping) and value and isinstance(_get(settings, key), dict) and key not in OPEN_MAPPINGS
        ):
            for inner, deeper in value.items():
                merge(settings, {f"{key}.{inner}": deeper}, document)
        else:
            set_path(settings, key, value, document.where(key))


def set_path(settings: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Set one dotted path in place. Raises UserError where the path names nothing."""
    parts = path.split(".")
    node: Any = settings
    for depth, part in enumerate(parts):
        here = ".".join(parts[:depth])
        if not isinstance(node, dict):
            raise UserError(f"{where}: {here} is a value, so {path} names nothing; set {here} itself")
        if part not in node and (here not in OPEN_MAPPINGS or depth < len(parts) - 1):
            valid = ", ".join(node)
            raise UserError(f"{where}: no setting {path}{nearest(part, node)}; under {here or 'a training'}: {valid}")
        if depth == len(parts) - 1:
            node[part] = copy.deepcopy(value)
        else:
            node = node[part]


def validate(kind: type[T], settings: Mapping[str, Any], document: Document) -> T:
    """A validated value of `kind`, or a UserError for the first problem, naming file, line, key and valid names."""
    try:
        return kind.model_validate_json(json.dumps(reaching(settings) if kind is TrialConfig else settings))
    except ValidationError as error:
        raise UserError(_sentence(error, kind, document)) from None


def _sentence(error: ValidationError, kind: type[Section], document: Document) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"] if part != "[key]")  # pydantic's word for a mapping's own key
    if first["type"] == "extra_forbidden":
        owner = kind
        for part in first["loc"][:-1]:
            annotation = owner.model_fields[str(part)].annotation if str(part) in owner.model_fields else None
            owner = annotation if isinstance(annotation, type) and issubclass(annotation, Section) else owner
        return f"{document.where(path)} is not a setting{nearest(str(first['loc'][-1]), owner.model_fields)}; remove it"
    if first["type"] == "missing":
        return f"{document.where(path)} is missing; add it"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" else f", not {json.dumps(first['input'], default=str)[:80]}"
    if first["type"] == "literal_error":
        given += nearest(str(first["input"]), re.findall(r"'([^']+)'", first["ctx"]["expected"]))
    return f"{document.where(path)}: {message[0].lower() + message[1:]}{given}"


@functools.cache  # a study reads a recipe once: an edit of the file while it runs changes no later trial
def _read_recipe(name: str) -> Document:
    path = RECIPES / f"{name}.yaml"
    if "/" in name or not path.is_file():
        raise UserError(f"no recipe {name}{nearest(name, recipe_names())}; the recipes are {', '.join(recipe_names())}")
    return read_yaml(path)


def _get(settings: Mapping[str, Any], path: str) -> Any:
    node: Any = settings
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
