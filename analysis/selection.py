"""Selection of the checkpoint: the judge's choice, its distance from the runner-up, and the search's optimism.

The ranking is study/contract.py's, the settings of the judge those hashed into the ledger before trial 1. The search
proposes; trainings on fresh seeds decide. Simplest: the fewest settings that differ from the searched recipe's own.
The search's optimism (the winner's curse) is its value of a setting against the values of the fresh seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from analysis import runs, statistics
from analysis.page.section import Figure, Section, Table, number, plain, records
from analysis.page.style import BLUE, VERMILION
from analysis.tables.tidy import StudyTables, configured_phases
from study.contract import Judge, Outcome, confirm_images
from trainables.settings.registry import METRICS

COMPETING = ("confirm", "search", "reproduce")  # phases that a champion may come from, the first that has one
MOST_CANDIDATES = 20
RELATIVE = "config.target.kind"


Row = dict[str, Any]


@dataclass(frozen=True)
class Chosen:
    """The judge's choice. phase: where it was decided ('confirm'; 'search' or 'reproduce': not confirmed)."""

    phase: str
    group: str
    champion: str
    members: tuple[str, ...]
    median: float


def choose(tables: StudyTables) -> Chosen | None:
    """The champion: of the confirmation; before there is one, of the search; without a search, of the reproductions."""
    if tables.judge is None:
        return None
    for phase in COMPETING:
        best = tables.judge.choose(judged_rows(tables, phase))
        if best is not None:
            return Chosen(phase, best.group, best.champion, best.members, best.median)
    return None


def why_none(tables: StudyTables) -> str:
    """Reason why `choose` finds no champion, as part of a sentence."""
    trials = tables.trials
    if len(trials) and not trials["phase"].isin(COMPETING).any():
        return "all trainings of this study test claims, which are compared in pairs and do not compete"
    ended = int(trials["outcome"].isin(list(Outcome)).sum())
    return f"none of {ended} ended trainings is complete with a finite judged value"


def judged_rows(tables: StudyTables, phase: str, group: str | None = None) -> list[dict[str, Any]]:
    """A phase's trainings as the judge takes them; of a recipe with stages only the last stage is judged.

    A training that has not ended yet is left out: it has not failed. Relative depth is fitted to each frame before it
    is measured, so its values compare with each other alone: between groups it counts only where nothing else is there.
    Of confirmations extended to more images only the longest are taken, unless a group is named.
    """
    rows = tables.phase(phase)
    rows = rows[rows["outcome"].isin(list(Outcome))]
    if group is None and RELATIVE in rows:
        metric = rows[rows[RELATIVE] != "relative"]
        rows = metric if (metric["outcome"] == Outcome.COMPLETE).any() else rows
    if group is not None:
        rows = rows[rows["group"] == group]
    if rows.empty:
        return []
    stage = pd.to_numeric(rows["stage"]).fillna(0)
    last = stage.groupby(rows["group"]).transform("max")
    kept = rows[stage == last]
    found = records(kept[["key", "outcome", "group", "value"]])
    return found if group is not None or tables.judge is None else [dict(row) for row in tables.judge.longest(found)]


def unit_of(metric: str) -> str:
    """The unit of a metric for sentences; empty where it has none."""
    return METRICS[metric].unit if metric in METRICS else ""


def with_unit(metric: str) -> str:
    """'rmse (m)', for the axes of a figure."""
    return f"{metric} ({unit_of(metric)})" if unit_of(metric) else metric


def settings_that_differ(tables: StudyTables, key: str, other: str) -> dict[str, tuple[Any, Any]]:
    """The settings {path: (of key, of other)} in which two trainings differ, seed and bookkeeping aside."""
    by_key = tables.trials.set_index("key")
    if key not in by_key.index or other not in by_key.index:
        return {}
    paths = [c for c in tables.trials.columns if c.startswith("config.") and c not in ("config.seed",)]
    a, b = by_key.loc[key, paths], by_key.loc[other, paths]
    return {p.removeprefix("config."): (a[p], b[p]) for p in paths if plain(a[p]) != plain(b[p])}


