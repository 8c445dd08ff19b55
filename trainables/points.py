"""Point cloud of a depth map as a binary PLY file: metres in the camera's frame (x right, y down, z ahead), with color.

Source of NYU Depth v2's color camera: its toolbox, camera_params.m (fx_rgb, fy_rgb, cx_rgb, cy_rgb at 640 x 480).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

WRITER: Final = "comment trainables.predict of the DenseDepth study"
LONGEST_HEADER: Final = 4096  # bytes that are read to know a file of this command
VERTEX: Final = np.dtype([(axis, "<f4") for axis in "xyz"] + [(color, "u1") for color in ("red", "green", "blue")])
TYPES: Final = {"<f4": "float", "|u1": "uchar"}


class Intrinsics(NamedTuple):
    """A pinhole camera in pixels: focal lengths, and the principal point counted from the first pixel's center."""

    fx: float
    fy: float
    cx: float
    cy: float


NYU: Final = Intrinsics(518.8579, 519.4696, 325.5824, 253.7362)
NYU_SIZE: Final = (480, 640)


def nyu_camera(size: tuple[int, int]) -> Intrinsics:
    """NYU Depth v2's color camera on pictures of other rows and columns, taken as the whole view at another size."""
    down, across = size[0] / NYU_SIZE[0], size[1] / NYU_SIZE[1]
    return Intrinsics(NYU.fx * across, NYU.fy * down, (NYU.cx + 0.5) * across - 0.5, (NYU.cy + 0.5) * down - 0.5)


def ply(depth_m: NDArray[np.float32], rgb: NDArray[np.uint8], camera: Intrinsics, picture: str) -> bytes:
    """The points of a depth map (H, W) and its picture (H, W, 3), row by row; pixels without depth (0) are left out.

    picture: the name of what it is made of, which the file's header keeps.
    """
    rows, columns = np.nonzero(depth_m > 0)
    z = depth_m[rows, columns]
    points = np.empty(len(z), VERTEX)
    points["x"], points["y"], points["z"] = (columns - camera.cx) * z / camera.fx, (rows - camera.cy) * z / camera.fy, z
    for place, color in enumerate(("red", "green", "blue")):
        points[color] = rgb[rows, columns, place]
    properties = [f"property {TYPES[VERTEX[name].str]} {name}" for name in VERTEX.names or ()]
    head = [
        "ply", "format binary_little_endian 1.0", WRITER, f"comment {json.dumps(picture)}",
        f"element vertex {len(points)}", *properties, "end_header", "",
    ]  # fmt: skip
    return "\n".join(head).encode("ascii") + points.tobytes()


def made_of(path: Path) -> str | None:
    """The picture that a point cloud of this command was made of; None for any other file."""
    try:
        with path.open("rb") as file:
            lines = file.read(LONGEST_HEADER).split(b"\n")
        if lines[0] != b"ply" or lines[2] != WRITER.encode("ascii"):
            return None
        name = json.loads(lines[3].removeprefix(b"comment "))
    except (OSError, IndexError, ValueError):
        return None
    return name if isinstance(name, str) else None
