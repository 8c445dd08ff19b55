"""Every setting of DataConfig in every form of the data, with a manifest beside them and without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainables.data.formats.test_copies import COPIES
from tests.trainables.data.formats.test_formats import WRITERS
from trainables.data.dataset import TrainingData, fingerprint, open_test, open_training
from trainables.data.doctor.diagnosis import check_manifest
from trainables.data.formats import forms
from trainables.data.frames import BadFrame, FrameList
from trainables.data.loader import Batch, EvalLoader, TrainLoader
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig, TrialConfig
from trainables.settings.registry import FORMS

ROOMS = {"train_scenes": 4, "test_scenes": 1, "frames_per_scene": 2, "size": [48, 64]}
TEST_ONLY = {"eigen", "moge"}


@dataclass(frozen=True)
class Seen:
    """What a training sees: its frames, two epochs of batches, validation images."""

    data: TrainingData
    batches: list[Batch]
    validation: list[torch.Tensor]

    @property
    def train(self) -> FrameList:
        return self.data.train

    @property
    def order(self) -> list[str]:
        return [name for batch in self.batches for name in batch.ids]

    def same(self, other: Seen) -> bool:
        """Whether all batches are equal, bit for bit."""
        return self.order == other.order and all(
            torch.equal(getattr(a, name), getattr(b, name))
            for a, b in zip(self.batches, other.batches, strict=True)
            for name in ("images", "target", "valid")
        )


def seen(config: TrialConfig) -> Seen:
    data = open_training(config)
    batches = list(islice(TrainLoader(data.train, config, 0), 2 * -(-len(data.train) // config.batch_size)))
    return Seen(data, batches, [images for _, images, *_ in EvalLoader(data.validation, config, 4)])


def unchanged(plain: Seen, other: Seen) -> bool:
    return other.same(plain) and other.data.validation.ids == plain.data.validation.ids


def cached(plain: Seen, other: Seen) -> bool:
    folder = Path(other.train.reader.kept(()).place.parent / "cache")
    return unchanged(plain, other) and any(path.stat().st_size for path in folder.glob("*/samples.bin"))


Check = Callable[[Seen, Seen], bool]
# Setting -> (values, what they change). first: the id of the first frame.
SETTINGS: dict[str, tuple[dict[str, Any], Check]] = {
    "validation": (
        {"data.validation.by": "frame", "data.validation.share": 0.4, "data.validation.seed": 3,
         "data.validation.max_frames": 1},
        lambda plain, other: len(other.data.validation) == 1 and other.train.ids != plain.train.ids,
    ),
    "subset": ({"data.subset": 0.5}, lambda plain, other: set(other.train.ids) < set(plain.train.ids)),
    "subset_seed": (
        {"data.subset": 0.5, "data.subset_seed": 8},
        lambda plain, other: set(other.train.ids) < set(plain.train.ids),
    ),
    "exclude": ({"data.exclude": "first"}, lambda plain, other: other.train.ids == plain.train.ids[1:]),
    "overfit": ({"data.overfit": "first"}, lambda plain, other: set(other.order) == {other.data.validation.ids[0]}),
    "order": (
        {"data.order": "listed"},
        lambda plain, other: other.order == 2 * list(other.train.ids) and plain.order != other.order,
    ),
    "pairing": (
        {"data.pairing": "shuffled"},
        lambda plain, other: other.order == plain.order and not other.same(plain)
        and other.data.validation.ids == plain.data.validation.ids,
    ),
    "crop_border_px": (
        {"data.crop_border_px": 2},
        lambda plain, other: other.order == plain.order and not other.same(plain)
        and not torch.equal(other.validation[0], plain.validation[0]),
    ),
    "on_bad_frame": ({"data.on_bad_frame": "skip"}, unchanged),
    "workers": ({"data.workers": 1}, unchanged),
    "cache": ({"data.cache": "cache"}, cached),
    "cache_gb": ({"data.cache": "cache", "data.cache_gb": 2e-5}, cached),  # two samples of 9,984 bytes
}  # fmt: skip
# Setting of a form's coding or lists -> a value. A form that has no use for it refuses it by name.
CODING: dict[str, Any] = {
    "depth_scale": 800.0,
    "max_depth_m": 6.0,
    "hole_values": [1500],
    "follow_links": True,
    "lists": {"train": "none.txt", "test": None},
    "columns": ["depth", "rgb"],
    "depth": "filled",
    "split": "80_10_10_by_frame",
}
OF_THE_FORM = {"source", "root", "rooms"}
# A place of each form -> whether it is tried without a manifest, too.
PLACES = {
    **dict.fromkeys(("folder", "zip", "labeled", "h5", "eigen"), True),
    **dict.fromkeys(("BTS", "Marigold's tar", "tar of h5", "parquet", "Ultralytics", "UniDepth", "MoGe"), False),
    "rooms": False,  # they always come with one
}


def form_of(name: str) -> str:
    return COPIES[name][0] if name in COPIES else WRITERS[name][0] if name in WRITERS else name


def placed(name: str, folder: Path, manifest: bool, tiny: Callable[..., TrialConfig]) -> dict[str, Any]:
    """The settings of a form written in a folder; `manifest`: what the doctor writes beside it."""
    source = form_of(name)
    settings: dict[str, Any] = {"data.source": source, "data.validation.share": 0.3, "data.root": str(folder / "rooms")}
    settings |= {f"data.rooms.{key}": value for key, value in ROOMS.items()}
    if name in COPIES:
        _, depth, write, _, (scenes, _) = COPIES[name]
        settings |= {"data.depth": depth, "data.validation.by": "scene" if scenes else "frame"}
        settings["data.root"] = str(write(folder))
    elif name in WRITERS:
        settings["data.root"] = str(WRITERS[name][1](folder))
    data = tiny(**settings).data
    splits = {
        s: forms()[source].open_split(data, s) for s in ("train", "test") if s == "test" or source not in TEST_ONLY
    }
    if manifest:
        path = Path(check_manifest(splits, "check")[0]["path"])  # rooms come with theirs
        assert path.is_file()
    return settings


def test_every_setting_and_every_form_is_here() -> None:
    assert SETTINGS.keys() | CODING.keys() | OF_THE_FORM == DataConfig.model_fields.keys()
    assert {form_of(name) for name in PLACES} == set(FORMS)


@pytest.mark.parametrize(
    ("name", "manifest"),
    [(name, manifest) for name, bare in PLACES.items() for manifest in ([False] if bare else []) + [True]],
)
def test_it_works_or_is_refused_in_words(
    name: str, manifest: bool, tmp_path: Path, tiny_config: Callable[..., TrialConfig]
) -> None:
    here = placed(name, tmp_path, manifest, tiny_config)
    source = here["data.source"]
    found = fingerprint_or_refusal(tiny_config(**here).data)
    if source in TEST_ONLY:
        assert "test frames only" in str(found)
        with pytest.raises(UserError, match="test frames only"):
            open_training(tiny_config(**here))
        assert len(open_test(tiny_config(**here).data).read(0).depth_m)
        return
    plain = seen(tiny_config(**here))
    assert isinstance(found, dict) and found["train"] == plain.data.fingerprint
    cache = str(plain.train.reader.kept(()).place.parent / "cache")
    for setting, (values, changed) in SETTINGS.items():
        given: dict[str, Any] = {key: value for key, value in values.items() if value != "first"}
        if "data.cache" in given:
            given["data.cache"] = cache
        if values.get(f"data.{setting}") == "first":
            first = plain.train.ids[0]
            given[f"data.{setting}"] = [first] if setting == "exclude" else first
        for _ in range(2 if "data.cache" in given else 1):  # the second time from what the first one left
            assert changed(plain, seen(tiny_config(**here | given))), setting
    for setting, value in CODING.items():
        given = here | {f"data.{setting}": value}
        try:
            bare = seen(tiny_config(**given))
        except UserError as error:
            assert f"data.{setting}" in str(error) or "none.txt" in str(error), setting
            continue
        assert seen(tiny_config(**given | {"data.cache": cache})).same(bare), setting  # not what plain has left there


def fingerprint_or_refusal(data: DataConfig) -> dict[str, Any] | UserError:
    try:
        return dict(fingerprint(data))
    except UserError as error:
        return error


def spoil(name: str, folder: Path) -> None:
    """Other colors in a stored frame."""
    if name == "folder":
        path = min(folder.rglob("*.jpg"))
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path, quality=98)
        return
    path = min([*folder.rglob("nyu*.mat"), *folder.rglob("train/*/*.h5")])
    with h5py.File(path, "r+") as file:
        key = "images" if name == "labeled" else "rgb"
        file[key][...] = 255 - file[key][()]


@pytest.mark.parametrize("cache", [False, True], ids=["", "cache"])
@pytest.mark.parametrize("name", ["folder", "labeled", "h5"])
def test_a_frame_that_changed_since_the_manifest_is_refused_whatever_the_cache_holds(
    name: str, cache: bool, tmp_path: Path, tiny_config: Callable[..., TrialConfig]
) -> None:
    here = placed(name, tmp_path, True, tiny_config)
    if cache:
        here["data.cache"] = str(tmp_path / "cache")
        seen(tiny_config(**here))
    spoil(name, tmp_path)
    with pytest.raises(BadFrame, match="changed since the manifest was made"):
        seen(tiny_config(**here))


@pytest.mark.parametrize("name", ["folder", "labeled", "h5"])
def test_the_cache_serves_no_frame_that_changed_while_the_process_lives(
    name: str, tmp_path: Path, tiny_config: Callable[..., TrialConfig]
) -> None:
    here = placed(name, tmp_path, False, tiny_config) | {"data.cache": str(tmp_path / "cache")}
    before = seen(tiny_config(**here))
    spoil(name, tmp_path)
    assert not seen(tiny_config(**here)).same(before)