def analyse(tables: StudyTables) -> Section:
    """The section: the choice, its distance from the runner-up, the gap between search and confirmation."""
    judge, chosen = tables.judge, choose(tables)
    if judge is None or chosen is None:
        answer = f"No checkpoint can be chosen: {why_none(tables)}."
        return Section("selection", "Which checkpoint?", [answer], [], [_outcomes(tables)], {"champion": None})
    candidates = _candidates(tables, judge, chosen)
    confirmed = {str(group): judged_rows(tables, "confirm", str(group)) for group in tables.phase("confirm")["group"]}
    gaps = search_gaps(tables, judge, confirmed) if chosen.phase == "confirm" else []
    versus, rivals = _versus(judge, candidates)
    simplest = _simplest(judge, candidates)
    answers = [
        _choice_sentence(tables, judge, candidates, chosen),
        *_extension_sentence(tables, chosen),
        *_rival_sentences(judge, versus, rivals),
        *(_simplest_sentence(judge, candidates, simplest) if chosen.phase != "reproduce" else []),
        *gap_sentences(gaps, unit_of(judge.metric)),
    ]
    data = {
        "champion": chosen.champion, "group": chosen.group, "phase": chosen.phase, "median": chosen.median,
        "confirmed": chosen.phase == "confirm", "metric": judge.metric, "members": list(chosen.members),
        "judge": asdict(judge) | {"margins": dict(judge.margins)}, "judge_hash": tables.judge_hash,
        "versus": {group: estimate.as_dict() for group, estimate in versus.items()},
        "not_distinguishable_from": rivals, "simplest_within_one_standard_error": simplest,
        "gaps": gaps,
    }  # fmt: skip
    figures = _seeds_figure(tables, judge, chosen)  # the search's own history is analysis/sections/overview.py's
    parts = _tables(tables, judge, candidates, gaps)
    return Section("selection", "Which checkpoint?", answers, figures, parts, plain(data))


def _candidates(tables: StudyTables, judge: Judge, chosen: Chosen) -> list[Row]:
    """One row per group of the deciding phase, the judge's choice first, then best first; at most MOST_CANDIDATES."""
    groups: dict[str, list[Row]] = {}
    for row in judged_rows(tables, chosen.phase):
        groups.setdefault(str(row["group"]), []).append(row)
    own = _own_setting(tables)
    sign = 1.0 if judge.minimise else -1.0
    known = [best for best in map(judge.choose, groups.values()) if best is not None]
    result = []
    for best in sorted(known, key=lambda b: (b.group != chosen.group, sign * b.median, b.group))[:MOST_CANDIDATES]:
        members = groups[best.group]
        values = [float(row["value"]) for row in judge.rank(members)]
        changed = settings_that_differ(tables, best.champion, own) if own else {}
        result.append(
            {
                "group": best.group,
                "champion": best.champion,
                "median": best.median,
                "seeds": len(members),
                "complete": len(values),
                "values": values,
                "standard_error": statistics.standard_error(values),
                "settings_changed": len(changed),
                "changes": ", ".join(f"{p} = {_shown(v[0])}" for p, v in changed.items()) or "none",
            }
        )
    return result


def _own_setting(tables: StudyTables) -> str | None:
    """The search's first trial: the recipe's own setting."""
    search = tables.phase("search")
    return str(search.iloc[0]["key"]) if len(search) else None


def _versus(judge: Judge, candidates: Sequence[Row]) -> tuple[dict[str, statistics.Estimate], list[str]]:
    """How much worse every other group is, and those whose difference is not distinguishable from none."""
    sign = 1.0 if judge.minimise else -1.0
    winner = [sign * v for v in candidates[0]["values"]]
    versus = {
        str(row["group"]): statistics.unpaired([sign * v for v in row["values"]], winner) for row in candidates[1:]
    }
    return versus, [group for group, estimate in versus.items() if not estimate.distinguishable]


