"""First screen of the report: what was studied on what data, each section's headline, what to do next.

Headlines stand in the page's own order; a section without one is not on the first screen. The next step is the first
of these that applies, as a command that runs as it stands:

    the study has not ended                  continue it
    spikes have snapshots and no replay      replay them
    claims cannot be told                    the same claims on as many seeds as would do, as a study of its own
    the champion was still improving         train the best of the search longer
    the data are not NYU Depth v2            plan the study on NYU Depth v2

A released table has no folder that a command could continue: only the last rule applies to it.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import selection
from analysis.page.section import Headline, Section, counted
from analysis.spikes import replays
from analysis.tables.published import NYU_TEST_FRAMES
from analysis.tables.tidy import RUNNING, WAITING, StudyTables
from study.contract import Outcome, confirm_images


def headlines(
    tables: StudyTables, sections: Sequence[Section], verdicts: Sequence[tuple[str, str]]
) -> list[tuple[str, str, Headline]]:
    """(key, what it answers, headline) in order. `verdicts`: (id, verdict) of each claim, for the next step."""
    result = [("studied", "", Headline([studied(tables)]))]
    if warnings := _warnings(tables):
        result.append(("state", "", Headline(warnings, warn=True)))
    result += [(s.key, s.title, s.headline) for s in sections if s.headline is not None]
    return [*result, ("next", "What next?", next_step(tables, verdicts))]


def studied(tables: StudyTables) -> str:
    """One sentence on the trainings and their data."""
    trials = tables.trials
    if trials.empty:
        return f"Nothing was trained yet; the data are {_data(tables)}."
    systems = ", ".join(dict.fromkeys(str(name) for name in trials["recipe"].dropna()))
    encoder, shape = _only(trials, "config.model.encoder"), _only(trials, "config.input")
    images = _only(trials, "config.budget_images")
    order = [*Outcome, RUNNING, WAITING]
    counts = trials["outcome"].value_counts()
    ended = ", ".join(f"{counts[o]} {str(o).replace('_', ' ')}" for o in order if o in counts)
    each = f" of {images:,} images each" if isinstance(images, int) else ""
    at = f" at {' x '.join(map(str, shape))}" if isinstance(shape, (list, tuple)) else ""
    return (
        f"{systems}{f' ({encoder})' if encoder else ''} on {_data(tables)}{at}: "
        f"{counted(len(trials), 'training')}{each} ({ended})."
    )


def _data(tables: StudyTables) -> str:
    """The data and how many frames of each split: 'rendered rooms (510 training, 60 validation, 180 test frames)'."""
    trials = tables.trials
    first = trials.iloc[0] if len(trials) else pd.Series(dtype=object)
    source = data_source(tables)
    test = tables.data.get("test_frames")
    named = "rendered rooms, in NYU's folder layout" if source == "rooms" else f"data of the form {source}"
    if source != "rooms" and test == NYU_TEST_FRAMES:
        named = "NYU Depth v2"
    counts = {"training": first.get("summary.train_frames"), "validation": first.get("summary.validation_frames")}
    known = [
        f"{int(n):,} {split}" for split, n in (counts | {"test": test}).items() if n is not None and not pd.isna(n)
    ]
    return f"{named} ({', '.join(known)} frames)" if known else named


def _only(trials: pd.DataFrame, column: str) -> Any:
    """The one value of a column, None where there are several or none."""
    values = trials[column].dropna() if column in trials else pd.Series(dtype=object)
    distinct = {str(v): v for v in values}
    value = next(iter(distinct.values())) if len(distinct) == 1 else None
    return int(value) if isinstance(value, float) and value.is_integer() else getattr(value, "item", lambda: value)()


def _warnings(tables: StudyTables) -> list[str]:
    """What a reader must know before believing the rest."""
    said = []
    if tables.trials.empty:
        said.append("This study has not begun: its ledger holds no training.")
    elif (tables.trials["outcome"] != Outcome.COMPLETE).all():
        said.append("No training of this study was completed.")
    if not tables.judge_unchanged and len(tables.trials):
        said.append("The judge's settings are not those hashed before the first training.")
    if not tables.claims_unchanged:
        said.append("The claims are not those hashed before the first training.")
    if unfinished := tables.unfinished():
        said.append(f"This study has not ended: {'; '.join(unfinished)}.")
    return said


NYU_STUDY = "studies/nyu.yaml"
MOST_SEEDS = 30  # more are another study than the one that was run
LONGER = 2  # times the images of the champion's training
_WOULD_DO = re.compile(r"about ([\d,]+) would do")


def next_step(tables: StudyTables, verdicts: Sequence[tuple[str, str]]) -> Headline:
    """The step for the first screen. `verdicts`: (id, verdict) of each claim."""
    for reason, command in _steps(tables, verdicts):
        return Headline([reason], command=command)
    return Headline(["By these rules nothing is left to do."])


def _steps(tables: StudyTables, verdicts: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(reason, command) of each rule that applies, the most urgent first."""
    if tables.layout is not None:
        root = shown(tables.layout.root)
        again = ("study.run", f"{root}/study.yaml", "--resume")
        if missing := tables.unfinished():
            limit = re.match(r"its budget is spent \((budget\.\w+) is (\S+),", missing[0])
            more = ("--set", f"{limit[1]}={LONGER * float(limit[2]):g}") if limit else ()
            yield "The study has not ended; this continues it where it stopped.", command(*again, *more)
        if count := replays.waiting(tables, tables.extras.get("spikes.spikes", pd.DataFrame())):
            reason = f"{counted(count, 'spike')} can be replayed with and without the worst sample of the batch."
            yield reason, command("analysis.spikes", root, "--replay")
        if needed := seeds_needed(verdicts):
            settings = (
                f"name={tables.name[:50]}-{max(needed.values())}-seeds", f"claims.test={_asked(tables, needed)}",
                "reproduce.recipes=[]", "search.trials=0", "confirm.top=0",
            )  # fmt: skip
            each = ", ".join(f"{name} {n}" for name, n in needed.items())
            reason = f"Of these claims more seeds would tell, if the spread stays: {each}."
            args = [part for setting in settings for part in ("--set", setting)]
            yield reason, command("study.run", f"{root}/study.yaml", *args)
        if images := longer(tables):
            reason = (
                "The champion was still improving when its budget ended; the best of the search are trained again on "
                f"{images:,} images."
            )
            yield reason, command(*again, "--set", f"confirm.images={images}")
    if data_source(tables) == "rooms":
        reason = (
            "Numbers of rendered rooms say nothing of NYU Depth v2; this plans the study on it (README says how to get "
            "the data) and starts nothing."
        )
        yield reason, command("study.run", NYU_STUDY, "--plan", "--set", "data.root=nyu_data.zip")


