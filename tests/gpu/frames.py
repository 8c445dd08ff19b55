"""Frames of NYU Depth v2's size in the Kaggle layout, drawn and not rendered: `make gpu` measures speed on them."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (480, 640)
SCENES, FRAMES = 110, 6  # 660 training frames: the 654 of the test split can be held out of them
OCTAVES = (4, 16, 60)  # rows of the random grids that a picture is the sum of


def write_frames(root: Path) -> Path:
    """SCENES * FRAMES training frames and a test frame under `root`, once; the same from call to call."""
    if (root / "data/nyu2_test.csv").exists():
        return root
    names = [f"data/nyu2_train/scene_{scene:04d}_out/{frame + 1}" for scene in range(SCENES) for frame in range(FRAMES)]
    for name in (*names, "data/nyu2_test/x"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_write, [root] * len(names), names, range(len(names)), chunksize=20))
    colours, depth = "data/nyu2_test/00000_colors.png", "data/nyu2_test/00000_depth.png"
    rgb, metres = _drawn(len(names))
    Image.fromarray(rgb).save(root / colours)
    Image.fromarray((metres * 1000).astype(np.uint16)).save(root / depth)
    (root / "data/nyu2_train.csv").write_text("".join(f"{name}.jpg,{name}.png\n" for name in names))
    (root / "data/nyu2_test.csv").write_text(f"{colours},{depth}\n")
    return root


def _write(root: Path, name: str, number: int) -> None:
    rgb, metres = _drawn(number)
    Image.fromarray(rgb).save(root / f"{name}.jpg", quality=95)
    Image.fromarray((metres / 10 * 255).round().astype(np.uint8)).save(root / f"{name}.png")


def _drawn(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour (480, 640, 3) uint8 and depth in metres (480, 640): smooth surfaces with detail of several sizes."""
    random = np.random.default_rng(number)
    layers = np.zeros((*SIZE, 4), np.float32)
    for rows in OCTAVES:
        for channel in range(4):
            grid = random.random((rows, rows * 4 // 3), np.float32) * OCTAVES[0] / rows
            layers[..., channel] += np.asarray(Image.fromarray(grid).resize(SIZE[::-1], Image.Resampling.BICUBIC))
    layers = (layers - layers.min((0, 1))) / np.ptp(layers, (0, 1))
    return (layers[..., :3] * 255).astype(np.uint8), 0.7 + 8.5 * layers[..., 3]
