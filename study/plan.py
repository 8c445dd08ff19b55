"""From a study's settings to its trainings: what is trained, in which order, and every one's validated settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from study.config import Study
from study.space import Dimension, read_space
from study.warmstart import earlier_trials
from trainables.config import TrialConfig, flat
from trainables.errors import UserError
from trainables.recipe import merge, recipe_stages, validate
from trainables.yamlfile import Document

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# Each phase draws its seeds from its own range, so that a confirmation never repeats the search's luck.
RELATIVE_PROTOCOL = "densedepth_affine"
SEED_OFFSET = {"reproduce": 0, "ablate": 1000, "search": 2000, "confirm": 3000}
BASE_ARM = "base"
LONGEST_VALUE = 60


@dataclass(frozen=True)
class Planned:
    """One training of a phase. Trainings that differ by seed alone share the group; stages follow one another."""

    phase: str
    group: str
    config: TrialConfig
    origin: Any  # confirm: key of the search trial; ablate: {question, arm, recipe}; else None

    @property
    def identity(self) -> tuple[str, int, int]:
        """What makes it this training and no other of its phase."""
        return (self.group, self.config.seed, self.config.stage)


@dataclass(frozen=True)
class Layers(Document):
    """Where each setting of a composed training was written, the last layer first."""

    layers: tuple[tuple[frozenset[str], Document], ...]

    def where(self, path: str) -> str:
        for paths, document in reversed(self.layers):
            for name in paths:
                if path == name or path.startswith(f"{name}."):
                    return document.where(path)
        return f"{self.name}: {path}"


@dataclass(frozen=True)
class Plan:
    """What a study trains. Confirmations are known when the search has ended."""

    study: Study
    reproduce: tuple[Planned, ...]
    ablate: tuple[Planned, ...]
    dimensions: tuple[Dimension, ...]
    search_base: TrialConfig | None
    earlier: tuple[FrozenTrial, ...] = ()  # trials of another study that the sampler knows

    @property
    def counts(self) -> dict[str, int]:
        """Trainings of each phase."""
        config = self.study.config
        return {
            "reproduce": len(self.reproduce),
            "ablate": len(self.ablate),
            "search": config.search.trials,
            "confirm": config.confirm.top * config.confirm.seeds,
        }

    @property
    def configs(self) -> list[TrialConfig]:
        """The settings of every training that is known before the search, one per distinct search base."""
        known = [p.config for p in (*self.reproduce, *self.ablate)]
        return known + ([self.search_base] if self.search_base else [])

    def trial(self, settings: Mapping[str, Any]) -> TrialConfig:
        """A search trial: the searched recipe with {path: value}."""
        return _search_config(self.study, settings)


def make_plan(study: Study) -> Plan:
    """Every training's settings, validated. Raises UserError for the first problem, naming file, line and key."""
    search_base: TrialConfig | None = None
    dimensions: list[Dimension] = []
    tried: list[TrialConfig] = []
    if study.config.search.trials > 0:
        search_base = _search_config(study, {})
        dimensions = read_space(study, flat(search_base))
        tried = [_search_config(study, {d.path: value}) for d in dimensions for value in d.extremes()]
        for number, settings in enumerate(study.config.search.first):
            tried += compose(study, study.config.search.recipe, settings, study.within(f"search.first.{number}"), 0)
    elif study.config.confirm.top > 0:
        raise UserError(f"{study.document.where('confirm.top')}: there is no search to confirm; set search.trials")
    earlier = tuple(earlier_trials(study, dimensions))
    plan = Plan(study, _reproduce(study), _ablate(study), tuple(dimensions), search_base, earlier)
    if not any(plan.counts.values()):
        raise UserError(f"{study.document.name}: nothing to train; name reproduce.recipes or set search.trials")
    for config in {config.model.model_dump_json(): config for config in (*plan.configs, *tried)}.values():
        check_parts(study, config)
    return plan


def compose(
    study: Study, recipe: str, overrides: Mapping[str, Any], document: Document, seed: int
) -> list[TrialConfig]:
    """The trainings of a recipe, one per stage: recipe, then data, then trial, then overrides, then the study's own."""
    config = study.config
    result = []
    for settings in recipe_stages(recipe):
        layers: list[tuple[frozenset[str], Document]] = []
        for layer, where in (
            ({"data": config.data}, study.within("")),
            (config.trial, study.within("trial")),
            (overrides, document),
        ):
            merge(settings, layer, where)
            layers.append((frozenset(layer), where))
        settings |= {"seed": seed, "best_metric": str(config.judge.metric), "protocol": config.judge.protocol}
        origin = Layers(f"recipe {recipe}", settings, {}, tuple(layers))
        trial = validate(TrialConfig, settings, origin)
        if trial.target.kind == "relative":  # it has no scale that another protocol could measure
            trial = trial.model_copy(update={"protocol": RELATIVE_PROTOCOL})
        result.append(trial)
    return result


