"""Claims: published statements as paired trainings, read and checked before anything trains.

A claim stands in study/claims.yaml or in a study's claims.test. Its arms `a` and `b` are each a mapping of settings
by dotted path over the claim's recipe, `both` what they share; in an arm, `name` says in words what it is, `recipe:
NAME` takes another recipe, and `stages: [{...}, ...]` trains one after another, each from the best weights of the one
before. Arms that train the same are trained once, whoever names them.

    needs       what a claim needs beyond its settings; where it is not there, the claim is not tested, and it says why
    untestable  such a reason; other problems of a claim are errors with file, line and key
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from study.compose import Identity, Planned, compose, described, published_stages, seed_of
from study.config import Layers, Study, Within
from study.contract import QUANTITIES, Arm, Claim, Expected
from trainables.evaluation.protocols import PROTOCOLS
from trainables.runtime.errors import UserError
from trainables.settings.config import PREVIOUS_STAGE, Count, Mark, NameOf, Section, TrialConfig, as_dict, mark_of
from trainables.settings.recipe import validate
from trainables.settings.registry import METRICS, STRUCTURE_METRICS
from trainables.settings.yamlfile import nearest, read_yaml

LIBRARY = Path(__file__).parent / "claims.yaml"
BASE = "base"  # an arm that changes nothing of its recipe
TRACED = ("spikes_per_1000_steps", "damage_after_spikes")
LOOKED_AT = 12  # frames that say whether a data set has holes or a border
Need = Literal["weights", "densenet", "holes", "white_border", "quarantine"]
QuantityName = Annotated[str, AfterValidator(NameOf("quantity", QUANTITIES))]
Check = Callable[[str, TrialConfig], None]


class ClaimConfig(Section):
    """A claim as written. study/claims.yaml says what stands for a field that a claim does not state."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")]
    who: str
    statement: str
    source: str | None
    recipe: str | None  # null: the study's claims.recipe
    both: dict[str, Any]  # settings of both arms, under their own
    a: dict[str, Any]
    b: dict[str, Any]
    measured: tuple[QuantityName, ...] | None  # the first decides; null: the judge's metric
    expected: Expected
    margin: Annotated[float, Field(gt=0)] | None  # absolute; a smaller difference is none
    seeds: Count | None  # null: the study's claims.seeds
    needs: tuple[Need, ...]

    @field_validator("measured")
    @classmethod
    def _each_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (not value or len(set(value)) < len(value)):
            raise ValueError("name one quantity or more, each once")
        return value

    @field_validator("margin")
    @classmethod
    def _needed(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is None and info.data.get("expected") in ("no_difference", "a_not_better"):
            raise ValueError(f"expected: {info.data['expected']} needs one: the difference that would count as none")
        return value


@dataclass(frozen=True)
class Side:
    """One arm: what it is called, its settings in words, where it was written, and its trainings, each but the first
    from the weights of the one before. The last is judged.
    """

    name: str
    words: str
    where: str
    chain: tuple[TrialConfig, ...]

    @functools.cached_property
    def digests(self) -> list[str]:
        """Of each training: equal where the same is trained from the same weights, whatever it is called."""
        result, before = [], ""
        for config in self.chain:
            whole = as_dict(config)
            settings = {key: value for key, value in whole.items() if Mark.DECIDED not in mark_of(TrialConfig, key)}
            settings["loss"] = {term: weight for term, weight in config.loss.items() if weight > 0}
            before = hashlib.sha256(json.dumps([before, settings], sort_keys=True).encode()).hexdigest()
            result.append(before)
        return result


def plan_claims(study: Study, check: Check) -> tuple[tuple[Claim, ...], tuple[Planned, ...]]:
    """The study's claims, and every training that they need, once. Raises UserError naming file, line and key.

    check: refuses what a model lacks, and weights that cannot be had.
    """
    written = read_claims(study)
    structure = any(set(config.measured or ()) & set(STRUCTURE_METRICS) for config, _ in written)
    claims: list[Claim] = []
    pairs: list[tuple[Side, Side]] = []
    places: dict[str, tuple[str, int]] = {}  # what is trained -> group and stage
    for config, document in written:
        pair = _side(study, config, "a", document, structure), _side(study, config, "b", document, structure)
        untestable = _untestable(config, pair, check)
        if pair[0].digests == pair[1].digests and untestable is None:
            raise UserError(
                f"{document.name}: the arms of {config.id} train the same ({pair[0].words} and {pair[1].words}); "
                "change one of them"
            )
        measured = config.measured or (str(study.config.judge.metric),)
        _refuse_unmeasured(config.id, measured, [side.chain[-1] for side in pair], document.where("measured"))
        for side in pair:
            for stage, digest in enumerate(side.digests):
                places.setdefault(digest, (side.words, stage))
        a, b = (Arm(side.name, side.words, *places[side.digests[-1]]) for side in pair)
        said, count = (config.who, config.statement, config.source), config.seeds or study.config.claims.seeds
        seeds = tuple(seed_of(study, "claims", index) for index in range(count))
        claims.append(Claim(config.id, *said, a, b, measured, config.expected, config.margin, seeds, untestable))
        pairs.append(pair)
    return tuple(claims), _trainings(study, claims, pairs, places)


def read_claims(study: Study) -> list[tuple[ClaimConfig, Layers]]:
    """The claims that a study tests, validated, each with where its fields were written."""
    library = read_yaml(LIBRARY)
    known, unstated = library.value["claims"], library.value["unless_stated"]
    result: list[tuple[ClaimConfig, Layers]] = []
    for number, entry in enumerate(study.config.claims.test):
        place = f"claims.test.{number}"
        whole = isinstance(entry, dict) and "id" in entry
        name = str(entry["id"] if whole else entry if isinstance(entry, str) else next(iter(entry)))
        where = study.document.where(place if whole or isinstance(entry, str) else f"{place}.{name}")
        if not whole and name not in known:
            raise UserError(
                f"{where}: no claim {name}{nearest(name, known)}; study/claims.yaml has {_list(known)}; "
                "a claim of your own starts with id"
            )
        if whole and name in known:
            raise UserError(f"{where}: {name} is a claim of study/claims.yaml; write {name}: {{...}}, or another id")
        if any(config.id == name for config, _ in result):
            raise UserError(f"{where}: {name} is tested twice; keep one")
        given = entry if whole else entry[name] if isinstance(entry, dict) else {}
        listed = {} if whole else known[name]
        layers = (
            (frozenset(listed), Within(library.name, {}, {}, f"claims.{name}", library)),
            (frozenset(given), study.within(place if whole else f"{place}.{name}")),
        )
        document = Layers(where, {}, {}, layers)
        result.append((validate(ClaimConfig, {"id": name} | unstated | listed | given, document), document))
    return result


def _side(study: Study, config: ClaimConfig, name: Literal["a", "b"], document: Layers, structure: bool) -> Side:
    """An arm with its settings checked. structure: some claim measures what validation shows only when asked."""
    arm = dict(config.a if name == "a" else config.b)
    written = config.both | arm
    own, called = "recipe" in written, written.pop("name", None)
    if called is not None and not isinstance(called, str):
        raise UserError(f"{document.where(f'{name}.name')}: say what the arm is in words, not {called!r}")
    recipe = written.pop("recipe", config.recipe or study.config.claims.recipe)
    stages = written.pop("stages", None)
    many = isinstance(stages, list) and len(stages) > 1 and all(isinstance(stage, dict) for stage in stages)
    if stages is not None and not many:
        raise UserError(f"{document.where(f'{name}.stages')}: write two stages or more, each {{path: value}}")
    named = document.where(f"{name}.recipe" if own else "recipe")
    place = named if own or config.recipe else study.document.where("claims.recipe")
    published = len(published_stages(str(recipe), place))
    if many and published > 1:
        raise UserError(f"{document.where(f'{name}.stages')}: {recipe} has stages of its own; leave these out")
    inside = [(frozenset(keys), Within(document.name, {}, {}, part, document))
              for part, keys in (("both", config.both), (name, arm))]  # fmt: skip
    words, trained = f"{recipe}: {described(written) or BASE}", []
    for number, stage in enumerate(stages or [{}]):
        deeper = Within(document.name, {}, {}, f"{name}.stages.{number}", document)
        layers = Layers(document.where(name), {}, {}, (*inside, (frozenset(stage), deeper)))
        try:
            trained += compose(study, recipe, written | stage, layers, 0)
        except UserError as error:  # settings that do not go together have no place of their own
            misfit = str(error).startswith(f"recipe {recipe}: ")
            raise UserError(f"{document.name}: {name}: {error}" if misfit else str(error)) from None
    if many:
        words += f"; {', then '.join(described(stage) or BASE for stage in stages)}"
        trained[1:] = [one.model_copy(update={"start_from": PREVIOUS_STAGE}) for one in trained[1:]]
    first = max(i for i, one in enumerate(trained) if one.start_from != PREVIOUS_STAGE)  # earlier ones lead nowhere
    shown = {"validate_structure": True} if structure else {}
    chain = tuple(one.model_copy(update=shown) for one in trained[first:])
    here = name in document.layers[-1][0]  # the study's own part
    return Side(called or words, words, document.where(name) if here else f"{document.name}: {name}", chain)


def _trainings(
    study: Study,
    claims: Sequence[Claim],
    pairs: Sequence[tuple[Side, Side]],
    places: Mapping[str, tuple[str, int]],
) -> tuple[Planned, ...]:
    """Every training once, seed by seed, with the arms that it serves."""
    planned: dict[Identity, Planned] = {}
    for seed in sorted({seed for claim in claims for seed in claim.seeds}):
        for claim, pair in zip(claims, pairs, strict=True):
            if claim.untestable is not None or seed not in claim.seeds:
                continue
            for name, side in zip("ab", pair, strict=True):
                after: Identity | None = None
                for config, digest in zip(side.chain, side.digests, strict=True):
                    group, stage = places[digest]
                    known = planned.get((group, seed, stage))
                    origin = [*(known.origin if known else []), {"claim": claim.id, "arm": name}]
                    trained = config.model_copy(update={"seed": seed, "stage": stage})
                    one = Planned("claims", group, known.config if known else trained, origin, after)
                    planned[one.identity] = one
                    after = one.identity
    return tuple(planned.values())


def _untestable(config: ClaimConfig, pair: Sequence[Side], check: Check) -> str | None:
    """Why a claim cannot be tested here: the first of its needs that is not met. Raises for a model that cannot be."""
    trained = [one for side in pair for one in side.chain]
    for need in config.needs:
        reason = UNMET[need](trained)
        if reason is not None:
            return reason
    for side in pair:
        for one in side.chain:
            try:
                check(side.where, one)
            except UserError as error:
                if "weights" not in config.needs:
                    raise
                bare = one.model.model_copy(update={"weights": None, "input_normalisation": "none"})
                check(side.where, one.model_copy(update={"model": bare}))  # all but the weights is to be had
                return str(error).removeprefix(f"{side.where}: ")
    return None


def _refuse_unmeasured(claim: str, measured: Sequence[str], judged: Sequence[TrialConfig], where: str) -> None:
    """Refuse quantities that these trainings will not show."""
    if any(name in TRACED for name in measured) and not all(one.trace for one in judged):
        raise UserError(f"{where}: spikes are counted in the step trace, and it is off; set trace: true")
    protocols = sorted({one.protocol for one in judged})
    for name in [one for one in measured if one in METRICS and one not in STRUCTURE_METRICS]:
        if len(protocols) > 1:
            raise UserError(
                f"{where}: the arms of {claim} are scored under {' and '.join(protocols)}, whose {name} "
                "do not compare; give both the same target.kind"
            )
        if name not in PROTOCOLS[protocols[0]].metrics:
            raise UserError(f"{where}: protocol {protocols[0]} measures no {name}; name another quantity")


def _quarantine(trained: Sequence[TrialConfig]) -> str | None:
    if any(one.data.exclude for one in trained):
        return None
    return "no frame is accused; analysis.spikes of a study names suspects, for data.exclude in an arm"


def _densenet(trained: Sequence[TrialConfig]) -> str | None:
    others = [one.model.encoder for one in trained if not str(one.model.encoder).startswith("densenet")]
    return f"it is about DenseNets, and the encoder is {others[0] or 'a U-Net'}" if others else None


def _holes(trained: Sequence[TrialConfig]) -> str | None:
    return None if all(_looked_at(one)[0] for one in trained) else "the data have no holes"


def _white_border(trained: Sequence[TrialConfig]) -> str | None:
    return None if all(_looked_at(one)[1] for one in trained) else "the pictures have no white border"


def _weights(trained: Sequence[TrialConfig]) -> str | None:
    return None if any(one.model.weights for one in trained) else "no arm has pretrained weights (model.weights)"


UNMET: Mapping[Need, Callable[[Sequence[TrialConfig]], str | None]] = {
    "weights": _weights,  # whether they can be had is asked of the model
    "densenet": _densenet,
    "holes": _holes,
    "white_border": _white_border,
    "quarantine": _quarantine,
}


def _looked_at(config: TrialConfig) -> tuple[bool, bool]:
    """Whether training frames have holes, and a white border: as rendered, else as a few of them show."""
    rooms = config.data.rooms
    if config.data.source == "rooms":
        return rooms.holes, rooms.white_border
    return _seen(config.model_copy(update={"seed": 0}).model_dump_json())


@functools.cache
def _seen(training: str) -> tuple[bool, bool]:
    from trainables.data.dataset import open_training
    from trainables.data.doctor.record import border_px
    from trainables.data.split import evenly

    train = open_training(TrialConfig.model_validate_json(training)).train
    frames = [train.read(i) for i in evenly(range(len(train)), LOOKED_AT)]
    holes = any(bool((frame.depth_m <= 0).any()) for frame in frames)
    return holes, sum(border_px(frame.rgb) > 0 for frame in frames) * 2 > len(frames)


def _list(names: Any) -> str:
    return ", ".join(str(name) for name in names)
