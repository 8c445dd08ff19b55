"""`python -m trainables.bench`: speed of a training beside a plain loop."""

from __future__ import annotations

import sys

from trainables.bench.measurements import main

if __name__ == "__main__":
    sys.exit(main())
