"""`rooms`, the embedded data set: rendered interiors, written once to disk in exactly the Kaggle layout of NYU.

    data/nyu2_train/<scene>_out/N.jpg, N.png     8-bit depth, value / 255 * 10 m, 0 = hole
    data/nyu2_test/NNNNN_colors.png, NNNNN_depth.png    16-bit depth in mm, of scenes that training never sees
    data/nyu2_train.csv, data/nyu2_test.csv      `rgb,depth` paths, no header
    data/scenes.csv                              `rgb,scene` of both splits, no header
    data/defects.csv                             `rgb,kind` of what was planted, no header; only where something was
    manifest.sha256.json                         settings and SHA-256 of every file

Depth is z-depth (along the optical axis), 0.5 to 10 m. A frame's bytes depend on (seed, split, scene, frame) alone.
Known deviations from NYU: rendered, no lens distortion, depth perfect unless `holes`.

Defects can be planted in the training set, as known truth for the doctor and the spike detector: each is a function of
stored depth (uint8, 0 = hole) to the spoilt depth of the same shape.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainables.data.rooms.interior import furnished, walk
from trainables.data.rooms.render import holes, render
from trainables.data.rooms.textures import cells
from trainables.runtime import cli, durable, locks
from trainables.runtime.errors import UserError
from trainables.settings.config import RoomsConfig, as_dict

MANIFEST = "manifest.sha256.json"
RENDERER = 1  # raised whenever the same settings would give other bytes
SPLITS = ("train", "test")
LEVELS, MAX_DEPTH_M = 255, 10.0
BORDER_SHARE = 8 / 480  # of the rows: NYU's white frame
JPEG_QUALITY = 92
NOISE_LEVELS = 5.0  # peak of the picture's grain, in 8-bit levels


@dataclass(frozen=True)
class Shot:
    """One frame: colour uint8 (rows, columns, 3) and depth in metres float32, 0 = hole."""

    rgb: NDArray[np.uint8]
    depth_m: NDArray[np.float32]


def rooms_root(config: RoomsConfig) -> Path:
    """Where these settings' frames lie by default: data/rooms-HASH under the current folder."""
    text = json.dumps({"renderer": RENDERER, **as_dict(config)}, sort_keys=True)
    return Path("data") / f"rooms-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def shoot(config: RoomsConfig, split: str, scene: int) -> tuple[str, list[Shot]]:
    """The name of a scene's kind and its frames, without planted defects."""
    random = np.random.default_rng([config.seed, SPLITS.index(split), scene])
    room = furnished(random)
    rows, columns = config.size
    shots = []
    for number, pose in enumerate(walk(room, random, config.frames_per_scene)):
        rgb, depth_m, glass = render(room, pose, rows, columns)
        mark = (config.seed * 7919 + scene * 2 + SPLITS.index(split)) * 1009 + number
        rgb = _grain(rgb, mark)
        if config.white_border:
            width = max(1, round(BORDER_SHARE * rows))
            frame = np.ones((rows, columns), bool)
            frame[width:-width, width:-width] = False
            rgb[frame] = 255
        if config.holes and split == "train":
            depth_m = np.where(holes(depth_m, glass, mark), np.float32(0), depth_m)
        shots.append(Shot(rgb, depth_m))
    return room.kind.replace(" ", "_"), shots


