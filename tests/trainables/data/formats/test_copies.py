"""The same frames in every copy of NYU Depth v2 that people have, read alike; and lists as they come."""

from __future__ import annotations

import io
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pyarrow import parquet

from tests.trainables.data.formats.test_formats import (
    COLUMNS,
    FRAMES,
    ROWS,
    SCENES,
    TESTS,
    depth_m,
    jpeg,
    picture,
    png,
    write_h5,
    write_kaggle,
    write_labeled,
)
from trainables.data.dataset import open_test, open_training
from trainables.data.files import FolderFiles
from trainables.data.formats import forms
from trainables.data.frames import BadFrame
from trainables.data.lists import read_rows
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig, TrialConfig

TRAINS = [i for i in range(FRAMES) if i not in TESTS]


def millimetres(i: int) -> np.ndarray:
    return (depth_m(i) * 1000).round().astype(np.uint16)


def filled(i: int) -> np.ndarray:
    return np.where(millimetres(i) > 0, millimetres(i), 1000).astype(np.uint16)


def put(root: Path, name: str, content: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)


def write_bts(root: Path, lists: bool = True) -> Path:
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for i in range(FRAMES):
        folder = "bathroom" if i in TESTS else f"{SCENES[i]}{'ab'[i % 2]}"
        top = "official_splits/test" if i in TESTS else "sync"
        put(root, f"{top}/{folder}/rgb_{i:05d}.jpg", jpeg(picture(i)))
        put(root, f"{top}/{folder}/sync_depth_{i:05d}.png", png(millimetres(i)))
        slash = "" if i in TESTS else "/"
        line = f"{slash}{folder}/rgb_{i:05d}.jpg {slash}{folder}/sync_depth_{i:05d}.png 518.8579"
        lines["test" if i in TESTS else "train"].append(line)
    put(root, "sync/unlisted_0001/rgb_00000.jpg", jpeg(picture(0)))
    for split, listed in lines.items():
        if lists or split == "train":
            put(root, f"nyudepthv2_{split}_files_with_gt.txt", ("\n".join(listed) + "\n").encode())
    return root


