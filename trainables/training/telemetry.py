"""Step trace: one row per optimiser step, in closed Parquet parts that a kill cannot lose.

The numbers of finished steps stay on the device until they are read, so that the loop never waits for them. A part is
written at each checkpoint (temporary file, fsync, rename; page checksums for readers, and its SHA-256 beside
it, because pages leave their headers out) and all are compacted at the end.
On resume the parts that begin at or after the checkpoint's step are dropped, since their steps are trained again, and
those that are kept must hold every step before it, whole.
Columns: step, images (seen after it), epoch, loss, one per active loss term, lr, grad_norm (before clipping), clipped,
target_min and target_max (in target space, valid pixels), hole_share, seconds (since the training began, downtime
excluded), samples (ids) and sample_losses (each sample's own total).
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from trainables.runtime import parallel
from trainables.runtime.durable import naming, sha256, sync_file, sync_folder, write_bytes
from trainables.runtime.errors import Blocked, Diverged

COMPACTED = "trace.parquet"
PARTS = "trace"
ADVICE = "restore it from a copy, or remove the training's folder to train it again"


def trace_schema(terms: tuple[str, ...]) -> pa.Schema:
    """The columns of a trace with these loss terms."""
    floats = ["loss", *terms, "lr", "grad_norm"]
    return pa.schema(
        [("step", pa.int64()), ("images", pa.int64()), ("epoch", pa.int32())]
        + [(name, pa.float32()) for name in floats]
        + [("clipped", pa.bool_())]
        + [(name, pa.float32()) for name in ("target_min", "target_max", "hole_share", "seconds")]
        + [("samples", pa.list_(pa.dictionary(pa.int32(), pa.string()))), ("sample_losses", pa.list_(pa.float32()))]
    )


class TraceWriter:
    """Collects rows and writes them as parts; `close` compacts. Rows before `first_step` are kept from earlier runs."""

    def __init__(self, folder: Path, terms: tuple[str, ...], first_step: int) -> None:
        self._folder = folder
        self._parts = folder / PARTS
        self._schema = trace_schema(terms)
        self._rows: list[dict[str, Any]] = []
        self._parts.mkdir(parents=True, exist_ok=True)
        if (folder / COMPACTED).exists():
            self._reopen(first_step)
        for part in self._parts.glob("part-*.parquet"):
            if int(part.stem.split("-")[1]) >= first_step:
                _remove(part)
        self._check(first_step)

    def append(self, row: dict[str, Any]) -> None:
        """Keep one row until the next part."""
        self._rows.append(row)

    def flush(self) -> None:
        """Write the rows so far as one closed part."""
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=self._schema)
            _write(table, self._parts / f"part-{self._rows[0]['step']:012d}.parquet")
            self._rows = []

    def close(self) -> None:
        """Flush and compact the parts into one file."""
        self.flush()
        parts = sorted(self._parts.glob("part-*.parquet"))
        if parts:
            _write(pa.concat_tables([_read(part, self._schema) for part in parts]), self._folder / COMPACTED)
        shutil.rmtree(self._parts)

    def _reopen(self, first_step: int) -> None:
        compacted = self._folder / COMPACTED
        table = _read(compacted, self._schema).filter(pc.field("step") < first_step) if first_step else None
        for part in self._parts.glob("part-*.parquet"):  # a kill between compaction and clearing: it holds them all
            _remove(part)
        if table is not None and table.num_rows:
            _write(table, self._parts / f"part-{table['step'][0].as_py():012d}.parquet")
        _remove(compacted)

    def _check(self, first_step: int) -> None:
        steps = [step for part in sorted(self._parts.glob("part-*.parquet")) for step in _steps(part, self._schema)]
        if steps != list(range(first_step)):
            raise Blocked(f"{self._parts} lacks steps before step {first_step} of the checkpoint; {ADVICE}")


def _steps(part: Path, schema: pa.Schema) -> list[int]:
    steps: list[int] = _read(part, schema)["step"].to_pylist()
    return steps


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    """A part as it was written. Raises Blocked for a damaged one."""
    digest = _digest(path)
    if digest.exists() and digest.read_bytes() != sha256(path).encode():
        raise Blocked(f"{path} has changed since it was written (SHA-256 differs); {ADVICE}")
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read(use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        problem = str(error).splitlines()[0]
        raise Blocked(f"{path}: the step trace is damaged ({problem}); {ADVICE}") from error
    if table.schema != schema or any(column.null_count for column in table.columns):
        raise Blocked(f"{path}: the step trace is damaged (its columns are not as they were written); {ADVICE}")
    return table


def _write(table: pa.Table, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with naming(path):
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    sync_file(temporary)
    write_bytes(_digest(path), sha256(temporary).encode())  # first: a kill in between leaves a digest of nothing
    temporary.replace(path)
    sync_folder(path.parent)


def _remove(path: Path) -> None:
    _digest(path).unlink(missing_ok=True)
    path.unlink()


def _digest(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


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
