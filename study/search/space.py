"""Search space: paths into a training's settings, their ranges, conditions between them, and the pruner."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from study.compose import compose
from study.config import Study
from study.contract import DEVICE_SECONDS
from study.methods import PRUNERS, SAMPLERS
from trainables.runtime.errors import UserError
from trainables.settings.config import Mark, TrialConfig, flat, listed_values, mark_of
from trainables.settings.registry import LOSS_TERMS
from trainables.settings.yamlfile import Document, nearest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner

KEYS = ("low", "high", "scale", "choices", "when")  # of a dimension in search.space


@dataclass(frozen=True)
class Dimension:
    """One searched setting: a range (`low`, `high`) or `choices`; `when` names the settings under which it exists."""

    path: str
    low: float | None
    high: float | None
    log: bool
    integer: bool
    choices: tuple[Any, ...]
    when: tuple[tuple[str, tuple[Any, ...]], ...]

    def extremes(self) -> list[Any]:
        """The values whose trainings are validated before the study starts."""
        return list(self.choices) if self.choices else [self._number(self.low), self._number(self.high)]

    def at(self, unit: float) -> Any:
        """The value at a share of the range (0 <= unit < 1), on the dimension's own scale."""
        if self.choices:
            return self.choices[int(unit * len(self.choices))]
        assert self.low is not None and self.high is not None
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        if self.integer and not self.log:
            return int(low + math.floor(unit * (high - low + 1)))
        value = low + unit * (high - low)
        return min(max(self._number(math.exp(value) if self.log else value), self.low), self.high)

    def distribution(self) -> BaseDistribution:
        """The dimension as Optuna keeps it; a choice that is not a scalar is kept as JSON."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution([label(choice) for choice in self.choices])
        assert self.low is not None and self.high is not None
        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(float(self.low), float(self.high), log=self.log)

    def value(self, kept: Any) -> Any:
        """The setting behind a kept parameter."""
        return next(c for c in self.choices if label(c) == kept) if self.choices else self._number(kept)

    def holds(self, value: Any) -> bool:
        """Whether a setting lies within the dimension."""
        if self.choices:
            return _among(value, self.choices)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or self.low is None or self.high is None or (self.integer and value % 1 != 0):
            return False
        return bool(self.low <= value <= self.high)

    def values(self) -> Sequence[Any] | None:
        """All its values; None where they are a continuous range."""
        if self.choices:
            return self.choices
        assert self.low is not None and self.high is not None
        return range(int(self.low), int(self.high) + 1) if self.integer else None

    def active(self, settings: Mapping[str, Any]) -> bool:
        """Whether the dimension exists under these settings (flat paths)."""
        return all(_among(settings[path], allowed) for path, allowed in self.when)

    def _number(self, value: Any) -> Any:
        return round(value) if self.integer else float(value)


def _among(value: Any, allowed: Sequence[Any]) -> bool:
    """Whether a value is one of those; true is not 1."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)


def label(choice: Any) -> Any:
    """A choice as Optuna can keep it."""
    scalar = choice is None or isinstance(choice, (bool, int, float, str))
    return choice if scalar else json.dumps(choice)


def read_space(study: Study, base: Mapping[str, Any]) -> list[Dimension]:
    """The dimensions, conditional ones after what they depend on. `base`: the searched recipe's settings, flat.

    Raises UserError naming file, line and key for a dimension that names nothing or has no valid range.
    """
    dimensions = {path: _dimension(study, path, base) for path in study.config.search.space}
    ordered: dict[str, Dimension] = {}
    while len(ordered) < len(dimensions):
        ready = [
            d
            for path, d in dimensions.items()
            if path not in ordered and all(p in ordered or p not in dimensions for p, _ in d.when)
        ]
        if not ready:
            circle = ", ".join(p for p in dimensions if p not in ordered)
            raise UserError(f"{study.document.where('search.space')}: `when` conditions form a cycle: {circle}")
        ordered |= {d.path: d for d in ready}
    for dimension in ordered.values():
        _reachable(study, dimension, ordered, base)
    _combinations(study, list(ordered.values()))
    _counts(study)
    _objectives(study)
    _pruner(study, base["budget_images"])
    _extended(study, base["budget_images"])
    return list(ordered.values())


