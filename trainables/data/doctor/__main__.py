"""`python -m trainables.data.doctor`: defects of a data set, before anything trains."""

from __future__ import annotations

import sys

from trainables.data.doctor.diagnosis import main

if __name__ == "__main__":
    sys.exit(main())
