"""Reproduction: published numbers beside ours, and a verdict by margins fixed before trial 1.

A verdict needs the same data, a protocol that ran as published, and the recipe as published: where one is missing the
row says "cannot be compared" and why. Published numbers stand only beside numbers measured on NYU Depth v2. Sources:
analysis/tables/published.py.

The verdict is over seeds: a published number is of one training on the same test frames, so what differs by chance is
the training. Per metric the seeds' test scores minus the published number, taken as exact because nobody published its
spread: two one-sided tests (analysis/statistics.py, `tost`) at 5%. A metric is within its margin where the 90% interval
lies inside, beyond it where the 95% interval lies outside on one side, else it cannot be told. Reproduced: all are
within. That all have to be needs no correction (Berger 1982): a recipe that is off in one is called reproduced in 5% at
most. Not reproduced: all are beyond. Partly: each is one or the other.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as Canvas

from analysis import runs, statistics
from analysis.page.section import Figure, Headline, Section, Table, plain
from analysis.page.style import BLUE, FAINT, VERMILION
from analysis.sections.protocol_effects import edge_figure, explained, structure_table
from analysis.selection import unit_of
from analysis.tables import sealed
from analysis.tables.published import ELSEWHERE, PAPER, ROWS, Published, comparable, obstacles, on_nyu
from analysis.tables.tidy import StudyTables
from study.contract import Outcome
from trainables.runtime.errors import UserError
from trainables.settings.config import Mark, TrialConfig, flatten, mark_of, reaching
from trainables.settings.recipe import recipe_stages

AS_PUBLISHED = Mark.DECIDED | Mark.BOOKKEEPING | Mark.PLACE  # may differ without making it another training
VERDICTS = ("reproduced", "partly reproduced", "not reproduced", "cannot be told", "cannot be compared")
Row = dict[str, Any]


def analyse(tables: StudyTables) -> Section:
    """The section: a verdict per recipe, both numbers with protocol and data, and what protocols explain."""
    entries = {e["name"]: e for e in tables.evaluation.get("entries", [])}
    rows = [row for group in _groups(tables) for row in _compare(tables, group, entries)]
    beside = {name: entry for name, entry in entries.items() if on_nyu(entry)}
    texts = explained(entries, tables.evaluation.get("champion"))
    verdicts = _verdicts(rows)
    answers = [*_headline(rows), *([] if beside or not rows else [ELSEWHERE]), *texts]
    frame = _merged(rows)
    units = {"ours_rmse": "m", "published_rmse": "m"}
    if tables.judge is not None:
        units |= dict.fromkeys(("validation", "spread"), unit_of(tables.judge.metric))
    parts = [Table("reproduction-verdicts", "Published against reproduced", frame, _note(tables), units)]
    parts += [_published_table(beside, tables), structure_table(beside)] if beside else []
    figures = [*_figure(tables, frame), *edge_figure(tables, entries)]
    data = {
        "verdicts": rows,
        "explained": texts,
        "margins": dict(tables.judge.margins) if tables.judge else {},
    }
    headline = Headline(verdicts) if verdicts else None
    return Section("reproduction", "Does it reproduce?", answers, figures, parts, plain(data), headline)


@dataclass(frozen=True)
class Gap:
    """A metric against its published value: mean difference over the seeds with its 90% interval (None with fewer than
    MIN_SEEDS), the p value of being within the margin, and what follows: within, beyond or untold.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    said: str


WITHIN, BEYOND, UNTOLD = "within", "beyond", "untold"


def gap(ours: Sequence[float], published: float, margin: float) -> Gap:
    """The gap of one metric over the seeds' scores."""
    differences = [value - published for value in ours]
    mean = sum(differences) / len(differences)
    if len(differences) < statistics.MIN_SEEDS:
        return Gap(mean, None, None, None, UNTOLD)
    told = statistics.rule(mean, statistics.spread(differences), len(differences), "no_difference", margin)
    said = {statistics.HOLDS: WITHIN, statistics.FAILS: BEYOND, None: UNTOLD}[told]
    half = statistics.half_one_sided(differences)
    return Gap(mean, mean - half, mean + half, statistics.tost(differences, margin), said)


