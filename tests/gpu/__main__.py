"""`python -m tests.gpu`: what this machine's GPU does: the tests that need one, the bench's rows, a small study.

Everything lands in a folder (default results/gpu): the log of each part, gpu.json and the table that is printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.gpu.frames import write_frames
from trainables.runtime import cli
from trainables.runtime.errors import UserError

# Frames as large as NYU Depth v2's: tests/gpu/frames.py writes them.
FULL_SIZE = {"data.source": "kaggle", "data.workers": "8", "model.weights": "null", "batch_size": "8"}
EVALUATED = FULL_SIZE | {"data.validation.share": "0.995", "data.validation.max_frames": "654", "mirrored": "true"}
SMALL = {"data.source": "rooms", "model.weights": "null", "model.encoder": "densenet121", "model.width": "0.25",
         "input": "[64,96]", "batch_size": "8", "threads": "4"}  # fmt: skip
BENCHES: dict[str, tuple[str, dict[str, str], int, int]] = {  # name: (measurement, settings, pairs, steps)
    "step 480 x 640": ("step", FULL_SIZE, 3, 10),
    "loaded against resident": ("end_to_end", FULL_SIZE, 2, 40),
    "654 frames, all protocols": ("evaluation", EVALUATED, 1, 1),
    "two trainings on half a card each": ("together", SMALL, 2, 40),
}
STUDY = {"name": "gpu", "resources.gpus_per_trial": "0.25", "trial.threads": "3", "search.trials": "6"}


def run_part(command: list[str], log: Path, limit_s: float) -> tuple[int, float]:
    """Exit code and seconds of a command whose output goes to a file; 124 where it ran past its limit."""
    began = time.monotonic()
    with log.open("w") as file:
        try:
            ended = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=limit_s, check=False)
            code = ended.returncode
        except subprocess.TimeoutExpired:
            code = 124
    return code, time.monotonic() - began


def tests(out: Path, limit_s: float) -> dict[str, Any]:
    """Every test marked gpu: its outcome, its seconds, and what it printed."""
    junit = out / "tests.xml"
    options = ["-o", "addopts=-v --strict-markers -p no:cacheprovider", "-o", "junit_logging=system-out"]
    command = [sys.executable, "-m", "pytest", *options, "-m", "gpu", f"--junitxml={junit}", "tests/gpu"]
    code, seconds = run_part(command, out / "tests.log", limit_s)
    cases = {}
    for case in ET.parse(junit).iter("testcase") if junit.exists() else ():
        ended = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        said = (case.findtext("system-out") or "").strip().splitlines()
        told = [line for line in said if line and not line.startswith("---")]
        cases[str(case.get("name"))] = {"outcome": ended, "seconds": float(case.get("time", 0)), "said": told}
    return {"code": code, "seconds": seconds, "cases": cases}


def bench(out: Path, limit_s: float) -> dict[str, Any]:
    """The bench's measurements that are about a GPU."""
    rows: dict[str, Any] = {}
    began, worst = time.monotonic(), 0
    root = write_frames(Path("data/full-size"))
    for name, (measurement, settings, pairs, steps) in BENCHES.items():
        left = limit_s - (time.monotonic() - began)
        if left <= 0:
            rows[name] = {"code": 124}
            worst = 124
            continue
        settings = settings | ({"data.root": str(root)} if settings["data.source"] == "kaggle" else {})
        sets = [word for path, value in settings.items() for word in ("--set", f"{path}={value}")]
        file = out / f"bench-{measurement}.json"
        counts = ["--pairs", str(pairs), "--steps", str(steps)]
        command = [sys.executable, "-m", "trainables.bench", measurement, "--json", *counts, *sets]
        code, seconds = run_part(command, file, left)
        worst = worst or code
        rows[name] = {"code": code, "took_s": seconds} | (_document(file)[measurement] if code == 0 else {})
    return {"code": worst, "seconds": time.monotonic() - began, "rows": rows}


def study(out: Path, limit_s: float) -> dict[str, Any]:
    """The default study, with four trainings at a time on one card, and its report."""
    sets = [word for path, value in STUDY.items() for word in ("--set", f"{path}={value}")]
    code, seconds = run_part([sys.executable, "-m", "study.run", *sets], out / "study.log", limit_s)
    result: dict[str, Any] = {"code": code, "seconds": seconds}
    if code == 0:
        left = max(limit_s - seconds, 30.0)
        code, took = run_part([sys.executable, "-m", "analysis.report", "gpu"], out / "report.log", left)
        result |= {"code": code, "report_s": took}
    return result


PARTS: dict[str, tuple[Callable[[Path, float], dict[str, Any]], float]] = {  # name: (function, seconds at most)
    "tests": (tests, 200.0),
    "bench": (bench, 200.0),
    "study": (study, 140.0),
}


def _document(path: Path) -> Any:
    """The JSON document in a log, between whatever else was said."""
    text = f"\n{path.read_text()}"
    document, _ = json.JSONDecoder().raw_decode(text, text.index("\n{") + 1)
    return document


def _table(document: dict[str, Any]) -> str:
    """What was measured, a line each."""
    lines = [f"{document['device']}, torch {document['torch']}"]
    for name, case in document.get("tests", {}).get("cases", {}).items():
        lines.append(f"  {case['outcome']:8} {case['seconds']:6.1f} s  {name}  {'; '.join(case['said'])}")
    for name, row in document.get("bench", {}).get("rows", {}).items():
        lines.append(f"  {name}: exit code {row['code']}")
        lines += [f"    {key}: {_number(value)}" for key, value in row.items() if key != "code"]
    if "study" in document:
        lines.append(f"  study: {', '.join(f'{key} {_number(value)}' for key, value in document['study'].items())}")
    return "\n".join(lines)


def _number(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.4g} ({value['min']:.4g} to {value['max']:.4g}, n = {value['n']})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """The command's work: its JSON document and the exit code, 1 where a part did not succeed."""
    import torch

    if not torch.cuda.is_available():
        raise UserError("this machine has no usable GPU; run it where torch.cuda.is_available() is true")
    args.out.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name in args.parts:
        function, limit_s = PARTS[name]
        document[name] = function(args.out, limit_s)
        (args.out / "gpu.json").write_text(json.dumps(document, indent=1))
    print(_table(document))
    return document, int(any(document[name]["code"] != 0 for name in args.parts))


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = cli.parser("tests.gpu", "What this machine's GPU does.", "python -m tests.gpu --parts tests bench")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("results/gpu-check"), help="folder for logs and gpu.json")
    return cli.run(parser, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