def seeds_needed(verdicts: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The seeds at which the rule would decide each undecided claim, of those that need MOST_SEEDS at most."""
    found = {name: _WOULD_DO.search(words) for name, words in verdicts}
    counts = {name: int(match[1].replace(",", "")) for name, match in found.items() if match}
    return {name: seeds for name, seeds in counts.items() if seeds <= MOST_SEEDS}


def _asked(tables: StudyTables, needed: Mapping[str, int]) -> str:
    """The study's own entries of claims.test with these ids, each with the seeds it needs, as --set takes them."""
    asked = []
    for entry in (tables.study.get("claims") or {}).get("test") or []:
        whole = not isinstance(entry, str) and "id" in entry
        name = entry["id"] if whole else entry if isinstance(entry, str) else next(iter(entry))
        if name in needed:
            fields = {} if isinstance(entry, str) else entry if whole else entry[name]
            changed = {**fields, "seeds": needed[name]}
            asked.append(changed if whole else {name: changed})
    return json.dumps(asked)


def longer(tables: StudyTables) -> int | None:
    """The images to train the best of the search on, where the champion's last report was its best; None elsewhere."""
    chosen = selection.choose(tables)
    if chosen is None or tables.judge is None or chosen.phase not in ("confirm", "search"):
        return None
    column = f"val/{tables.judge.metric}"
    if column not in tables.reports:
        return None
    own = tables.reports[tables.reports["key"] == chosen.champion].sort_values("images").dropna(subset=[column])
    values = own[column].to_numpy(float) * (1.0 if tables.judge.minimise else -1.0)
    if len(values) < 2 or values[-1] >= values[:-1].min():
        return None
    seen = confirm_images(chosen.group) or int(own["images"].iloc[-1])
    return LONGER * seen


def data_source(tables: StudyTables) -> str | None:
    """The form of the data: of the first training, before there is one as the study's settings say; None: unknown."""
    column = "config.data.source"
    if len(tables.trials) and column in tables.trials:
        return str(tables.trials[column].iloc[0])
    return (tables.study.get("data") or {}).get("source")


def command(module: str, *arguments: str) -> str:
    """A command line for this checkout's Python, quoted for a shell."""
    python = shown(Path(sys.executable)) if Path(sys.executable).is_relative_to(Path.cwd()) else "python"
    return shlex.join([python, "-m", module, *arguments])


def shown(path: Path) -> str:
    """A path, relative to the current folder where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
