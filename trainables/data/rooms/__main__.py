"""`python -m trainables.data.rooms`: the embedded data set, written to a folder."""

from __future__ import annotations

import sys

from trainables.data.rooms.writer import main

if __name__ == "__main__":
    sys.exit(main())
