"""Command lines drawn at random over all commands: every one ends in a result or in a sentence, none in a traceback.

Names, paths, encodings, missing and hostile files. LINES=5000 sets how many lines are drawn, SEED=0 which.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from tests.analysis.make_results import planted_study
from tests.drills.table import record
from trainables import __main__ as densedepth
from trainables.data import photos
from trainables.models.depth_model import build_model
from trainables.settings.config import TrialConfig
from trainables.training.checkpoint import take_snapshot, write_checkpoint

LINES, SEED = int(os.environ.get("LINES", "400")), int(os.environ.get("SEED", "0"))
LONGEST_S = 120  # of a line; one that takes longer hangs
CODES = {0, 1, 2, 130}
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{ } loop\n"
# Names and values that shells, file systems and parsers are known to trip over.
ODD = ["", " ", ".", "-", "--", "-x", "--nope", "~", "~/x", "~nobody/x", "#", "a #b", "a: b", "@x", "%s", "{}",
       "[", "]", "*", "*.jpg", "?", "null", "None", "no", "2018", "1e-5", "nan", "inf", "-1", "0",
       "99999999999999999999", "[1,2]", "{a: 1}", "'", '"', "a=b", "=", "\\", "C:\\x", "a\nb", "\t", "\x1b[31m",
       "\u202egnp", "厨房", "é", "e\u0301", "\U0001f600", "a\udcff", "\ufeff", "x" * 256, "é" * 128, "x/" * 3000,
       "file/below", "nowhere/deep", "/dev/null", "/dev/null/x", "/proc/self/mem", "loop", "dangling", "folder",
       "file", "empty", "../outside", "http://127.0.0.1:9/x", "s3://bucket/x", "sqlite:///x", "data:,x",
       "<script>", "$(id)", "`id`", "!!python/none", "&a", "*a"]  # fmt: skip
SETTINGS = ["data.root", "data.cache", "data.source", "data.exclude", "data.overfit", "data.workers", "data.subset",
            "data.validation.by", "data.validation", "model.encoder", "model.weights", "model.skips.s4", "model.width",
            "model.frozen", "input", "batch_size", "optim.lr", "optim.name", "loss.ssim", "loss", "start_from", "seed",
            "protocol", "best_metric", "target.kind", "threads", "trial.optim.lr", "trial.model.weights", "trial.seed",
            "name", "search.trials", "search.space", "search.warm_start", "search.sampler", "search.pruner.kind",
            "judge.metric", "judge.margins", "claims.test", "reproduce.recipes", "tracking.uri", "ledger",
            "budget.hours", "resources.address", "train_scenes", "size", "defects", "holes", "nope", "a.b.c", "data.",
            ".", ""]  # fmt: skip


class Command(NamedTuple):
    """positional and options: what kind of value each takes; always: words without which it would run for minutes."""

    positional: tuple[str, ...]
    options: dict[str, str]
    always: tuple[str, ...] = ()


STUDY = Command(("study",), {})
COMMANDS: dict[str, Command] = {
    "study run": Command(("file",), {"--set": "set", "--measure": "", "--resume": ""}, ("--plan",)),
    "overhead": Command((), {"--set": "set"}, ("--pairs", "0")),
    "report": Command(("study", "study"), {"--from-table": "file"}),
    **dict.fromkeys(("reproduction", "claims", "importance", "selection", "learned", "variance"), STUDY),
    "spikes": Command(("study",), {"--replay": ""}),
    "final_evaluation": Command(("study",), {"--again": "text"}),
    "served_model": STUDY,
    "score": Command(("maps",), {"--data": "data", "--source": "form", "--depth": "text", "--split": "split",
                                 "--kind": "kind", "--scale": "count", "--against": "row", "--from": "row",
                                 "--figure": "out"}),
    "export": Command(("checkpoint",), {"--onnx": "", "--out": "out", "--data": "data"}, ("--frames", "1")),
    "train": Command(("recipe",), {"--set": "set", "--out": "out"}, ("--set", "budget_images=4", "--set", "threads=1")),
    "predict": Command(("picture", "picture"), {"--checkpoint": "checkpoint", "--out": "out", "--device": "device"}),
    "doctor": Command(("data",), {"--out": "out", "--form": "form", "--depth": "text", "--workers": "count",
                                  "--no-manifest": "", "--renew": ""}),
    "rooms": Command((), {"--set": "set", "--out": "out"}, ("--set", "train_scenes=1", "--set", "test_scenes=1",
                                                            "--set", "frames_per_scene=1", "--set", "size=[32, 48]")),
    "weights_keras": Command(("file",), {"--out": "out"}),
    "parity": Command(("file",), {}),
    "bench": Command((), {"--set": "set", "--recipe": "recipe", "--steps": "count"}, ("--pairs", "0")),
}  # fmt: skip


@pytest.fixture
def place(
    tiny_root: Path, tiny_config: Callable[..., TrialConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder to work in: pictures, a checkpoint, a study, a data set, and files that are none of these."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    rng = np.random.default_rng(0)
    for name in ("kitchen.jpg", "厨房.png", "-x.png", "a\udcff.png", "a\nb.png"):
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).save(tmp_path / name)
    whole = (tmp_path / "kitchen.jpg").read_bytes()
    files = {
        "cut.jpg": whole[:200],
        "loop.jpg": POSTSCRIPT,
        "empty": b"",
        "file": b"x",
        "bytes.yaml": b"\xff\xfe\0",
        "deep.yaml": b"[" * 5000,
        "one.yaml": b"name: one\n",
        "list.yaml": b"- 1\n",
        "cycle.yaml": b"a: &a [*a]\n",
        "h5.h5": b"\x89HDF\r\n\x1a\n" + bytes(99),
        "zip.zip": b"PK\x03\x04" + bytes(99),
        "np.npz": b"PK\x05\x06" + bytes(18),
        "np.npy": b"\x93NUMPY\x01\0" + struct.pack("<H", 99) + b"{" * 99,
        "pq.parquet": b"PAR1" + bytes(9) + b"PAR1",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "set").symlink_to(tiny_root)
    config = tiny_config()
    model = build_model(config.model, config.target.kind)
    write_checkpoint(tmp_path / "run/checkpoints/best", take_snapshot(model, None, {"step": 0}), config)
    write_checkpoint(tmp_path / "damaged", take_snapshot(model, None, {"step": 0}), config)
    (tmp_path / "damaged/weights.safetensors").write_bytes(b"x")
    planted_study(tmp_path / "results" / "rooms", seed=0, trials=12)
    (tmp_path / "maps").mkdir()
    for number in range(6):
        np.save(tmp_path / f"maps/{number:05d}_depth.npy", rng.uniform(1, 5, (24, 32)).astype(np.float32))
    (tmp_path / "results" / "torn").mkdir()
    (tmp_path / "results" / "torn" / "study.yaml").write_bytes(b"name: [")
    (tmp_path / "results" / "torn" / "ledger.db").write_bytes(b"SQLite format 3\0" + bytes(200))
    return tmp_path


FINE = {
    "picture": ["kitchen.jpg", "厨房.png", "./-x.png", "a\udcff.png", "a\nb.png", "cut.jpg", "loop.jpg"],
    "checkpoint": ["run/checkpoints/best", "run", "damaged", "results/rooms"],
    "study": ["rooms", "torn", "torn", "results/torn", "one.yaml", "set", "results", "nowhere", "romos"],
    "data": ["set", "zip.zip", "h5.h5", "folder"],
    "out": ["out", "out/deep", "."],
    "file": ["one.yaml", "bytes.yaml", "deep.yaml", "list.yaml", "cycle.yaml", "h5.h5", "np.npz", "np.npy",
             "pq.parquet"],
    "recipe": ["densedepth", "densedepth+x", "michigan", "psiml_resnet50+berhu", "densdepth"],
    "maps": ["set", "run/checkpoints/best", "np.npy", "np.npz", "zip.zip", "folder", "damaged", "maps"],
    "split": ["official", "80_10_10_by_scene"],
    "kind": ["metric", "inverse", "disparity", "relative"],
    "row": ["densedepth_repo", "densedepth", "bts", "eigen", "densdepth"],
    "form": ["kaggle", "eigen", "h5", "labeled", "rooms"],
    "device": ["cpu", "cuda", "auto"],
    "count": ["1", "2", "0"],
    "text": ["raw", "filled", "again"],
}  # fmt: skip


def drawn(random: random.Random) -> tuple[str, list[str]]:
    """A command and its words."""
    name = random.choice(list(COMMANDS))
    command = COMMANDS[name]
    odd = random.choice([0.05, 0.3, 0.8])

    def value(kind: str) -> str:
        if kind == "set":
            return f"{random.choice(SETTINGS)}={random.choice(ODD)}" if random.random() < 0.9 else random.choice(ODD)
        return random.choice(ODD) if random.random() < odd else random.choice(FINE[kind])

    words = [value(kind) for kind in command.positional if random.random() < 0.9]
    for option, kind in command.options.items():
        for _ in range(random.choice([0, 1, 1, 2]) if kind == "set" else random.random() < 0.6):
            words += [option] if not kind else [option, value(kind)]
    if random.random() < 0.1:
        words.insert(random.randrange(len(words) + 1), random.choice(ODD))
    if random.random() < 0.4:
        words.append("--json")
    return name, [*words, *command.always]


def went(name: str, words: list[str]) -> str | None:
    """What is wrong with how a line ended, or None."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))

    def stop(*_: object) -> None:
        raise TimeoutError(f"longer than {LONGEST_S} s")

    argv, before = sys.argv, signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_S)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            sys.argv = ["densedepth", *name.split(), *words]
            code = densedepth.main()
    except BaseException as error:
        return "".join(traceback.format_exception(error))[-1500:]
    finally:
        sys.argv = argv
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    said, complained = (stream.buffer.getvalue().decode() for stream in (flushed(out), flushed(err)))
    if code not in CODES:
        return f"exit code {code}"
    if "Traceback" in said + complained:
        return complained[-1500:]
    if code == 2 and not complained:
        return "refused without a word"
    if "--json" in words and "--" not in words and not complained.startswith("usage:"):
        try:
            json.loads(said)
        except ValueError:
            return f"stdout is no JSON document: {said[:200]!r}"
    return None