def reseeded(config: TrialConfig, seed: int) -> TrialConfig:
    """The same training with another seed."""
    return config.model_copy(update={"seed": seed})


def seed_of(study: Study, phase: str, index: int) -> int:
    """The seed of a phase's index-th repetition."""
    return study.config.seed + SEED_OFFSET[phase] + index


def check_parts(study: Study, config: TrialConfig) -> None:
    """Refuse what the encoder lacks, and weights that cannot be had, before anything trains."""
    from trainables.models import check_model

    try:
        check_model(config.model)
    except UserError as error:
        raise UserError(f"{study.document.name} (recipe {config.recipe}): {error}") from None


def _reproduce(study: Study) -> tuple[Planned, ...]:
    planned: list[Planned] = []
    for number, entry in enumerate(study.config.reproduce.recipes):
        name: str
        overrides: Mapping[str, Any]
        name, overrides = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        document = study.within(
            f"reproduce.recipes.{number}" if isinstance(entry, str) else f"reproduce.recipes.{number}.{name}"
        )
        group = name if not overrides else f"{name} ({_described(overrides)})"
        if any(p.group == group for p in planned):
            raise UserError(f"{document.where('')}: {group} is named twice; keep one")
        for index in range(study.config.reproduce.seeds):
            for config in compose(study, name, overrides, document, seed_of(study, "reproduce", index)):
                planned.append(Planned("reproduce", group, config, None))
    return tuple(planned)


def _ablate(study: Study) -> tuple[Planned, ...]:
    """Each recipe's unflipped arm once per seed, then one arm per question."""
    arms: dict[str, tuple[str, Mapping[str, Any], Document, Any]] = {}
    for number, entry in enumerate(study.config.ablate.settings):
        document = study.within(f"ablate.settings.{number}")
        flipped = {path: value for path, value in entry.items() if path != "recipe"}
        recipe = entry.get("recipe", study.config.ablate.recipe)
        if not isinstance(recipe, str) or not flipped:
            raise UserError(f"{document.where('')}: write {{path: value}}, with recipe: NAME if another is meant")
        question = _described(flipped)
        base = {"question": BASE_ARM, "arm": BASE_ARM, "recipe": recipe}
        arms.setdefault(f"{recipe}: {BASE_ARM}", (recipe, {}, document, base))
        group = f"{recipe}: {question}"
        if group in arms:
            raise UserError(f"{document.where('')}: {question} is asked twice of {recipe}; keep one")
        arms[group] = (recipe, flipped, document, {"question": question, "arm": "flipped", "recipe": recipe})
    planned = []
    for index in range(study.config.ablate.seeds):
        for group, (recipe, arm, document, origin) in arms.items():
            for config in compose(study, recipe, arm, document, seed_of(study, "ablate", index)):
                planned.append(Planned("ablate", group, config, origin))
    _refuse_idle(study, planned)
    return tuple(planned)


def _refuse_idle(study: Study, planned: list[Planned]) -> None:
    """Refuse a question whose answer would be nothing: all its stages equal the unflipped ones."""
    unflipped = {
        (p.origin["recipe"], p.config.seed, p.config.stage): p.config for p in planned if p.origin["arm"] == BASE_ARM
    }
    groups: dict[str, list[Planned]] = {}
    for p in planned:
        groups.setdefault(p.group, []).append(p)
    for members in groups.values():
        origin = members[0].origin
        same = all(p.config == unflipped[(origin["recipe"], p.config.seed, p.config.stage)] for p in members)
        if origin["arm"] != BASE_ARM and same:
            where = study.document.where("ablate.settings")
            raise UserError(
                f"{where}: {origin['question']} is what {origin['recipe']} does already; name another value"
            )


def _search_config(study: Study, settings: Mapping[str, Any]) -> TrialConfig:
    search = study.config.search
    stages = compose(study, search.recipe, settings, study.within("search.space"), seed_of(study, "search", 0))
    if len(stages) > 1:
        where = study.document.where("search.recipe")
        raise UserError(
            f"{where}: {search.recipe} has {len(stages)} stages, and a search varies one training; name another"
        )
    return stages[0]


def _described(settings: Mapping[str, Any]) -> str:
    """A flip in words; a long value (a list of frames to leave out) by its start and a digest."""
    words = {path: str(value) for path, value in settings.items()}
    return ", ".join(
        f"{path}={value}" if len(value) <= LONGEST_VALUE
        else f"{path}={value[:LONGEST_VALUE]}... ({hashlib.sha256(value.encode()).hexdigest()[:8]})"
        for path, value in words.items()
    )  # fmt: skip
