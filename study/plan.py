"""Plan of a study: its trainings in order, with every one's validated settings."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from study.claims import plan_claims
from study.compose import Planned, compose, described, published_stages, seed_of
from study.config import Study
from study.contract import Claim
from study.search.propose import earlier_trials, points
from study.search.space import Dimension, read_space
from trainables.runtime.errors import UserError
from trainables.settings.config import PREVIOUS_STAGE, TrialConfig, as_dict, flat

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Plan:
    """What a study trains. Confirmations are known when the search has ended."""

    study: Study
    reproduce: tuple[Planned, ...]
    claims: tuple[Planned, ...]
    stated: tuple[Claim, ...]  # the claims that those trainings test, and those that cannot be tested here
    dimensions: tuple[Dimension, ...]
    search_base: TrialConfig | None
    trials: int  # of the search: as many as search.trials, or fewer where there are no more settings
    tried: tuple[TrialConfig, ...] = ()  # with a bound or a choice of each dimension, and those of search.first
    earlier: tuple[FrozenTrial, ...] = ()  # trials of another study that the sampler knows

    @property
    def counts(self) -> dict[str, int]:
        """Trainings of each phase."""
        config = self.study.config
        return {
            "reproduce": len(self.reproduce),
            "claims": len(self.claims),
            "search": self.trials,
            "confirm": config.confirm.top * config.confirm.seeds,
        }

    @property
    def configs(self) -> list[TrialConfig]:
        """The settings of every training that is known before the search, one per distinct search base."""
        known = [p.config for p in (*self.reproduce, *self.claims)]
        return known + ([self.search_base] if self.search_base else [])

    def trial(self, settings: Mapping[str, Any]) -> TrialConfig:
        """A search trial: the searched recipe with {path: value}."""
        return _search_config(self.study, settings)

    def trainable(self, settings: Mapping[str, Any]) -> TrialConfig | None:
        """A search trial; None where its settings do not go together."""
        try:
            config = _search_config(self.study, settings)
            check_parts("", config)
        except UserError:
            return None
        return config

    def starved(self, config: TrialConfig, ran_out: Iterable[TrialConfig]) -> bool:
        """Whether a search trial needs at least the memory of one that ran out of it, as far as settings tell."""
        if not any(d.path in MEMORY for d in self.dimensions):
            return False  # nothing that is searched changes it much
        return any(_alike(config) == _alike(other) and _at_least(config, other) for other in ran_out)


# Settings that decide how much memory a training takes.
MEMORY = frozenset(
    {"batch_size", "input", "precision", "model.encoder", "model.width", "model.input_pool", "model.unet_channels"}
)


COUNTED = 10_000  # combinations of a search's values up to which those that differ are counted


def trained(settings: Mapping[str, Any]) -> str:
    """Digest of a training's settings, as JSON types: equal for those that make the same training."""
    counted = {**settings, "loss": {term: weight for term, weight in settings["loss"].items() if weight > 0}}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def _alike(config: TrialConfig) -> tuple[Any, ...]:
    return config.model.family, config.model.encoder, config.precision


def _at_least(config: TrialConfig, other: TrialConfig) -> bool:
    def sizes(one: TrialConfig) -> tuple[float, ...]:
        pixels = one.input[0] * one.input[1] / one.model.input_pool**2
        return one.batch_size, pixels, one.model.width, one.model.unet_channels

    return all(size >= least for size, least in zip(sizes(config), sizes(other), strict=True))


def make_plan(study: Study) -> Plan:
    """Every training's settings, validated. Raises UserError for the first problem, naming file, line and key."""
    search_base: TrialConfig | None = None
    dimensions: list[Dimension] = []
    tried: list[TrialConfig] = []
    first: list[TrialConfig] = []
    if study.config.search.trials > 0:
        _refuse_stages(study)
        search_base = _search_config(study, {})
        dimensions = read_space(study, flat(search_base))
        tried = [_search_config(study, {d.path: value}) for d in dimensions for value in d.extremes()]
        first = _first(study, search_base)
    elif study.config.confirm.top > 0:
        raise UserError(f"{study.document.where('confirm.top')}: there is no search to confirm; set search.trials")
    earlier = tuple(earlier_trials(study, dimensions))
    stated, claims = plan_claims(study, check_parts)
    trials, known = study.config.search.trials, (*tried, *first)
    plan = Plan(study, _reproduce(study), claims, stated, tuple(dimensions), search_base, trials, known, earlier)
    if not any(plan.counts.values()):
        raise UserError(
            f"{study.document.name}: nothing to train"
            + (f" ({stated[0].id} is not testable here: {stated[0].untestable})" if stated else "")
            + "; name reproduce.recipes, claims.test or set search.trials"
        )
    for config in {_parts(config): config for config in (*plan.configs, *plan.tried)}.values():
        check_parts(f"{study.document.name} (recipe {config.recipe})", config)
    return _counted(plan, [search_base, *first]) if search_base is not None else plan