def tarred(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def marigold_members() -> dict[str, bytes]:
    members = {}
    for i in range(FRAMES):
        stem = f"./{'test' if i in TESTS else 'train'}/{SCENES[i]}"
        members[f"{stem}/rgb_{i + 1:04d}.png"] = png(picture(i))
        members[f"{stem}/depth_{i + 1:04d}.png"] = png(millimetres(i))
        members[f"{stem}/filled_{i + 1:04d}.png"] = png(filled(i))
    return members


def write_marigold(root: Path) -> Path:
    return tarred(root / "nyu_labeled_extracted.tar", marigold_members())


def write_unpacked_marigold(root: Path) -> Path:
    for name, content in marigold_members().items():
        put(root, name, content)
    return root


def write_tar_h5(root: Path) -> Path:
    unpacked = write_h5(root / "unpacked")
    for split, shards in (("train", 2), ("val", 1)):
        files = sorted((unpacked / split).rglob("*.h5"))
        for shard in range(shards):
            members = {f.relative_to(unpacked).as_posix(): f.read_bytes() for f in files[shard::shards]}
            tarred(root / f"hf/data/{split}-{shard:06d}.tar", members)
    return root / "hf"


def tiff(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    return buffer.getvalue()


def write_parquet(root: Path) -> Path:
    for split, numbers in (("train", TRAINS), ("validation", list(TESTS))):
        rows = {
            "image": [{"bytes": png(picture(i)), "path": None} for i in numbers],
            "depth_map": [{"bytes": tiff(depth_m(i)), "path": None} for i in numbers],
        }
        (root / "data").mkdir(parents=True, exist_ok=True)
        halves = len(numbers) // 2
        for part, chosen in enumerate((slice(None, halves), slice(halves, None))):
            table = pa.table({name: values[chosen] for name, values in rows.items()})
            parquet.write_table(table, root / f"data/{split}-{part:05d}-of-00002.parquet", row_group_size=2)
    return root


def write_ultralytics(root: Path, suffix: str = ".png") -> Path:
    for i in range(FRAMES):
        split = "val" if i in TESTS else "train"
        put(root, f"images/{split}/{i:04d}.jpg", jpeg(picture(i)))
        if suffix == ".png":
            put(root, f"depth/{split}/{i:04d}.png", png(millimetres(i)))
            continue
        buffer = io.BytesIO()
        np.save(buffer, np.where(depth_m(i) > 0, depth_m(i), np.nan).astype(np.float32))
        put(root, f"depth/{split}/{i:04d}.npy", buffer.getvalue())
    put(root, "images/train/.DS_Store", b"x")
    put(root, "images/train/._0000.jpg", b"x")
    return root


def write_toolbox(root: Path) -> Path:
    for i in range(FRAMES):
        split = "test" if i in TESTS else "train"
        name = f"{split}/{SCENES[i]}{'ab'[i % 2]}_rgb_{i:05d}"
        put(root, f"images/{name}.jpg", jpeg(picture(i)))
        put(root, f"annotations/{name}.png", png(millimetres(i)))
    return root


def write_unidepth(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "nyuv2.hdf5", "w") as file:
        for split, numbers in (("train", TRAINS), ("test", list(TESTS))):
            lines = []
            for i in numbers:
                folder = "bathroom" if i in TESTS else SCENES[i]
                names = f"{folder}/rgb_{i:05d}.jpg", f"{folder}/sync_depth_{i:05d}.png"
                for name, content in zip(names, (jpeg(picture(i)), png(millimetres(i))), strict=True):
                    file[name] = np.frombuffer(content, np.uint8)
                lines.append(f"{names[0]} {names[1]} 518.8579")
            file[f"nyu_{split}.txt"] = np.frombuffer(("\n".join(lines) + "\n").encode(), np.uint8)
    return root


def logarithmic(depth: np.ndarray) -> bytes:
    """MoGe's coding, as its repository writes it."""
    known = depth > 0
    near, far = float(depth[known].min()), float(depth[known].max())
    share = np.log(np.maximum(depth, near) / near) / np.log(far / near)
    values = np.where(known, 1 + np.round(share * 65533), 0).astype(np.uint16)
    values[0, 0] = 65535  # beyond measure
    text, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_text("near", str(near))
    text.add_text("far", str(far))
    Image.fromarray(values).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def write_moge(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root / "NYUv2.zip", "w") as archive:
        archive.writestr("NYUv2/.index.txt", "\n".join(f"{SCENES[i]}/{i:05d}" for i in TESTS))
        for i in TESTS:
            archive.writestr(f"NYUv2/{SCENES[i]}/{i:05d}/image.jpg", jpeg(picture(i)))
            archive.writestr(f"NYUv2/{SCENES[i]}/{i:05d}/depth.png", logarithmic(depth_m(i)))
            archive.writestr(f"NYUv2/{SCENES[i]}/{i:05d}/meta.json", "{}")
    return root / "NYUv2.zip"


Writer = Callable[[Path], Path]
# copy -> form, kind of depth, writer, largest error of depth in metres, whether train and test scenes are known
COPIES: dict[str, tuple[str, str, Writer, float, tuple[bool, bool]]] = {
    "BTS": ("bts", "raw", write_bts, 5.01e-4, (True, False)),
    "BTS without its test list": ("bts", "raw", lambda root: write_bts(root, lists=False), 5.01e-4, (True, False)),
    "Marigold's tar": ("marigold", "raw", write_marigold, 5.01e-4, (True, True)),
    "Marigold's tar in its folder": (
        "marigold",
        "raw",
        lambda root: write_marigold(root).parent,
        5.01e-4,
        (True, True),
    ),
    "Marigold, unpacked": ("marigold", "raw", write_unpacked_marigold, 5.01e-4, (True, True)),
    "tar of h5": ("h5", "filled", write_tar_h5, 0, (True, False)),
    "parquet": ("parquet", "filled", write_parquet, 0, (False, False)),
    "Ultralytics": ("list", "raw", write_ultralytics, 5.01e-4, (False, False)),
    "Ultralytics, npy": ("list", "raw", lambda root: write_ultralytics(root, ".npy"), 0, (False, False)),
    "Toolbox": ("list", "raw", write_toolbox, 5.01e-4, (True, True)),
    "UniDepth": ("unidepth", "raw", write_unidepth, 5.01e-4, (True, False)),
    "MoGe": ("moge", "raw", write_moge, 1.5e-4, (False, True)),
}


@pytest.fixture
def settings(tiny_config: Callable[..., TrialConfig]) -> Callable[..., TrialConfig]:
    def make(source: str, root: Path, depth: str = "raw", **overrides: Any) -> TrialConfig:
        return tiny_config(**{"data.source": source, "data.root": str(root), "data.depth": depth} | overrides)

    return make


@pytest.mark.parametrize("copy", COPIES)
def test_copies_agree(copy: str, tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    source, depth, write, error_m, known = COPIES[copy]
    config = settings(source, write(tmp_path), depth)
    splits = {"test": open_test(config.data)}
    if source == "moge":
        with pytest.raises(UserError, match="test frames only"):
            forms()[source].open_split(config.data, "train")
    else:
        splits["train"] = forms()[source].open_split(config.data, "train")
    for split, frames in splits.items():
        wanted = set(TESTS if split == "test" else TRAINS)
        assert frames.truth == depth and frames.max_depth_m == 10
        for k in reversed(range(len(frames))):
            frame = frames.read(k)
            error = {i: np.abs(frame.rgb.astype(int) - picture(i)).max() for i in wanted}
            number = min(error, key=error.__getitem__)
            wanted.remove(number)
            assert error[number] <= 4
            expected = depth_m(number)
            if source == "moge":
                expected[0, 0] = 0
            np.testing.assert_allclose(frame.depth_m, expected, atol=error_m)
            assert frame.depth_m.dtype == np.float32 and (frame.depth_m[2:5, 3:9] == 0).all()
            assert frames.scenes[k] == (SCENES[number] if known[split == "test"] else None)
        assert not wanted
    if "train" in splits:
        by_frame = settings(source, Path(str(config.data.root)), depth, **{"data.validation.by": "frame"})
        assert len(open_training(by_frame).train) == len(TRAINS) - 1


def test_marigold_has_both_kinds_of_depth_and_reads_its_own_lists(
    tmp_path: Path, settings: Callable[..., TrialConfig]
) -> None:
    root = write_marigold(tmp_path)
    lines = [f"test/{SCENES[i]}/rgb_{i + 1:04d}.png test/{SCENES[i]}/depth_{i + 1:04d}.png test/x.png" for i in (4, 1)]
    (tmp_path / "filename_list_test.txt").write_text("\n".join(lines))
    named = {"data.lists.test": str(tmp_path / "filename_list_test.txt")}
    frames = open_test(settings("marigold", root, "filled", **named).data)
    assert frames.ids[0].endswith("rgb_0005.png") and frames.truth == "filled"
    np.testing.assert_allclose(frames.read(0).depth_m, filled(4) / 1000, atol=1e-6)


def test_scenes_of_numbered_test_frames_come_from_the_labelled_set(
    tmp_path: Path, settings: Callable[..., TrialConfig]
) -> None:
    for source, write in (("bts", write_bts), ("unidepth", write_unidepth)):
        root = write(tmp_path / source)
        write_labeled(root)
        assert open_test(settings(source, root).data).scenes == tuple(SCENES[i] for i in TESTS)


def lined(root: Path, text: bytes | None = None, edit: Callable[[list[tuple[str, str]]], bytes] | None = None) -> Path:
    """The Kaggle layout with another training list."""
    path = write_kaggle(root) / "data/nyu2_train.csv"
    rows = [(a, b) for a, b in (line.split(",") for line in path.read_text().splitlines())]
    path.write_bytes(text if edit is None else edit(rows))  # type: ignore[arg-type]
    return root


def joined(rows: Sequence[tuple[Any, ...]], mark: str = ",", end: str = "\n") -> bytes:
    return "".join(mark.join(map(str, row)) + end for row in rows).encode()


def each(change: Callable[[str], str]) -> Callable[[list[tuple[str, str]]], bytes]:
    return lambda rows: joined([(change(a), change(b)) for a, b in rows])


LISTS: dict[str, Callable[[list[tuple[str, str]]], bytes]] = {
    "backslashes": each(lambda name: name.replace("/", "\\")),
    "a drive": each(lambda name: "D:\\sets\\nyu\\" + name.replace("/", "\\")),
    "another drive": each(lambda name: f"C:/Users/me/{name}"),
    "Kaggle's mount": each(lambda name: f"/kaggle/input/nyu-depth-v2/nyu_data/{name}"),
    "a home folder": each(lambda name: f"/home/me/nyu_data/{name}"),
    "doubled folder": each(lambda name: f"nyu_data/{name}"),
    "dots": each(lambda name: f"./{name}"),
    "relative to the list": each(lambda name: name.removeprefix("data/")),
    "header": lambda rows: joined([("image", "depth"), *rows]),
    "header, swapped": lambda rows: joined([("depth", "rgb"), *((b, a) for a, b in rows)]),
    "index": lambda rows: joined([(i, *row) for i, row in enumerate(rows)]),
    "index and header": lambda rows: joined([("", "0", "1"), *((i, *row) for i, row in enumerate(rows))]),
    "focal length": lambda rows: joined([(*row, 518.8579) for row in rows], " "),
    "tabs": lambda rows: joined(rows, "\t"),
    "semicolons": lambda rows: joined(rows, ";"),
    "old line ends": lambda rows: joined(rows, end="\r"),
    "Windows line ends and blanks": lambda rows: joined(rows, " , ", " \r\n\r\n"),
    "byte-order mark": lambda rows: b"\xef\xbb\xbf" + joined(rows),
    "UTF-16": lambda rows: joined(rows).decode().encode("utf-16"),
    "UTF-16, big end first": lambda rows: b"\xfe\xff" + joined(rows).decode().encode("utf-16-be"),
    "comments": lambda rows: b"# color maps\n" + joined(rows),
    "copies of attributes": lambda rows: joined([*rows, ("data/nyu2_train/._1.jpg", rows[0][1])]),
    "quotation marks": lambda rows: joined([(f'"{a}"', f'"{b}"') for a, b in rows]),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists_as_they_come(name: str, tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    frames = forms()["kaggle"].open_split(settings("kaggle", lined(tmp_path, edit=LISTS[name]), "filled").data, "train")
    assert len(frames) == len(TRAINS) and frames.scenes == tuple(SCENES[i] for i in TRAINS)
    for k, i in enumerate(TRAINS):
        np.testing.assert_allclose(frames.read(k).depth_m, depth_m(i), atol=5.001 / 255)


BAD_LISTS: dict[str, tuple[Callable[[list[tuple[str, str]]], bytes], str]] = {
    "elsewhere": (each(lambda name: f"/elsewhere/{name}"), r"csv:1: .* leads outside .* cut '/elsewhere/' off"),
    "climbing": (each(lambda name: f"../{name}"), "csv:1: .* leads outside"),
    "climbing with backslashes": (each(lambda name: f"data\\..\\..\\{name}"), "csv:1: .* leads outside"),
    "a drive within": (each(lambda name: f"E:/never/{name[-5:]}"), "leads outside"),
    "one field": (lambda rows: joined([(a,) for a, _ in rows]), r"csv:1: .* is not `colour,depth`"),
    "empty": (lambda rows: b"\n\n", "lists no frames"),
    "header alone": (lambda rows: b"image,depth\n", "missing|not `colour,depth`"),
    "zero bytes": (lambda rows: joined(rows).decode().encode("utf-16-le"), "is not a list"),
    "a changing number of fields": (lambda rows: joined([*rows, (*rows[0], "x")]), r"csv:7: .* is not `colour,depth`"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_lists_that_are_refused(name: str, tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    edit, message = BAD_LISTS[name]
    with pytest.raises(UserError, match=message) as caught:
        open_training(settings("kaggle", lined(tmp_path, edit=edit), "filled"))
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=80))
def test_any_bytes_are_lines_or_one_sentence(content: bytes) -> None:
    try:
        assert all(row.fields for row in read_rows(content, "list"))
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_either_unicode_form(form: str, tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    """A list written on one system, files copied from another."""
    other = "NFD" if form == "NFC" else "NFC"
    for i in TRAINS:
        put(tmp_path, unicodedata.normalize(form, f"küche/{i}.jpg"), jpeg(picture(i)))
        put(tmp_path, unicodedata.normalize(form, f"küche/{i}.png"), png(millimetres(i)))
    lines = "\n".join(f"küche/{i}.jpg küche/{i}.png" for i in TRAINS)
    (tmp_path / "train.txt").write_text(unicodedata.normalize(other, lines))
    frames = forms()["list"].open_split(settings("list", tmp_path).data, "train")
    assert [frames.read(k).depth_m.shape for k in range(len(frames))] == [(ROWS, COLUMNS)] * len(TRAINS)


def test_columns_and_scenes_of_a_list(tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    write_ultralytics(tmp_path)
    rows = [(f"room{i % 2}", f"depth/train/{i:04d}.png", f"images/train/{i:04d}.jpg") for i in TRAINS]
    (tmp_path / "mine.csv").write_bytes(joined(rows))
    named = {"data.lists.train": "mine.csv", "data.columns": ["scene", "depth", "color"]}
    frames = forms()["list"].open_split(settings("list", tmp_path, **named).data, "train")
    assert frames.scenes == tuple(f"room{i % 2}" for i in TRAINS) and frames.ids[0] == "images/train/0000.jpg"
    (tmp_path / "mine.csv").write_bytes(joined([("scene", "depth", "image"), *rows, ("", "None", rows[0][2])]))
    headed = forms()["list"].open_split(settings("list", tmp_path, **{"data.lists.train": "mine.csv"}).data, "train")
    assert (headed.ids, headed.scenes) == (frames.ids, frames.scenes)


UNITS: dict[str, tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray], float]] = {
    "KITTI": ({"data.depth_scale": 256}, lambda d: (d * 256).round().astype(np.uint16), 0.5 / 256),
    "TUM": ({"data.depth_scale": 5000}, lambda d: (d * 5000).round().astype(np.uint16), 0.5 / 5000),
    "65535 = 10 m": ({"data.depth_scale": 6553.5}, lambda d: (d * 6553.5).round().astype(np.uint16), 0.5 / 6553.5),
    "centimetres": ({"data.depth_scale": 100}, lambda d: (d * 100).round().astype(np.uint16), 0.5 / 100),
    "8 bits to 20 m": ({"data.max_depth_m": 20}, lambda d: (d / 20 * 255).round().astype(np.uint8), 10 / 255),
    "a value for holes": (
        {"data.hole_values": [65535]},
        lambda d: np.where(d > 0, (d * 1000).round(), 65535).astype(np.uint16),
        5e-4,
    ),
}


@pytest.mark.parametrize("name", UNITS)
def test_units_are_settings(name: str, tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    stated, store, error_m = UNITS[name]
    write_ultralytics(tmp_path)
    for i in TRAINS:
        put(tmp_path, f"depth/train/{i:04d}.png", png(store(depth_m(i))))
    frames = forms()["list"].open_split(settings("list", tmp_path, **stated).data, "train")
    for k, i in enumerate(TRAINS):
        found = frames.read(k).depth_m
        np.testing.assert_allclose(found, depth_m(i), atol=error_m * 1.001)
        assert ((found == 0) == (depth_m(i) == 0)).all()


def test_settings_without_a_use_are_refused(tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    for source, write, name, value in (
        ("h5", write_h5, "depth_scale", 1000),
        ("kaggle", write_kaggle, "lists.train", "x.csv"),
        ("kaggle", write_kaggle, "columns", ["color", "depth"]),
        ("bts", write_bts, "columns", ["color", "depth"]),
    ):
        data = settings(source, write(tmp_path / name / source), "raw" if source == "bts" else "filled",
                        **{f"data.{name}": value}).data  # fmt: skip
        with pytest.raises(UserError, match=rf"data\.{name.split('.')[0]} has no meaning for data.source {source}"):
            forms()[source].open_split(data, "train")
    with pytest.raises(UserError, match="must be raw and official"):
        open_test(settings("bts", tmp_path / "columns/bts", "filled").data)


def test_links_to_a_larger_disk(tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    """Refused with the setting that allows them, for a folder and for a file, by training and by each read."""
    root = write_bts(tmp_path / "set")
    (tmp_path / "disk").mkdir()
    scene = root / "sync/study_0001a"
    scene.rename(tmp_path / "disk/study")
    scene.symlink_to(tmp_path / "disk/study")
    config, follow = settings("bts", root), {"data.follow_links": True}
    with pytest.raises(UserError, match=r"link that leads outside .* set data\.follow_links: true"):
        open_training(config)
    with pytest.raises(UserError, match=r"data\.follow_links"):
        FolderFiles(root).read("sync/study_0001a/rgb_00000.jpg")
    assert len(open_training(settings("bts", root, **follow)).train) < len(TRAINS)
    (tmp_path / "disk/study/again").symlink_to(root / "sync")  # a circle ends
    assert len(forms()["bts"].open_split(settings("bts", root, **follow).data, "train")) == len(TRAINS)


def member(name: str, **changed: Any) -> Callable[[tarfile.TarFile], None]:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        for key, value in changed.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(b"x" * info.size) if info.isreg() else None)

    return add


BAD_TARS: dict[str, tuple[Callable[[tarfile.TarFile], None], str]] = {
    "climbing": (member("../evil.png"), "leads outside"),
    "absolute": (member("/etc/evil.png"), "leads outside"),
    "symbolic link": (member("test/a/rgb_0009.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
    "hard link": (member("test/a/rgb_0009.png", type=tarfile.LNKTYPE, linkname="/etc/passwd"), "is a link"),
    "device": (member("test/a/rgb_0009.png", type=tarfile.CHRTYPE), "no plain file"),
}


@pytest.mark.parametrize("name", BAD_TARS)
def test_hostile_tars_are_refused(name: str, tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    add, message = BAD_TARS[name]
    path = write_marigold(tmp_path)
    with tarfile.open(path, "a") as archive:
        add(archive)
    with pytest.raises(UserError, match=message) as caught:
        open_test(settings("marigold", path).data)
    assert "\n" not in str(caught.value)


def test_damaged_and_compressed_tars(tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    members = marigold_members()
    config = settings("marigold", tarred(tmp_path / "packed.tar", members, "w:gz"))
    with pytest.raises(UserError, match="unpack a compressed one"):
        open_test(config.data)
    path = write_marigold(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 + 700])
    with pytest.raises(UserError, match=r"ends within its member|not a readable tar"):
        open_test(settings("marigold", path).data)
    first = next(iter(members))
    path.write_bytes(content)
    with tarfile.open(path, "a") as archive:
        member(first, size=1)(archive)
    with pytest.raises(UserError, match="twice"):
        open_test(settings("marigold", path).data)


BAD_NPY: dict[str, tuple[bytes, str]] = {
    "pickle": (b"", "holds object"),
    "huge header": (b"\x93NUMPY\x01\x00\xff\xff" + b"x" * 65535, "no .npy"),
    "bomb": (
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (999999, 999999)}".ljust(117)
        + b"\n",
        "where depth",
    ),
    "three channels": (b"", "where depth"),
    "truncated": (b"", "truncated"),
    "thousands of metres": (b"", "where depth in metres"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_NPY)
def test_hostile_arrays_are_refused(name: str, tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    content, message = BAD_NPY[name]
    root = write_ultralytics(tmp_path, ".npy")
    if not content:
        arrays = {"pickle": np.array([{"a": 1}], object), "three channels": np.zeros((ROWS, COLUMNS, 3), np.float32),
                  "truncated": depth_m(0), "thousands of metres": depth_m(0) * 1000}  # fmt: skip
        buffer = io.BytesIO()
        np.save(buffer, arrays[name], allow_pickle=True)
        content = buffer.getvalue()[: -9 if name == "truncated" else None]
    (root / "depth/train/0000.npy").write_bytes(content)
    with pytest.raises(BadFrame, match=message) as caught:
        open_training(settings("list", root, **{"data.validation.by": "frame"}))
        open_training_frame(settings("list", root).data)
    assert "0000.npy" in str(caught.value) and "\n" not in str(caught.value)


def open_training_frame(data: DataConfig) -> None:
    forms()["list"].open_split(data, "train").read(0)


def test_hostile_hdf5_of_files(tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    """Links, data kept elsewhere and a claim of a gigabyte are no files of a UniDepth copy."""
    path = write_unidepth(tmp_path) / "nyuv2.hdf5"
    name = f"{SCENES[0]}/rgb_00000.jpg"
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    for spoil, message in (
        (lambda file: file.__setitem__(name, h5py.SoftLink(f"/{SCENES[2]}/rgb_00002.jpg")), "missing"),
        (lambda file: file.__setitem__(name, h5py.ExternalLink("other.h5", "/x")), "missing"),
        (lambda file: file.create_dataset(name, (6,), np.uint8, external=[(str(secret), 0, 6)]), "missing"),
        (lambda file: file.create_dataset(name, (1 << 30,), np.uint8, chunks=True), "claims 1073741824 bytes"),
    ):
        with h5py.File(path, "r+") as file:
            del file[name]
            spoil(file)
        with pytest.raises(BadFrame, match=message):
            open_training(settings("unidepth", tmp_path))


def test_damaged_parquet_and_other_columns(tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    root = write_parquet(tmp_path)
    config = settings("parquet", root, "filled", **{"data.validation.by": "frame"})
    path = root / "data/train-00000-of-00002.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes(100) + content[160:])
    with pytest.raises(BadFrame, match=r"damaged|neither"):
        open_training(config)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="not a readable parquet"):
        open_training(config)
    parquet.write_table(pa.table({"picture": [b"x"]}), path)
    with pytest.raises(UserError, match="has no column image or rgb, but picture"):
        open_training(config)


def test_pictures_without_depth_are_named(tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    write_ultralytics(tmp_path)
    (tmp_path / "depth/train/0000.png").unlink()
    with pytest.raises(UserError, match=r"images/train/0000.jpg has no depth map \(1 of 6"):
        open_training(settings("list", tmp_path))
    with pytest.raises(UserError, match=r"name the list or folder of the train split in data\.lists\.train"):
        forms()["list"].open_split(settings("list", tmp_path / "depth").data, "train")


def test_real_frames_agree_in_every_layout(indoor: Path, tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    """Two real test pairs of 16 bits: as they are, as BTS's, as Marigold's and by a list, the same to the last bit."""
    kaggle = open_test(settings("kaggle", indoor, "filled").data)
    pairs = [(indoor / name, indoor / name.replace("colors", "depth")) for name in kaggle.ids[:2]]
    members = {}
    for i, (color, depth) in enumerate(pairs):
        put(tmp_path, f"bts/official_splits/test/cafe/rgb_{i:05d}.png", color.read_bytes())
        put(tmp_path, f"bts/official_splits/test/cafe/sync_depth_{i:05d}.png", depth.read_bytes())
        members |= {f"test/cafe_0001/rgb_{i + 1:04d}.png": color.read_bytes(),
                    f"test/cafe_0001/depth_{i + 1:04d}.png": depth.read_bytes()}  # fmt: skip
    put(tmp_path, "list/test.txt", "\n".join(f"{c.name} {d.name}" for c, d in pairs).encode())
    for path in (path for pair in pairs for path in pair):
        put(tmp_path, f"list/{path.name}", path.read_bytes())
    tarred(tmp_path / "labeled.tar", members)
    for source, root in (("bts", "bts"), ("marigold", "labeled.tar"), ("list", "list")):
        frames = open_test(settings(source, tmp_path / root).data)
        for k in range(2):
            assert np.array_equal(frames.read(k).depth_m, kaggle.read(k).depth_m), source
            assert np.array_equal(frames.read(k).rgb, kaggle.read(k).rgb), source