def _dimension(study: Study, path: str, base: Mapping[str, Any]) -> Dimension:
    given = study.config.search.space[path]
    where = study.document.where(f"search.space.{path}")
    if path not in base and not path.startswith("loss."):
        groups = {".".join(p.split(".")[:n]) for p in base for n in range(1, p.count(".") + 1)}
        what = "is a group of settings; search its members" if path in groups else "names no setting"
        raise UserError(f"{where} {what}{nearest(path, base)}")
    mark = mark_of(TrialConfig, path)
    if Mark.SEARCHABLE not in mark:
        why = "it changes no training" if Mark.BOOKKEEPING in mark else "the trials could not be compared"
        raise UserError(f"{where} cannot be searched: {why}; remove it")
    if unknown := set(given).difference(KEYS):
        raise UserError(
            f"{where}.{min(unknown)} is not a setting; write low, high and scale (linear or log), or choices, "
            "and when if it exists under some settings alone"
        )
    when = _conditions(study, path, given.get("when"), base)
    within = study.within(f"search.space.{path}")
    if "choices" in given:
        return _choices(study, given, path, within, when)
    return _range(given, path, within, when, integer=type(base.get(path)) is int)


def _choices(study: Study, given: Mapping[str, Any], path: str, within: Document, when: Any) -> Dimension:
    choices = given["choices"]
    if set(given) & {"low", "high", "scale"}:
        raise UserError(f"{within.where('')} has both choices and a range; keep one")
    if not isinstance(choices, list) or not choices:
        raise UserError(f"{within.where('choices')}: write a list with at least one value, not {choices!r}")
    if any(isinstance(c, float) and not math.isfinite(c) for c in choices):
        raise UserError(f"{within.where('choices')}: a value is not finite; remove it")
    # As a training has them: 1 is 1.0 where the setting is no whole number, for the sampler and for whoever reads it.
    held = [_as_trained(study, path, choice) for choice in choices]
    for number, choice in enumerate(held):
        if choice in held[:number]:
            first = choices[held.index(choice)]
            pair = f"{json.dumps(first)} and {json.dumps(choices[number])}"
            raise UserError(f"{within.where('choices')}: a value is given twice ({pair} are equal); keep one")
    return Dimension(path, None, None, False, False, tuple(held), when)


def _as_trained(study: Study, path: str, value: Any) -> Any:
    """A value of a setting as the training's validated settings hold it."""
    return flat(compose(study, study.config.search.recipe, {path: value}, study.within("search.space"), 0)[0])[path]


def _range(given: Mapping[str, Any], path: str, within: Document, when: Any, *, integer: bool) -> Dimension:
    for name in ("low", "high", "scale"):
        if name not in given:
            raise UserError(
                f"{within.where(name)} is missing; write {{low: ..., high: ..., scale: linear | log}} or choices"
            )
    low, high, scale = given["low"], given["high"], given["scale"]
    if values := listed_values(TrialConfig, path):
        listed = ", ".join("null" if value is None else str(value) for value in values)
        raise UserError(f"{within.where('')}: {path} takes {listed} alone; write choices: [{listed}]")
    if scale not in ("linear", "log"):
        raise UserError(f"{within.where('scale')}: write linear or log, not {scale!r}")
    for name, bound in (("low", low), ("high", high)):
        if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not math.isfinite(bound):
            raise UserError(f"{within.where(name)}: write a finite number, not {bound!r}")
        if integer and bound != int(bound):
            raise UserError(f"{within.where(name)}: {path} takes whole numbers; {bound!r} is not one")
    if low >= high:
        raise UserError(
            f"{within.where('low')}: low ({low}) must be below high ({high}); an empty range has nothing to search"
        )
    if scale == "log" and low <= 0:
        raise UserError(
            f"{within.where('low')}: a log range starts above 0, not at {low}; use linear, or a small number"
        )
    return Dimension(path, float(low), float(high), scale == "log", integer, (), when)


def _conditions(study: Study, path: str, when: Any, base: Mapping[str, Any]) -> Any:
    where = study.document.where(f"search.space.{path}.when")
    if when is None:
        return ()
    if not isinstance(when, dict) or not all(isinstance(allowed, list) and allowed for allowed in when.values()):
        raise UserError(f"{where}: write {{path: [values under which this is searched]}}, not {when!r}")
    for name in when:
        if name == path:
            raise UserError(f"{where}: {path} cannot depend on itself")
        if name not in base and name.removeprefix("loss.") in LOSS_TERMS:
            raise UserError(
                f"{where}: the recipe has no {name}, so its own trial could not say whether {path} is searched; give "
                f"it a weight, for example trial: {{{name}: 0.0}}"
            )
        if name not in base:
            raise UserError(f"{where}: {name} names no setting{nearest(name, base)}")
    return tuple((name, tuple(allowed)) for name, allowed in when.items())


