"""Composition of settings into validated trainings: recipe, data, trial, overrides, then the study's own settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from study.config import Layers, Study, refuse_decided
from trainables.evaluation.protocols import RELATIVE_PROTOCOL
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig
from trainables.settings.recipe import merge, recipe_stages, validate
from trainables.settings.yamlfile import Document

# Each phase draws its seeds from its own range, so that a confirmation never repeats the search's luck.
SEED_OFFSET = {"reproduce": 0, "claims": 1000, "search": 2000, "confirm": 3000}
LONGEST_VALUE = 60
Identity = tuple[str, int, int]  # group, seed, stage


@dataclass(frozen=True)
class Planned:
    """One training of a phase. Trainings that differ by seed alone share the group; stages follow one another.

    origin: of a confirmation the key of the search trial; of a claim's training the arms that it serves, each {claim,
    arm}. after: the training whose best weights it starts from.
    """

    phase: str
    group: str
    config: TrialConfig
    origin: Any
    after: Identity | None = None

    @property
    def identity(self) -> Identity:
        """Its identity within the phase."""
        return (self.group, self.config.seed, self.config.stage)


def compose(
    study: Study, recipe: str, overrides: Mapping[str, Any], document: Document, seed: int
) -> list[TrialConfig]:
    """The trainings of a recipe, one per stage; `document` says where the overrides were written."""
    config = study.config
    result = []
    for settings in published_stages(recipe, document.where("")):
        layers: list[tuple[frozenset[str], Document]] = []
        for layer, where in (
            ({"data": config.data}, study.within("")),
            (config.trial, study.within("trial")),
            (overrides, document),
        ):
            refuse_decided(layer, where)
            merge(settings, layer, where)
            layers.append((frozenset(layer), where))
        settings |= {"seed": seed, "best_metric": config.judge.metric, "protocol": config.judge.protocol}
        origin = Layers(f"recipe {recipe}", settings, {}, tuple(layers))
        trial = validate(TrialConfig, settings, origin)
        if trial.target.kind == "relative":
            trial = validate(TrialConfig, settings | {"protocol": RELATIVE_PROTOCOL}, origin)
        result.append(trial)
    return result


def published_stages(recipe: str, where: str) -> list[dict[str, Any]]:
    """The settings of each stage of a recipe; raises UserError naming where a recipe that there is not was named."""
    try:
        return recipe_stages(recipe)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def seed_of(study: Study, phase: str, index: int) -> int:
    """The seed of a phase's index-th repetition."""
    return study.config.seed + SEED_OFFSET[phase] + index


def described(settings: Mapping[str, Any]) -> str:
    """Settings in words; a long value (a list of frames to leave out) by its start and a digest."""
    words = {path: str(value) for path, value in settings.items()}
    return ", ".join(
        f"{path}={value}" if len(value) <= LONGEST_VALUE
        else f"{path}={value[:LONGEST_VALUE]}... ({hashlib.sha256(value.encode()).hexdigest()[:8]})"
        for path, value in words.items()
    )  # fmt: skip
