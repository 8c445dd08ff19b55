"""A user's pictures: every kind is read upright as RGB, the three files agree, and a bad picture is one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainables.evaluation.evaluate import predict_depth_m
from trainables.models.depth_model import build_model
from trainables.predict import main, read_picture
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
    assert "must name a folder" in capsys.readouterr().err
