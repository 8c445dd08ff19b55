"""Prepared samples on disk, memory-mapped and shared by every training of a node that prepares them alike.

CACHE/KEY/samples.bin holds a record per frame of the published list (target, colour, validity), CACHE/KEY/sums.bin a
checksum per record, 0 where there is none yet. KEY hashes everything that decides a sample. Whoever misses a sample
prepares it and writes record, then checksum; two that do it at once write the same bytes, so nothing is locked. A
record that does not fit its checksum (a torn write, a flipped bit) is prepared again. Delete the folder at any time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trainables.data.frames import FrameList
from trainables.data.samples import Sample
from trainables.models.depth_model import output_size
from trainables.runtime import locks
from trainables.runtime.durable import write_json
from trainables.runtime.errors import Blocked, UserError
from trainables.settings.config import DataConfig, TrialConfig, as_dict

VERSION: Final = 1  # of samples.prepare: a change of its numbers must raise it
_PRESENT: Final = 1 << 32  # beside the CRC-32 in a checksum, so that 0 means absent
_GB: Final = 10**9


@dataclass
class SampleCache:
    """Samples by the reader's frame number, below `slots`. Open it with `open_cache`."""

    folder: Path
    slots: int
    input: tuple[int, int]
    output: tuple[int, int]

    def __post_init__(self) -> None:
        self._records: npt.NDArray[np.uint8] | None = None
        self._sums: npt.NDArray[np.uint64] | None = None
        self._checked = np.zeros(self.slots, np.bool_)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "slots": self.slots, "input": self.input, "output": self.output}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    @property
    def record_bytes(self) -> int:
        """Target float32, colour and validity of one sample."""
        return self.output[0] * self.output[1] * 5 + self.input[0] * self.input[1] * 3

    def read(
        self, slot: int, rgb: npt.NDArray[np.uint8], target: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]
    ) -> bool:
        """Copy a sample into arrays of shapes (h, w, 3), (1, h', w') and (1, h', w'); False where it is not there or
        damaged. It is checked once per process.
        """
        if slot >= self.slots:
            return False
        records, sums = self._maps()
        expected = int(sums[slot])
        if not expected:
            return False
        record = records[slot]
        if not self._checked[slot]:
            if expected != _PRESENT | zlib.crc32(record):
                return False
            self._checked[slot] = True
        pixels = self.output[0] * self.output[1]
        target[...] = record[: pixels * 4].view(np.float32).reshape(target.shape)
        rgb[...] = record[pixels * 4 : -pixels].reshape(rgb.shape)
        valid[...] = record[-pixels:].view(np.bool_).reshape(valid.shape)
        return True

    def put(self, slot: int, sample: Sample) -> None:
        """Write a sample. Raises Blocked on a full disk."""
        if slot >= self.slots:
            return
        parts = (sample.target, sample.rgb.permute(1, 2, 0), sample.valid)
        record = b"".join(np.ascontiguousarray(part.numpy()).tobytes() for part in parts)
        checksum = np.uint64(_PRESENT | zlib.crc32(record))
        try:  # written, not through the map: a full disk is then an error and not a signal
            for name, content, size in (("samples", record, len(record)), ("sums", checksum.tobytes(), 8)):
                descriptor = os.open(self.folder / f"{name}.bin", os.O_WRONLY)
                try:
                    done = os.pwrite(descriptor, content, slot * size)
                finally:
                    os.close(descriptor)
                if done < size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _refused(self.folder, error) from None

    def _maps(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]:
        if self._records is None or self._sums is None:
            shape = (self.slots, self.record_bytes)
            self._records = np.memmap(self.folder / "samples.bin", np.uint8, "r", shape=shape)
            self._sums = np.memmap(self.folder / "sums.bin", np.uint64, "r", shape=(self.slots,))
        return self._records, self._sums


def open_cache(frames: FrameList, config: TrialConfig) -> SampleCache | None:
    """The cache of these settings, made where needed; null without `data.cache`, or where not one sample fits in
    `data.cache_gb`. Raises Blocked where the folder cannot be made or the disk cannot hold the samples.
    """
    data = config.data
    if data.cache is None:
        return None
    total = len(frames.reader)
    about = {
        "version": VERSION,
        "frames": frames.published_digest,
        "pairing": None if frames.rgb_of == frames.depth_of else _sha([frames.rgb_of, frames.depth_of]),
        "input": list(config.input),
        "output": list(output_size(config.model, config.input)),
        "target": as_dict(config.target),
        "crop_border_px": data.crop_border_px,
        "coding": [data.depth_scale, data.reach_m, *data.hole_values],
    }
    folder = Path(data.cache) / _sha(about)[:16]
    cache = SampleCache(folder, total, config.input, output_size(config.model, config.input))
    if data.cache_gb is not None:
        cache = SampleCache(
            folder, min(total, int(data.cache_gb * _GB) // cache.record_bytes), cache.input, cache.output
        )
    if not cache.slots:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(folder / "lock"):
            write_json(folder / "about.json", about)
            held = _grow(folder / "samples.bin", cache.slots * cache.record_bytes)
            _grow(folder / "sums.bin", cache.slots * 8)
        missing = min(len(frames), cache.slots) * cache.record_bytes - held
        if missing > shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, f"it lacks {missing / _GB:.1f} GB")
    except OSError as error:
        raise _refused(folder, error) from None
    return cache


def check_place(data: DataConfig) -> None:
    """Raise UserError for a `data.cache` that cannot be made; nothing is written."""
    if data.cache is None:
        return
    folder = Path(data.cache).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "it may not be written to" if there.is_dir() else "it is a file"
        raise UserError(f"data.cache: {folder} cannot be made in {there} ({why}); name another folder")


def _grow(path: Path, size: int) -> int:
    """Make the file at least `size` bytes long, without filling it; returns the bytes it really takes."""
    with path.open("ab") as file:
        status = os.fstat(file.fileno())
        if status.st_size < size:  # longer where another training caches more frames
            os.ftruncate(file.fileno(), size)
        return status.st_blocks * 512


def _refused(folder: Path, error: OSError) -> Blocked:
    return Blocked(f"data.cache {folder} cannot be written ({error.strerror}); free space, or lower data.cache_gb")


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
