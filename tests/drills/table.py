"""The drills' table: one row per drill, to the file that DRILLS names, else to the screen."""

from __future__ import annotations

import os
from pathlib import Path


def record(drill: str, seed: int, count: int, result: str, seconds: float) -> None:
    line = f"{drill} | seed {seed} | {count} | {result} | {seconds:.0f} s"
    path = os.environ.get("DRILLS")
    if path is None:
        print(f"\n{line}")
        return
    with Path(path).open("a") as file:
        file.write(line + "\n")