def _reachable(
    study: Study, dimension: Dimension, dimensions: Mapping[str, Dimension], base: Mapping[str, Any]
) -> None:
    """Refuse conditions that no trial could meet."""
    for name, allowed in dimension.when:
        where = study.document.where(f"search.space.{dimension.path}.when.{name}")
        if name in dimensions:
            for value in allowed:
                if dimensions[name].values() is None:
                    raise UserError(
                        f"{where}: {name} is searched over a continuous range, in which no trial has exactly "
                        f"{json.dumps(value)}; search {name} among choices, or {dimension.path} without `when`"
                    )
                if not dimensions[name].holds(value):
                    near = nearest(str(value), map(str, dimensions[name].choices))
                    raise UserError(
                        f"{where}: {name} is never {json.dumps(value)} in this search{near}; write values that "
                        f"search.space.{name} has"
                    )
        elif not _among(base[name], allowed):
            words = " or ".join(json.dumps(value) for value in allowed)
            raise UserError(
                f"{where}: {dimension.path} is never searched, because {name} is {json.dumps(base[name])} in every "
                f"trial, not {words}; search {name}, too, or correct the value"
            )


def _combinations(study: Study, dimensions: Sequence[Dimension]) -> None:
    """What cannot be combined is refused."""
    search, where = study.config.search, study.document.where("search.sampler")
    ranges = [d.path for d in dimensions if not d.choices]
    conditional = [d.path for d in dimensions if d.when]
    sampler = SAMPLERS[search.sampler]
    if ranges and not sampler.ranges:
        raise UserError(f"{where}: a grid needs choices, and {ranges[0]} is a range; write its choices or use tpe")
    if conditional and not sampler.conditions:
        raise UserError(
            f"{where}: {search.sampler} cannot search {conditional[0]}, which has `when`; use tpe or random"
        )
    if search.trials > 1 + len(search.first) and not dimensions:
        raise UserError(f"{study.document.where('search.space')} is empty, so every trial would be the same; add one")


def _counts(study: Study) -> None:
    """Settings to try are not more than the trials."""
    search, where = study.config.search, study.document.where("search.first")
    if len(search.first) >= search.trials:
        raise UserError(
            f"{where}: {len(search.first)} settings come after the recipe's own, and search.trials is {search.trials}; "
            f"raise it to {len(search.first) + 1} or more"
        )


def _objectives(study: Study) -> None:
    """A second objective is what a training takes, and nothing is stopped early for it."""
    search, where, pair = study.config.search, study.document.where, (study.judge.metric, DEVICE_SECONDS)
    if search.objectives is None:
        return
    if search.objectives != pair:
        raise UserError(
            f"{where('search.objectives')}: write [{', '.join(pair)}], or null for {pair[0]} alone, not "
            f"[{', '.join(search.objectives)}]"
        )
    if PRUNERS[search.pruner.kind].make is not None:
        raise UserError(
            f"{where('search.pruner.kind')}: {search.pruner.kind} cannot weigh two objectives; use none, or "
            "search.objectives: null"
        )


def least_images(study: Study, budget_images: int) -> int:
    """Images before which no trial is stopped early."""
    pruner = study.config.search.pruner
    return pruner.min_images or max(budget_images // pruner.reduction**2, 1)


def _pruner(study: Study, budget_images: int) -> None:
    """A pruner has images to look at before the end."""
    search, where = study.config.search, study.document.where("search.pruner.min_images")
    searched = any("budget_images" in settings for settings in (search.space, *search.first))
    least = least_images(study, budget_images)
    if PRUNERS[search.pruner.kind].make is None or searched or least < budget_images:
        return
    raise UserError(
        f"{where}: trials end at budget_images, {budget_images}, so none would be stopped early after {least}; lower "
        "it, or write search.pruner.kind: none"
    )


def _extended(study: Study, budget_images: int) -> None:
    """Confirmations on more images have a budget to be more than."""
    images, search, where = study.config.confirm.images, study.config.search, study.document.where("confirm.images")
    if images is None:
        return
    if any("budget_images" in settings for settings in (search.space, *search.first)):
        raise UserError(f"{where}: the search varies budget_images itself; use null, or search other settings")
    if images < budget_images:
        raise UserError(
            f"{where}: {images} are fewer than the search's budget_images ({budget_images}); write more, or null"
        )


def fits(dimensions: Sequence[Dimension], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that Optuna can keep of given settings: those of active dimensions that hold the setting."""
    return {d.path: settings[d.path] for d in dimensions if d.active(settings) and d.holds(settings.get(d.path))}


def make_pruner(study: Study) -> BasePruner | None:
    """The study's pruner, with resources in images; None where nothing is stopped early."""
    search = study.config.search
    make = PRUNERS[search.pruner.kind].make
    if search.trials == 0 or make is None:
        return None
    budget = compose(study, search.recipe, {}, study.within("search"), 0)[0].budget_images
    return make(least_images(study, budget), budget, search.pruner.reduction)
