"""Dead dimensions: every searchable setting is live or declared, and an inert one is named and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.plan import Plan
from study.search import inert
from tests.conftest import write_tiny
from tests.study.conftest import REAL
from tests.study.test_config import plan_of
from trainables.runtime.errors import UserError
from trainables.settings.config import Mark, TrialConfig, flat, mark_of
from trainables.settings.recipe import load_recipe

STEP, PLATEAU = ({"optim.schedule": [name]} for name in ("step", "plateau"))
# Two values of each searchable setting, of a U-Net from scratch and of an encoder from timm.
UNET: dict[str, list[Any]] = {
    "batch_size": [2, 3], "accumulate": [1, 2], "mirrored": [True, False], "budget_images": [96, 240],
    "input": [[48, 64], [64, 64]], "validate_every_images": [24, 48], "precision": ["float32", "bfloat16"],
    "compile": [False, True],
    "data.subset": [0.5, 1.0], "data.order": ["shuffled", "listed"], "data.pairing": ["matched", "shuffled"],
    "data.crop_border_px": [0, 2], "augment.flip": [0.0, 0.5], "augment.channel_swap": [0.0, 0.25],
    "model.width": [0.5, 1.0], "model.activation_between": [False, True],
    "model.upsampling": ["bilinear", "transposed"], "model.align_corners": [False, True], "model.skips.s1":
    ["pre_pool", "none"], "model.skips.s2": ["pre_pool", "none"], "model.input_pool": [1, 2],
    "model.input_normalisation": ["none", "imagenet"], "model.unet_channels": [4, 8], "model.unet_levels": [2, 3],
    "target.kind": ["inverse", "metric"], "target.resize": ["inverse_then_resize", "resize_then_inverse"],
    "target.holes": ["mask", "clamp"], "target.min_depth_m": [0.4, 2.0], "target.max_depth_m": [4.0, 10.0],
    "loss.depth": [0.1, 1.0], "loss.gradient": [0.0, 1.0], "loss.ssim": [0.5, 1.0],
    "optim.name": ["adam", "sgd"], "optim.lr": [1e-4, 1e-3], "optim.beta1": [0.8, 0.9], "optim.beta2": [0.99, 0.999],
    "optim.eps": [1e-8, 1e-6], "optim.amsgrad": [False, True], "optim.weight_decay": [0.0, 0.01],
    "optim.clip_norm": [None, 1e3], "optim.schedule": ["one_cycle", "step", "plateau"],
    "optim.plateau.factor": [0.5, 0.7], "optim.plateau.patience": [2, 20], "optim.plateau.min_lr": [0.0, 9e-4],
    "optim.step.at": [0.3, 0.6], "optim.step.factor": [0.1, 0.5],
}  # fmt: skip
ENCODER: dict[str, list[Any]] = {
    "train_mode": ["train", "eval_after_first_step"], "model.family": ["densedepth", "dispnet"],
    "model.encoder": ["timm/mobilenetv3_small_050", "timm/efficientnet_lite0"],
    "model.match": ["interpolate", "pad_top"], "model.skips.s4": ["post_pool", "none"],
    "model.skips.s8": ["post_pool", "none"], "model.skips.s16": ["post_pool", "none"],
    "model.skips.s32": ["post_pool", "none"],
    "model.frozen": [[], ["*"]], "model.batch_norm": ["train", "frozen"],
}  # fmt: skip
DENSENET: dict[str, list[Any]] = {"model.bottleneck": ["norm", "last_layer_input"]}
INSTALLED: dict[str, list[Any]] = {"model.weights": [None, "installed"]}
WHEN = {"optim.plateau": PLATEAU, "optim.step": STEP}


@pytest.fixture(scope="module")
def holed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set with holes."""
    return write_tiny(tmp_path_factory.mktemp("holed"), holes=True)


def study(root: Path, folder: Path, space: dict[str, list[Any]], *, when: bool = True, **trial: Any) -> Plan:
    """A plan whose search has these choices; settings of a schedule exist under theirs alone."""
    settings = yaml.safe_load(REAL.format(root=root, threads=1))
    settings["trial"] |= trial
    settings["search"]["space"] = {
        path: {"choices": values}
        | next(({"when": on} for name, on in WHEN.items() if when and path.startswith(f"{name}.")), {})
        for path, values in space.items()
    }
    return plan_of(folder, json.dumps(settings))