def _grain(rgb: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    rows, columns, _ = rgb.shape
    y, x = np.mgrid[0:rows, 0 : 3 * columns].astype(np.float32)
    bell = cells(x, y, seed) + cells(x, y, seed + 1) - 1
    return np.clip(rgb + np.round(bell.reshape(rgb.shape) * NOISE_LEVELS), 0, 255).astype(np.uint8)


def write_rooms(config: RoomsConfig, root: Path) -> dict[str, Any]:
    """Write the set under `root` unless it is there, and return its manifest.

    Safe against kills (a finished folder appears by one rename) and against other processes (one writes, others wait).
    Raises UserError where `root` holds something else.
    """
    if root.exists():  # whole, for it appears by one rename
        return _existing(config, root)
    durable.check_folder(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    with locks.exclusive(root.with_name(f".{root.name}.lock")):  # one writer at a time
        if root.exists():
            return _existing(config, root)
        for stale in root.parent.glob(f".{root.name}.*.tmp"):
            shutil.rmtree(stale)
        temporary = root.with_name(f".{root.name}.{os.getpid()}.tmp")
        try:
            manifest = _fill(config, temporary)
            durable.replace_folder(temporary, root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def check_rooms(config: RoomsConfig) -> None:
    """Raise UserError for settings that cannot be rendered."""
    planned = sum(config.defects.values())
    if planned > config.train_scenes * config.frames_per_scene:
        raise UserError(f"data.rooms.defects plants {planned} defects in fewer training frames; plant fewer")
    if config.defects.get("wrong_pair", 0) and config.train_scenes < 2:
        raise UserError("data.rooms.defects.wrong_pair needs depth of another scene; set train_scenes to 2 or more")


def _existing(config: RoomsConfig, root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        same = manifest["rooms"] == {"renderer": RENDERER, **as_dict(config)}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{root} is there without a readable {MANIFEST} of rooms; name another folder") from None
    if not same:
        raise UserError(f"{path} belongs to rooms with other settings; name another folder or remove {root}")
    return manifest


def _fill(config: RoomsConfig, folder: Path) -> dict[str, Any]:
    """Render everything into a new folder; returns its manifest."""
    check_rooms(config)
    scenes = {"train": config.train_scenes, "test": config.test_scenes}
    jobs = [(split, k) for split in SPLITS for k in range(scenes[split])]
    lines = _render_all(config, folder, jobs)
    data = folder / "data"
    for split in SPLITS:
        _write_rows(data / f"nyu2_{split}.csv", [(rgb, depth) for s, rgb, depth, _ in lines if s == split])
    _write_rows(data / "scenes.csv", [(rgb, scene) for _, rgb, _, scene in lines])
    if sum(config.defects.values()):
        _write_rows(data / "defects.csv", _plant(config, folder, [line for line in lines if line[0] == "train"]))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: durable.sha256(folder / name) for name in names}
    total = hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in files.items()).encode()).hexdigest()
    manifest = {"sha256": total, "rooms": {"renderer": RENDERER, **as_dict(config)}, "files": files}
    durable.write_json(folder / MANIFEST, manifest)
    return manifest


def _render_all(config: RoomsConfig, folder: Path, jobs: list[tuple[str, int]]) -> list[tuple[str, str, str, str]]:
    """Render the scenes in a few processes; rows (split, rgb, depth, scene) in the order of the jobs.

    The workers are plain interpreters, not forks: the caller may hold threads, and may have no importable main module.
    """
    count = min(os.cpu_count() or 1, 4, len(jobs))
    workers = []
    for k in range(count):
        task = json.dumps({"config": as_dict(config), "folder": str(folder.absolute()), "jobs": jobs[k::count]})
        code = "from trainables.data.rooms.writer import work; work()"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        assert process.stdin is not None
        process.stdin.write(task)
        process.stdin.close()
        workers.append(process)
    rows: dict[tuple[str, int], list[tuple[str, str, str, str]]] = {}
    try:
        for process in workers:
            assert process.stdout is not None
            for line in process.stdout:
                split, scene, found = json.loads(line)
                rows[split, scene] = [tuple(row) for row in found]
            if process.wait() != 0:
                raise RuntimeError(f"a rendering process ended with exit code {process.returncode}, see above")
    finally:
        for process in workers:
            process.kill()
            process.wait()
    return [row for job in jobs for row in rows[job]]


def work() -> None:
    """A rendering process: a task as JSON on stdin, one JSON line per finished scene on stdout."""
    task = json.load(sys.stdin)
    config = RoomsConfig.model_validate_json(json.dumps(task["config"]))
    for split, scene in task["jobs"]:
        print(json.dumps([split, scene, _write_scene(config, Path(task["folder"]), split, scene)]), flush=True)


def _write_scene(config: RoomsConfig, folder: Path, split: str, scene: int) -> list[tuple[str, str, str, str]]:
    kind, shots = shoot(config, split, scene)
    name = f"{kind}_{scene:04d}" if split == "train" else f"test_{kind}_{scene:04d}"
    rows = []
    for number, shot in enumerate(shots):
        if split == "train":
            rgb, depth = (f"data/nyu2_train/{name}_out/{number + 1}.{end}" for end in ("jpg", "png"))
            stored = Image.fromarray(stored_8_bit(shot.depth_m))
        else:
            index = scene * config.frames_per_scene + number
            rgb, depth = (f"data/nyu2_test/{index:05d}_{end}.png" for end in ("colors", "depth"))
            stored = Image.fromarray(np.round(shot.depth_m * 1000).astype(np.uint16))
        (folder / rgb).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shot.rgb).save(folder / rgb, quality=JPEG_QUALITY)
        stored.save(folder / depth)
        rows.append((split, rgb, depth, name))
    return rows