def flushed(stream: io.TextIOWrapper) -> Any:
    stream.flush()
    return stream


def wrong(lines: int, seed: int) -> Iterator[tuple[str, list[str], str]]:
    """The lines that end in anything but a result or a sentence."""
    source = random.Random(seed)
    spent: Counter[str] = Counter()
    for _ in range(lines):
        name, words = drawn(source)
        began = time.monotonic()
        problem = went(name, words)
        spent[name] += time.monotonic() - began
        if problem is not None:
            yield name, words, problem
    print(", ".join(f"{name} {seconds:.0f} s" for name, seconds in spent.most_common(6)), file=sys.stderr)


def test_every_command_is_tried() -> None:
    assert COMMANDS.keys() == densedepth.COMMANDS.keys()


@pytest.mark.slow
def test_no_command_line_ends_in_a_traceback(place: Path) -> None:
    torch.set_num_threads(1)
    began = time.monotonic()
    found = list(wrong(LINES, SEED))
    kinds = Counter(problem.strip().splitlines()[-1][:100] for _, _, problem in found)
    record("random command lines", SEED, LINES, f"{LINES - len(found)} ended in a sentence", time.monotonic() - began)
    for name, words, problem in found:
        print(f"densedepth {name} {words!r}\n{problem}\n", file=sys.stderr)
    assert not found, kinds.most_common()


@pytest.mark.slow
def test_a_planted_bug_is_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(*_: object) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(photos, "read_picture", planted)
    found = list(wrong(200, SEED))
    assert found and all(name == "predict" and "KeyError: 'planted'" in problem for name, _, problem in found)
