"""Plan of a study: its trainings in order, with every one's validated settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from study.claims import plan_claims
from study.compose import PREVIOUS_STAGE, Planned, compose, described, seed_of
from study.config import Study
from study.contract import Claim
from study.propose import earlier_trials
from study.space import Dimension, read_space
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig, flat

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
    earlier: tuple[FrozenTrial, ...] = ()  # trials of another study that the sampler knows

    @property
    def counts(self) -> dict[str, int]:
        """Trainings of each phase."""
        config = self.study.config
        return {
            "reproduce": len(self.reproduce),
            "claims": len(self.claims),
            "search": config.search.trials,
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
    stated, claims = plan_claims(study, check_parts)
    plan = Plan(study, _reproduce(study), claims, stated, tuple(dimensions), search_base, earlier)
    if not any(plan.counts.values()):
        raise UserError(
            f"{study.document.name}: nothing to train"
            + (f" ({stated[0].id} is not testable here: {stated[0].untestable})" if stated else "")
            + "; name reproduce.recipes, claims.test or set search.trials"
        )
    for config in {config.model.model_dump_json(): config for config in (*plan.configs, *tried)}.values():
        check_parts(f"{study.document.name} (recipe {config.recipe})", config)
    return plan


def check_parts(where: str, config: TrialConfig) -> None:
    """Refuse what the encoder lacks, and weights that cannot be had, before anything trains."""
    from trainables.models.depth_model import check_model

    try:
        check_model(config.model)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


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
    search = study.config.search
    stages = compose(study, search.recipe, settings, study.within("search.space"), seed_of(study, "search", 0))
    if len(stages) > 1:
        where = study.document.where("search.recipe")
        raise UserError(
            f"{where}: {search.recipe} has {len(stages)} stages, and a search varies one training; name another"
        )
    return stages[0]