def stored_8_bit(depth_m: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The Kaggle training form: value / 255 * 10 m, 0 for a hole only."""
    levels = np.clip(np.round(depth_m * np.float32(LEVELS / MAX_DEPTH_M)), 1, LEVELS)
    return np.where(depth_m > 0, levels, 0).astype(np.uint8)


def _plant(config: RoomsConfig, folder: Path, lines: list[tuple[str, str, str, str]]) -> list[tuple[str, str]]:
    """Spoil that many training depths of each kind, all on different frames; rows (rgb, kind) by rgb path."""
    random = np.random.default_rng([config.seed, len(SPLITS)])
    order = [int(k) for k in random.permutation(len(lines))]
    stored = {k: np.asarray(Image.open(folder / lines[k][2])) for k in order} if config.defects else {}
    planted: dict[int, tuple[str, NDArray[np.uint8]]] = {}
    for kind in PLANTS:
        for _ in range(config.defects.get(kind, 0)):  # type: ignore[call-overload]
            number, spoilt = _victim(kind, [k for k in order if k not in planted], lines, stored, random)
            planted[number] = (kind, spoilt)
    for number, (_, spoilt) in planted.items():
        Image.fromarray(spoilt).save(folder / lines[number][2])
    return sorted((lines[number][1], kind) for number, (kind, _) in planted.items())


def _victim(
    kind: str,
    candidates: list[int],
    lines: list[tuple[str, str, str, str]],
    stored: dict[int, NDArray[np.uint8]],
    random: np.random.Generator,
) -> tuple[int, NDArray[np.uint8]]:
    """The first candidate on which the defect shows, or the one on which it shows most, and its spoilt depth."""
    best: tuple[float, int, NDArray[np.uint8]] | None = None
    for number in candidates:
        others = [k for k in stored if lines[k][3] != lines[number][3]] or [number]
        spoilt = PLANTS[kind](stored[number], stored[int(random.choice(others))], random)
        change = mean_change(stored[number], spoilt)
        if change >= VISIBLE_LEVELS:
            return number, spoilt
        if best is None or change > best[0]:
            best = (change, number, spoilt)
    assert best is not None  # there are more frames than defects
    return best[1:]


def _write_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    path.write_text(text.getvalue())


def main(argv: list[str] | None = None) -> int:
    """`python -m trainables.data.rooms`: write the embedded data set and print its hash."""
    from trainables.settings.assignments import annotation_of, parse_assignments
    from trainables.settings.recipe import load_recipe

    parser = cli.parser(
        "trainables.data.rooms",
        "Write the embedded data set, rooms, and print its hash.",
        "python -m trainables.data.rooms --set train_scenes=20 --set test_scenes=4 --out data/rooms-small",
    )
    parser.add_argument("--out", type=cli.path, help="folder to write (data/rooms-HASH unless given)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of data.rooms")

    def body(args: argparse.Namespace) -> dict[str, Any]:
        given = parse_assignments(args.set, partial(annotation_of, RoomsConfig))
        settings = {f"data.rooms.{key}": value for key, value in given.items()}
        config = load_recipe("densedepth", settings)[0].data.rooms
        root = args.out or rooms_root(config)
        manifest = write_rooms(config, root)
        frames = (config.train_scenes + config.test_scenes) * config.frames_per_scene
        print(f"{root}: {frames} frames, sha256 {manifest['sha256']}")
        return {"root": str(root), "frames": frames, "sha256": manifest["sha256"], "rooms": manifest["rooms"]}

    return cli.run(parser, body, argv)


Stored = NDArray[np.uint8]
Plant = Callable[[Stored, Stored, np.random.Generator], Stored]  # own depth, another scene's depth, draws
VISIBLE_LEVELS = 6  # mean change under which a frame is passed over: its spoilt depth is nearly as good as the true one


def wrong_pair(depth: Stored, other: Stored, random: np.random.Generator) -> Stored:
    """The depth of a frame of another scene."""
    return other


def all_holes(depth: Stored, other: Stored, random: np.random.Generator) -> Stored:
    """No depth at all."""
    return np.zeros_like(depth)


def saturated(depth: Stored, other: Stored, random: np.random.Generator) -> Stored:
    """Everything beyond the nearer part of the frame reads the largest value."""
    known = depth[depth > 0]
    limit = np.quantile(known, float(random.uniform(0.15, 0.4))) if known.size else 0
    return np.where(depth > limit, np.uint8(255), depth)


def flipped(depth: Stored, other: Stored, random: np.random.Generator) -> Stored:
    """Left and right exchanged."""
    return np.ascontiguousarray(depth[:, ::-1])


def shifted(depth: Stored, other: Stored, random: np.random.Generator) -> Stored:
    """Moved sideways by 8 to 20% of the width; the last column fills the gap."""
    columns = depth.shape[1]
    step = max(1, round(float(random.uniform(0.08, 0.2)) * columns)) * int(random.choice([-1, 1]))
    return depth[:, np.clip(np.arange(columns) + step, 0, columns - 1)]


PLANTS: dict[str, Plant] = {
    "wrong_pair": wrong_pair,
    "all_holes": all_holes,
    "saturated": saturated,
    "flipped": flipped,
    "shifted": shifted,
}


def mean_change(before: Stored, after: Stored) -> float:
    """Mean absolute change in stored levels where either is known; flipping a view onto a wall changes nothing."""
    known = (before > 0) | (after > 0)
    return float(np.abs(before.astype(np.int16) - after)[known].mean()) if known.any() else 0.0
