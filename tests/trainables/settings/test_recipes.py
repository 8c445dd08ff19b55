"""Each published system, as FACTS.md section 7 says: counts, taps, shapes, optimiser, order, stages, first loss."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from PIL import Image
from scipy import ndimage
from skimage.transform import resize as skimage_resize

from trainables.data.dataset import open_training
from trainables.data.loader import TrainLoader
from trainables.data.target import data_range, depth_to_y
from trainables.models.depth_model import build_model, check_model, output_size, parameter_counts
from trainables.settings.config import TrialConfig, flat
from trainables.settings.recipe import RECIPES, load_recipe, recipe_names
from trainables.training.optim import build_optimiser
from trainables.training.trainer import Training

Array = npt.NDArray[np.float64]
PAPER_LOSS = {"ssim": 1.0, "gradient": 1.0, "depth": 0.1}
HU_LOSS = {"mse": 1.0, "sobel": 1.0, "normal": 1.0}
DENSENET = {
    "s2": "features.relu0",
    "s4": "features.pool0",
    "s8": "features.transition1.pool",
    "s16": "features.transition2.pool",
    "bottleneck": "features.norm5",
}
RESNET = {
    "s2": "relu",
    "s4": "layer1.2.relu_2",
    "s8": "layer2.3.relu_2",
    "s16": "layer3.5.relu_2",
    "bottleneck": "layer4.2.relu_2",
}
UNET = {scale: f"blocks.{scale}" for scale in ("s1", "s2", "s4", "s8", "bottleneck")}
KERAS_ADAM = ("Adam", {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-7, "weight_decay": 0.0, "amsgrad": True})
TORCH_ADAM = ("Adam", KERAS_ADAM[1] | {"eps": 1e-8, "amsgrad": False})
TORCH_ADAMW = ("AdamW", TORCH_ADAM[1] | {"weight_decay": 0.01})
PARTS = {"relative_unet", "psiml_unet"}  # in more than one stage


@dataclass(frozen=True)
class Expected:
    """What the literature says of one training."""

    total: int
    trainable: int
    taps: dict[str, str]
    output: tuple[int, int]
    kind: str
    batch: int
    images: int
    loss: dict[str, float]
    optimiser: tuple[str, dict[str, Any]]
    others: dict[str, Any] = field(default_factory=dict)


PAPER = Expected(42_657_689, 42_657_689, DENSENET, (240, 320), "inverse", 8, 20 * 50_688, PAPER_LOSS, KERAS_ADAM)
RELATIVE = (42_657_689, 30_173_209, DENSENET, (240, 320), "relative", 8)
FROZEN = {"model.frozen": ["*"], "model.batch_norm": "frozen", "data.crop_border_px": 8}
EXPECTED: dict[tuple[str, int], Expected] = {
    ("densedepth", 0): PAPER,
    ("densedepth_half", 0): Expected(
        21_365_405, 21_365_405, DENSENET, (240, 320), "inverse", 8, 20 * 50_688, PAPER_LOSS, KERAS_ADAM,
        {"augment.channel_swap": 0.5, "model.activation_between": True, "optim.schedule": "plateau"},
    ),
    ("densedepth_port", 0): Expected(
        42_657_689, 42_657_689, DENSENET, (240, 320), "inverse", 4, 20 * 50_688,
        PAPER_LOSS | {"gradient": 0.0}, TORCH_ADAM,
        {"model.weights": None, "train_mode": "eval_after_first_step", "model.align_corners": True,
         "target.resize": "resize_then_inverse", "target.holes": "clamp", "augment.channel_swap": 0.5},
    ),
    ("kaggle_clipped", 0): Expected(
        42_657_689, 42_657_689, DENSENET | {"s2": "features.conv0"}, (240, 320), "unit", 2, 5 * 50_688,
        PAPER_LOSS, TORCH_ADAM,
        {"data.order": "listed", "optim.clip_norm": 1.0, "data.validation.by": "frame"},
    ),
    ("michigan", 0): Expected(
        42_657_689, 30_173_209, DENSENET, (60, 80), "inverse", 8, 236 * 1159, PAPER_LOSS, TORCH_ADAMW,
        {"model.input_pool": 4, "model.match": "pad_top", "model.batch_norm": "frozen", "augment.flip": 0.5,
         "augment.channel_swap": 0.25, "data.source": "labeled", "data.split": "80_10_10_by_frame"},
    ),
    ("projected_1664", 0): Expected(
        45_122_393, 45_122_393, DENSENET | {"bottleneck": "features.denseblock4.denselayer32.cat"}, (240, 320),
        "inverse", 8, 20 * 50_688, PAPER_LOSS, KERAS_ADAM,
    ),
    ("psiml_resnet50", 0): Expected(
        46_811_521, 46_811_521, RESNET, (240, 320), "metric", 4, 10 * 40_000, HU_LOSS, TORCH_ADAM,
        {"model.upsampling": "transposed"},
    ),
    ("psiml_unet", 0): Expected(
        31_037_633, 31_037_633, UNET, (480, 640), "metric", 2, 10 * 40_000, {"mse": 1.0}, TORCH_ADAM,
        {"model.upsampling": "transposed", "start_from": None},
    ),
    ("psiml_unet", 1): Expected(
        31_037_633, 31_037_633, UNET, (480, 640), "metric", 2, 40_000, HU_LOSS, TORCH_ADAM,
        {"start_from": "previous_stage"},
    ),
    ("relative_unet", 0): Expected(
        31_384_833, 31_384_833, UNET, (480, 640), "relative", 8, 4 * 50_688, PAPER_LOSS, KERAS_ADAM,
        {"augment.flip": 0.0, "augment.channel_swap": 0.0, "mirrored": False, "data.crop_border_px": 0},
    ),
    ("relative_unet", 1): Expected(
        *RELATIVE, 4 * 50_688, PAPER_LOSS, KERAS_ADAM,
        FROZEN | {"start_from": None, "mirrored": False, "data.subset_seed": 1},
    ),
    ("relative_unet", 2): Expected(
        *RELATIVE, 2 * 50_688, PAPER_LOSS, KERAS_ADAM,
        FROZEN | {"start_from": "previous_stage", "mirrored": True, "augment.flip": 0.5, "data.subset_seed": 2},
    ),
}  # fmt: skip


def stage(name: str, number: int, **overrides: Any) -> TrialConfig:
    return load_recipe(name, overrides)[number]


def test_there_are_nine() -> None:
    assert {name for name, _ in EXPECTED} == set(recipe_names()) and len(recipe_names()) == 9
    assert {(name, c.stage) for name in recipe_names() for c in load_recipe(name)} == EXPECTED.keys()


@pytest.mark.parametrize("key", EXPECTED, ids=lambda key: f"{key[0]}-{key[1]}")
def test_settings(key: tuple[str, int]) -> None:
    """What was published, in the settings' own words; the target's range; the optimiser that is built."""
    config, expected = stage(*key), EXPECTED[key]
    assert (config.target.kind, config.batch_size, config.budget_images) == (
        expected.kind,
        expected.batch,
        expected.images,
    )
    assert config.loss == expected.loss and config.input == (480, 640)
    assert {path: flat(config)[path] for path in expected.others} == expected.others
    assert output_size(config.model, config.input) == expected.output
    optimiser = build_optimiser(config.optim, [torch.nn.Parameter(torch.zeros(2))])
    found = {name: optimiser.defaults[name] for name in expected.optimiser[1]}
    assert (type(optimiser).__name__, found) == expected.optimiser
    depths = torch.tensor([[0.0, 0.05, 0.1, 2.5, 10.0, 40.0]])
    y = depth_to_y(depths, config.target)[0]
    low_high = {"inverse": (1, 100), "metric": (0.1, 10), "unit": (0.01, 1), "relative": (0, 1)}[config.target.kind]
    assert (y[1:].min().item(), y[1:].max().item()) == pytest.approx(low_high)
    assert {"inverse": 100, "metric": 10, "unit": 1, "relative": 1}[config.target.kind] == data_range(config.target)


SAME = {("psiml_unet", 1), ("relative_unet", 2)}  # the model, target and loss of the stage before


@pytest.mark.parametrize(
    "key",
    [k for k in EXPECTED if k not in SAME],
    ids=lambda key: f"{key[0]}-{key[1]}",
)
def test_counts_and_taps(key: tuple[str, int]) -> None:
    expected = EXPECTED[key]
    config = stage(*key).model.model_copy(update={"weights": None})
    with torch.device("meta"):
        model = build_model(config, "inverse")
    counts = parameter_counts(model)
    assert (counts["total"], counts["trainable"], model.taps) == (expected.total, expected.trainable, expected.taps)


def test_stages_go_on_from_one_another() -> None:
    """A stage that starts from the previous one has its model; the others start afresh."""
    for name in PARTS:
        stages = load_recipe(name)
        for before, config in pairwise(stages):
            assert (config.start_from == "previous_stage") == (before.model == config.model)
    first, second = load_recipe("psiml_unet")
    assert {k for k, v in flat(first).items() if v != flat(second).get(k, 0)} <= {
        "stage", "start_from", "budget_images", "validate_every_images",
    }  # fmt: skip
    _, one, two = load_recipe("relative_unet")
    assert one.data.subset == two.data.subset == 0.5 and one.data.subset_seed != two.data.subset_seed


@pytest.mark.parametrize("name", recipe_names())
def test_variants(name: str) -> None:
    """Each is a training that differs from the published one, and that the encoder can serve."""
    document = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    for variant in document.get("variants", {}):
        for config, published in zip(load_recipe(f"{name}+{variant}"), load_recipe(name), strict=True):
            changed = {k for k, v in flat(config).items() if flat(published).get(k, "none") != v} - {"variant"}
            assert changed
            check_model(config.model.model_copy(update={"weights": None}))


@pytest.mark.parametrize("name", recipe_names())
def test_headers(name: str) -> None:
    """Source, published, cost, and a ledger whose every line ends in a verdict and names settings that exist."""
    text = (RECIPES / f"{name}.yaml").read_text()
    for word in ("# Source     ", "# Published  ", "# Cost       ", "# Deviation ledger"):
        assert text.count(word) == 1
    known = flat(load_recipe(name)[0])
    ledger = text.split("# Deviation ledger")[1].split("\nextends:")[0].splitlines()[1:]
    entries = [match for line in ledger if (match := re.search(r"-> (\S.*?) {2,}(\S.*)$", line))]
    assert len(entries) == sum(" -> " in line for line in ledger) >= 3
    for setting, verdict in (entry.groups() for entry in entries):
        assert re.match("faithful|assumed|changed", verdict), verdict
        for path in re.findall(r"\b(?:model|optim|data|target|augment)\.\w+", setting):
            assert path in known or any(k.startswith(f"{path}.") for k in known), path


def test_michigans_chain() -> None:
    """3x5, 7x10, 15x20, 30x40, 60x80; a zero row on top where 6 meets 7 and 14 meets 15; 1664-832-416-208-104."""
    config = stage("michigan", 0, **{"model.weights": None}).model
    sizes: list[tuple[int, ...]] = []
    with torch.device("meta"):
        model = build_model(config, "inverse")
        for part in (model.decoder.conv2, *model.decoder.blocks.values()):
            part.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
        y = model(torch.empty(2, 3, 480, 640))
    assert sizes == [(1664, 3, 5), (832, 7, 10), (416, 15, 20), (208, 30, 40), (104, 60, 80)]
    assert tuple(y.shape) == (2, 1, 60, 80)
    up = model.decoder.blocks["s16"].up
    padded = up(torch.ones(1, 1, 3, 5), (7, 10))
    assert (padded[..., 0, :] == 0).all() and (padded[..., 1:, :] == 1).all()


ROWS, COLUMNS = 128, 160


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes of four frames each, in the Kaggle layout, holes in every depth."""
    folder = tmp_path_factory.mktemp("recipes")
    rng, lines = np.random.default_rng(5), []
    for scene in range(3):
        for frame in range(4):
            depth = 1 + 8 * ndimage.gaussian_filter(rng.uniform(0, 1, (ROWS, COLUMNS)), 6, mode="wrap") ** 2
            eight = (depth / 10 * 255).round().astype(np.uint8)
            eight[30:41, 50:75] = 0
            rgb = rng.integers(0, 256, (ROWS, COLUMNS, 3)).astype(np.uint8)
            stem = f"data/nyu2_train/room_{scene:04d}_out/{frame}"
            (folder / stem).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb).save(folder / f"{stem}.jpg", quality=90)
            Image.fromarray(eight).save(folder / f"{stem}.png")
            lines.append(f"{stem}.jpg,{stem}.png\n")
    (folder / "data/nyu2_train.csv").write_text("".join(lines))
    return folder


