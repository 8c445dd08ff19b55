"""A user's pictures: every kind is read upright as RGB, the three files agree, and a bad picture is one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainables.data.photos import read_picture
from trainables.evaluation.evaluate import predict_depth_m
from trainables.models.depth_model import build_model
from trainables.predict import main, mark_of
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig
from trainables.trained import load_model
from trainables.training.checkpoint import take_snapshot, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tiny_config: Callable[..., TrialConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "best"
    config = tiny_config()
    torch.manual_seed(0)
    model = build_model(config.model, config.target.kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("decoder") and name.endswith("bias") and parameter.numel() == 1:
                parameter.fill_(4.0)  # about 2.5 m, so that nothing is clipped
    write_checkpoint(folder, take_snapshot(model, None, {"step": 0}), config)
    return folder


def gradient(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * y / (height - 1), 255 * x / (width - 1), np.full_like(x, 90)], -1).astype(np.uint8)


def test_three_files_agree(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rgb = gradient(75, 131)
    Image.fromarray(rgb).save(tmp_path / "hall.png")
    out = tmp_path / "out"
    assert main([str(tmp_path / "hall.png"), "--checkpoint", str(checkpoint), "--out", str(out), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["pictures"]
    depth_m = np.load(out / "hall_depth.npy")
    millimetres = np.asarray(Image.open(out / "hall_depth.png"))
    assert (depth_m.shape, depth_m.dtype, millimetres.dtype) == ((75, 131), np.float32, np.uint16)
    assert millimetres == pytest.approx(depth_m * 1000, abs=0.51)
    assert 0.1 < depth_m.min() < depth_m.max() < 10
    assert (entry["min_m"], entry["max_m"], entry["size"]) == (depth_m.min(), depth_m.max(), [75, 131])
    coloured = np.asarray(Image.open(entry["coloured"]).convert("RGB"))
    assert coloured.shape[1] > 1000
    assert len(np.unique(coloured.reshape(-1, 3), axis=0)) > 100
    assert {path.name for path in out.iterdir()} == {"hall_depth.png", "hall_depth.npy", "hall_coloured.png"}


def test_relative_depth_is_not_sold_as_metres(
    tiny_config: Callable[..., TrialConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(**{"target.kind": "relative"})
    model = build_model(config.model, config.target.kind)
    write_checkpoint(tmp_path / "best", take_snapshot(model, None, {"step": 0}), config)
    Image.fromarray(gradient(40, 50)).save(tmp_path / "hall.png")
    assert main([str(tmp_path / "hall.png"), "--checkpoint", str(tmp_path / "best")]) == 0
    assert "the scale is arbitrary" in capsys.readouterr().out


def test_depth_is_the_networks_at_the_pictures_size(checkpoint: Path) -> None:
    trained = load_model(checkpoint, "cpu")
    model, config = trained.network, trained.config
    rgb = gradient(48, 64)  # the training's input: nothing is resized
    images = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        y, y_mirrored = model(images), model(images.flip(-1)).flip(-1)
    expected = (10 / y).clamp(0.1, 10) / 2 + (10 / y_mirrored).clamp(0.1, 10) / 2
    ours = trained.predict(rgb)
    assert ours == pytest.approx(expected[0, 0].numpy(), rel=1e-5)
    with torch.no_grad():
        single = predict_depth_m(model, images, config, False, (48, 64))
    assert not np.allclose(single[0], ours, rtol=1e-3)  # the mirrored image does count
    for wrong in (rgb.astype(np.float32), rgb[:, :, 0], rgb.transpose(2, 0, 1)):
        with pytest.raises(UserError, match=r"^predict: needs uint8 of shape \(H, W, 3\), not "):
            trained.predict(wrong)


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (2048, 2048)])
def test_a_picture_of_any_size_and_proportions_gets_a_depth_per_pixel(checkpoint: Path, size: tuple[int, int]) -> None:
    depth_m = load_model(checkpoint, "cpu").predict(np.full((*size, 3), 90, np.uint8))
    assert depth_m.shape == size and np.isfinite(depth_m).all()


def test_every_kind_of_picture_is_read_upright_as_rgb(tmp_path: Path) -> None:
    rgb = gradient(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: must be rotated by 90 degrees clockwise to be upright
    Image.fromarray(np.rot90(rgb).copy()).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "turned.png"), rgb)
    grey = rgb[:, :, 1]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_picture(tmp_path / "grey.png"), np.repeat(grey[:, :, None], 3, 2))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(read_picture(tmp_path / "deep.png"), np.repeat(grey[:, :, None], 3, 2))
    alpha = np.full((20, 30, 1), 255, np.uint8)
    alpha[:5] = 0
    Image.fromarray(np.concatenate([rgb, alpha], 2)).save(tmp_path / "clear.png")
    clear = read_picture(tmp_path / "clear.png")
    assert (clear[:5] == 255).all()
    assert np.array_equal(clear[5:], rgb[5:])
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "few.gif")
    for name in ("print.jpg", "few.gif"):
        picture = read_picture(tmp_path / name)
        assert (picture.shape, picture.dtype) == ((20, 30, 3), np.uint8)
        assert picture.astype(float) == pytest.approx(rgb, abs=40)


def test_bad_pictures_are_one_sentence_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(gradient(200, 300)).save(tmp_path / "good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    header = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4) + b"IHDR" + (60_000).to_bytes(4) * 2 + bytes([8, 2, 0, 0, 0])
    (tmp_path / "bomb.png").write_bytes(header + bytes(64))
    Image.fromarray(np.full((9, 9), 1e9, np.float32)).save(tmp_path / "float.tiff")
    for name in ("cut.jpg", "notes.png", "empty.png", "folder.png", "bomb.png", "float.tiff", "absent.png"):
        pictures = [str(tmp_path / "good.jpg"), str(tmp_path / name)]
        assert main([*pictures, "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]) == 2, name
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert str(tmp_path / name) in error
        assert not (tmp_path / "out").exists()


def test_names_that_would_collide_and_a_missing_checkpoint(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "a.png"):
        Image.fromarray(gradient(40, 40)).save(tmp_path / name)
    both = [str(tmp_path / "a.jpg"), str(tmp_path / "a.png")]
    assert main([*both, "--checkpoint", str(checkpoint)]) == 2
    assert "its files would replace those of" in capsys.readouterr().err
    assert main([both[0], "--checkpoint", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert main([both[0], "--checkpoint", str(checkpoint), "--out", both[1]]) == 2
    assert "is a file where a folder must be" in capsys.readouterr().err


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("ending", ["_depth.png", "_depth.npy", "_coloured.png"])
def test_a_users_own_file_is_never_replaced(
    ending: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither another's of the same name nor one of ours that was changed since; and nothing is written then."""
    Image.fromarray(gradient(40, 50)).save(tmp_path / "kitchen.png")
    command = [str(tmp_path / "kitchen.png"), "--checkpoint", str(checkpoint)]
    own = tmp_path / f"kitchen{ending}"
    own.write_bytes(b"") if ending.endswith("npy") else Image.new("I;16", (50, 40), 1234).save(own)
    before = contents(tmp_path)
    assert main(command) == 2
    assert f"{own} is not a file of this command" in capsys.readouterr().err
    assert contents(tmp_path) == before
    own.unlink()
    own.mkdir()
    assert main(command) == 2
    own.rmdir()
    assert main(command) == 0
    if ending.endswith("npy"):
        np.save(own, np.load(own) + 1)
    else:  # an editor keeps a PNG's texts
        picture = Image.open(own)
        picture.load()
        texts = PngInfo()
        for key, value in picture.info.items():
            if isinstance(value, str):
                texts.add_text(key, value)
        assert picture.info["Picture"] == '"kitchen.png"'
        picture.putpixel((0, 0), 1 if picture.mode.startswith("I") else (1, 2, 3, 4))
        picture.save(own, pnginfo=texts)
    before = contents(tmp_path)
    assert main(command) == 2
    assert contents(tmp_path) == before
    assert main([*command, "--out", str(tmp_path / "out")]) == 0