def _simplest(judge: Judge, candidates: Sequence[Row]) -> str | None:
    """The group with the fewest changed settings within one standard error of the winner; None: cannot be said."""
    winner, sign = candidates[0], 1.0 if judge.minimise else -1.0
    if winner["standard_error"] is None:
        return None
    near = [r for r in candidates if r is winner or abs(r["median"] - winner["median"]) <= winner["standard_error"]]
    return str(min(near, key=lambda r: (r["settings_changed"], sign * r["median"], r["group"]))["group"])


def _choice_sentence(tables: StudyTables, judge: Judge, candidates: Sequence[Row], chosen: Chosen) -> str:
    unit, row = unit_of(judge.metric), candidates[0]
    said = f"{judge.metric} {number(chosen.median)} {unit}".strip()
    if chosen.phase == "confirm" and not np.isfinite(chosen.median):
        return (
            f"The judge chose the setting of {chosen.group}, but only {row['complete']} of its {row['seeds']} fresh "
            f"seeds were completed, so it has no median; {chosen.champion} is the champion for want of a better one. "
            f"Changed from the recipe's own setting: {row['changes']}."
        )
    if chosen.phase == "confirm":
        return (
            f"The judge chose the setting of {chosen.group}: median validation {said} over {row['seeds']} fresh seeds; "
            f"its median seed {chosen.champion} is the champion. "
            f"Changed from the recipe's own setting: {row['changes']}."
        )
    where = "the best of the search" if chosen.phase == "search" else "the best reproduced recipe"
    return (
        f"Best so far is {chosen.champion} ({where}, {chosen.group}): validation {said}. It is not confirmed on fresh "
        f"seeds ({_unconfirmed(tables)}), so part of this value is luck."
    )


def _extension_sentence(tables: StudyTables, chosen: Chosen) -> list[str]:
    """What the choice rests on where confirmations were extended to more images than the search's."""
    images = confirm_images(chosen.group)
    if not images:
        return []
    others = int(sum(confirm_images(str(group)) != images for group in tables.phase("confirm")["group"]))
    fewer = f"; {others} on fewer do not compete" if others else ""
    return [
        f"Only confirmations on {images} images, the most there are, were compared{fewer}. The search's values come "
        "from shorter trainings, so these do not show how much of them was luck."
    ]


def _unconfirmed(tables: StudyTables) -> str:
    """Why nothing is confirmed."""
    if "confirm" not in configured_phases(tables.study):
        return "the study confirms nothing"
    outcomes = tables.phase("confirm")["outcome"]
    if len(outcomes) and not any(sentence.startswith("confirm ") for sentence in tables.unfinished()):
        return f"none of the {len(outcomes)} trainings of the confirmation was completed with a value"
    return "the confirmation has not ended"


def _rival_sentences(judge: Judge, versus: Mapping[str, statistics.Estimate], rivals: list[str]) -> list[str]:
    unit = unit_of(judge.metric)
    if not versus:
        return []
    if rivals:
        near = f"{rivals[0]}: it is {versus[rivals[0]].versus(unit)}"
        more = f", and {len(rivals) - 1} more" if len(rivals) > 1 else ""
        return [f"The choice is not distinguishable from {near}{more}."]
    nearest = next(iter(versus))
    return [f"The runner-up {nearest} is {versus[nearest].versus(unit)}."]


def _simplest_sentence(judge: Judge, candidates: Sequence[Row], simplest: str | None) -> list[str]:
    if simplest is None:
        return ["One seed per setting gives no standard error, so no simpler setting can be called as good."]
    error = f"{number(candidates[0]['standard_error'])} {unit_of(judge.metric)}".strip()
    if simplest == candidates[0]["group"]:
        return [f"No simpler confirmed setting lies within one standard error ({error}) of it."]
    changes = next(row["changes"] for row in candidates if row["group"] == simplest)
    return [f"The simplest setting within one standard error ({error}) is {simplest}, which changes: {changes}."]


