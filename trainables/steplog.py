"""Numbers of finished steps, kept on the device until they are looked at, so that the loop never waits for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainables.errors import Diverged


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
        """Keep one step; `scalars`: loss, every term, grad_norm, clipped, failed and, with a trace, the target's."""
        self._names = tuple(scalars)
        self._rows.append(row)
        self._scalars.append(torch.stack(list(scalars.values())))
        self._sample_losses += sample_losses

    def flush(self) -> tuple[list[dict[str, Any]], Diverged | None]:
        """Complete rows in order, ending with the first step that was not finite, and that step's divergence."""
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
            if row.pop("failed"):
                break
        else:
            self._clear()
            return rows, None
        self._clear()
        return rows, Diverged(int(rows[-1]["step"]), self._reason(rows[-1]))

    def _clear(self) -> None:
        self._rows, self._scalars, self._sample_losses = [], [], []

    def _reason(self, row: Mapping[str, Any]) -> str:
        samples = f"samples {', '.join(row['samples'])}"
        broken = [name for name in self._terms if not math.isfinite(row[name])]
        if broken:
            return f"the loss is {row['loss']} (term {', '.join(broken)}; {samples})"
        return f"the gradient norm is {row['grad_norm']} at a loss of {row['loss']:.4g} ({samples})"


def target_extremes(targets: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """target_min, target_max and hole_share over the (target, valid) pairs of a step, as device scalars."""
    low = torch.stack([target.masked_fill(~valid, torch.inf).amin() for target, valid in targets]).amin()
    high = torch.stack([target.masked_fill(~valid, -torch.inf).amax() for target, valid in targets]).amax()
    holes = torch.stack([1.0 - valid.float().mean() for _, valid in targets]).mean()
    return {"target_min": low, "target_max": high, "hole_share": holes}
