"""Colors of depth: one scale in every picture of the project, near in yellow and far in dark blue, and holes in grey.

viridis can be read by color-blind eyes and in grey; errors have a scale of their own, so that none is taken for depth.
"""

DEPTH = "viridis_r"  # of a depth map, near to far
ERROR = "magma"  # of an absolute error, none to large
HOLE = "#9a9a9a"  # pixels without depth
HOLE_RGB = (0x9A, 0x9A, 0x9A)