def test_a_second_call_replaces_its_own_files_and_predicts_none_of_them(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(gradient(40, 50)).save(tmp_path / "a.png")
    options = ["--checkpoint", str(checkpoint), "--json"]
    assert main([str(tmp_path / "a.png"), *options]) == 0
    before = contents(tmp_path)
    assert list(before) == ["a.png", "a_coloured.png", "a_depth.npy", "a_depth.png"]
    capsys.readouterr()
    assert main([*map(str, sorted(tmp_path.glob("*.png"))), *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [Path(entry["picture"]).name for entry in document["pictures"]] == ["a.png"]
    assert [Path(name).name for name in document["left_out"]] == ["a_coloured.png", "a_depth.png"]
    assert contents(tmp_path) == before
    (tmp_path / "a_depth.npy").unlink()  # as a kill between two writes leaves it
    assert main([str(tmp_path / "a.png"), *options]) == 0
    assert contents(tmp_path) == before
    assert main([str(tmp_path / "a_depth.png"), *options]) == 2
    assert "every picture named is one that this command made" in capsys.readouterr().err
    Image.fromarray(gradient(40, 50)).save(tmp_path / "a.jpg")
    assert main([str(tmp_path / "a.jpg"), *options]) == 2
    assert "a_depth.png was made of a.png" in capsys.readouterr().err
    assert main([str(tmp_path / "a.png"), f"{tmp_path}/./a.png", *options]) == 2
    assert "is named twice" in capsys.readouterr().err


def test_outputs_are_checked_before_anything_is_predicted(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    longest = "k" * (255 - len("_coloured.png"))
    for stem in (longest, longest + "k", "é" * 122, "a"):
        Image.fromarray(gradient(40, 50)).save(tmp_path / f"{stem}.png")
    cases = [
        (longest + "k", "out", "is longer than 255 bytes; choose a shorter one"),
        ("é" * 122, "out", "is longer than 255 bytes"),
        ("a", "file/below", "file is a file where a folder must be"),
        ("a", "nowhere", "is a link to nothing"),
        ("a", "x" * 300, "name too long"),
        ("a", f"new/{'x' * 300}", "is longer than 255 bytes"),
    ]
    for stem, out, says in cases:
        command = [str(tmp_path / f"{stem}.png"), "--checkpoint", str(tmp_path / "none"), "--out", str(tmp_path / out)]
        assert main(command) == 2, stem
        error = capsys.readouterr().err
        assert says.lower() in error.lower() and error.count("\n") == 1
    command = [str(tmp_path / f"{longest}.png"), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert len(contents(tmp_path / "out")) == 3
    mark = mark_of(tmp_path / "out" / f"{longest}_coloured.png")
    assert mark is not None and mark.picture == f"{longest}.png"


def test_a_checkpoint_that_is_nearly_named_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file, its training, a stage's, a study, a folder of trainings; nothing tells to remove anything."""
    Image.fromarray(gradient(40, 50)).save(tmp_path / "a.png")
    for place in ("training", "staged/stage-0", "staged/stage-1", "study/trials/search-0001", "many/x"):
        shutil.copytree(checkpoint, tmp_path / place / "checkpoints" / "best")
        (tmp_path / place / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    cases = {
        "training": "training/checkpoints/best",
        "training/checkpoints": "training/checkpoints/best",
        "training/checkpoints/best/weights.safetensors": "training/checkpoints/best",
        "training/config.json": "training/checkpoints/best",
        "training/checkpoints/bset": "training/checkpoints/best",
        "staged": "staged/stage-1/checkpoints/best, one of 2",
        "study": "study/trials/search-0001/checkpoints/best",
        "many": "many/x/checkpoints/best",
    }
    for name, meant in cases.items():
        assert main([str(tmp_path / "a.png"), "--checkpoint", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.endswith(f"; name {tmp_path / meant}\n"), error
        assert "remove" not in error
    for name in ("empty", "absent", "a.png"):
        assert main([str(tmp_path / "a.png"), "--checkpoint", str(tmp_path / name)]) == 2
        assert ".../checkpoints/best" in capsys.readouterr().err
    (tmp_path / "training/checkpoints/best/weights.safetensors").write_bytes(b"x")
    assert main([str(tmp_path / "a.png"), "--checkpoint", str(tmp_path / "training/checkpoints/best")]) == 2
    error = capsys.readouterr().err
    assert "has changed since it was written" in error and "name another checkpoint" in error
