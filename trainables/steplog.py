"""Log of finished steps, kept on the device until it is read, so that the loop never waits for it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainables import parallel
from trainables.errors import Diverged

PART = ("samples", "places", "sample_losses")  # of a row: what each process knows of its own part of the batch
EXTREMES = ("target_min", "target_max", "hole_share")


class StepLog:
    """Rows of host values with device scalars and per-sample losses beside them; `flush` transfers them at once."""

    def __init__(self, terms: tuple[str, ...]) -> None:
        self._terms = terms
        self._rows: list[dict[str, Any]] = []
        self._names: tuple[str, ...] = ()
        self._scalars: list[Tensor] = []
        self._sample_losses: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: dict[str, Any], scalars: Mapping[str, Tensor], sample_losses: Sequence[Tensor]) -> None:
        """Keep one step; `scalars`: loss, every term, grad_norm, clipped, failed and, with a trace, the target's.

        `row` names its `samples` and their `places` (images seen before each).
        """
        self._names = tuple(scalars)
        self._rows.append(row)
        self._scalars.append(torch.stack(list(scalars.values())))
        self._sample_losses += sample_losses

    def flush(self) -> tuple[list[dict[str, Any]], Diverged | None]:
        """Complete rows in order, ending with the first step that was not finite, and that step's divergence.

        Where several processes train together, all flush at the same step and get the rows of whole batches.
        """
        if not self._rows:
            return [], None
        scalars = torch.stack(self._scalars).cpu().tolist()
        own = torch.cat(self._sample_losses).cpu().tolist()
        rows, start = [], 0
        for row, values in zip(self._rows, scalars, strict=True):
            row |= dict(zip(self._names, values, strict=True))
            row["clipped"] = row["clipped"] > 0
            row["sample_losses"] = own[start : start + len(row["samples"])]
            start += len(row["samples"])
            rows.append(row)
            if row["failed"]:
                break
        self._rows, self._scalars, self._sample_losses = [], [], []
        rows = _whole(rows)
        failed = [row.pop("failed") for row in rows]
        return rows, Diverged(int(rows[-1]["step"]), self._reason(rows[-1])) if failed[-1] else None

    def _reason(self, row: Mapping[str, Any]) -> str:
        samples = f"samples {', '.join(row['samples'])}"
        broken = [name for name in self._terms if not math.isfinite(row[name])]
        if broken:
            return f"the loss is {row['loss']} (term {', '.join(broken)}; {samples})"
        return f"the gradient norm is {row['grad_norm']} at a loss of {row['loss']:.4g} ({samples})"


def _whole(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of whole batches, samples in their order, of every process's rows of its parts."""
    names = (*PART, *(name for name in EXTREMES if name in rows[0]))
    everyone = parallel.gather([{name: row[name] for name in names} for row in rows])
    for row, parts in zip(rows, zip(*everyone, strict=True), strict=True):
        counts = [len(part["samples"]) for part in parts]
        joined = [list(itertools.chain.from_iterable(part[name] for part in parts)) for name in PART]
        by_place = sorted(zip(*joined, strict=True), key=lambda sample: sample[1])
        row["samples"], _, row["sample_losses"] = (list(column) for column in zip(*by_place, strict=True))
        del row["places"]
        if "hole_share" in row:
            row["target_min"] = min(part["target_min"] for part in parts)
            row["target_max"] = max(part["target_max"] for part in parts)
            shares = (part["hole_share"] * count for part, count in zip(parts, counts, strict=True))
            row["hole_share"] = sum(shares) / sum(counts)
    return rows


def target_extremes(targets: Sequence[tuple[Tensor, Tensor, int]]) -> dict[str, Tensor]:
    """target_min, target_max and hole_share over a step's (target, valid, number of samples), as device scalars."""
    low = torch.stack([target.masked_fill(~valid, torch.inf).amin() for target, valid, _ in targets]).amin()
    high = torch.stack([target.masked_fill(~valid, -torch.inf).amax() for target, valid, _ in targets]).amax()
    count = max(sum(samples for _, _, samples in targets), 1)
    holes = torch.stack([(1.0 - valid.float().mean()) * (samples / count) for _, valid, samples in targets]).sum()
    return {"target_min": low, "target_max": high, "hole_share": holes}
