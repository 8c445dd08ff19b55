"""Colors of depth drawn without matplotlib are matplotlib's."""

from __future__ import annotations

import matplotlib
import numpy as np

from trainables import colors


def test_the_scales_are_those_of_the_plots() -> None:
    values = np.linspace(2.0, 4.0, 256)[None]
    depth, error = (matplotlib.colormaps[name](np.arange(256), bytes=True) for name in (colors.DEPTH, colors.ERROR))
    assert np.abs(colors.depth_rgb(values, 2.0, 4.0)[0] - depth[:, :3].astype(int)).max() <= 2
    known = np.ones_like(values, dtype=bool)
    assert np.abs(colors.error_rgb(values - 2.0, known, 2.0)[0] - error[:, :3].astype(int)).max() <= 2


def test_beyond_the_scale_is_its_end_and_no_depth_is_grey() -> None:
    picture = colors.depth_rgb(np.array([[1.0, 9.0, 0.0, np.nan, -1.0]]), 2.0, 4.0)[0].tolist()
    near, far = colors.depth_rgb(np.array([[2.0, 4.0]]), 2.0, 4.0)[0].tolist()
    assert picture == [near, far, *[list(colors.HOLE_RGB)] * 3] and near != far
