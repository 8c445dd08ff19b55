"""Colors of depth drawn without matplotlib are matplotlib's."""

from __future__ import annotations

import matplotlib
import numpy as np

from trainables import colors


def test_the_scale_is_that_of_the_plots() -> None:
    depth_m = np.linspace(2.0, 4.0, 256)[None]
    plotted = matplotlib.colormaps[colors.DEPTH](np.arange(256), bytes=True)[:, :3].astype(int)
    assert np.abs(colors.depth_rgb(depth_m, 2.0, 4.0)[0].astype(int) - plotted).max() <= 2


def test_beyond_the_scale_is_its_end_and_no_depth_is_grey() -> None:
    picture = colors.depth_rgb(np.array([[1.0, 9.0, 0.0, np.nan, -1.0]]), 2.0, 4.0)[0].tolist()
    near, far = colors.depth_rgb(np.array([[2.0, 4.0]]), 2.0, 4.0)[0].tolist()
    assert picture == [near, far, *[list(colors.HOLE_RGB)] * 3] and near != far
