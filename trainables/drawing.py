"""Drawing with matplotlib as this project does: into files, by matplotlib's own settings and not by the user's.

A notebook hands MPLBACKEND to the commands it starts; where it names a module of the notebook's own environment,
matplotlib refuses to be imported. A matplotlibrc may ask for TeX, or for sizes that a picture's layout does not expect.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


def forget_unusable_backend() -> None:
    """Import matplotlib without MPLBACKEND where that names no backend of this environment; nothing opens a window."""
    if "MPLBACKEND" not in os.environ or "matplotlib" in sys.modules:
        return
    named = os.environ.pop("MPLBACKEND")
    import matplotlib as mpl  # an import that fails half-way cannot be tried again

    with contextlib.suppress(ValueError):
        mpl.rcParams["backend"] = named
        os.environ["MPLBACKEND"] = named


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """matplotlib's own settings for whatever is drawn inside; the caller's are back afterwards."""
    forget_unusable_backend()
    import matplotlib as mpl  # slow to import, and most commands draw nothing

    with mpl.rc_context():
        mpl.rcdefaults()
        yield
