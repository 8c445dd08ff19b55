"""Batches are a function of (seed, position): whatever the workers, the cache, or where a training resumed."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainables.data.batches import CHANNEL_ORDERS, augment_at_once, augment_one_by_one
from trainables.data.cache import SampleCache, open_cache
from trainables.data.dataset import open_training
from trainables.data.frames import BadFrame, FrameList
from trainables.data.loader import Batch, EvalLoader, TrainLoader, augment
from trainables.data.samples import Sample, prepare
from trainables.runtime.device import side_by_side, single_threaded
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig

Make = Callable[..., TrialConfig]
CPU = torch.device("cpu")
TENSORS = ("images", "target", "valid", "flip", "swap")


def batches(config: TrialConfig, count: int, start: int = 0) -> list[Batch]:
    return list(islice(TrainLoader(open_training(config).train, config, start), count))


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.position, a.ids, a.index) == (b.position, b.ids, b.index)
        assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in TENSORS)


def test_an_epoch_is_a_permutation_and_ends_with_a_partial_batch(tiny_config: Make) -> None:
    config = tiny_config(batch_size=7)
    total = len(open_training(config).train)
    found = batches(config, 8)
    assert [len(batch.ids) for batch in found] == [7, 7, 7, 3] * 2
    assert [batch.position for batch in found] == [0, 7, 14, 21, 24, 31, 38, 45]
    epochs = [[i for batch in part for i in batch.index] for part in (found[:4], found[4:])]
    assert all(sorted(epoch) == list(range(total)) for epoch in epochs) and epochs[0] != epochs[1]
    other = batches(tiny_config(batch_size=7, seed=1), 4)
    assert [i for batch in other for i in batch.index] != epochs[0]
    listed = batches(tiny_config(batch_size=7, **{"data.order": "listed"}), 8)
    assert [i for batch in listed for i in batch.index] == list(range(total)) * 2


def test_a_batch_holds_its_frames_prepared(tiny_config: Make) -> None:
    config = tiny_config()
    train = open_training(config).train
    (batch,) = batches(config, 1)
    for k, i in enumerate(batch.index):
        sample = prepare(train.read(i), config)
        assert batch.ids[k] == train.ids[i]
        assert torch.equal(batch.images[k], sample.rgb) and torch.equal(batch.target[k], sample.target)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("overrides", [{"data.workers": 2}, {"data.cache": "cache"}], ids=["workers", "cache"])
def test_workers_and_cache_change_nothing(overrides: dict[str, Any], tmp_path: Path, tiny_config: Make) -> None:
    if "data.cache" in overrides:
        overrides = {"data.cache": str(tmp_path / "cache")}
    plain = batches(tiny_config(), 14)
    state = torch.get_rng_state()
    assert_same(batches(tiny_config(**overrides), 14), plain)
    assert torch.equal(torch.get_rng_state(), state), "loading must not draw from the training's random numbers"
    assert_same(batches(tiny_config(**overrides), 9, start=20), plain[5:])


def test_augmentation_draws(tiny_config: Make) -> None:
    """Shares as set, by absolute position, whatever the batch size."""
    config = tiny_config(**{"augment.flip": 0.5, "augment.channel_swap": 0.25, "batch_size": 24, "input": [32, 32]})
    flips, swaps = (torch.cat([getattr(b, name) for b in batches(config, 40)]) for name in ("flip", "swap"))
    assert flips.double().mean() == pytest.approx(0.5, abs=0.06)  # 960 draws, 3.7 standard deviations
    # A swap draws one of six orders, the unchanged one among them, as the reference does.
    assert (swaps > 0).double().mean() == pytest.approx(0.25 * 5 / 6, abs=0.05) and set(swaps.tolist()) == set(range(6))
    small = torch.cat([b.flip for b in batches(config.model_copy(update={"batch_size": 5}), 10)])
    assert torch.equal(small[:24], flips[:24])
    off = batches(tiny_config(**{"augment.flip": 0.0, "augment.channel_swap": 0.0}), 6)
    assert not any(b.flip.any() or b.swap.any() for b in off)


def test_augment_by_hand(tiny_config: Make) -> None:
    (batch,) = batches(tiny_config(batch_size=12), 1)
    flip, swap = torch.arange(12) % 2 == 1, torch.arange(12) // 2
    batch = Batch(**{**batch.__dict__, "flip": flip, "swap": swap})
    before = batch.images.clone()
    images, target, valid = augment(batch, CPU)
    assert torch.equal(before, batch.images), "a batch can be augmented twice"
    for first, second in zip(augment_at_once(batch), augment_one_by_one(batch), strict=True):
        assert torch.equal(first, second)
    assert images.is_contiguous(memory_format=torch.channels_last) and images.dtype == torch.float32
    assert list(permutations(range(3))) == list(CHANNEL_ORDERS)
    for n in range(12):
        rgb = batch.images[n].numpy().astype(np.float32) / np.float32(255)
        expected = rgb[list(CHANNEL_ORDERS[n // 2])]
        for ours, plain in ((images, expected), (target, batch.target[n].numpy()), (valid, batch.valid[n].numpy())):
            np.testing.assert_array_equal(ours[n].numpy(), plain[..., ::-1] if n % 2 else plain)


def test_the_evaluation_sees_every_frame_at_its_stored_size(tiny_config: Make) -> None:
    for workers in (0, 2):
        config = tiny_config(**{"data.crop_border_px": 2, "data.workers": workers})
        frames = open_training(config).train
        found = list(EvalLoader(frames, config, 7))
        assert [len(index) for *_, index in found] == [7, 7, 7, 3]
        assert [i for *_, index in found for i in index] == list(range(24))
        ids, images, depths, index = found[3]
        assert ids[2] == frames.ids[23] and images.shape == (3, 3, 48, 64) and images.dtype == torch.uint8
        np.testing.assert_array_equal(depths[2], frames.read(index[2]).depth_m)


class Spoiled:
    """A reader whose frame 1 of the list is bad."""

    def __init__(self, frames: FrameList) -> None:
        self._frames = frames

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._frames.reader, name)

    def __len__(self) -> int:
        return len(self._frames.reader)

    def rgb(self, index: int) -> Any:
        if index == self._frames.rgb_of[1]:
            raise BadFrame("one.jpg is truncated; replace it")
        return self._frames.reader.rgb(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_frame_that_turns_bad_stops_or_is_stood_in_for(workers: int, tiny_config: Make) -> None:
    config = tiny_config(**{"data.order": "listed", "data.workers": workers})
    train = open_training(config).train
    spoiled = FrameList(**{**train.__dict__, "reader": Spoiled(train)})
    with pytest.raises(BadFrame, match=r"^one.jpg is truncated; replace it$"):
        list(islice(TrainLoader(spoiled, config, 0), 1))
    skipping = tiny_config(**{"data.order": "listed", "data.workers": workers, "data.on_bad_frame": "skip"})
    loader = TrainLoader(spoiled, skipping, 0)
    assert next(iter(loader)).index == [0, 2, 2, 3]
    assert loader.skipped == {train.ids[1]: "one.jpg is truncated; replace it"}
    with pytest.raises(BadFrame):
        list(EvalLoader(spoiled, config, 4))
    evaluation = EvalLoader(spoiled, skipping, 4)
    assert [i for *_, index in evaluation for i in index] == [0, *range(2, 24)] and len(evaluation.skipped) == 1


def empty(cache: SampleCache) -> tuple[Any, Any, Any]:
    return (
        np.empty((*cache.input, 3), np.uint8),
        np.empty((1, *cache.output), np.float32),
        np.empty((1, *cache.output), np.bool_),
    )


def test_the_cache_serves_what_was_prepared_and_heals(tmp_path: Path, tiny_config: Make) -> None:
    config = tiny_config(**{"data.cache": str(tmp_path)})
    train = open_training(config).train
    plain = batches(config, 6)
    cache = open_cache(train, config)
    assert cache is not None
    buffers = empty(cache)
    assert all(cache.read(slot, *buffers) for slot in train.rgb_of)
    held = set(range(30)) - set(train.rgb_of)
    assert not any(cache.read(slot, *buffers) for slot in held), "validation frames were never prepared"
    path = cache.folder / "samples.bin"
    content = bytearray(path.read_bytes())
    content[train.rgb_of[0] * cache.record_bytes + 5] ^= 1
    path.write_bytes(content)
    assert not pickle.loads(pickle.dumps(cache)).read(train.rgb_of[0], *buffers), "a flipped bit is no sample"
    assert_same(batches(config, 6), plain)
    assert pickle.loads(pickle.dumps(cache)).read(train.rgb_of[0], *buffers), "it was prepared again"


def test_the_cache_s_key_holds_all_that_decides_a_sample(tmp_path: Path, tiny_config: Make) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"input": [64, 64]},
        {"target.kind": "metric"},
        {"target.resize": "resize_then_inverse"},
        {"target.holes": "clamp"},
        {"target.max_depth_m": 8.0},
        {"data.crop_border_px": 1},
        {"data.pairing": "shuffled"},
        {"model.input_pool": 2},
    ]
    shared: list[dict[str, Any]] = [{"seed": 1}, {"data.subset": 0.5}, {"batch_size": 2}, {"optim.lr": 0.5}]

    def folder(change: dict[str, Any]) -> Path:
        config = tiny_config(**{"data.cache": str(tmp_path)} | change)
        cache = open_cache(open_training(config).train, config)
        assert cache is not None
        return cache.folder

    assert len({folder(change) for change in changes}) == len(changes)
    assert {folder(change) for change in shared} == {folder({})}


def test_two_trainings_build_one_cache_at_once(tmp_path: Path, tiny_config: Make) -> None:
    plain = batches(tiny_config(), 12)
    limits = [None, 4e-4]  # of GB: one of them holds fewer frames in the same files
    configs = [tiny_config(**{"data.cache": str(tmp_path), "data.cache_gb": limit}) for limit in limits * 2]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda config: batches(config, 12), configs):
            assert_same(found, plain)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_cache_keeps_to_its_size(tmp_path: Path, tiny_config: Make) -> None:
    config = tiny_config(**{"data.cache": str(tmp_path), "data.cache_gb": 1e-4})
    assert_same(batches(config, 12), batches(tiny_config(), 12))
    (samples,) = tmp_path.glob("*/samples.bin")
    assert 0 < samples.stat().st_size <= 1e-4 * 1e9
    none = tiny_config(**{"data.cache": str(tmp_path), "data.cache_gb": 1e-6})
    assert open_cache(open_training(none).train, none) is None


def test_a_full_disk_is_one_sentence(tmp_path: Path, tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(**{"data.cache": str(tmp_path / "cache")})
    train = open_training(config).train
    cache = open_cache(train, config)
    assert cache is not None

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=r"data.cache .* cannot be written \(No space left on device\); free space"):
        cache.put(0, prepare(train.read(0), config))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data.cache .*file"):
        TrainLoader(train, tiny_config(**{"data.cache": str(tmp_path / "file")}), 0)


def test_sample_survives_the_trip_to_disk(tmp_path: Path, tiny_config: Make) -> None:
    """Validity and values, holes included, byte by byte."""
    config = tiny_config(**{"data.cache": str(tmp_path)})
    cache = open_cache(open_training(config).train, config)
    assert cache is not None
    rng = np.random.default_rng(0)
    rgb = torch.from_numpy(rng.integers(0, 256, (48, 64, 3), np.uint8)).permute(2, 0, 1)
    target = torch.from_numpy(rng.random((1, *cache.output), np.float32))
    sample = Sample(rgb, target, target > 0.5)
    cache.put(3, sample)
    buffers = empty(cache)
    assert cache.read(3, *buffers) and not cache.read(2, *buffers)
    for found, expected in zip(buffers, (rgb.permute(1, 2, 0), target, target > 0.5), strict=True):
        np.testing.assert_array_equal(found, expected.numpy())


def test_the_loaders_thread_brings_no_second_team() -> None:
    """One thread of its own, for good; the count of the training's thread, and of threads that begin later, stays."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with single_threaded("loader") as pool, ThreadPoolExecutor(1) as later:
            assert [pool.submit(torch.get_num_threads).result() for _ in range(2)] == [1, 1]
            assert torch.get_num_threads() == later.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("cores", "tasks", "workers", "each"), [(2, 6, 2, 1), (8, 3, 3, 2), (4, 1, 1, 4)])
def test_tasks_share_out_the_cores_and_give_them_back(cores: int, tasks: int, workers: int, each: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(cores)
        pool, count = side_by_side(tasks, "task")
        with pool:
            assert count == workers and set(pool.map(lambda _: torch.get_num_threads(), range(9))) == {each}
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