TIMM = {
    "model.family": "densedepth", "model.encoder": "timm/mobilenetv3_small_050", "model.width": 0.05, "input": [80, 80],
    "model.skips": dict.fromkeys(("s1", "s2", "s4", "s8", "s16", "s32"), "post_pool") | {"s32": "none", "s1": "none"},
}  # fmt: skip


def test_every_searchable_setting_is_in_the_lists() -> None:
    listed = {*UNET, *ENCODER, *DENSENET, *INSTALLED}
    paths = flat(load_recipe("densedepth")[0])
    searchable = {path for path in paths if Mark.SEARCHABLE in mark_of(TrialConfig, path)}
    assert searchable - listed == {"data.workers"}  # declared: it changes no number
    assert listed - searchable == set()


@pytest.mark.slow
def test_every_searchable_setting_of_a_unet_is_live(tmp_path: Path, holed: Path) -> None:
    plan = study(holed, tmp_path, UNET)
    assert len(plan.dimensions) == len(UNET)
    assert inert.refuse_inert(plan) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "trial"),
    [
        (ENCODER, TIMM),
        (DENSENET, TIMM | {"model.encoder": "densenet121", "input": [64, 64]}),
        (INSTALLED, TIMM | {"model.encoder": "timm/efficientnet_lite0"}),
    ],
    ids=["timm", "densenet", "installed"],
)
def test_every_searchable_setting_of_an_encoder_is_live(
    tmp_path: Path, tiny_root: Path, space: dict[str, list[Any]], trial: dict[str, Any]
) -> None:
    assert inert.refuse_inert(study(tiny_root, tmp_path, space, **trial)) == []


def test_settings_that_act_only_now_and_then_are_live(tmp_path: Path, tiny_root: Path) -> None:
    """On chance, in validation, on which frames, on long gradients, when validation stalls."""
    asked = ("augment.flip", "mirrored", "data.subset", "optim.clip_norm", "optim.plateau.patience")
    space = {path: UNET[path] for path in asked}
    plan = study(tiny_root, tmp_path, space, when=False, **{"optim.schedule": "plateau"})
    assert inert.refuse_inert(plan) == []


DEAD: dict[str, list[Any]] = {
    "optim.plateau.factor": [0.5, 0.7], "optim.step.at": [0.3, 0.6], "target.holes": ["mask", "clamp"],
    "data.workers": [0, 2],
}  # fmt: skip


def test_inert_settings_are_named_and_refused_or_let_through(tmp_path: Path, tiny_root: Path) -> None:
    """Of a one-cycle schedule no plateau or step; no hole in the data; workers are speed."""
    space = DEAD | {"optim.lr": [1e-4, 1e-3]}
    with pytest.raises(UserError) as refusal:
        inert.refuse_inert(study(tiny_root, tmp_path, space, when=False))
    said = str(refusal.value)
    assert all(f"search.space.{path} (" in said for path in DEAD) and "optim.lr" not in said
    assert "study.yaml:" in said and "(0.5 and 0.7)" in said and said.endswith("or set search.allow_inert: true")
    assert "\n" not in said
    settings = yaml.safe_load((tmp_path / "study.yaml").read_text())
    settings["search"]["allow_inert"] = True
    (note,) = inert.refuse_inert(plan_of(tmp_path, json.dumps(settings)))
    assert "search.space.optim.step.at" in note and note.endswith("searched all the same (search.allow_inert)")


def test_a_setting_that_another_searched_one_switches_on_is_live(tmp_path: Path, tiny_root: Path) -> None:
    space = {"optim.step.at": [0.3, 0.6], "optim.schedule": ["one_cycle", "step"]}
    assert inert.refuse_inert(study(tiny_root, tmp_path, space, when=False)) == []


def test_workers_are_live_where_time_is_an_objective(tmp_path: Path, tiny_root: Path) -> None:
    settings = yaml.safe_load(REAL.format(root=tiny_root, threads=1))
    settings["search"] |= {"space": {"data.workers": {"choices": [0, 2]}}, "pruner": {"kind": "none"},
                           "objectives": ["rmse", "device_seconds"]}  # fmt: skip
    assert inert.refuse_inert(plan_of(tmp_path, json.dumps(settings))) == []
