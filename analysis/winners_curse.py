"""Winner's curse: the search's value of a setting against the values of its fresh seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import intervals
from analysis.section import Table, number, records
from analysis.tables import StudyTables
from study.contract import Judge, confirm_images

Row = dict[str, Any]


def gaps(tables: StudyTables, judge: Judge, confirmed: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Per confirmed setting: what the search said, what fresh seeds say; gap > 0: the search was too kind.

    confirmed: group -> its judged trainings. Groups on more images than the search's trainings saw are left out: they
    differ by more than luck. The median counts seeds without a value as the worst: where they are the half, it is
    infinite, and so is the gap.
    """
    origins = {str(r["group"]): str(r["origin"]) for r in records(tables.phase("confirm")[["group", "origin"]])}
    search = {str(r["key"]): r["value"] for r in records(tables.phase("search")[["key", "value"]])}
    sign = 1.0 if judge.minimise else -1.0
    rows = []
    for group, members in confirmed.items():
        best, origin = judge.choose(members), origins[group]
        if best is not None and search.get(origin) is not None and not confirm_images(group):
            gap = sign * (best.median - search[origin])
            row = {"group": group, "origin": origin, "search": search[origin]}
            rows.append(row | {"confirm_median": best.median, "gap": gap, "seeds": len(members)})
    return sorted(rows, key=lambda row: (sign * row["confirm_median"], row["group"]))


def sentences(found: Sequence[Row], unit: str) -> list[str]:
    """How far fresh seeds are from what the search said, and of which settings that cannot be said."""
    known = [row for row in found if np.isfinite(row["gap"])]
    said = []
    if known:
        mean, worst = intervals.paired([row["gap"] for row in known], "settings"), max(known, key=lambda r: r["gap"])
        search, fresh = (f"{number(worst[name])} {unit}".strip() for name in ("search", "confirm_median"))
        clear = "" if mean.low is None or mean.distinguishable else ", not distinguishable from none"
        if len(known) == 1:
            way = "worse" if worst["gap"] > 0 else "better"
            by = f"{number(abs(worst['gap']))} {unit}".strip()
            said.append(
                f"Winner's curse: {worst['origin']} had {search} in the search, its fresh seeds are {way} by {by}, "
                f"at {fresh} (n = 1 setting, no interval)."
            )
        else:
            most = "most for" if worst["gap"] > 0 else "least so for"
            said.append(
                f"Winner's curse: against the search's values, fresh seeds are {mean.versus(unit)}{clear}; {most} "
                f"{worst['origin']}, with {search} in the search and {fresh} on its fresh seeds."
            )
    if lost := [row["origin"] for row in found if row not in known]:
        said.append(
            f"Half of the fresh seeds of {', '.join(lost)}, or more, have no value, so they have no median to compare "
            "with the search."
        )
    return said


def table(found: Sequence[Row], unit: str) -> list[Table]:
    """One row per confirmed setting."""
    if not found:
        return []
    note = "gap: how much worse the median of the fresh seeds is than the value the search selected by."
    units = dict.fromkeys(("search", "confirm_median", "gap"), unit)
    return [Table("selection-gap", "Search against fresh seeds", pd.DataFrame(list(found)), note, units)]
