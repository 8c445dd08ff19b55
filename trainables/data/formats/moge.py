"""MoGe's evaluation archive of NYU Depth v2, `NYUv2.zip`, in place or unpacked: test split only.

    NYUv2/.index.txt                a sample's folder per line
    NYUv2/SAMPLE/image.jpg          NYUv2/SAMPLE/depth.png   16 bits, logarithmic (trainables/data/depth_coding.py)

0 is no depth, so that the truth counts as raw.
"""

from __future__ import annotations

from typing import Final, Literal

from trainables.data.depth_coding import DepthCoding
from trainables.data.files import safe_name
from trainables.data.formats.list import place_of
from trainables.data.frames import FrameList
from trainables.data.lists import read_rows
from trainables.data.pairs import Absent, PairReader, open_files, root_of
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig

DEPTHS: Final[tuple[Literal["filled", "raw"], ...]] = ("raw",)
MARK: Final = "NYUv2/.index.txt"
INDEX: Final = ".index.txt"
_PREFIXES: Final = ("NYUv2/", "")


def open_split(data: DataConfig, split: Literal["train", "test"]) -> FrameList:
    """The samples of the index. Raises UserError."""
    if split == "train":
        raise Absent("data.source moge holds test frames only; train on kaggle, bts, labeled, h5 or rooms")
    root = root_of(data, "MoGe's NYUv2.zip or its unpacked folder", DEPTHS, ("hole_values",))
    files = open_files(root, data)
    prefix = next((prefix for prefix in _PREFIXES if files.has(prefix + INDEX)), None)
    if prefix is None:
        raise Absent(f"{files.where('NYUv2/' + INDEX)} is missing; set data.root to MoGe's NYUv2.zip or its folder")
    where = files.where(prefix + INDEX)
    rows = read_rows(files.read(prefix + INDEX), where)
    if not rows:
        raise UserError(f"{where} lists no samples; download the archive again")
    samples = [safe_name(row.fields[0].rstrip("/"), f"{where}:{row.number}") for row in rows]
    pairs = tuple((f"{prefix}{s}/image.jpg", f"{prefix}{s}/depth.png") for s in samples)
    reader = PairReader(files, pairs, DepthCoding.of(data, logarithmic=True), (prefix + INDEX,))
    scenes = [place_of(f"{sample}.jpg") for sample in samples]
    return FrameList.of(samples, scenes, reader, "raw", data.reach_m)