def verdict(
    ours: Mapping[str, Sequence[float]], published: Mapping[str, float], margins: Mapping[str, float]
) -> tuple[str, dict[str, Gap]]:
    """The verdict by the scores of each seed, {metric: [...]}, and the gap of each metric that has a margin."""
    gaps = {m: gap(ours[m], published[m], margins[m]) for m in margins if m in published and ours.get(m)}
    said = {one.said for one in gaps.values()}
    if not gaps:
        return VERDICTS[4], {}
    if UNTOLD in said:
        return VERDICTS[3], gaps
    return (VERDICTS[0] if said == {WITHIN} else VERDICTS[2] if said == {BEYOND} else VERDICTS[1]), gaps


def _groups(tables: StudyTables) -> list[str]:
    return [str(g) for g in dict.fromkeys(tables.phase("reproduce")["group"])]


def _compare(tables: StudyTables, group: str, entries: Mapping[str, Row]) -> list[Row]:
    """One row per published row of a recipe; one with no numbers beside it where nothing was published."""
    assert tables.judge is not None or not len(tables.trials)
    trainings = tables.phase("reproduce")
    trainings = trainings[trainings["group"] == group]
    trainings = trainings[trainings["stage"] == trainings["stage"].max()]  # the stages before it are only its start
    recipe = str(trainings.iloc[0]["recipe"])
    done = trainings[(trainings["outcome"] == Outcome.COMPLETE) & trainings["value"].notna()]
    entry = next((e for e in entries.values() if f"{sealed.RECIPE} {group}" in e["roles"]), None)
    seeds = [e for e in entries.values() if f"{sealed.RECIPE} {group}" in sealed.configurations(e)]
    base: Row = {
        "recipe": group, "seeds": f"{done['seed'].nunique()} of {trainings['seed'].nunique()}",
        "data": _data(trainings.iloc[0], entry), "validation": float(done["value"].median()) if len(done) else None,
        "spread": float(done["value"].max() - done["value"].min()) if len(done) > 1 else None,
    }  # fmt: skip
    rows = []
    against: list[Published | None] = [p for p in ROWS if p.recipe == recipe]
    for published in against or [None]:
        reasons = _obstacles(tables, trainings.iloc[0], entry, published)
        ours = _ours(entry, published)
        word, gaps = VERDICTS[4], dict[str, Gap]()
        if published is not None and ours and tables.judge is not None:
            every = [_ours(one, published) for one in seeds]
            scored = {m: [one[m] for one in every if m in one] for m in tables.judge.margins}
            word, gaps = verdict(scored, published.metrics, tables.judge.margins)
        row: Row = base | {
            "verdict": VERDICTS[4] if reasons else word,
            "why": "; ".join(reasons),
            "against": published.who if published else None,
            "protocol": _protocol_run(entry, published),
        }
        for metric in ("delta1", "abs_rel", "rmse", "log10"):
            row[f"published_{metric}"] = (
                published.metrics.get(metric) if published and entry and on_nyu(entry) else None
            )
            row[f"ours_{metric}"] = ours.get(metric)
        rows.append(row | {"gaps": ", ".join(_gap_words(m, one) for m, one in gaps.items()), "scored": len(seeds)})
    return rows


def _gap_words(metric: str, one: Gap) -> str:
    """'rmse +0.012 (90% interval +0.004 to +0.020, within)'."""
    if one.low is None or one.high is None:
        return f"{metric} {one.value:+.3f} (no interval)"
    return f"{metric} {one.value:+.3f} (90% interval {one.low:+.3f} to {one.high:+.3f}, {one.said})"


def _ours(entry: Row | None, published: Published | None) -> dict[str, float]:
    name = _protocol_run(entry, published)
    if entry is None or name is None:
        return {}
    return {metric: value for metric, value in entry["summary"][name].items() if value is not None}


def _protocol_run(entry: Row | None, published: Published | None) -> str | None:
    """The protocol's name as run; the paper's where the published row states none."""
    if entry is None:
        return None
    asked = published.protocol if published and published.protocol else PAPER.protocol
    return str(entry["protocols"][asked]["name"])


