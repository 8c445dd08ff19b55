"""The doctor's doubts: units, stretched and inverted depth, values for holes; and what no training takes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.trainables.data.doctor.test_doctor import write
from tests.trainables.data.formats.test_copies import COPIES
from trainables.data import manifest
from trainables.data.doctor import diagnosis
from trainables.data.formats import forms
from trainables.data.frames import BadFrame
from trainables.settings.recipe import load_recipe


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(
        tmp_path_factory.mktemp("clean") / "set", train_scenes=4, frames_per_scene=4, test_scenes=1, size=(96, 128)
    )


@pytest.fixture
def copy(clean: Path, tmp_path: Path) -> Path:
    root = Path(shutil.copytree(clean, tmp_path / "set"))
    (root / manifest.MANIFEST).unlink(missing_ok=True)
    return root


def restored(root: Path, store: Callable[[np.ndarray], np.ndarray], split: str = "train") -> Path:
    """The same depth, stored otherwise; store: metres (H, W), 0 = hole, to what the PNG holds."""
    with (root / f"data/nyu2_{split}.csv").open(newline="") as file:
        for _, name in csv.reader(file):
            stored = np.asarray(Image.open(root / name))
            metres = stored / (25.5 if stored.dtype == np.uint8 else 1000.0)
            Image.fromarray(store(metres)).save(root / name)
    return root


def examined(root: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = diagnosis.main([str(root), "--out", str(root.parent / "out"), "--no-manifest", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def whole(steps: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda m: np.round(m * steps).clip(0, 65535).astype(np.uint16)


def stretched(bits: int) -> Callable[[np.ndarray], np.ndarray]:
    top, kind = 2**bits - 1, np.dtype(f"u{bits // 8}")
    return lambda m: np.round((m - m[m > 0].min()) / np.ptp(m[m > 0]) * top).clip(0, top).astype(kind)


DOUBTED: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str, dict[str, Any]]] = {
    "metres times 256": (whole(256), "unit", {"depth_scale": 256}),
    "centimetres": (whole(100), "unit", {"depth_scale": 100}),
    "TUM": (whole(5000), "unit", {"depth_scale": 5000}),
    "65535 is 10 m": (whole(6553.5), "unit", {}),  # 5000 fits nearly as well, and is named with it
    "stretched to 8 bits": (stretched(8), "stretched", {}),
    "stretched to 16 bits": (stretched(16), "stretched", {}),
    "by its own largest value": (lambda m: np.round(m / m.max() * 255).astype(np.uint8), "stretched", {}),
    "disparity": (lambda m: np.round(255 * 0.5 / np.maximum(m, 0.5)).astype(np.uint8), "inverted", {}),
    "65535 for a hole": (
        lambda m: np.where(np.arange(m.shape[1]) < 20, 65535, np.round(m * 1000)).astype(np.uint16),
        "hole_value",
        {"hole_values": [65535]},
    ),
}


@pytest.mark.parametrize("name", DOUBTED)
def test_depth_that_is_not_what_it_is_read_as(name: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finding of its kind, exit code 1; the settings that mend it stand in the block and do mend it."""
    store, kind, settings = DOUBTED[name]
    code, found = examined(restored(copy, store), capsys=capsys)
    assert code == 1 and kind in found["findings"], found["findings"]
    assert {row["split"] for row in found["findings"][kind]} == {"train"}
    assert not {"unit", "stretched", "hole_value", "inverted"} - {kind} & found["findings"].keys()
    assert found["exclude"] == []  # no frame is at fault
    block = yaml.safe_load(found["data"])["data"]
    assert settings.items() <= block.items() and block["root"] == str(copy)
    if name == "65535 is 10 m":
        assert "65535 for 10 m" in found["findings"]["unit"][0]["detail"]
    if settings:
        load_recipe("densedepth", {f"data.{key}": value for key, value in block.items()})  # can be pasted
        restored(copy, store, "test")  # one unit for both splits
        said = [f"--set=data.{key}={json.dumps(value)}" for key, value in settings.items()]
        code, mended = examined(copy, *said, capsys=capsys)
        assert kind not in mended["findings"] and code == 0, mended["findings"]


