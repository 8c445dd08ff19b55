"""`python -m analysis.spikes`: loss spikes of a study, with their causes."""

from __future__ import annotations

import sys

from analysis.spikes.causes import main

if __name__ == "__main__":
    sys.exit(main())