def _obstacles(tables: StudyTables, training: Any, entry: Row | None, published: Published | None) -> list[str]:
    """Why this row cannot be compared; empty: it can."""
    if published is None:
        return ["no number was published"]
    if entry is None:
        listed = tables.evaluation.get("list", {}).get("entries", [])
        gone = [e["checkpoint"] for e in listed if f"recipe {training['group']}" in e["roles"]]
        why = f"it is missing: {gone[0]}" if gone else "the test is sealed, or no training completed"
        return [f"its judged checkpoint is not scored ({why})"]
    reasons = []
    if published.protocol is None:
        reasons.append(f"its protocol is not stated ({published.note})")
    elif not entry["protocols"][published.protocol]["comparable"]:
        reasons.append(f"protocol: {entry['protocols'][published.protocol]['note']}")
    reasons += obstacles(entry)
    if changed := _changed(training):
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        reasons.append(f"not trained as published: {', '.join(changed[:4])}{more}")
    return reasons


def _changed(training: Any) -> list[str]:
    """Settings of a training that differ from its recipe's file, 'budget_images 2400 (recipe: 1013760)'."""
    name = str(training["recipe"]) + (f"+{training['variant']}" if isinstance(training["variant"], str) else "")
    try:
        stages = recipe_stages(name)
    except UserError as error:  # a released table may name a recipe that this checkout does not have
        return [str(error)]
    stage = training["stage"]
    settings = stages[int(stage) if stage is not None and not pd.isna(stage) else 0]
    changed = []
    for path, value in flatten(dict(reaching(settings))).items():
        if mark_of(TrialConfig, path) & AS_PUBLISHED:
            continue
        found = training.get(f"config.{path}")
        if path == "data.source" or not _differs(found, value):
            continue
        changed.append(f"{path} {found} (recipe: {value})")
    return changed


def _differs(found: Any, wanted: Any) -> bool:
    if found is None or (isinstance(found, float) and pd.isna(found)):
        return wanted is not None
    return bool(list(found) != list(wanted)) if isinstance(wanted, (list, tuple)) else bool(found != wanted)


def _data(training: Any, entry: Row | None) -> str:
    """What it was trained on, called small where it is."""
    frames = training.get("summary.train_frames")
    count = "" if frames is None or pd.isna(frames) else f", {int(frames)} training frames"
    small = " (small-data result)" if count and int(frames) < 10_000 else ""
    return f"{training.get('config.data.source')}{count}{small}"


def _merged(rows: Sequence[Row]) -> pd.DataFrame:
    """The verdicts as a table: where nothing published stands beside a row, one for all that it is asked against."""
    merged: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        shown = {name: value for name, value in row.items() if not name.startswith(("published_", "ours_"))}
        alone = row["verdict"] == VERDICTS[4] and row["published_rmse"] is None
        key = tuple(str(shown[name]) for name in ("recipe", "verdict", "why")) if alone else (len(merged),)
        if alone and key in merged:
            merged[key]["against"] = f"{merged[key]['against']}; {row['against']}"
        else:
            merged[key] = shown if alone else dict(row)
    return pd.DataFrame(list(merged.values()))


def _verdicts(rows: Sequence[Row]) -> list[str]:
    """One sentence per verdict that there is, 'cannot be compared' aside."""
    said = []
    for word in VERDICTS[:4]:
        named = [f"{r['recipe']} ({r['against']}: {r['gaps']}{_too_few(r)})" for r in rows if r["verdict"] == word]
        if named:
            said.append(f"{word.capitalize()}: {'; '.join(named)}.")
    return said


def _too_few(row: Row) -> str:
    """What a verdict over seeds lacks, where it is seeds."""
    if row["verdict"] != VERDICTS[3] or row["scored"] >= statistics.MIN_SEEDS:
        return ""
    return f"; {row['scored']} of the {statistics.MIN_SEEDS} seeds that a test needs: raise reproduce.seeds"


