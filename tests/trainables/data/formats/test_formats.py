"""Every published form, written small and exactly, read alike; and what is wrong with a file in one sentence."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from trainables.data.dataset import fingerprint, open_test, open_training
from trainables.data.formats import forms, labeled
from trainables.data.frames import BadFrame
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig, TrialConfig

ROWS, COLUMNS, FRAMES, TESTS = 30, 40, 8, (1, 4)  # TESTS: 0-based numbers of the labelled set's test frames
INDOOR = Path(__file__).parents[4].parent / "shared" / "indoor_rgbd"
SCENES = ("study_0001",) * 3 + ("den_0002",) * 3 + ("attic_0003",) * 2


def picture(i: int) -> np.ndarray:
    """Smooth colour, so that JPEG keeps it; every axis is told from every other."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    return np.stack([3 * y + 10 * i, 255 - 4 * x, 2 * y + 3 * x], -1).clip(0, 255).astype(np.uint8)


def depth_m(i: int) -> np.ndarray:
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    depth = 0.8 + 0.1 * i + 0.15 * y + 0.07 * x
    depth[2:5, 3:9] = 0
    return depth.astype(np.float32)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=98, **options)
    return buffer.getvalue()


def eight_bit(depth: np.ndarray) -> np.ndarray:
    return (depth / 10 * 255).round().astype(np.uint8)


def write_kaggle(root: Path) -> Path:
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for i in range(FRAMES):
        if i in TESTS:
            names = f"data/nyu2_test/{i:05d}_colors.png", f"data/nyu2_test/{i:05d}_depth.png"
            contents = png(picture(i)), png((depth_m(i) * 1000).round().astype(np.uint16))
        else:
            stem = f"data/nyu2_train/{SCENES[i]}{'ab'[i % 2]}_out/{i}"
            names, contents = (f"{stem}.jpg", f"{stem}.png"), (jpeg(picture(i)), png(eight_bit(depth_m(i))))
        for name, content in zip(names, contents, strict=True):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        lists["test" if i in TESTS else "train"].append(",".join(names))
    for split, rows in lists.items():
        (root / f"data/nyu2_{split}.csv").write_text("\n".join(rows) + "\n")
    return root


def write_zip(root: Path, prefix: str) -> Path:
    folder, path = write_kaggle(root / "unpacked"), root / "nyu_data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.*")):
            stored = zipfile.ZIP_STORED if file.suffix == ".png" else zipfile.ZIP_DEFLATED
            archive.write(file, prefix + file.relative_to(folder).as_posix(), stored)
    return path


def write_labeled(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"] = np.stack([picture(i).transpose(2, 1, 0) for i in range(FRAMES)])
        file["rawDepths"] = np.stack([depth_m(i).T for i in range(FRAMES)])
        file["depths"] = np.stack([np.where(depth_m(i) > 0, depth_m(i), 1).T for i in range(FRAMES)])
        references = np.empty((1, FRAMES), h5py.ref_dtype)
        for i, name in enumerate(SCENES):
            letters = file.create_dataset(f"#refs#/{i}", data=np.array([[ord(c)] for c in name], np.uint16))
            references[0, i] = letters.ref
        file["scenes"] = references
    numbers = {"trainNdxs": [[i + 1] for i in range(FRAMES) if i not in TESTS], "testNdxs": [[i + 1] for i in TESTS]}
    savemat(root / "splits.mat", numbers)
    return root


def write_h5(root: Path) -> Path:
    for i in range(FRAMES):
        path = root / ("val/official" if i in TESTS else f"train/{SCENES[i]}{'ab'[i % 2]}") / f"{i:05d}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["rgb"], file["depth"] = picture(i).transpose(2, 0, 1), depth_m(i)
    return root


def write_eigen(root: Path, packing: int = zipfile.ZIP_DEFLATED, **changed: np.ndarray) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    arrays = {
        "rgb": np.stack([picture(i) for i in TESTS]),
        "depth": np.stack([depth_m(i) for i in TESTS]),
        "crop": np.array([20, 459, 24, 615]),
    }
    with zipfile.ZipFile(root / "nyu_test.zip", "w", packing) as archive:
        for name, array in (arrays | changed).items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=True)
            archive.writestr(f"eigen_test_{name}.npy", buffer.getvalue())
    return root / "nyu_test.zip"


WRITERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "folder": ("kaggle", write_kaggle),
    "zip": ("kaggle", lambda root: write_zip(root, "")),
    "kaggle's own zip": ("kaggle", lambda root: write_zip(root, "nyu_data/")),
    "zip in a folder": ("kaggle", lambda root: write_zip(root, "").parent),
    "labeled": ("labeled", write_labeled),
    "h5": ("h5", write_h5),
    "eigen": ("eigen", write_eigen),
    "eigen stored": ("eigen", lambda root: write_eigen(root, zipfile.ZIP_STORED)),
}


@pytest.fixture
def settings(tiny_config: Callable[..., TrialConfig]) -> Callable[..., TrialConfig]:
    def make(source: str, root: Path, **overrides: Any) -> TrialConfig:
        depth = "raw" if source == "labeled" else "filled"
        return tiny_config(**{"data.source": source, "data.root": str(root), "data.depth": depth} | overrides)

    return make


@pytest.mark.parametrize("name", WRITERS)
def test_forms_agree(name: str, tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    source, write = WRITERS[name]
    data = settings(source, write(tmp_path)).data
    test = open_test(data)
    assert len(test) == len(TESTS)
    for k in (1, 0):  # backwards too: packed arrays are read in order
        frame = test.read(k)
        np.testing.assert_array_equal(frame.rgb, picture(TESTS[k]))
        np.testing.assert_allclose(frame.depth_m, depth_m(TESTS[k]), atol=0 if source in ("h5", "eigen") else 5.01e-4)
        assert frame.depth_m.dtype == np.float32 and (frame.depth_m[2:5, 3:9] == 0).all()
    if source == "eigen":
        with pytest.raises(UserError, match="test frames only"):
            forms()[source].open_split(data, "train")
        return
    train = forms()[source].open_split(data, "train")
    # In the order of the published list; HDF5 files have none and are sorted by folder.
    numbers = [6, 7, 3, 5, 0, 2] if source == "h5" else [i for i in range(FRAMES) if i not in TESTS]
    assert train.scenes == tuple(SCENES[i] for i in numbers)
    for k, i in enumerate(numbers):
        frame = train.read(k)
        assert np.abs(frame.rgb.astype(int) - picture(i)).max() <= (4 if source == "kaggle" else 0)
        np.testing.assert_allclose(frame.depth_m, depth_m(i), atol=5.001 / 255 if source == "kaggle" else 0)


def test_packing_makes_no_other_test_set(
    tmp_path: Path, settings: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Openings are counted by this digest: of content, however large, zipped or unpacked."""
    monkeypatch.setattr("trainables.data.files.CONTENT_LIMIT", 0)
    roots = [WRITERS[name][1](tmp_path / name) for name in ("folder", "zip", "kaggle's own zip", "zip in a folder")]
    prints = [fingerprint(settings("kaggle", root).data) for root in roots]
    assert len({p["test"] for p in prints}) == 1 and {p["test_of"] for p in prints} == {"content"}
    assert {p["train_of"] for p in prints} == {"names and sizes", "names, sizes and checksums of the archive"}
    packed = write_eigen(tmp_path)
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "eigen")
    digests = []
    for root in (packed, tmp_path / "eigen"):
        frames = open_test(settings("eigen", root).data)
        digests.append(frames.reader.digest(frames.rgb_of, content=True))
    assert digests[0] == digests[1]


def test_labeled_filled_depth_and_seeded_splits(tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    root = write_labeled(tmp_path)
    filled = settings("labeled", root, **{"data.depth": "filled"}).data
    assert (open_test(filled).read(0).depth_m > 0).all() and open_test(filled).truth == "filled"
    for how in ("80_10_10_by_frame", "80_10_10_by_scene"):
        data = settings("labeled", root, **{"data.split": how}).data
        parts = [forms()["labeled"].open_split(data, split) for split in ("train", "test")]
        assert sorted(parts[0].ids + parts[1].ids) == [f"{i:05d}" for i in range(FRAMES)]
        assert len(parts[1]) == (1 if how.endswith("frame") else 3)
        assert how.endswith("frame") or not set(parts[0].scenes) & set(parts[1].scenes)


def test_kaggle_test_scenes_come_from_the_labelled_set(tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    write_kaggle(tmp_path)
    assert open_test(settings("kaggle", tmp_path).data).scenes == (None, None)
    write_labeled(tmp_path)
    assert open_test(settings("kaggle", tmp_path).data).scenes == tuple(SCENES[i] for i in TESTS)


def chunked(array: np.ndarray, rows: bytes) -> bytes:
    """A PNG with right checksums around any row data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(picture(0), exif=exif)


def flipped(content: bytes) -> bytes:
    return content[:-40] + bytes([content[-40] ^ 4]) + content[-39:]


def grey(i: int) -> np.ndarray:
    return picture(i)[..., 0]


DEPTH = eight_bit(depth_m(0))
BAD_PICTURES: dict[str, tuple[str, bytes | None, str]] = {
    "missing colour": ("jpg", None, "missing"),
    "missing depth": ("png", None, "missing"),
    "empty": ("jpg", b"", "empty"),
    "truncated JPEG": ("jpg", jpeg(picture(0))[:-300], "truncated"),
    "truncated PNG": ("png", png(DEPTH)[:-13], "truncated"),
    "flipped bit in a PNG": ("png", flipped(png(DEPTH)), "damaged"),
    "text": ("jpg", b"not an image", "neither"),
    "another size": ("png", png(DEPTH[:-1]), "40x30 pixels but .* is 40x29"),
    "depth of 3 channels": ("png", png(picture(0)), "3 channel"),
    "depth as JPEG": ("png", jpeg(DEPTH), "JPEG"),
    "grey colour": ("jpg", jpeg(grey(0)), "1 channel"),
    "colour with alpha": ("jpg", png(np.dstack([picture(0), grey(0)])), "4 channel"),
    "16-bit colour": (
        "jpg",
        png(picture(0)).replace(b"\0\0\0\x28\0\0\0\x1e\x08", b"\0\0\0\x28\0\0\0\x1e\x10"),
        "16 bits",
    ),
    "EXIF rotation": ("jpg", rotated(), "EXIF orientation 6"),
    "decompression bomb": ("png", chunked(np.broadcast_to(np.uint8(0), (60000, 60000)), b""), "60000x60000"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_picture(name: str, tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    suffix, content, message = BAD_PICTURES[name]
    root = write_kaggle(tmp_path)
    stem = "data/nyu2_train/study_0001a_out/0"
    (root / f"{stem}.{suffix}").unlink()
    if content is not None:
        (root / f"{stem}.{suffix}").write_bytes(content)
    with pytest.raises(BadFrame, match=message) as caught:
        open_training(settings("kaggle", root))
    assert f"{stem}.{suffix}" in str(caught.value) and "\n" not in str(caught.value)
    skipping = open_training(settings("kaggle", root, **{"data.on_bad_frame": "skip"}))
    assert skipping.skipped == ((f"{stem}.jpg", str(caught.value)),)
    assert f"{stem}.jpg" not in skipping.train.ids + skipping.validation.ids


@pytest.mark.parametrize("rows", [b"\7" + bytes(40), bytes(41)], ids=["bad filter", "too few rows"])
def test_png_that_ends_libpng_is_only_bad(rows: bytes, tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    """Well-formed outside, broken inside: torchvision's decoder would take the process with it."""
    root = write_kaggle(tmp_path)
    (root / "data/nyu2_train/study_0001a_out/0.png").write_bytes(chunked(DEPTH, rows))
    config = settings("kaggle", root)
    with pytest.raises(BadFrame, match="truncated or damaged"):
        forms()["kaggle"].open_split(config.data, "train").read(0)
    with pytest.raises(BadFrame, match="rows are missing"):
        open_training(config)


def link_out(root: Path) -> None:
    outside = root.parent / f"{root.name}-outside.png"
    outside.write_bytes(png(DEPTH))
    inside = root / "data/nyu2_train/study_0001a_out/0.png"
    inside.unlink()
    inside.symlink_to(outside)


def list_line(line: str) -> Callable[[Path], None]:
    return lambda root: (root / "data/nyu2_train.csv").open("a").write(line + "\n") and None


def zipped(name: str, **attributes: Any) -> Callable[[Path], None]:
    """Replace the folder by an archive with one more, odd member."""

    def spoil(root: Path) -> None:
        with zipfile.ZipFile(root / "nyu_data.zip", "w") as archive:
            for file in sorted(root.rglob("*.*")):
                if file.suffix != ".zip":
                    archive.write(file, file.relative_to(root).as_posix())
            info = zipfile.ZipInfo(name)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.writestr(info, "x")
        (root / "data" / "nyu2_train.csv").rename(root / "train.csv")
        (root / "data" / "nyu2_test.csv").rename(root / "test.csv")

    return spoil


BAD_ROOTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "line with ..": (list_line("../../etc/passwd,data/x.png"), "leads outside"),
    "absolute line": (list_line("/etc/passwd,data/x.png"), "leads outside"),
    "link out": (link_out, "link that leads outside"),
    "three fields": (list_line("a,b,c"), r"nyu2_train\.csv:7: 'a,b,c'"),
    "no list": (lambda root: (root / "data/nyu2_train.csv").unlink(), "is missing"),
    "empty list": (lambda root: (root / "data/nyu2_train.csv").write_text(""), "lists no frames"),
    "not text": (lambda root: (root / "data/nyu2_train.csv").write_bytes(b"\xff\xfe\0"), "is not a list"),
    "zip with ..": (zipped("../evil.png"), "leads outside"),
    "zip with an absolute name": (zipped("/etc/evil.png"), "leads outside"),
    "zip with a link": (zipped("data/evil.png", create_system=3, external_attr=0o120777 << 16), "is a link"),
}


@pytest.mark.parametrize("name", BAD_ROOTS)
def test_bad_root(name: str, tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    spoil, message = BAD_ROOTS[name]
    spoil(write_kaggle(tmp_path / "root"))
    with pytest.raises(UserError, match=message) as caught:
        open_training(settings("kaggle", tmp_path / "root", **{"data.on_bad_frame": "skip"}))
    assert "\n" not in str(caught.value)


def test_zip_bomb_and_damage(tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    path = write_zip(tmp_path, "")
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("data/nyu2_train/study_0001a_out/0.png")
    at = info.header_offset + 30 + len(info.filename) + 40
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(BadFrame, match=r"0.png is damaged"):
        open_training(settings("kaggle", path))
    index = content.index(struct.pack("<I", info.CRC), info.header_offset + 30)  # its line in the central directory
    path.write_bytes(content[: index + 8] + struct.pack("<I", 1 << 30) + content[index + 12 :])
    with pytest.raises(BadFrame, match="claims 1073741824 bytes"):
        open_training(settings("kaggle", path))
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="not a readable zip"):
        open_training(settings("kaggle", path))


def replaced(key: str, value: Any) -> Callable[[Any], None]:
    def spoil(file: Any) -> None:
        del file[key]
        if value is not None:
            file[key] = value

    return spoil


def stored_elsewhere(file: Any) -> None:
    del file["depth"]
    file.create_dataset("depth", (ROWS, COLUMNS), np.float32, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual(file: Any) -> None:
    del file["depth"]
    layout = h5py.VirtualLayout((ROWS, COLUMNS), np.float32)
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (ROWS, COLUMNS))
    file.create_virtual_dataset("depth", layout)


def with_value(value: float) -> np.ndarray:
    depth = depth_m(0)
    depth[0, 0] = value
    return depth


BAD_HDF5: dict[str, tuple[Callable[[Any], None], str]] = {
    "missing key": (replaced("depth", None), "its depth is missing; the file holds rgb"),
    "soft link": (replaced("depth", h5py.SoftLink("/rgb")), "is a link"),
    "external link": (replaced("depth", h5py.ExternalLink("/etc/passwd", "/x")), "is a link"),
    "external storage": (stored_elsewhere, "not stored in the file"),
    "virtual": (virtual, "not stored in the file"),
    "integers": (replaced("depth", eight_bit(depth_m(0))), "uint8 where float"),
    "float colour": (replaced("rgb", picture(0).transpose(2, 0, 1) / 255), "float64 where uint8"),
    "1 channel": (replaced("rgb", grey(0)[None]), "has shape"),
    "3-channel depth": (replaced("depth", np.stack([depth_m(0)] * 3)), "has shape"),
    "another size": (replaced("depth", depth_m(0)[:-1]), "differ in size"),
    "NaN": (replaced("depth", with_value(np.nan)), "NaN where depth"),
    "negative": (replaced("depth", with_value(-0.1)), "-0.1 to"),
    "millimetres": (replaced("depth", depth_m(0) * 1000), "where depth in metres"),
}


@pytest.mark.parametrize("name", BAD_HDF5)
def test_bad_hdf5(name: str, tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    spoil, message = BAD_HDF5[name]
    path = write_h5(tmp_path) / "train/study_0001a/00000.h5"
    with h5py.File(path, "r+") as file:
        spoil(file)
    with pytest.raises(BadFrame, match=message) as caught:
        open_training(settings("h5", tmp_path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    skipping = open_training(settings("h5", tmp_path, **{"data.on_bad_frame": "skip"}))
    assert [name for name, _ in skipping.skipped] == ["train/study_0001a/00000.h5"]


def denied(path: Path, *words: object, **more: object) -> None:
    raise PermissionError(13, "Permission denied", str(path))


def test_truncated_hdf5_and_bad_splits(
    tmp_path: Path, settings: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_labeled(tmp_path)
    data: DataConfig = settings("labeled", root).data
    savemat(root / "splits.mat", {"trainNdxs": [[1], [2]], "testNdxs": [[2], [3]]})
    with pytest.raises(UserError, match="in trainNdxs and in testNdxs"):
        open_test(data)
    savemat(root / "splits.mat", {"trainNdxs": [[1], [9]], "testNdxs": [[2]]})
    with pytest.raises(UserError, match="not frame numbers from 1 to 8"):
        open_test(data)
    (root / "splits.mat").write_bytes((root / "splits.mat").read_bytes()[:150])
    with pytest.raises(UserError, match=r"splits.mat is not a readable MATLAB file .*; see whether you may read it"):
        open_test(data)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", denied)
        with pytest.raises(
            UserError, match=r"splits.mat is not a readable MATLAB file \(.*denied.*\); see whether you may"
        ):
            labeled._matlab_array(root / "splits.mat", "trainNdxs")
    (root / "splits.mat").unlink()
    with pytest.raises(UserError, match=r"splits.mat is missing; .* 80_10_10_by_scene"):
        open_test(data)
    path = root / "nyu_depth_v2_labeled.mat"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match="truncated"):
        open_test(data)


BAD_ARRAYS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "pickled": ({"depth": np.array([{"a": 1}], object)}, "holds object|plain numbers"),
    "columns first": (
        {"depth": np.asfortranarray(np.stack([depth_m(i) for i in TESTS]))},
        "store plain numbers, row by row",
    ),
    "another size": ({"depth": np.stack([depth_m(i)[1:] for i in TESTS])}, "do not fit"),
    "float colour": ({"rgb": np.zeros((2, ROWS, COLUMNS, 3))}, "holds float64"),
    "another crop": ({"crop": np.array([0, 1, 2, 3])}, r"\[0, 1, 2, 3\] where"),
    "NaN": ({"depth": np.stack([with_value(np.nan)] * 2)}, "NaN where depth"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays(name: str, tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    arrays, message = BAD_ARRAYS[name]
    with pytest.raises(UserError, match=message) as caught:
        open_test(settings("eigen", write_eigen(tmp_path, **arrays)).data)
    assert "\n" not in str(caught.value)


def test_truncated_array(tmp_path: Path, settings: Callable[..., TrialConfig]) -> None:
    for name, array in (
        ("rgb", np.stack([picture(i) for i in TESTS])),
        ("depth", np.stack([depth_m(i) for i in TESTS])),
    ):
        np.save(tmp_path / f"eigen_test_{name}.npy", array)
    path = tmp_path / "eigen_test_depth.npy"
    assert len(open_test(settings("eigen", tmp_path).data)) == len(TESTS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadFrame, match=r"eigen_test_depth.npy is truncated"):
        open_test(settings("eigen", tmp_path).data)


@pytest.mark.skipif(not INDOOR.is_dir(), reason="shared/indoor_rgbd, real frames, is not beside this checkout")
def test_real_frames(settings: Callable[..., TrialConfig]) -> None:
    """Counts, scenes and hole shares that its README states."""
    config = settings("kaggle", INDOOR)
    frames = forms()["kaggle"].open_split(config.data, "train")
    assert (len(frames), len(set(frames.scenes)), len(open_test(config.data))) == (341, 5, 9)
    office = [i for i, scene in enumerate(frames.scenes) if scene == "office"]
    assert len(office) == 25
    assert np.mean([(frames.read(i).depth_m == 0).mean() for i in office]) == pytest.approx(0.12, abs=0.01)
    test = open_test(config.data).read(0)
    assert test.rgb.shape == (480, 640, 3) and test.depth_m.min() > 0.5 and test.depth_m.max() < 10
