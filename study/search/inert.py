"""Dead dimensions of a search: before it starts, each searched setting is shown to change the training.

Two values of a setting are trained for a few steps on a small input (trainables/training/probe.py). Where all its
values give one trace, bit for bit, it is probed longer, and under every choice of the other searched settings, one of
which may switch it on. What then still changes nothing would be searched in vain, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from study.contract import DEVICE_SECONDS
from study.plan import Plan
from study.search.space import Dimension
from trainables.runtime.errors import UserError
from trainables.settings.config import Mark, TrialConfig, flat, mark_of

if TYPE_CHECKING:
    from trainables.data.dataset import TrainingData

FEW, MORE = (3, 16), (16, 64)  # steps before the spike, and frames; augmentation is drawn per frame, so few show little
DECLARED = {  # live by nature, and a probe that is small and short could not show it
    "input": "the size of every map",
    "budget_images": "the length of the training",
}
Settings = dict[str, Any]


def refuse_inert(plan: Plan) -> list[str]:
    """Raise UserError naming the searched settings that change nothing; with search.allow_inert, sentences about them.

    Takes seconds, on the CPU; the data have to be ready.
    """
    search = plan.study.config.search
    if plan.search_base is None or not plan.dimensions:
        return []
    probes = Probes(plan)
    found = [d for d in plan.dimensions if not live(d, probes)]
    if not found:
        return []
    where = plan.study.document.where
    named = "; ".join(f"{where(f'search.space.{d.path}')} ({_values(d)})" for d in found)
    said = (
        f"{named}: changes nothing, neither with the recipe's other settings nor with any choice of those searched: "
        "its trainings are equal, bit for bit"
    )
    if search.allow_inert:
        return [f"{said}; searched all the same (search.allow_inert)"]
    raise UserError(f"{said}; remove it, search what switches it on, or set search.allow_inert: true")


def live(dimension: Dimension, probes: Probes) -> bool:
    """Whether the setting changes the training, by what is declared of it or by probes of its values."""
    mark = mark_of(TrialConfig, dimension.path)
    if dimension.path in DECLARED or Mark.PLACE in mark:  # how fast and how often looked at: every report shows it
        return True
    if Mark.BOOKKEEPING in mark:  # it changes no number, only what a training takes
        return DEVICE_SECONDS in (probes.plan.study.config.search.objectives or ())
    contexts = _contexts(dimension, probes.plan)
    own = next(contexts)
    if any(probes.differ(dimension, own, extent) for extent in (FEW, MORE)):
        return True
    return any(probes.differ(dimension, context, FEW) for context in contexts)


class Probes:
    """Probes of a plan's trainings, each made once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._known: dict[str, str] = {}
        self._data: dict[str, TrainingData] = {}

    def differ(self, dimension: Dimension, context: Settings, extent: tuple[int, int]) -> bool:
        """Whether two of the dimension's values give different trainings under other settings."""
        from trainables.training import probe

        configs = [self.plan.trial(context | {dimension.path: value}) for value in dimension.extremes()]
        size = probe.small_input(configs)
        frames = max(extent[1], 2 * max(c.batch_size * c.accumulate for c in configs) if _batched(dimension) else 0)
        found = (self._probe(probe.small(c, size, {dimension.path}), (extent[0], frames)) for c in configs)
        first = next(found)
        return any(other != first for other in found)

    def _probe(self, config: TrialConfig, extent: tuple[int, int]) -> str:
        from trainables.data.dataset import open_training
        from trainables.training import probe

        key = f"{extent} {config.model_dump_json()}"
        if key not in self._known:
            source = config.data.model_dump_json()
            if source not in self._data:
                self._data[source] = open_training(config)
            self._known[key] = probe.probe(config, self._data[source], probe.Extent(*extent))
        return self._known[key]


def _batched(dimension: Dimension) -> bool:
    """Whether the setting is how many frames a step sees: an epoch must not end before its batch is full."""
    return dimension.path in ("batch_size", "accumulate")


def _contexts(dimension: Dimension, plan: Plan) -> Iterator[Settings]:
    """Settings under which a dimension exists: the recipe's own first, then those with one other choice each."""
    assert plan.search_base is not None
    base = flat(plan.search_base)
    yield _met(dimension, plan, base)
    for other in plan.dimensions:
        for choice in other.choices if other.path != dimension.path else ():
            settings = _met(other, plan, base) | {other.path: choice}
            settings |= _met(dimension, plan, base | settings)
            if dimension.active(base | settings):
                yield settings


def _met(dimension: Dimension, plan: Plan, settings: Mapping[str, Any]) -> Settings:
    """What has to be set for a dimension's conditions to hold."""
    of, result = {d.path: d for d in plan.dimensions}, dict[str, Any]()
    for name, allowed in dimension.when:
        if settings[name] not in allowed:
            result |= _met(of[name], plan, settings) | {name: allowed[0]}
    return result


def _values(dimension: Dimension) -> str:
    shown = ["null" if value is None else f"{value}" for value in dimension.extremes()]
    return f"{', '.join(shown[:-1])} and {shown[-1]}"
