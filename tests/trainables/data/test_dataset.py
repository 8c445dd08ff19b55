"""Which frames a training sees: scenes held out whole, and each setting's own effect and no other."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from trainables.data.dataset import fingerprint, open_test, open_training, prepare_data
from trainables.data.split import evenly, held_out
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig

Make = Callable[..., TrialConfig]


def test_whole_scenes_are_held_out_until_the_share_is_reached() -> None:
    sizes = {"a": 10, "b": 1, "c": 5, "d": 4, "e": 20}
    scenes = [scene for scene, count in sizes.items() for _ in range(count)]
    seen = set()
    for seed in range(40):
        held = held_out(scenes, "scene", 0.2, seed, "x")
        chosen = Counter(scenes[i] for i in held)
        assert all(sizes[scene] == count for scene, count in chosen.items())
        assert len(held) >= 8 and len(chosen) < len(sizes)
        assert len(held) - max(sizes[s] for s in chosen) < 8, "one scene more than needed"
        assert held == held_out(scenes, "scene", 0.2, seed, "x")
        seen.add(held)
    assert len(seen) > 5
    assert len(held_out(scenes, "scene", 0.999, 0, "x")) < len(scenes)
    assert len(held_out(scenes, "frame", 0.1, 0, "x")) == 4
    with pytest.raises(UserError, match=r"1 scene\(s\); do it by frame"):
        held_out(["a"] * 5, "scene", 0.1, 0, "x")
    with pytest.raises(UserError, match="unknown scene"):
        held_out(["a", "b", None], "scene", 0.1, 0, "x")


def test_training_and_validation_share_no_scene(tiny_config: Make) -> None:
    data = open_training(tiny_config())
    assert len(data.train) == 24 and len(data.validation) == 6
    assert not set(data.train.scenes) & set(data.validation.scenes)
    assert data.train.ids[0].startswith("data/nyu2_train/scene_0")


def test_settings_thin_the_training_and_leave_the_validation(tiny_config: Make) -> None:
    plain = open_training(tiny_config())
    for overrides in ({"data.subset": 0.5}, {"data.exclude": list(plain.train.ids[:12])}, {"data.pairing": "shuffled"}):
        other = open_training(tiny_config(**overrides))
        assert other.validation == plain.validation
        assert set(other.train.ids) <= set(plain.train.ids)
    half = open_training(tiny_config(**{"data.subset": 0.5})).train.ids
    assert len(half) == 12 and list(half) == [name for name in plain.train.ids if name in half]
    assert half != open_training(tiny_config(**{"data.subset": 0.5, "data.subset_seed": 1})).train.ids
    without = open_training(tiny_config(**{"data.subset": 0.5, "data.exclude": [half[0]]})).train.ids
    assert without == half[1:]
    few = open_training(tiny_config(**{"data.validation.max_frames": 2})).validation
    assert few.ids == (plain.validation.ids[1], plain.validation.ids[4])
    assert evenly(range(7), 3) == [1, 3, 5]


def test_shuffled_pairs_keep_no_depth_and_lose_none(tiny_config: Make) -> None:
    shuffled = open_training(tiny_config(**{"data.pairing": "shuffled"})).train
    assert all(a != b for a, b in zip(shuffled.rgb_of, shuffled.depth_of, strict=True))
    assert sorted(shuffled.rgb_of) == sorted(shuffled.depth_of)
    frame, matched = shuffled.read(0), open_training(tiny_config()).train
    assert (frame.rgb == matched.read(0).rgb).all() and (frame.depth_m != matched.read(0).depth_m).any()
    assert shuffled.depth_of != open_training(tiny_config(**{"data.pairing": "shuffled", "seed": 1})).train.depth_of


def test_overfitting_one_frame(tiny_config: Make) -> None:
    name = open_training(tiny_config()).train.ids[3]
    data = open_training(tiny_config(**{"data.overfit": name}))
    assert data.train.ids == data.validation.ids == (name,)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"data.exclude": ["data/nyu2_train/scene_0000_out/11.jpg"]},
            r"did you mean data/nyu2_train/scene_0000_out/1.*",
        ),
        ({"data.overfit": "x"}, "data.overfit: x is not a frame"),
        ({"data.root": None}, "data.root is null"),
        ({"data.root": "/nowhere"}, "/nowhere does not exist"),
        ({"data.depth": "raw"}, "data.depth"),
        ({"data.split": "80_10_10_by_scene"}, "data.split"),
    ],
)
def test_mistakes_name_the_key(overrides: dict[str, object], message: str, tiny_config: Make) -> None:
    with pytest.raises(UserError, match=message):
        open_training(tiny_config(**overrides))


def test_excluding_everything_is_refused(tiny_config: Make) -> None:
    every = list(open_training(tiny_config()).train.ids)
    with pytest.raises(UserError, match="leaves no frame"):
        open_training(tiny_config(**{"data.exclude": every}))


def test_the_fingerprint_sees_one_changed_bit(tiny_config: Make, tiny_root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_root, copy)
    config = tiny_config(**{"data.root": str(copy)})
    before = fingerprint(config.data)
    assert before == fingerprint(tiny_config().data)
    assert (before["train_of"], before["frames"]) == ("content", 36)
    path = copy / open_test(config.data).ids[2]
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    after = fingerprint(config.data)
    assert after["train"] == before["train"] == open_training(config).fingerprint and after["test"] != before["test"]


def test_rooms_are_rendered_once_and_read_like_any_set(tiny_config: Make, tmp_path: Path) -> None:
    settings = {"train_scenes": 3, "test_scenes": 1, "frames_per_scene": 2, "size": [24, 32]}
    rooms = {f"data.rooms.{key}": value for key, value in settings.items()}
    config = tiny_config(**{"data.source": "rooms", "data.root": str(tmp_path / "set")} | rooms)
    located = prepare_data(config.data)
    assert located.root == str(tmp_path / "set")
    stamp = (tmp_path / "set/data/nyu2_train.csv").stat().st_mtime_ns
    data = open_training(config)
    assert (len(data.train), len(data.validation), len(open_test(config.data))) == (4, 2, 2)
    assert None not in open_test(config.data).scenes
    assert data.train.read(0).rgb.shape == (24, 32, 3)
    assert (tmp_path / "set/data/nyu2_train.csv").stat().st_mtime_ns == stamp


def test_of_a_long_list_a_sample_is_read_before_training(
    tiny_config: Make, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file's presence is known before training, the headers of a sample."""
    copy = tmp_path / "copy"
    shutil.copytree(tiny_root, copy)
    config = tiny_config(**{"data.root": str(copy), "data.on_bad_frame": "skip"})
    ids = open_training(config).train.ids + open_training(config).validation.ids
    for name in ids:
        (copy / name).write_bytes(b"")
    (copy / ids[0]).unlink()
    monkeypatch.setattr("trainables.data.dataset.THOROUGH_FRAMES", 10)
    monkeypatch.setattr("trainables.data.dataset._SAMPLED", 5)
    skipped = open_training(config).skipped
    assert len(skipped) in (5, 6) and ids[0] in dict(skipped)
