"""Report section that lists every training: settings of its own, curve, preview, MLflow run, and the command for it.

The command repeats the training alone, without Ray or MLflow: the recipe and every setting that differs from it. A
training whose recipe this version does not know, or whose first weights are another training's, says so instead.
"""

from __future__ import annotations

import functools
import io
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from analysis.page.section import Entry, Section, Table, counted, missing, number, plain
from analysis.selection import unit_of, with_unit
from analysis.tables.settings import differing, held_settings
from analysis.tables.tidy import StudyTables
from study.contract import Outcome
from trainables.runtime.errors import UserError
from trainables.settings.config import as_dict, flatten
from trainables.settings.recipe import load_recipe

PICTURED = 12  # previews on the page: it stays one file that a phone can load; the others lie in the trainings' folders
PREVIEW_PX = 520  # width of a preview on the page
NAMED = frozenset({"recipe", "variant", "stage"})  # the command's first word says them


def analyse(tables: StudyTables) -> Section:
    """One row and one entry per training; the key of a row, in any table of the page, leads to its entry."""
    trials = tables.trials
    if trials.empty:
        return Section("trainings", "Every training", ["No training has begun."])
    metric = tables.judge.metric if tables.judge is not None else "value"
    columns = ["key", "phase", "recipe", "seed", "outcome", "value", "images", "seconds"]
    listed = trials[columns].rename(columns={"value": metric})
    pictured, curves = _best_first(tables)[:PICTURED], _curves(tables, metric)
    rows = [{str(name): value for name, value in row.items()} for row in trials.to_dict("records")]
    entries = [_entry(tables, row, metric, curves.get(str(row["key"]), []), pictured) for row in rows]
    units = {metric: unit_of(metric), "seconds": "s"}
    note = f"{metric}: what the judge compares, on the validation split. A key leads to the training's own entry below."
    answer = f"{counted(len(trials), 'training')}, each with its settings, its curve and the command that repeats it."
    table = Table("trainings", "Trainings", listed, note, units)
    return Section("trainings", "Every training", [answer], (), [table], {}, None, entries)


def command(row: Mapping[str, Any], own: Mapping[str, Any] | None) -> tuple[str, str]:
    """(command that repeats a training, reason why there is none): one of the two is empty. own: `own_settings`."""
    if own is None:
        return "", "its settings cannot be compared with a recipe of this version"
    if "start_from" in own:
        return "", f"it starts from the weights of {own['start_from']}; run the study to have them"
    sets = [f"{path}={json.dumps(plain(value))}" for path, value in own.items()]
    words = [part for one in sets for part in ("--set", one)]
    out = f"results/again/{row['key']}"
    return shlex.join(["python", "-m", "trainables.train", _recipe(row), *words, "--out", out]), ""


def own_settings(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """A training's settings that differ from its recipe's, by path; None where this version cannot read the recipe."""
    usual = _usual(_recipe(row), 0 if missing(row["stage"]) else int(row["stage"]))
    if usual is None:
        return None
    found = differing(held_settings(row), usual)
    return {path: value for path, value in found.items() if path not in NAMED}


def _entry(
    tables: StudyTables, row: Mapping[str, Any], metric: str, curve: list[tuple[float, float]], pictured: list[str]
) -> Entry:
    key, own, value = str(row["key"]), own_settings(row), row["value"]
    repeat, why_none = command(row, own)
    scored = "" if missing(value) else f", {metric} {number(float(value))} {unit_of(metric)}".rstrip()
    ending = str(row["outcome"]).replace("_", " ") + ("" if missing(row["reason"]) else f": {row['reason']}")
    settings = [(path, json.dumps(plain(value))) for path, value in (own or {}).items()]
    words = [f"No command: {why_none}."] if why_none else []
    folder = f"trials/{key}" if tables.layout is not None and tables.folder(key).is_dir() else ""
    preview = _preview(tables, key) if key in pictured else None
    title = f"{row['recipe']}, seed {row['seed']}: {ending}{scored}"
    return Entry(key, title, words, repeat, settings, with_unit(metric), curve, preview, folder)


def _recipe(row: Mapping[str, Any]) -> str:
    return f"{row['recipe']}+{row['variant']}" if isinstance(row["variant"], str) else str(row["recipe"])


@functools.cache
def _usual(recipe: str, stage: int) -> dict[str, Any] | None:
    """A recipe's own settings by path; None where this version has no such recipe or stage."""
    try:
        stages = load_recipe(recipe)
    except UserError:
        return None
    return flatten(as_dict(stages[stage])) if stage < len(stages) else None


def _best_first(tables: StudyTables) -> list[str]:
    """Keys of complete trainings, confirmed ones first, each phase best first."""
    complete = tables.trials[tables.trials["outcome"] == Outcome.COMPLETE]
    sign = 1 if tables.judge is None or tables.judge.minimise else -1
    order = complete.assign(rank=sign * complete["value"], late=complete["phase"] != "confirm")
    return [str(key) for key in order.sort_values(["late", "rank", "key"], na_position="last")["key"]]


def _curves(tables: StudyTables, metric: str) -> dict[str, list[tuple[float, float]]]:
    """(images, value) of each report that has one, by training."""
    column = f"val/{metric}"
    if column not in tables.reports:
        return {}
    known = tables.reports[["key", "images", column]].dropna().sort_values(["key", "images"])
    known = known[np.isfinite(known[column].to_numpy(float))]
    return {
        str(key): [(float(x), float(y)) for x, y in rows[["images", column]].to_numpy(float)]
        for key, rows in known.groupby("key")
    }


def _preview(tables: StudyTables, key: str) -> bytes | None:
    """The training's preview, small, as JPEG; None where it has none."""
    path: Path | None = tables.folder(key) / "preview.png" if tables.layout is not None else None
    if path is None or not path.is_file():
        return None
    with Image.open(path, formats=["PNG"]) as picture:
        small = picture.convert("RGB")
    small.thumbnail((PREVIEW_PX, PREVIEW_PX * 4))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=60)
    return out.getvalue()