def test_what_is_stored_rightly_is_not_doubted(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert examined(copy, capsys=capsys)[0] == 0
    assert examined(restored(copy, whole(1000)), capsys=capsys)[0] == 0


def test_no_doubt_about_real_frames(indoor: Path) -> None:
    opened = diagnosis.open_splits(indoor, "kaggle", {})
    few = {split: frames.subset(range(0, len(frames), 9)) for split, frames in opened.splits.items()}
    seen = diagnosis.records(few, lambda: None, 1)
    assert diagnosis.whole_findings(opened, seen) == ([], {})


def rows(edit: Callable[[list[list[str]]], list[list[str]]]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        path = root / "data/nyu2_train.csv"
        with path.open(newline="") as file:
            kept = edit(list(csv.reader(file)))
        path.write_text("".join(",".join(row) + "\n" for row in kept))

    return spoil


def holes_alone(root: Path) -> None:
    restored(root, lambda m: np.zeros(m.shape, np.uint8))


UNTRAINABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "one frame": (rows(lambda r: r[:1]), "no_training"),
    "one scene": (rows(lambda r: r[:4]), "no_training"),
    "no training list": (lambda root: (root / "data/nyu2_train.csv").unlink(), "no_training"),
    "an empty list": (rows(lambda r: []), "not_opened"),
    "a list of elsewhere": (rows(lambda r: [[f"/elsewhere/{n}" for n in row] for row in r]), "not_opened"),
    "missing files": (rows(lambda r: [[f"{n}.gone.png" for n in row] for row in r]), "no_training"),
    "holes alone": (holes_alone, "all_holes"),
}


@pytest.mark.parametrize("name", UNTRAINABLE)
def test_what_no_training_takes_is_not_healthy(name: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, kind = UNTRAINABLE[name]
    (copy / "data/scenes.csv").unlink()
    spoil(copy)
    code, found = examined(copy, capsys=capsys)
    assert code == 1 and kind in found["findings"], found["findings"]


def test_names_with_any_digit(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Superscripts and other scripts' digits are characters of a name."""
    (copy / "data/scenes.csv").unlink()
    path = copy / "data/nyu2_train.csv"
    text = path.read_text()
    for line in text.splitlines():
        for name in line.split(","):
            (copy / name).rename((copy / name).with_name(f"10²٣{Path(name).name}"))
            text = text.replace(name, str(Path(name).with_name(f"10²٣{Path(name).name}")))
    path.write_text(text)
    assert examined(copy, capsys=capsys)[0] == 0


def test_links_are_judged_as_a_training_judges_them(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = sorted((copy / "data/nyu2_train").iterdir())[1]
    shutil.move(scene, copy.parent / "far")
    scene.symlink_to(copy.parent / "far")
    code, found = examined(copy, capsys=capsys)
    assert code == 1 and "data.follow_links" in found["findings"]["no_training"][0]["detail"]
    assert examined(copy, "--set", "data.follow_links=true", capsys=capsys)[0] == 0


@pytest.mark.parametrize("name", COPIES)
def test_every_copy_is_recognised_and_read_against_its_manifest(name: str, tmp_path: Path) -> None:
    source, depth, writer, _, _ = COPIES[name]
    opened = diagnosis.open_splits(writer(tmp_path / "data"), None, {})
    both = {"marigold", "list"}
    assert (opened.form, opened.data.depth) == (source, "filled" if source in both else depth)
    summary, changed = diagnosis.check_manifest(opened.splits, "check")
    assert (summary["state"], changed) == ("written", [])
    for frames in opened.splits.values():
        checked = manifest.guarded(frames)
        assert all(np.array_equal(checked.read(i).depth_m, frames.read(i).depth_m) for i in range(len(frames)))
    path = Path(summary["path"])
    made = manifest.load(path)
    assert made is not None
    for kind in ("members", "files"):
        made[kind] = dict.fromkeys(made[kind], "0" * 64)
    made["arrays"] = {key: ["0" * 64] * len(digests) for key, digests in made["arrays"].items()}
    path.write_text(json.dumps(made | {"sha256": manifest.total(made)}))
    for frames in opened.splits.values():
        with pytest.raises(BadFrame, match="changed since the manifest"):
            manifest.guarded(frames).read(0)


def test_a_root_of_no_form_names_the_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert diagnosis.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "holds none of the known forms" in said and all(module.MARK in said for module in forms().values())
    assert "\n" not in said.strip()


def test_progress_on_a_large_set(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """50,000 frames at 50 a second: the time they take is said once the pace is known, and a line every half minute."""
    now = [0.0]
    monkeypatch.setattr(diagnosis.time, "monotonic", lambda: now[0])
    bar = diagnosis.Progress("frames", 50_000)
    for _ in range(50_000):
        now[0] += 0.02
        bar.step()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "frames: 50000 at 50 a second, about 17 min"
    assert 1000 / 30 <= len(lines) <= 1000 / 30 + 14 and lines[-1].endswith("50000/50000, 50 a second")
