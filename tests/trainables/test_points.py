"""Point clouds: places worked out by hand, a header that readers know, and files that are nobody else's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainables import points
from trainables.predict import check_outputs
from trainables.runtime.errors import UserError

CAMERA = points.Intrinsics(100.0, 50.0, 1.0, 0.5)


def read(content: bytes) -> np.ndarray:
    head, _, body = content.partition(b"end_header\n")
    lines = head.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert lines[-6:] == [f"property float {axis}" for axis in "xyz"] + [
        f"property uchar {color}" for color in ("red", "green", "blue")
    ]
    (count,) = [int(line.rpartition(" ")[2]) for line in lines if line.startswith("element vertex ")]
    assert len(body) == count * 15
    return np.frombuffer(body, points.VERTEX)


def test_a_point_lies_where_the_camera_saw_it() -> None:
    depth_m = np.array([[2.0, 0.0, 4.0], [1.0, 3.0, 5.0]], np.float32)
    rgb = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    cloud = read(points.ply(depth_m, rgb, CAMERA, "a.jpg"))
    assert len(cloud) == 5  # a hole is no point
    assert cloud["x"] == pytest.approx([-0.02, 0.04, -0.01, 0.0, 0.05])  # (column - 1) * z / 100
    assert cloud["y"] == pytest.approx([-0.02, -0.04, 0.01, 0.03, 0.05])  # (row - 0.5) * z / 50
    assert cloud["z"].tolist() == [2.0, 4.0, 1.0, 3.0, 5.0]
    assert cloud[["red", "green", "blue"]][1].tolist() == (6, 7, 8)


def test_nyus_camera_follows_the_size() -> None:
    assert points.nyu_camera((480, 640)) == pytest.approx(points.NYU)
    half = points.nyu_camera((240, 320))
    assert (half.fx, half.cy) == pytest.approx((points.NYU.fx / 2, (points.NYU.cy + 0.5) / 2 - 0.5))


def test_only_a_cloud_of_the_same_picture_is_replaced(tmp_path: Path) -> None:
    picture, place = tmp_path / "a b\u00e9.jpg", tmp_path / "a b\u00e9_points.ply"
    check_outputs([picture], None, cloud=True)
    place.write_bytes(points.ply(np.ones((1, 1), np.float32), np.zeros((1, 1, 3), np.uint8), CAMERA, picture.name))
    assert points.made_of(place) == picture.name
    check_outputs([picture], None, cloud=True)
    for content in (b"ply\nformat ascii 1.0\n", b"", b"ply\nx\n" + points.WRITER.encode() + b"\ncomment 3\n"):
        place.write_bytes(content)
        assert points.made_of(place) is None
        with pytest.raises(UserError, match="is not a file of this command"):
            check_outputs([picture], None, cloud=True)
    check_outputs([picture], None)  # without --points nothing is written there
    place.write_bytes(points.ply(np.ones((1, 1), np.float32), np.zeros((1, 1, 3), np.uint8), CAMERA, "other.jpg"))
    with pytest.raises(UserError, match=r"was made of other\.jpg"):
        check_outputs([picture], None, cloud=True)