def check_parts(where: str, config: TrialConfig) -> None:
    """Refuse what the encoder lacks, weights that cannot be had, pictures that are too small, and a start_from that
    does not fit, before anything trains.
    """
    from trainables.models.depth_model import check_model, output_size
    from trainables.training.checkpoint import check_start

    try:
        check_model(config.model)
        output_size(config.model, config.input)
        check_start(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _parts(config: TrialConfig) -> tuple[Any, ...]:
    """What `check_parts` looks at."""
    return config.model.model_dump_json(), config.input, config.start_from, config.target.kind


def _first(study: Study, base: TrialConfig) -> list[TrialConfig]:
    """The trainings of search.first, each another one."""
    result, known = [], {trained(as_dict(base)): "the recipe's own setting"}
    for number, settings in enumerate(study.config.search.first):
        where = study.within(f"search.first.{number}")
        (config,) = compose(study, study.config.search.recipe, settings, where, base.seed)
        name = known.setdefault(trained(as_dict(config)), place := f"search.first.{number}")
        if name != place:
            raise UserError(f"{where.where('')} trains the same as {name}, which comes before it; remove it")
        result.append(config)
    return result


def _counted(plan: Plan, before: Sequence[TrialConfig]) -> Plan:
    """The plan with no more trials than there are settings. before: those that come before the sampler's.

    Raises UserError for a search of which a part would be left out: a grid's last points, more to confirm than trials.
    """
    study, search = plan.study, plan.study.config.search
    sizes = [len(values) if (values := d.values()) is not None else math.inf for d in plan.dimensions]
    if math.prod(sizes) <= COUNTED:
        known = {trained(as_dict(config)) for config in before}
        for settings in points(plan.dimensions, flat(before[0])):
            if (config := plan.trainable(settings)) is not None:
                known.add(trained(as_dict(config)))
            if len(known) > search.trials:
                break
        if search.sampler == "grid" and len(known) > search.trials:
            own = "the recipe's own setting" + (" and search.first" if search.first else "")
            raise UserError(
                f"{study.document.where('search.trials')}: the grid has {math.prod(sizes)} points and {own} before "
                f"them, so {search.trials} trials leave some out; write {math.prod(sizes) + len(before)}, or use random"
            )
        plan = replace(plan, trials=min(search.trials, len(known)))
    top = study.config.confirm.top
    if top > plan.trials:
        where = study.document.where("confirm.top")
        raise UserError(f"{where}: there are no {top} among {plan.trials} trials; lower it, or raise search.trials")
    return plan


def _reproduce(study: Study) -> tuple[Planned, ...]:
    planned: list[Planned] = []
    for number, entry in enumerate(study.config.reproduce.recipes):
        name: str
        overrides: Mapping[str, Any]
        name, overrides = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        document = study.within(
            f"reproduce.recipes.{number}" if isinstance(entry, str) else f"reproduce.recipes.{number}.{name}"
        )
        group = name if not overrides else f"{name} ({described(overrides)})"
        if any(p.group == group for p in planned):
            raise UserError(f"{document.where('')}: {group} is named twice; keep one")
        for index in range(study.config.reproduce.seeds):
            for config in compose(study, name, overrides, document, seed_of(study, "reproduce", index)):
                before = (group, config.seed, config.stage - 1) if config.start_from == PREVIOUS_STAGE else None
                planned.append(Planned("reproduce", group, config, None, before))
    return tuple(planned)


def _search_config(study: Study, settings: Mapping[str, Any]) -> TrialConfig:
    recipe = study.config.search.recipe
    return compose(study, recipe, settings, study.within("search.space"), seed_of(study, "search", 0))[0]


def _refuse_stages(study: Study) -> None:
    """A search varies one training."""
    recipe, where = study.config.search.recipe, study.document.where("search.recipe")
    count = len(published_stages(recipe, where))
    if count > 1:
        raise UserError(f"{where}: {recipe} has {count} stages, and a search varies one training; name another")
