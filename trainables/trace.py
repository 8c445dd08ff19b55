"""The step trace: one row per optimiser step, in closed Parquet parts that a kill cannot lose.

A part is written at each checkpoint (temporary file, fsync, rename; page checksums) and all are compacted at the end.
On resume the parts that begin at or after the checkpoint's step are dropped, since their steps are trained again.
Columns: step, images (seen after it), epoch, loss, one per active loss term, lr, grad_norm (before clipping), clipped,
target_min and target_max (in target space, valid pixels), hole_share, seconds (since the training began, downtime
excluded), samples (ids) and sample_losses (each sample's own total).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainables.durable import sync_file, sync_folder

COMPACTED = "trace.parquet"
PARTS = "trace"


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
                part.unlink()

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
            _write(pa.concat_tables([pq.read_table(p, schema=self._schema) for p in parts]), self._folder / COMPACTED)
        for part in parts:
            part.unlink()
        self._parts.rmdir()

    def _reopen(self, first_step: int) -> None:
        compacted = self._folder / COMPACTED
        for part in self._parts.glob("part-*.parquet"):  # a kill between compaction and clearing: it holds them all
            part.unlink()
        table = pq.read_table(compacted, schema=self._schema, filters=[("step", "<", first_step)])
        if table.num_rows:
            _write(table, self._parts / f"part-{table['step'][0].as_py():012d}.parquet")
        compacted.unlink()


def _write(table: pa.Table, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    sync_file(temporary)
    temporary.replace(path)
    sync_folder(path.parent)
