"""Depth maps as any model writes them: each layout gives the same maps, and what cannot be read is one sentence."""

from __future__ import annotations

import importlib.util
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.data.dataset import open_test
from trainables.data.frames import FrameList
from trainables.evaluation.evaluate import evaluate
from trainables.evaluation.inspection import inspect, scale_of
from trainables.evaluation.maps import open_maps
from trainables.evaluation.scoring import FARTHEST_M, in_metres, score
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig

IDS = [f"data/nyu2_test/{i:05d}_colors.png" for i in (0, 7, 12)]
MAPS = [np.random.default_rng(i).uniform(1, 9, (6, 8)).round(3).astype(np.float32) for i in range(3)]


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def picture(values: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, format=kind)
    return file.getvalue()


def folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zipped(root: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(root / "maps.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return root / "maps.zip"


def tarred(root: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(root / "maps.tar", "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return root / "maps.tar"


def named(form: str, encode: Callable[[np.ndarray], bytes]) -> dict[str, bytes]:
    return {form.format(i): encode(values) for i, values in zip((0, 7, 12), MAPS, strict=True)}


def npz(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, depth=values)
    return file.getvalue()


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "same paths": lambda root: folder(root, named("data/nyu2_test/{:05d}_colors.npy", npy)),
    "same names": lambda root: folder(root, named("{:05d}_colors.npy", npy)),
    "same numbers": lambda root: folder(root, named("out/pred_{:05d}.npy", npy)),
    "what predict writes": lambda root: folder(
        root,
        named("{:05d}_colors_depth.npy", npy)
        | named("{:05d}_colors_depth.png", lambda v: picture((v * 1000).astype(np.uint16), "PNG"))
        | named("{:05d}_colors_coloured.png", lambda v: picture(np.zeros((6, 8, 3), np.uint8), "PNG")),
    ),
    "zip": lambda root: zipped(root, named("a/{:05d}_depth.npy", npy) | {"__MACOSX/._x.npy": b"junk"}),
    "tar": lambda root: tarred(root, named("./{:05d}.npy", npy)),
    "npz each": lambda root: folder(root, named("{:05d}.npz", npz)),
    "float tiff": lambda root: folder(root, named("{:05d}.tiff", lambda v: picture(v, "TIFF"))),
    "stack": lambda root: folder(root, {"all.npy": npy(np.stack(MAPS))}) / "all.npy",
    "stack in a folder": lambda root: folder(root, {"all.npy": npy(np.stack(MAPS)[:, None])}),
    "stack npz": lambda root: folder(root, {"all.npz": npz(np.stack(MAPS))}) / "all.npz",
    "stack in a zip": lambda root: zipped(root, {"all.npy": npy(np.stack(MAPS)[..., None])}),
    "npz of all": lambda root: zipped(root, named("{:05d}.npy", npy)).rename(root / "all.npz"),
    "double": lambda root: folder(root, named("{:05d}.npy", lambda v: npy(np.asfortranarray(v.astype(np.float64))))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_maps(layout: str, tmp_path: Path) -> None:
    maps = open_maps(LAYOUTS[layout](tmp_path), IDS)
    assert len(maps) == len(IDS)
    for i, expected in enumerate(MAPS):
        np.testing.assert_array_equal(maps.map(i, None), expected)


@pytest.mark.skipif(importlib.util.find_spec("OpenEXR") is None, reason="the package OpenEXR is not installed")
def test_exr_maps(tmp_path: Path) -> None:
    import OpenEXR

    for i, values in zip((0, 7, 12), MAPS, strict=True):
        OpenEXR.File({}, {"Z": values}).write(str(tmp_path / f"{i:05d}.exr"))
    maps = open_maps(tmp_path, IDS)
    np.testing.assert_array_equal(maps.map(1, None), MAPS[1])
    (tmp_path / "00007.exr").write_bytes((tmp_path / "00007.exr").read_bytes()[:200])
    with pytest.raises(UserError, match=r"00007.exr is damaged or no EXR file"):
        open_maps(tmp_path, IDS).map(1, None)


def test_names_of_other_copies_are_matched(tmp_path: Path) -> None:
    bts = ["official_splits/test/kitchen/rgb_00045.jpg", "official_splits/test/office/rgb_00045.jpg"]
    folder(tmp_path / "bts", {"kitchen_rgb_00045.npy": npy(MAPS[0]), "office_rgb_00045.npy": npy(MAPS[1])})
    assert [w[-9:] for w in open_maps(tmp_path / "bts", bts).where] == ["00045.npy"] * 2
    assert "office" in open_maps(tmp_path / "bts", bts).where[1]
    marigold = ["test/kitchen_0004/rgb_0001.png", "test/office_0002/rgb_0001.png"]
    folder(tmp_path / "m", {"test/kitchen_0004/pred_0001.npy": npy(MAPS[0]), "test/office_0002/pred_0001.npy": b""})
    assert "kitchen_0004" in open_maps(tmp_path / "m", marigold).where[0]


def claim(shape: str, dtype: str = "'<f4'") -> bytes:
    """A .npy whose header claims a shape, with 96 bytes behind it."""
    head = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(96)


def png_claim(side: int) -> bytes:
    """A PNG whose header claims so many pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def linked(root: Path) -> Path:
    (root / "secret.npy").write_bytes(npy(MAPS[0]))
    (root / "maps").mkdir()
    (root / "maps/00000.npy").symlink_to(root / "secret.npy")
    return root / "maps"


def odd_tar(root: Path, name: str, kind: bytes) -> Path:
    with tarfile.open(root / "maps.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    return root / "maps.tar"


def bomb(root: Path) -> Path:
    with zipfile.ZipFile(root / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("00000.npy", "w", force_zip64=True) as file:
            for _ in range(130):
                file.write(bytes(1 << 20))
        archive.writestr("00007.npy", npy(MAPS[1]))
        archive.writestr("00012.npy", npy(MAPS[2]))
    return root / "b.zip"


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda root: folder(root, {"00000.npy": npy(MAPS[0]), "00012.npy": b""}),
                "1 of 3 frames have no depth map .*00007_colors"),
    "surplus": (lambda root: folder(root, named("{:05d}.npy", npy) | {"00099.npy": b""}), "like no frame .*00099"),
    "twice": (lambda root: folder(root, named("{:05d}.npy", npy) | {"b/00007.npy": b""}), "several maps .*00007"),
    "none": (lambda root: folder(root, {"readme.txt": b""}), "holds no depth maps"),
    "absent": (lambda root: root / "nowhere", "does not exist"),
    "wrong count": (lambda root: folder(root, {"a.npy": npy(np.stack(MAPS[:2]))}) / "a.npy", r"is \(3, rows,"),
    "pickled stack": (lambda root: folder(root, {"a.npy": claim("(3,)", "'|O'")}) / "a.npy", "never unpickled"),
    "pickled map": (lambda root: folder(root, named("{:05d}.npy", lambda _: claim("(1,)", "'|O'"))), "never unpickled"),
    "huge header": (lambda root: folder(root, named("{:05d}.npy", lambda _: claim("(99999999, 99999999)"))), "claims"),
    "huge stack": (lambda root: folder(root, {"a.npy": claim("(3, 9999999, 9999999)")}) / "a.npy", "claims .* refused"),
    "no map": (lambda root: folder(root, named("{:05d}.npy", lambda v: npy(v[0]))), r"not \(rows, columns\) of num"),
    "8 bits": (lambda root: folder(root, named("{:05d}.png", lambda v: picture(v.astype(np.uint8), "PNG"))), "has L"),
    "huge png": (lambda root: folder(root, named("{:05d}.png", lambda _: png_claim(1 << 17))), "00000.png"),
    "torn png": (lambda root: folder(root, named("{:05d}.png", lambda _: b"\x89PNG")), "damaged or no .png"),
    "compressed tar": (lambda root: folder(root, {"a.tar.gz": b""}) / "a.tar.gz", "compressed as a whole"),
    "tar link": (lambda root: odd_tar(root, "00000.npy", tarfile.SYMTYPE), "is a link or no plain file"),
    "tar outside": (lambda root: odd_tar(root, "../00000.npy", tarfile.REGTYPE), "leads outside"),
    "zip outside": (lambda root: zipped(root, {"../00000.npy": b""}), "leads outside"),
    "zip bomb": (bomb, "claims 136314880 bytes; refused"),
    "link outside": (linked, "leads outside"),
    "torn zip": (lambda root: folder(root, {"a.zip": b"PK\x03\x04"}) / "a.zip", "not a readable zip"),
    "torn tar": (lambda root: folder(root, {"a.tar": b"x" * 600}) / "a.tar", "not a readable .tar"),
    "exr": (lambda root: folder(root, named("{:05d}.exr", lambda _: b"v/1\x01")), "OpenEXR|no EXR file"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_cannot_be_scored_is_one_sentence(case: str, tmp_path: Path, three: FrameList) -> None:
    make, sentence = HOSTILE[case]
    with pytest.raises(UserError, match=sentence) as refusal:
        maps = open_maps(make(tmp_path), three.ids)
        inspect(maps, None, three, "metric")
    assert "\n" not in str(refusal.value)


@pytest.fixture
def three(tmp_path_factory: pytest.TempPathFactory) -> FrameList:
    """Three frames of 6 x 8 in the Kaggle layout whose truth is MAPS."""
    from trainables.settings.recipe import load_recipe

    root = tmp_path_factory.mktemp("nyu")
    lines = []
    for name, values in zip(IDS, MAPS, strict=True):
        depth = name.replace("colors", "depth")
        rgb = picture(np.full((6, 8, 3), 128, np.uint8), "PNG")
        folder(root, {name: rgb, depth: picture((values * 1000).round().astype(np.uint16), "PNG")})
        lines.append(f"{name},{depth}")
    for split in ("train", "test"):
        (root / f"data/nyu2_{split}.csv").write_text("\n".join(lines) + "\n")
    return open_test(load_recipe("densedepth", {"data.source": "kaggle", "data.root": str(root)})[0].data)


@pytest.mark.parametrize("scale", [1000, 256, 5000, 6553.5])
def test_a_scale_in_use_is_recognised(scale: float, three: FrameList, tmp_path: Path) -> None:
    files = named("{:05d}.png", lambda v: picture((v * 1.05 * scale).clip(0, 65535).round().astype(np.uint16), "PNG"))
    maps = open_maps(folder(tmp_path / "maps", files), three.ids)
    found, notes = scale_of(maps, three, "metric", None)
    assert found == scale and f"divided by {scale:g}: recognised" in notes[0]
    assert scale_of(maps, three, "metric", 500.0)[0] == 500
    assert scale_of(maps, three, "disparity", None) == (None, ())
    with pytest.raises(UserError, match="state --scale"):
        scale_of(maps, three, "inverse", None)


def test_an_unknown_scale_has_to_be_stated(three: FrameList, tmp_path: Path) -> None:
    files = named("{:05d}.png", lambda v: picture((v * 100).round().astype(np.uint16), "PNG"))
    maps = open_maps(folder(tmp_path / "maps", files), three.ids)
    with pytest.raises(UserError, match=r"about 99.95 to a metre of the truth, where 1000, 256, 5000"):
        scale_of(maps, three, "metric", None)
    with pytest.raises(UserError, match="must be above 0"):
        scale_of(maps, three, "metric", 0.0)


def test_bad_maps_are_named_together_and_odd_ones_noted(three: FrameList, tmp_path: Path) -> None:
    spoilt = [MAPS[0].copy(), MAPS[1].T.copy(), np.full((6, 8), 2.5, np.float32)]
    spoilt[0][2, 3] = np.nan
    files = {f"{i:05d}.npy": npy(v) for i, v in zip((0, 7, 12), spoilt, strict=True)}
    maps = open_maps(folder(tmp_path / "maps", files), three.ids)
    with pytest.raises(UserError, match=r"2 of 3 maps .*00000_colors.png holds NaN.*00007.* is 8 x 6 \(turned\?\)"):
        inspect(maps, None, three, "metric")
    files["00000.npy"], files["00007.npy"] = npy(MAPS[0] * 0), npy(MAPS[1][::2, ::2])
    _, notes = inspect(open_maps(folder(tmp_path / "maps", files), three.ids), None, three, "metric")
    said = "; ".join(notes)
    assert "6 x 8, 3 x 4" in said and "2 of 3 maps hold one value everywhere" in said and "00012_colors" in said
    assert "1 of 3 maps hold depth of 0 or below" in said


def test_the_public_function_takes_lists_mappings_and_kinds(three: FrameList) -> None:
    truth = [three.read(i).depth_m for i in range(3)]
    plain = score([1.1 * t for t in truth], three, ["image_mean"]).summary["image_mean"]
    assert plain["abs_rel"] == pytest.approx(0.1, rel=1e-5)
    mapped = score({n: 1.1 * t for n, t in zip(three.ids, truth, strict=True)}, three, ["image_mean"])
    assert mapped.summary["image_mean"] == plain
    inverse = score([1 / (1.1 * t) for t in truth], three, ["image_mean"], kind="inverse").summary["image_mean"]
    assert inverse == pytest.approx(plain, rel=1e-5, abs=1e-6)
    assert in_metres(np.array([[0, -1, 0.5]], np.float32), "inverse").tolist() == [
        pytest.approx([FARTHEST_M, FARTHEST_M, 2.0])
    ]
    disparity = score([0.3 / t + 0.1 for t in truth], three, kind="disparity").summary
    assert list(disparity) == ["marigold_disparity crop, in-painted truth"]
    assert next(iter(disparity.values()))["abs_rel"] == pytest.approx(0, abs=1e-5)
    for wrong, sentence in ((truth[:2], "2 maps for 3 frames"), ([*truth, truth[0]], "more maps than the 3 frames"),
                            ({three.ids[0]: truth[0]}, "their ids and the frames' differ")):  # fmt: skip
        with pytest.raises(UserError, match=sentence):
            score(wrong, three, ["image_mean"])
    with pytest.raises(UserError, match=r"no protocol bst \(did you mean bts\?\)"):
        score(truth, three, ["bst"])
    with pytest.raises(UserError, match="densedepth cannot measure disparity maps"):
        score(truth, three, ["densedepth"], kind="disparity")


def test_a_protocols_crop_is_not_taken_for_a_whole_frame() -> None:
    from trainables.evaluation.scoring import wrong_shape

    assert "a protocol's crop" in str(wrong_shape((426, 560), (480, 640)))
    assert "a protocol's crop" in str(wrong_shape((440, 592), (480, 640)))
    assert wrong_shape((240, 320), (480, 640)) is None and wrong_shape((518, 686), (480, 640)) is None
    assert "turned" in str(wrong_shape((640, 480), (480, 640)))


def test_evaluate_and_score_agree(three: FrameList, tiny_config: Callable[..., TrialConfig]) -> None:
    """A model's own maps, scored as maps, give what `evaluate` gives."""
    import torch

    from trainables.evaluation.evaluate import predictions
    from trainables.models.depth_model import build_model

    config = tiny_config()
    model = build_model(config.model, config.target.kind).eval()
    maps = [pred[0].numpy() for _, pred, _ in predictions(model, three, config, torch.device("cpu"), 1)]
    expected = evaluate(model, three, config, ["densedepth", "ultralytics"], torch.device("cpu"), 3).summary
    found = score(maps, three, ["densedepth", "ultralytics"]).summary
    for name, metrics in expected.items():
        assert found[name] == pytest.approx(metrics, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize(("factor", "about"), [(1000, "1050"), (100, "105"), (0.001, "0.00105")])
def test_floats_that_are_no_metres_are_refused(factor: float, about: str, three: FrameList, tmp_path: Path) -> None:
    maps = open_maps(folder(tmp_path / "maps", named("{:05d}.npy", lambda v: npy(v * 1.05 * factor))), three.ids)
    with pytest.raises(UserError, match=rf"hold about {about}\d* to a metre of the truth, so they are hardly"):
        scale_of(maps, three, "metric", None)
    assert scale_of(maps, three, "metric", 1.0)[0] == 1.0  # if they are meant so
    for kind in ("inverse", "disparity", "relative"):
        assert scale_of(maps, three, kind, None) == (None, ())


@pytest.mark.parametrize("factor", [0.01, 0.2, 1, 5, 40])
def test_a_poor_model_in_metres_is_scored(factor: float, three: FrameList, tmp_path: Path) -> None:
    maps = open_maps(folder(tmp_path / "maps", named("{:05d}.npy", lambda v: npy(v * factor))), three.ids)
    assert scale_of(maps, three, "metric", None) == (None, ())


def test_disparity_that_is_called_metric_is_noted(three: FrameList, tmp_path: Path) -> None:
    maps = open_maps(folder(tmp_path / "maps", named("{:05d}.npy", lambda v: npy(3 / v))), three.ids)
    scale, (note,) = scale_of(maps, three, "metric", None)
    assert scale is None and "large where the truth is near" in note and "state --kind" in note
    assert scale_of(maps, three, "disparity", None) == (None, ())


def test_depth_from_0_to_1_that_is_called_metric_is_noted(three: FrameList, tmp_path: Path) -> None:
    maps = open_maps(folder(tmp_path / "maps", named("{:05d}.npy", lambda v: npy(v / v.max()))), three.ids)
    for kind, noted in (("metric", True), ("relative", False)):
        _, notes = inspect(maps, None, three, kind)
        assert any("no map holds a number above 1" in note for note in notes) is noted


def test_whole_numbers_without_any_depth(three: FrameList, tmp_path: Path) -> None:
    files = named("{:05d}.png", lambda v: picture(np.zeros(v.shape, np.uint16), "PNG"))
    with pytest.raises(UserError, match=r"00000\.png and the others: no number is above 0, so their unit is not known"):
        scale_of(open_maps(folder(tmp_path / "maps", files), three.ids), three, "metric", None)


def test_whole_numbers_of_another_shape_are_named_as_such(three: FrameList, tmp_path: Path) -> None:
    files = named("{:05d}.npy", lambda v: npy(np.full((*v.shape, 3), 7, np.uint8)))
    maps = open_maps(folder(tmp_path / "maps", files), three.ids)
    assert scale_of(maps, three, "metric", None) == (None, ())
    with pytest.raises(UserError, match=r"holds uint8 of shape \(6, 8, 3\), not \(rows, columns\)"):
        inspect(maps, None, three, "metric")


@pytest.mark.parametrize("kept", [0, 1, 2, 5])
def test_maps_are_looked_at_where_the_truth_is_sparse(kept: int, three: FrameList, tmp_path: Path) -> None:
    """As a laser's: a few pixels of each frame have truth."""

    class Sparse:
        def depth_m(self, number: int) -> np.ndarray:
            truth = three.reader.depth_m(number).copy()
            truth.ravel()[kept:] = 0
            return truth

    sparse = replace(three, reader=Sparse())  # type: ignore[arg-type]
    maps = open_maps(folder(tmp_path / "maps", named("{:05d}.npy", lambda v: npy(v * 1.05))), three.ids)
    assert scale_of(maps, sparse, "metric", None) == (None, ())
