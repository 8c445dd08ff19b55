"""`nyu_depth_v2_labeled.mat`, the 1449 labelled frames of NYU Depth v2 (a MATLAB 7.3 file, which is HDF5).

MATLAB stores columns first, so that arrays are read transposed: `images` (N, 3, 640, 480) uint8, `depths` (in-painted)
and `rawDepths` (holes are 0) (N, 640, 480) float metres, `scenes` (1, N) references to character arrays.
`splits.mat` beside it (MATLAB 5, or 7.3) holds trainNdxs and testNdxs, counted from 1. The 80/10/10 splits leave a
seeded tenth for the test; validation is taken from the rest as everywhere else (a ninth of it is the other tenth).
A frame's id is its 0-based number, the one that the Kaggle form's test names carry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import h5py
import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from trainables.data.files import CONTENT_LIMIT
from trainables.data.frames import BadFrame, Depth, FrameList, Kept, Reader, Rgb, scene_name
from trainables.data.hdf5 import checked_depth, dataset, opened
from trainables.data.pairs import Absent, root_of
from trainables.data.split import held_out
from trainables.runtime.durable import sha256
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig

MARK: Final = "nyu_depth_v2_labeled.mat"
FILE: Final = "nyu_depth_v2_labeled.mat"
SPLITS: Final = "splits.mat"
TEST_SHARE: Final = 0.1
SPLIT_SEED: Final = 0  # of the 80/10/10 splits; published by nobody
DEPTHS: Final[dict[Literal["filled", "raw"], str]] = {"filled": "depths", "raw": "rawDepths"}
_MATLAB_7: Final = b"\x89HDF"


def open_split(data: DataConfig, split: Literal["train", "test"]) -> FrameList:
    """The frames of a split. Raises UserError for a missing or damaged file, or wrong keys and shapes in it."""
    if data.root is None:
        raise UserError(f"data.root is null; set it to {FILE} or the folder that holds it")
    root_of(data.model_copy(update={"split": "official"}), f"{FILE} or the folder that holds it", tuple(DEPTHS), ())
    path = Path(data.root) / FILE if Path(data.root).is_dir() else Path(data.root)
    if not path.is_file() or path.suffix != ".mat":
        raise Absent(f"{path} is missing or no .mat file; set data.root to {FILE} or the folder that holds it")
    reader = LabeledReader(path, DEPTHS[data.depth])
    count = len(reader)
    scenes = frame_scenes(path)
    if len(scenes) != count:
        raise UserError(f"{path}: its scenes name {len(scenes)} frames, its images are {count}; download it again")
    if data.split == "official":
        chosen = _official(path.parent / SPLITS, split, count)
    else:
        by: Literal["scene", "frame"] = "scene" if data.split.endswith("scene") else "frame"
        test = held_out(scenes, by, TEST_SHARE, SPLIT_SEED, "data.split")
        chosen = [i for i in range(count) if (i in test) == (split == "test")]
    frames = FrameList.of([f"{i:05d}" for i in range(count)], scenes, reader, data.depth, data.reach_m)
    return frames.subset(chosen)


def frame_scenes(path: Path) -> list[str]:
    """The place of every labelled frame, in order; takes of one place (bookstore_0001d and e) are one scene."""
    with opened(path) as file:
        references = dataset(file, "scenes", "O", (None, None))[()].ravel()
        names = []
        for reference in references:
            letters = file[reference] if isinstance(reference, h5py.Reference) and reference else None
            if not isinstance(letters, h5py.Dataset) or letters.dtype.kind != "u" or letters.external:
                raise BadFrame(f"{path}: its scenes are not names; download it again")
            names.append(scene_name("".join(chr(int(code)) for code in letters[()].ravel())))
    return names


def scenes_beside(root: Path, numbers: Sequence[int | None]) -> list[str | None]:
    """The places of labelled frames by their 0-based numbers; None unless the labelled set lies in or beside a root."""
    folder = root if root.is_dir() else root.parent
    path = next((place / FILE for place in (folder, folder.parent) if (place / FILE).is_file()), None)
    if path is None:
        return [None] * len(numbers)
    known = frame_scenes(path)
    return [known[n] if n is not None and 0 <= n < len(known) else None for n in numbers]


@dataclass(frozen=True)
class LabeledReader:
    """The file is opened for each read, so that processes and threads share nothing."""

    path: Path
    depths: str

    def __len__(self) -> int:
        with opened(self.path) as file:
            return int(self._pair(file)[0].shape[0])

    def _pair(self, file: Any) -> tuple[Any, Any]:
        images = dataset(file, "images", "u1", (None, 3, None, None))
        count, _, columns, rows = images.shape
        return images, dataset(file, self.depths, "f", (count, columns, rows))

    def rgb(self, index: int) -> Rgb:
        with opened(self.path) as file:
            return np.ascontiguousarray(self._pair(file)[0][index].transpose(2, 1, 0))

    def depth_m(self, index: int) -> Depth:
        with opened(self.path) as file:
            return checked_depth(self._pair(file)[1][index].T, f"{self.path}: {self.depths} of frame {index:05d}")

    def check(self, index: int, *, thorough: bool) -> None:
        if thorough and self.path.stat().st_size <= CONTENT_LIMIT:
            self.depth_m(index)

    def digest(self, indices: Sequence[int], *, content: bool = False) -> tuple[str, str]:
        size = self.path.stat().st_size
        whole = content or size <= CONTENT_LIMIT
        known, made_of = (sha256(self.path), "content") if whole else (str(size), "names and sizes")
        text = repr((FILE, known, self.depths, tuple(indices)))
        return hashlib.sha256(text.encode()).hexdigest(), made_of

    def kept(self, indices: Sequence[int]) -> Kept:
        return Kept(self.path, (self.path.name, SPLITS), (), None, pixels=True)

    def kinds(self) -> tuple[Reader, ...]:
        return tuple(LabeledReader(self.path, depths) for depths in DEPTHS.values())

    def steps(self) -> dict[int, float]:
        return {}


def _official(path: Path, split: Literal["train", "test"], count: int) -> list[int]:
    """Numbers of a split, 0-based and in order. Raises UserError for a missing, damaged or overlapping list."""
    if not path.is_file():
        raise UserError(f"{path} is missing; download it with the labelled set, or set data.split to 80_10_10_by_scene")
    lists = {}
    for key in ("trainNdxs", "testNdxs"):
        values = _matlab_array(path, key)
        if values.dtype.kind not in "uif" or not values.size or values.min() < 1 or values.max() > count:
            raise UserError(f"{path}: its {key} are not frame numbers from 1 to {count}; download it again")
        lists[key] = {int(value) - 1 for value in values.ravel()}
    if lists["trainNdxs"] & lists["testNdxs"]:
        raise UserError(f"{path}: a frame is in trainNdxs and in testNdxs; download it again")
    return sorted(lists["trainNdxs" if split == "train" else "testNdxs"])


def _matlab_array(path: Path, key: str) -> Any:
    try:
        with path.open("rb") as head:
            newer = head.read(4) == _MATLAB_7
        found = {} if newer else loadmat(path, variable_names=[key])
    except (MatReadError, ValueError, TypeError, OSError, NotImplementedError) as error:
        said = f"{path} is not a readable MATLAB file ({error}); see whether you may read it, else download it again"
        raise UserError(said) from None
    if newer:
        with opened(path) as file:
            return dataset(file, key, "f", (None, None))[()]
    if key not in found:
        raise UserError(f"{path}: its {key} is missing; download it again")
    return found[key]