def _tables(tables: StudyTables, judge: Judge, candidates: Sequence[Row], gaps: Sequence[Row]) -> list[Table]:
    unit = unit_of(judge.metric)
    shown = pd.DataFrame(list(candidates)).drop(columns="values")
    note = f"Validation {judge.metric}, {judge.report} report; a training that failed counts as the worst value."
    result = [
        Table("selection-candidates", "Candidates, best first", shown, note, {"median": unit, "standard_error": unit})
    ]
    return [*result, *gap_table(gaps, unit), _outcomes(tables)]


def _outcomes(tables: StudyTables) -> Table:
    counts = pd.crosstab(tables.trials["phase"], tables.trials["outcome"]).reset_index()
    return Table("selection-outcomes", "How trainings ended", counts.rename_axis(columns=None), "", {})


def _label(judge: Judge) -> str:
    return f"validation {with_unit(judge.metric)}"


def _seeds_figure(tables: StudyTables, judge: Judge, chosen: Chosen) -> list[Figure]:
    """The confirmations by setting; nothing before there are two."""
    rows = pd.DataFrame(judged_rows(tables, "confirm"), columns=["key", "outcome", "group", "value"])
    search = {str(r["key"]): r["value"] for r in records(tables.phase("search")[["key", "value"]])}
    rows["search_value"] = [search.get(group, np.nan) for group in rows["group"]]

    if rows["value"].notna().sum() < 2:
        return []

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        groups = list(dict.fromkeys(data["group"]))
        at = data["group"].map({group: i for i, group in enumerate(groups)})
        axes.scatter(at, data["value"], s=22, color=BLUE, label=f"fresh seeds (n = {len(data)})", zorder=3)
        if data["search_value"].notna().any():
            axes.scatter(at, data["search_value"], s=40, color=VERMILION, marker="_", label="what the search said")
        axes.set_xticks(range(len(groups)), groups, rotation=20, ha="right")
        axes.set_xlim(-0.6, len(groups) - 0.4)
        axes.set(ylabel=_label(judge), xlabel="setting (search trial it repeats)")
        axes.legend()

    figure = Figure(
        "selection-seeds", "Fresh seeds against what the search said",
        f"{len(rows)} confirmation trainings by setting, beside the value each setting had in the search.",
        "One dot per training of the confirmation; the dash is the search's own value, where its training saw as many "
        f"images. Champion: {chosen.champion}. Study {tables.name}, validation split.",
        draw, rows,
    )  # fmt: skip
    return [figure]


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "null"
    return number(value) if isinstance(value, float) else str(value)


def search_gaps(tables: StudyTables, judge: Judge, confirmed: Mapping[str, Sequence[Row]]) -> list[Row]:
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


def gap_sentences(found: Sequence[Row], unit: str) -> list[str]:
    """How far fresh seeds are from what the search said, and of which settings that cannot be said."""
    known = [row for row in found if np.isfinite(row["gap"])]
    said = []
    if known:
        mean, worst = statistics.paired([row["gap"] for row in known], "settings"), max(known, key=lambda r: r["gap"])
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


def gap_table(found: Sequence[Row], unit: str) -> list[Table]:
    """One row per confirmed setting."""
    if not found:
        return []
    note = "gap: how much worse the median of the fresh seeds is than the value the search selected by."
    units = dict.fromkeys(("search", "confirm_median", "gap"), unit)
    return [Table("selection-gap", "Search against fresh seeds", pd.DataFrame(list(found)), note, units)]


if __name__ == "__main__":
    sys.exit(runs.command("selection", "Name the champion, say how sure the choice is and how much was luck.", analyse))
