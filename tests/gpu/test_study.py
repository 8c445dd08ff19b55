"""A study on a GPU: two trainings share a card, and a killed driver leaves nothing on it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("ray", reason="Ray is not installed: no study can run")
pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
GONE_S = 60  # Ray's workers notice a lost driver within seconds


def written(folder: Path, tiny_root: Path, budget_images: int) -> Path:
    """A study of four reproductions of a tiny U-Net, each on half a GPU."""
    skips = {"s1": "pre_pool", "s2": "pre_pool"} | dict.fromkeys(("s4", "s8", "s16", "s32"), "none")
    trial = {
        "model.family": "unet", "model.encoder": None, "model.weights": None, "model.unet_channels": 8,
        "model.unet_levels": 2, "model.skips": skips, "input": [48, 64], "batch_size": 4, "threads": 1,
        "budget_images": budget_images, "validate_every_images": budget_images // 4,
        "checkpoint_every_images": budget_images // 4, "snapshot_every_steps": 0,
    }  # fmt: skip
    study = {
        "name": "shared", "data": {"source": "kaggle", "root": str(tiny_root)}, "trial": trial,
        "reproduce": {"recipes": ["densedepth"], "seeds": 4}, "search": {"trials": 0}, "confirm": {"top": 0},
        "resources": {"gpus_per_trial": 0.5, "cpus_per_trial": 1}, "tracking": {"uri": None},
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def started(folder: Path, study: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "study.run", str(study)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    log = (folder / "output.txt").open("w")
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, text=True)


def on_the_card() -> set[int]:
    """Process ids that have a GPU's device file open."""
    holders = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # it has ended, or closed the file, in the meantime
            if re.fullmatch(r"/dev/nvidia\d+", str(link.readlink())):
                holders.add(int(link.parts[2]))
    return holders


def spans(folder: Path) -> list[tuple[float, float]]:
    """First and last report of each training, in seconds since the epoch."""
    result = []
    for path in sorted(folder.glob("results/shared/trials/*/reports.jsonl")):
        times = [json.loads(line)["time_s"] for line in path.read_text().splitlines()]
        result.append((times[0], times[-1]))
    return result


def test_two_trainings_share_a_card(tmp_path: Path, tiny_root: Path) -> None:
    process = started(tmp_path, written(tmp_path, tiny_root, 1200))
    assert process.wait(timeout=240) == 0, (tmp_path / "output.txt").read_text()[-2000:]
    times = spans(tmp_path)
    assert len(times) == 4
    assert any(a[0] < b[1] and b[0] < a[1] for i, a in enumerate(times) for b in times[:i])
    for path in tmp_path.glob("results/shared/trials/*/summary.json"):
        assert json.loads(path.read_text())["device"] == torch.cuda.get_device_name()


def test_a_killed_driver_leaves_no_process_on_the_card(tmp_path: Path, tiny_root: Path) -> None:
    before = on_the_card() | {os.getpid()}
    process = started(tmp_path, written(tmp_path, tiny_root, 400_000))
    deadline = time.monotonic() + 120
    while not on_the_card() - before:
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "output.txt").read_text()[-2000:]
        time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = time.monotonic()
    while on_the_card() - before:
        assert time.monotonic() - killed < GONE_S, f"still on the card: {on_the_card() - before}"
        time.sleep(0.5)
    print(f"the card was free {time.monotonic() - killed:.1f} s after the kill")
