"""The embedded data set: same bytes, the exact Kaggle layout, metric z-depth, planted defects as listed."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.data.dataset import open_training, prepare_data
from trainables.data.frames import BadFrame
from trainables.data.rooms import writer
from trainables.data.rooms.furniture import Part, Pose, Scene
from trainables.data.rooms.render import render
from trainables.data.rooms.textures import Material
from trainables.runtime.errors import UserError
from trainables.settings.config import RoomsConfig
from trainables.settings.recipe import load_recipe

SIZE = (48, 64)


def config(**changes: object) -> RoomsConfig:
    plain = {"seed": 3, "train_scenes": 3, "test_scenes": 1, "frames_per_scene": 3, "size": SIZE, "holes": False,
             "white_border": False, "defects": {}}  # fmt: skip
    return RoomsConfig.model_validate(plain | changes)


def lines(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rooms") / "set"
    writer.write_rooms(config(), root)
    return root


def test_layout_is_the_kaggle_one(written: Path) -> None:
    train, test = lines(written / "data/nyu2_train.csv"), lines(written / "data/nyu2_test.csv")
    assert len(train) == 9 and len(test) == 3
    for rgb, depth in train:
        picture, stored = Image.open(written / rgb), Image.open(written / depth)
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", SIZE[::-1])
        assert (stored.format, stored.mode, stored.size) == ("PNG", "L", SIZE[::-1])
        values = np.asarray(stored) / 255 * 10
        assert values.min() >= 0.5 - 10 / 510 and values.max() <= 10 and rgb.split("/")[2].endswith("_out")
    assert [rgb for rgb, _ in test] == [f"data/nyu2_test/{k:05d}_colors.png" for k in range(3)]
    for rgb, depth in test:
        assert Image.open(written / rgb).mode == "RGB" and depth == rgb.replace("colors", "depth")
        millimetres = np.asarray(Image.open(written / depth))
        assert millimetres.dtype == np.uint16 and millimetres.min() >= 500 and millimetres.max() <= 10000
    scene_of = dict(lines(written / "data/scenes.csv"))  # type: ignore[arg-type]
    assert set(scene_of) == {rgb for rgb, _ in train + test}
    assert not {scene_of[rgb] for rgb, _ in train} & {scene_of[rgb] for rgb, _ in test}
    assert not (written / "data/defects.csv").exists()


def test_manifest_holds_every_file(written: Path) -> None:
    manifest = json.loads((written / writer.MANIFEST).read_text())
    found = {p.relative_to(written).as_posix() for p in written.rglob("*") if p.is_file()} - {writer.MANIFEST}
    assert set(manifest["files"]) == found
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((written / name).read_bytes()).hexdigest() == digest


def test_same_bytes_on_every_run_and_whatever_else_is_rendered(written: Path, tmp_path: Path) -> None:
    again = writer.write_rooms(config(), tmp_path / "again")
    assert again["sha256"] == json.loads((written / writer.MANIFEST).read_text())["sha256"]
    fewer = writer.write_rooms(config(train_scenes=1, test_scenes=2), tmp_path / "fewer")
    shared = {n for n in fewer["files"] if n in again["files"] and not n.endswith(".csv")}
    assert len(shared) == 12 and all(fewer["files"][n] == again["files"][n] for n in shared)
    assert writer.write_rooms(config(seed=4), tmp_path / "other")["sha256"] != again["sha256"]


def test_the_renderer_is_the_one_that_was_written_down() -> None:
    """A change of pictures must raise rooms.RENDERER, or old folders pass for new ones."""
    _, shots = writer.shoot(config(size=(24, 32)), "train", 0)
    content = b"".join(shot.rgb.tobytes() + writer.stored_8_bit(shot.depth_m).tobytes() for shot in shots)
    assert (writer.RENDERER, hashlib.sha256(content).hexdigest()[:16]) == (1, "07a49ab0ecdf3b96")


def test_depth_is_along_the_optical_axis() -> None:
    """Straight at a wall every pixel has the wall's distance; a box in front has its own; a turned view recedes."""
    grey = Material("plain", (0.5, 0.5, 0.5), (0, 0, 0), 1.0, 1)
    room = Scene("test", (5.0, 2.6, 6.0), (grey,) * 6, (2.5, 2.0, 1.0), (1, 1, 1), [], 0.5)
    wall = render(room, Pose((2.5, 1.3, 4.5), 0.0, 0.0, 0.0), *SIZE)[1]
    np.testing.assert_allclose(wall, 1.5, rtol=1e-6)
    room.parts.append(Part((2.5, 1.3, 5.0), (0.2, 0.2, 0.25), grey))
    with_box = render(room, Pose((2.5, 1.3, 2.0), 0.0, 0.0, 0.0), *SIZE)[1]
    assert with_box[SIZE[0] // 2, SIZE[1] // 2] == pytest.approx(2.75) and with_box[24, 2] == pytest.approx(4.0)
    beside = render(room, Pose((2.5, 1.3, 2.0), np.pi / 2, 0.0, 0.0), *SIZE)[1]  # looks along +x
    assert beside[SIZE[0] // 2, SIZE[1] // 2] == pytest.approx(2.5)


def test_sensor_holes_and_white_border(tmp_path: Path) -> None:
    root = tmp_path / "set"
    writer.write_rooms(config(holes=True, white_border=True, size=(120, 160)), root)
    depths = [np.asarray(Image.open(root / depth)) for _, depth in lines(root / "data/nyu2_train.csv")]
    assert all(0.02 < (depth == 0).mean() < 0.45 for depth in depths)
    assert all(np.asarray(Image.open(root / d)).min() > 0 for _, d in lines(root / "data/nyu2_test.csv"))
    for rgb, _ in lines(root / "data/nyu2_train.csv") + lines(root / "data/nyu2_test.csv"):
        picture = np.asarray(Image.open(root / rgb)).astype(int)
        assert picture[0].min() > 225 and picture[:, -1].min() > 225 and picture[10:-10, 10:-10].mean() < 200


def test_planted_defects_are_the_listed_ones(written: Path, tmp_path: Path) -> None:
    root, counts = tmp_path / "set", {"wrong_pair": 1, "all_holes": 1, "saturated": 1, "flipped": 1, "shifted": 1}
    writer.write_rooms(config(defects=counts), root)
    planted = dict(lines(root / "data/defects.csv"))  # type: ignore[arg-type]
    assert sorted(planted.values()) == sorted(counts)
    scene_of = dict(lines(root / "data/scenes.csv"))  # type: ignore[arg-type]
    clean = {rgb: np.asarray(Image.open(written / depth)) for rgb, depth in lines(written / "data/nyu2_train.csv")}
    for rgb, depth in lines(root / "data/nyu2_train.csv"):
        now, before = np.asarray(Image.open(root / depth)), clean[rgb]
        match planted.get(rgb):
            case None:
                assert np.array_equal(now, before)
            case "wrong_pair":
                assert any(np.array_equal(now, d) for r, d in clean.items() if scene_of[r] != scene_of[rgb])
            case "all_holes":
                assert not now.any()
            case "saturated":
                assert (now == 255).mean() > 0.5 and np.array_equal(now[now < 255], before[now < 255])
            case "flipped":
                assert np.array_equal(now, before[:, ::-1])
            case "shifted":
                steps = range(-SIZE[1] // 5, SIZE[1] // 5 + 1)
                fits = [k for k in steps if np.array_equal(now[:, 16:-16], np.roll(before, -k, 1)[:, 16:-16])]
                assert len(fits) == 1 and abs(fits[0]) >= 5
    with pytest.raises(UserError, match="plant fewer"):
        writer.write_rooms(config(defects={"flipped": 10}), tmp_path / "too many")


def test_two_writers_and_a_killed_one(tmp_path: Path) -> None:
    """Leftovers of a killed writer go; of two at once one renders, and both get the same manifest."""
    root = tmp_path / "set"
    (tmp_path / ".set.1.tmp").mkdir()
    code = (
        "import sys, json; from pathlib import Path; from trainables.settings.config import RoomsConfig\n"
        "from trainables.data.rooms.writer import write_rooms\n"
        "print(write_rooms(RoomsConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))['sha256'])"
    )
    command = [sys.executable, "-c", code, config().model_dump_json(), str(root)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=120)[0] for process in both]
    assert told[0] == told[1] and len(told[0].strip()) == 64
    assert sorted(p.name for p in tmp_path.iterdir()) == [".set.lock", "set"]
    before = (root / writer.MANIFEST).stat().st_mtime_ns
    writer.write_rooms(config(), root)
    assert (root / writer.MANIFEST).stat().st_mtime_ns == before
    with pytest.raises(UserError, match="other settings"):
        writer.write_rooms(config(seed=9), root)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="name another folder"):
        writer.write_rooms(config(), tmp_path / "mine")


def test_rooms_are_read_against_their_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest that lists files alone, as that of rooms does, guards every frame."""
    monkeypatch.chdir(tmp_path)
    small = {"data.source": "rooms", "data.rooms.train_scenes": 2, "data.rooms.test_scenes": 1,
             "data.rooms.frames_per_scene": 2, "data.rooms.size": [48, 64], "data.validation.share": 0.5}  # fmt: skip
    (config,) = load_recipe("densedepth", small)
    prepare_data(config.data)
    opened = open_training(config)
    frame = opened.train.read(0)
    assert frame.rgb.shape == (48, 64, 3)
    (picture,) = tmp_path.glob(f"data/rooms-*/{opened.train.ids[0]}")
    picture.write_bytes(picture.read_bytes()[:-1] + b"x")
    with pytest.raises(BadFrame, match="manifest"):
        open_training(config).train.read(0)
