"""A study as one typed value: study.yaml over study/defaults.yaml, with `--set` on top.

Everything that can be refused is refused here or in study/plan.py, before a training starts, with file, line and key.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from study.contract import Judge
from study.methods import PRUNERS, SAMPLERS
from trainables.runtime.errors import UserError
from trainables.settings.assignments import annotation_of, of_training, parse_assignments
from trainables.settings.config import (
    Count,
    Mark,
    MetricName,
    NameOf,
    PathText,
    ProtocolName,
    Section,
    TrialConfig,
    mark_of,
    yields,
)
from trainables.settings.recipe import validate
from trainables.settings.yamlfile import Document, nearest, read_yaml

DEFAULTS = Path(__file__).parent / "defaults.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# What decides the settings of a training that no study sets.
DECIDED_BY = {"seed": "the study's own seed", "best_metric": "judge.metric", "protocol": "judge.protocol"}
# Mappings whose keys are dotted paths of settings, or names, and may be new.
OPEN = frozenset({"data", "trial", "search.space", "judge.margins"})
NonNegativeCount = Annotated[int, Field(ge=0)]


def _amount(value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value != "auto" and not (number and value >= 0):
        raise ValueError(f"write auto or a number from 0, not {value!r}")
    return value


Amount = Annotated[Any, AfterValidator(_amount)]


class ReproduceConfig(Section):
    """Which recipes are trained as published, on how many seeds each."""

    recipes: tuple[Any, ...]
    seeds: Count

    @field_validator("recipes")
    @classmethod
    def _named(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        for entry in value:
            one = isinstance(entry, dict) and len(entry) == 1 and isinstance(next(iter(entry.values())), dict)
            if not (isinstance(entry, str) or one):
                raise ValueError(f"each entry is a recipe's name or {{name: {{path: value}}}}, not {entry!r}")
        return value


class ClaimsConfig(Section):
    """Published statements as paired trainings. An entry of `test` is the id of a claim of study/claims.yaml, {id:
    {field: value}} with fields that differ from it here, or a whole claim {id: ..., who: ..., ...}; study/claims.py.
    """

    recipe: str
    test: tuple[Any, ...]
    seeds: Count

    @field_validator("test")
    @classmethod
    def _named(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        for entry in value:
            whole = isinstance(entry, dict) and "id" in entry
            changed = isinstance(entry, dict) and len(entry) == 1 and isinstance(next(iter(entry.values())), dict)
            if not (isinstance(entry, str) or whole or changed):
                raise ValueError(f"each entry is an id, {{id: {{field: value}}}} or a claim with its id, not {entry!r}")
        return value


class PrunerConfig(Section):
    """When a trial of the search is stopped early, by images seen."""

    kind: Annotated[str, AfterValidator(NameOf("pruner", PRUNERS))]
    min_images: Count | None
    reduction: Annotated[int, Field(ge=2)]


class SearchConfig(Section):
    """The search; `space` is read by study/search/space.py."""

    recipe: str
    trials: Annotated[NonNegativeCount, Mark.BOOKKEEPING]
    sampler: Annotated[str, AfterValidator(NameOf("sampler", SAMPLERS))]
    objectives: tuple[str, ...] | None  # null: the judge's metric alone
    pruner: PrunerConfig
    space: dict[str, dict[str, Any]]
    allow_inert: Annotated[bool, Mark.BOOKKEEPING]
    warm_start: PathText | None
    first: tuple[dict[str, Any], ...]


class ConfirmConfig(Section):
    """The best `top` of the search, trained again on `seeds` fresh seeds; `images`: null is the search's own budget."""

    top: NonNegativeCount
    seeds: Count
    images: Count | None


Limit = Annotated[float, Field(gt=0)] | None


class BudgetConfig(Section):
    """What the whole study may take; study/schedule.py."""

    images: Count | None
    hours: Limit
    device_hours: Limit
    disk_gib: Limit


class JudgeConfig(Section):
    """study.contract.Judge, as written in a study."""

    metric: MetricName
    protocol: ProtocolName
    report: Literal["best", "last"]
    margins: dict[MetricName, Annotated[float, Field(ge=0)]]

    @field_validator("protocol")
    @classmethod
    def _fits(cls, value: str, info: ValidationInfo) -> str:
        return yields(value, info.data["metric"]) if "metric" in info.data else value