def _headline(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["This study reproduces no published system, so it cannot say whether one does."]
    answers = _verdicts(rows)
    blocked = [r for r in rows if r["verdict"] == VERDICTS[4]]
    if len(blocked) == len(rows):
        recipes = list(dict.fromkeys(r["recipe"] for r in rows))
        which = f"{recipes[0]} cannot" if len(recipes) == 1 else f"None of the {len(recipes)} recipes can"
        answers.append(f"{which} be compared with published numbers; the table says why.")
    elif blocked:
        answers.append(f"{len(blocked)} of {len(rows)} published rows cannot be compared; the table says why for each.")
    return answers


def _published_table(entries: Mapping[str, Row], tables: StudyTables) -> Table:
    """Every published row, then ours on the same data under the same protocol, in one table."""
    metrics = ("delta1", "delta2", "delta3", "abs_rel", "rmse", "log10")
    rows: list[Row] = [
        {"who": p.who, "kind": "published", "protocol": p.protocol or "not stated",
         **{m: p.metrics.get(m) for m in metrics}, "source": p.source, "note": p.note}
        for p in ROWS
    ]  # fmt: skip
    for entry in entries.values():
        for asked in ("densedepth", "densedepth_scaled", "densedepth_repo", "bts"):
            run = entry["protocols"][asked]
            measured = entry["summary"][run["name"]]
            row = {
                "who": f"{', '.join(entry['roles'])}: {entry['name']}",
                "kind": "measured here",
                "protocol": run["name"],
            }
            row |= {m: measured.get(m) for m in metrics}
            data = f"{entry['source']}, {entry['frames']} test frames"
            rows.append(row | {"source": f"study {tables.name}: {data}", "note": comparable(entry, asked)[1]})
    note = "All are on NYU Depth v2. Rows compare only under the same protocol."
    return Table("reproduction-published", "Published numbers and ours", pd.DataFrame(rows), note, {"rmse": "m"})


def _note(tables: StudyTables) -> str:
    margins = ", ".join(f"{m} {v:g}" for m, v in tables.judge.margins.items()) if tables.judge else "none"
    return (
        f"Margins, absolute, fixed before trial 1: {margins}. Ours: the judged checkpoint (median seed) on the test "
        "split; gaps: mean over the scored seeds, two one-sided tests at 5% against the published number taken as "
        "exact; validation and spread: the judged metric over the seeds."
    )


def _figure(tables: StudyTables, frame: pd.DataFrame) -> list[Figure]:
    """Published beside measured; nothing where no recipe has both on NYU Depth v2."""
    columns = [
        "recipe",
        "against",
        "protocol",
        "verdict",
        "published_rmse",
        "ours_rmse",
        "published_abs_rel",
        "ours_abs_rel",
    ]
    data = frame.reindex(columns=columns).dropna(subset=["published_rmse", "ours_rmse"]).reset_index(drop=True)
    if data.empty:
        return []

    def draw(canvas: Canvas, shown: pd.DataFrame) -> None:
        for axes, metric, unit in zip(
            canvas.subplots(1, 2, sharey=True), ("rmse", "abs_rel"), (" (m)", ""), strict=True
        ):
            places = range(len(shown))
            axes.hlines(places, shown[f"published_{metric}"], shown[f"ours_{metric}"], color=FAINT, linewidth=1)
            axes.plot(shown[f"published_{metric}"], places, "D", color=VERMILION, label="published")
            axes.plot(shown[f"ours_{metric}"], places, "o", color=BLUE, label="measured here")
            axes.set(xlabel=f"{metric}{unit}", yticks=list(places))
        labels = [f"{r}\nagainst {a}" for r, a in zip(shown["recipe"], shown["against"], strict=True)]
        canvas.axes[0].set_yticklabels(labels)
        canvas.axes[0].legend()

    figure = Figure(
        "reproduction", "Published and measured",
        f"RMSE and absolute relative error of {len(data)} comparisons, published against measured here.",
        f"Test split of NYU Depth v2, study {tables.name}. Verdicts and reasons stand in the table.",
        draw, data, size_in=(7.0, 1.4 + 0.5 * len(data)),
    )  # fmt: skip
    return [figure]


if __name__ == "__main__":
    sys.exit(runs.command("reproduction", "Compare reproduced systems with what they published.", analyse))
