"""Files of the sealed test in results/NAME/evaluation/: the frozen list with its hash, openings, scores.

    list.json         what will be scored, written first; the lists before it are kept as list-<hash>.json
    openings.json     when the test was opened, why, and where that is counted; written before anything is scored
    scores.parquet    one row per entry, protocol and image
    pictures.npz      best, median and worst frame of the champion
    evaluation.json   means, bands, notes, and the hashes of scores and pictures; written last

Nothing here opens the test; analysis/final_evaluation.py does.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import mlflow_store, selection
from analysis.page.section import plain
from analysis.tables.tidy import StudyTables
from trainables.evaluation.protocols import PROTOCOLS
from trainables.runtime.durable import sha256, write_bytes, write_json
from trainables.runtime.errors import UserError
from trainables.training import checkpoint

CONFIRMATION, RECIPE, RECIPE_SEED = "confirmation seed", "recipe", "another seed of recipe"  # roles on the list
RANDOM_GUESS, TRAINING_MEAN = "random guess", "training mean"
LIST, OPENINGS, DONE = "list.json", "openings.json", "evaluation.json"
SCORES, PICTURES = "scores.parquet", "pictures.npz"
STORE, HERE = "tracking store", "this results folder (the study has no tracking store)"  # where openings are counted


def freeze(tables: StudyTables, folder: Path) -> dict[str, Any]:
    """Write the list of what will be scored, with its hash; the list before it is kept. Returns the list."""
    chosen = selection.choose(tables)
    if chosen is None or tables.judge is None:
        raise UserError(f"nothing can be evaluated: {selection.why_none(tables)}")
    roles: dict[str, list[str]] = {chosen.champion: ["champion"]}
    if chosen.phase == "confirm":
        for key in chosen.members:
            roles.setdefault(key, []).extend([] if key == chosen.champion else [CONFIRMATION])
    for group in dict.fromkeys(tables.phase("reproduce")["group"]):
        judged = selection.judged_rows(tables, "reproduce", str(group))
        best = tables.judge.choose(judged)
        if best is not None:
            roles.setdefault(best.champion, []).append(f"{RECIPE} {group}")
            for row in tables.judge.rank(judged):  # a verdict on a recipe is over its seeds (analysis/reproduction.py)
                roles.setdefault(str(row["key"]), []).extend(
                    [] if row["key"] == best.champion else [f"{RECIPE_SEED} {group}"]
                )
    part = checkpoint.BEST if tables.judge.report == "best" else checkpoint.LATEST
    entries = [_entry(tables, key, role, part) for key, role in roles.items()]
    entries += [{"name": name, "roles": ["baseline"], "key": None} for name in (RANDOM_GUESS, TRAINING_MEAN)]
    body = {"study": tables.name, "judge_hash": tables.judge_hash, "protocols": list(PROTOCOLS), "entries": entries}
    path = folder / LIST
    if path.exists():
        write_bytes(folder / f"list-{sha256(path)[:12]}.json", path.read_bytes())
    frozen: dict[str, Any] = plain(body | {"sha256": digest_of(body), "frozen_at": now()})
    write_json(path, frozen)
    return frozen


def configurations(entry: Mapping[str, Any]) -> list[str]:
    """The configurations that a scored entry is a seed of: 'champion', 'recipe NAME', or a baseline by its name."""
    if "baseline" in entry["roles"]:
        return [str(entry["name"])]
    found = {"champion" if role in ("champion", CONFIRMATION) else role.replace(RECIPE_SEED, RECIPE, 1)
             for role in entry["roles"]}  # fmt: skip
    return sorted(found)


def digest_of(frozen: Mapping[str, Any]) -> str:
    """SHA-256 of what a list says, its own hash and date aside."""
    body = {name: value for name, value in frozen.items() if name not in ("sha256", "frozen_at")}
    return hashlib.sha256(json.dumps(plain(body), sort_keys=True).encode()).hexdigest()


def _entry(tables: StudyTables, key: str, roles: Sequence[str], part: str) -> dict[str, Any]:
    weights = tables.folder(key) / "checkpoints" / part / checkpoint.WEIGHTS
    known = weights.exists()
    entry = {"name": key, "roles": list(roles), "key": key, "checkpoint": f"trials/{key}/checkpoints/{part}"}
    return entry | {"weights_sha256": sha256(weights) if known else None, "missing": not known}


def stored(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """The document and the scores it was written with. Raises UserError where they are damaged or of two openings."""
    try:
        document = json.loads((folder / DONE).read_text())
        expected = {SCORES: document["files"][SCORES], PICTURES: document["files"][PICTURES]}
        same_list = digest_of(document["list"]) == document["list"]["sha256"]
        if same_list and {name: sha256(folder / name) for name in expected} == expected:
            return document, pd.read_parquet(folder / SCORES)
        cause = f"{DONE}, its list, {SCORES} and {PICTURES} are not of one opening"
    except (OSError, ValueError, KeyError, TypeError) as error:
        cause = f"{DONE}, {SCORES} or {PICTURES} is missing or damaged ({error!r})"
    raise UserError(f"{folder}: {cause}; restore the folder, or score once more by --again REASON")


def counted(tables: StudyTables, folder: Path, digest: str) -> dict[str, Any]:
    """Every opening of the folder, and how often the champion's test data were opened by now, by whomever."""
    known = openings(folder)
    where = HERE
    try:
        count = mlflow_store.openings(tables, digest)
    except UserError as error:
        tables.notes.append(f"Openings by other studies are not counted: {error}.")
        count, where = None, "this results folder (the tracking store does not take part)"
    times = max(count or 0, most(known, digest))
    opened = {"test_data": digest, "count": times, "counted_in": where if count is None else STORE}
    return {"openings": known, "opened": opened}


def openings(folder: Path) -> list[dict[str, Any]]:
    """The openings that the folder knows of, torn ones too. Raises UserError for a damaged file."""
    path = folder / OPENINGS
    try:
        return list(json.loads(path.read_text())) if path.exists() else []
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it") from error


def most(known: Sequence[Mapping[str, Any]], digest: str) -> int:
    """The highest count of these test data that the folder knows of."""
    return max((int(o["count"]) for o in known if o["test_data"] == digest), default=0)


def now() -> str:
    """The date and time, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