class ResourcesConfig(Section):
    """What one training gets, and where trainings run."""

    gpus_per_trial: Amount
    cpus_per_trial: Amount
    workers_per_trial: Literal["auto"] | Count
    address: str | None
    silence_limit_s: Annotated[float, Field(gt=0)] | None


class TrackingConfig(Section):
    """MLflow's store: sqlite:///FILE, http(s)://HOST:PORT, postgresql://...; null: none."""

    uri: str | None

    @field_validator("uri")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and not re.match(
            r"(sqlite:///.|https?://.|postgresql(\+\w+)?://.|mysql(\+\w+)?://.)", value
        ):
            raise ValueError(f"write sqlite:///FILE, http://HOST:PORT or null, not {value}")
        if value is not None and value.startswith("sqlite:///~"):
            return f"sqlite:///{Path(value.removeprefix('sqlite:///')).expanduser()}"
        return value


class StudyConfig(Section):
    """A whole study. Settings marked BOOKKEEPING may change between two runs of it: they change no training it has."""

    name: str
    seed: NonNegativeCount
    data: dict[str, Any]
    trial: dict[str, Any]
    reproduce: Annotated[ReproduceConfig, Mark.BOOKKEEPING]
    claims: ClaimsConfig
    search: SearchConfig
    confirm: Annotated[ConfirmConfig, Mark.BOOKKEEPING]
    budget: Annotated[BudgetConfig, Mark.BOOKKEEPING]
    judge: JudgeConfig
    resources: Annotated[ResourcesConfig, Mark.BOOKKEEPING]
    tracking: Annotated[TrackingConfig, Mark.BOOKKEEPING]
    ledger: str | None  # a database by URL; null: ledger.db in the results folder
    # told when the study ends; a secret as a rule, so it is no part of what is stored of a study
    notify: Annotated[str | None, Mark.BOOKKEEPING]

    @field_validator("ledger")
    @classmethod
    def _a_server(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"(postgresql|mysql)(\+\w+)?://.", value):  # not shown: it holds a secret
            raise ValueError("write postgresql://USER@HOST/DATABASE, or null for ledger.db in the results folder")
        return value

    @field_validator("notify")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        if value is not None and (not value.startswith(("http://", "https://")) or not urlsplit(value).hostname):
            raise ValueError("an address that begins with https:// or http://, which takes a POST of JSON; or null")
        return value

    @field_validator("name")
    @classmethod
    def _a_folder(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError(f"a name is letters, digits, dots, dashes and underscores, at most 64, not {value!r}")
        return value


@dataclass(frozen=True)
class Within(Document):
    """A document seen from one of its blocks: `where` takes paths inside it."""

    prefix: str
    outer: Document

    def where(self, path: str) -> str:
        return self.outer.where(f"{self.prefix}.{path}" if self.prefix and path else self.prefix or path)


@dataclass(frozen=True)
class Layers(Document):
    """Where each setting of a composed mapping was written, the last layer first."""

    layers: tuple[tuple[frozenset[str], Document], ...]

    def where(self, path: str) -> str:
        for paths, document in reversed(self.layers):
            for name in paths:
                if path == name or path.startswith(f"{name}."):
                    return document.where(path)
        return f"{self.name}: {path}" if path else self.name


@dataclass(frozen=True)
class Assigned(Document):
    """A document some of whose values came from --set."""

    assigned: tuple[str, ...]

    def where(self, path: str) -> str:
        for name in self.assigned:
            if path == name or path.startswith(f"{name}."):
                return f"--set {path}"
        return super().where(path)


@dataclass(frozen=True)
class Study:
    """A study's settings, and where each was written."""

    config: StudyConfig
    document: Document

    def within(self, prefix: str) -> Document:
        """The document, with paths counted from `prefix`."""
        return Within(self.document.name, {}, {}, prefix, self.document)

    @property
    def judge(self) -> Judge:
        return judge_of(self.config)

    @property
    def resolved(self) -> dict[str, Any]:
        """Every setting of the study but its secret address, as JSON types."""
        return self.config.model_dump(mode="json", exclude={"notify"})


def judge_of(config: StudyConfig) -> Judge:
    """The judge that study and analysis share."""
    judge = config.judge
    return Judge(judge.metric, judge.protocol, judge.report, dict(judge.margins))


def load_study(path: Path, assignments: list[str]) -> Study:
    """The study in a file with `--set` values. Raises UserError naming file, line and key."""
    document = read_yaml(path)
    if "ablate" in document.value:
        raise UserError(
            f"{document.where('ablate')} is `claims` now; write each question as a claim in claims.test, for example "
            "{id: no-gradient, statement: ..., a: {loss.gradient: 0.0}}"
        )
    value = _fill(document.value, read_yaml(DEFAULTS).value, "")
    names = []
    for dotted, given in parse_assignments(assignments, _annotation).items():
        _assign(value, dotted, given)
        names.append(dotted)
    whole = Assigned(document.name, value, document.lines, tuple(names))
    if value["name"] is None:
        raise UserError(f"{document.name}: name is missing; name the study, for example name: rooms")
    study = Study(validate(StudyConfig, value, whole), whole)
    refuse_decided(study.config.trial, study.within("trial"))
    return study


def _annotation(path: str) -> Any:
    """The type of a study's setting by its dotted path: `data` and `trial` hold settings of a training."""
    block, _, inner = path.partition(".")
    if block in ("data", "trial"):
        return of_training(path if block == "data" else inner)
    return annotation_of(StudyConfig, path)


def refuse_decided(settings: Mapping[str, Any], document: Document) -> None:
    """Refuse settings of a training that the study itself decides, which would be overwritten."""
    for path in settings:
        if Mark.DECIDED in mark_of(TrialConfig, path):
            decided_by = DECIDED_BY.get(path, "the recipe that is named")
            raise UserError(f"{document.where(path)} is decided by {decided_by}; set that, and remove {path} here")


def _fill(given: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Defaults under what is given; mappings whose keys are free are taken as they are given."""
    result = copy.deepcopy(dict(given))
    for key, default in defaults.items():
        here = f"{prefix}{key}"
        if key not in result or (result[key] is None and isinstance(default, dict)):
            result[key] = copy.deepcopy(default)
        elif isinstance(default, dict) and isinstance(result[key], dict) and here not in OPEN:
            result[key] = _fill(result[key], default, f"{here}.")
    return result


def _assign(root: dict[str, Any], dotted: str, value: Any) -> None:
    """Set one --set path in place: at each level the longest existing key wins."""
    matches = _paths(root, dotted.split("."), ())
    deepest = [m for m in matches if sum(len(key.split(".")) for key in m) == len(dotted.split("."))]
    if len(deepest) > 1:
        shown = " or ".join(" > ".join(m) for m in deepest)
        raise UserError(f"--set {dotted}: could mean {shown}; write it one way in the study's file")
    chosen = deepest[0] if deepest else max(matches, key=lambda m: (len(".".join(m)), m), default=())
    node: Any = root
    for key in chosen[:-1] if deepest else chosen:
        node = node[key]
    if deepest:
        node[chosen[-1]] = value
        return
    rest = dotted[len(".".join(chosen)) :].lstrip(".")
    here = ".".join(chosen)
    free = any(here == name or here.startswith(f"{name}.") for name in OPEN)
    if not isinstance(node, dict):
        raise UserError(f"--set {dotted}: {here} is a value, so it has no {rest}; set {here} itself")
    if not free:
        first = rest.split(".")[0]
        raise UserError(f"--set {dotted}: no setting {rest}{nearest(first, node)}; here: {', '.join(node)}")
    node[rest] = value


def _paths(node: Any, parts: list[str], taken: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Every way to read the parts as existing keys, as far as each goes."""
    found = []
    if isinstance(node, dict):
        for size in range(1, len(parts) + 1):
            key = ".".join(parts[:size])
            if key in node:
                found += _paths(node[key], parts[size:], (*taken, key))
    return found or ([taken] if taken else [])