def small(name: str, number: int, root: Path) -> TrialConfig:
    """The recipe's stage on the small data: a light encoder, a thin decoder; target and loss as published."""
    published = stage(name, number)
    border = 2 * published.data.crop_border_px
    overrides = {
        "data.source": "kaggle", "data.root": str(root), "data.split": "official", "data.subset": 1.0,
        "input": [ROWS - border, COLUMNS - border], "batch_size": 2, "start_from": None, "trace": False,
        "device": "cpu", "precision": "float32", "threads": 1, "snapshot_every_steps": 0,
        "augment": {"flip": 0.0, "channel_swap": 0.0}, "model.weights": None, "model.width": 0.02,
    }  # fmt: skip
    if published.model.family == "unet":
        overrides |= {"model.unet_channels": 2}
    else:
        overrides |= {"model.encoder": "resnet50", "model.bottleneck": "norm"}
    return _with(published, overrides)


def _with(config: TrialConfig, overrides: dict[str, Any]) -> TrialConfig:
    settings = config.model_dump(mode="json")
    for path, value in overrides.items():
        *parents, last = path.split(".")
        node = settings
        for part in parents:
            node = node[part]
        node[last] = value
    return TrialConfig.model_validate_json(json.dumps(settings))


def target_by_hand(path: Path, config: TrialConfig, size: tuple[int, int]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """scikit-image's and Pillow's own resizes; holes have no weight, or are 0 m where they are clamped."""
    metres = np.asarray(Image.open(path)).astype(np.float64) / 255 * 10
    border = config.data.crop_border_px
    metres = metres[border : metres.shape[0] - border, border : metres.shape[1] - border]
    hole, kind = metres <= 0, config.target.kind

    def y_of(depth: Array) -> Array:
        clipped = np.clip(depth, 0.1, 10)
        if kind == "relative":
            near, far = clipped[~hole].min(), clipped[~hole].max()
            return np.clip((clipped - near) / (far - near), 0, 1)
        return {"inverse": 10 / clipped, "metric": clipped, "unit": clipped / 10}[kind]

    if config.target.resize == "resize_then_inverse":
        assert config.target.holes == "clamp"
        image = Image.fromarray(metres.astype(np.float32)).resize(size[::-1], Image.Resampling.BILINEAR)
        return y_of(np.asarray(image).astype(np.float64)), np.ones(size, bool)

    def keras(values: Array) -> Array:
        return skimage_resize(values, size, mode="reflect", anti_aliasing=True, preserve_range=True)

    weight = keras((~hole).astype(np.float64)) if size != hole.shape else (~hole).astype(np.float64)
    total = keras(np.where(hole, 0, y_of(metres))) if size != hole.shape else np.where(hole, 0, y_of(metres))
    valid = weight >= 0.5 - 1e-6
    return np.where(valid, total / np.maximum(weight, 1e-9), 1.0), valid


def loss_by_hand(
    pred: Array, target: Array, valid: npt.NDArray[np.bool_], weights: dict[str, float], span: float
) -> float:
    """Each term over the batch's counted pixels, image by image, with NumPy and SciPy alone."""
    pooled = {name: [0.0, 0.0] for name, weight in weights.items() if weight}
    for p, t, v in zip(pred, target, valid, strict=True):
        e = np.where(v, p - t, 0)
        down, right = v[1:] & v[:-1], v[:, 1:] & v[:, :-1]
        for name, totals in pooled.items():
            if name in ("depth", "mse"):
                found, count = (np.abs(e) if name == "depth" else e**2)[v].sum(), v.sum()
            elif name == "gradient":
                found, count = np.abs(np.diff(e, axis=0))[down].sum() + np.abs(np.diff(e, axis=1))[right].sum(), v.sum()
            elif name == "sobel":
                slopes = sum(np.abs(ndimage.sobel(e, axis, mode="nearest") / 8) for axis in (0, 1))
                whole = ndimage.minimum_filter(v, 3, mode="nearest")
                found, count = slopes[whole].sum(), whole.sum()
            elif name == "normal":
                both = down[:, :-1] & right[:-1]
                n = [
                    np.stack([-np.diff(x, axis=1)[:-1], -np.diff(x, axis=0)[:, :-1], np.ones(both.shape)])
                    for x in (p, t)
                ]
                cosine = (n[0] * n[1]).sum(0) / np.linalg.norm(n[0], axis=0) / np.linalg.norm(n[1], axis=0)
                found, count = (1 - cosine)[both].sum(), both.sum()
            else:
                found, count = ssim_by_hand(np.where(v, p, 0), np.where(v, t, 0), v, span)
            totals[0] += found
            totals[1] += count
    return sum(weights[name] * found / count for name, (found, count) in pooled.items())


def ssim_by_hand(p: Array, t: Array, v: npt.NDArray[np.bool_], span: float) -> tuple[float, float]:
    def blur(x: Array) -> Array:
        return ndimage.gaussian_filter(x, 1.5, radius=5)[5:-5, 5:-5]

    mp, mt, c1, c2 = blur(p), blur(t), (0.01 * span) ** 2, (0.03 * span) ** 2
    vp, vt, cov = blur(p * p) - mp**2, blur(t * t) - mt**2, blur(p * t) - mp * mt
    score = (2 * mp * mt + c1) / (mp**2 + mt**2 + c1) * (2 * cov + c2) / (vp + vt + c2)
    whole = ndimage.minimum_filter(v, 11)[5:-5, 5:-5]
    return float((1 - score[whole].mean()) / 2 * whole.sum()), float(whole.sum())


@pytest.mark.parametrize("key", [k for k in EXPECTED if k not in SAME], ids=lambda key: f"{key[0]}-{key[1]}")
def test_first_loss(key: tuple[str, int], root: Path, tmp_path: Path) -> None:
    """The trainer's first step against files, resizes and formulas of other libraries. Only the network is ours."""
    config = small(*key, root)
    data = open_training(config)
    training = Training(config, tmp_path, data)
    model = copy.deepcopy(training.learner.model)
    training.train_step(iter(TrainLoader(data.train, config, 0)))
    rows, divergence = training.log.flush()
    training.close()
    ids, border = rows[0]["samples"], config.data.crop_border_px
    assert divergence is None and len(ids) == 2
    pictures = [np.asarray(Image.open(root / name)).astype(np.float32) / 255 for name in ids]
    pictures = [x[border : x.shape[0] - border, border : x.shape[1] - border] for x in pictures]
    with torch.no_grad():
        pred = model(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))[:, 0].double().numpy()
    targets = [target_by_hand((root / name).with_suffix(".png"), config, pred.shape[1:]) for name in ids]
    target, valid = (np.stack(x) for x in zip(*targets, strict=True))
    assert valid.all() == (config.target.holes == "clamp")
    expected = loss_by_hand(pred, target, valid, config.loss, data_range(config.target))
    # The target is float32 and, at holes' edges, the quotient of two resizes.
    assert rows[0]["loss"] == pytest.approx(expected, rel=2e-4)


def test_batch_order(root: Path) -> None:
    """Unshuffled: the list's order, in every epoch. Shuffled: another one in each, and the same frames."""
    for name, listed in (("kaggle_clipped", True), ("densedepth", False)):
        config = small(name, 0, root)
        data = open_training(config).train
        batches = list(islice(TrainLoader(data, config, 0), 2 * -(-len(data) // 2)))
        ids = [name for batch in batches for name in batch.ids]
        first, second = ids[: len(data)], ids[len(data) :]
        assert sorted(first) == sorted(second) == sorted(data.ids)
        assert (first == list(data.ids)) == (second == list(data.ids)) == (first == second) == listed
