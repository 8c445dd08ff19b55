"""A study in words for papers: Markdown, LaTeX, the reproducibility checklist and the champion's model card.

python -m analysis.report STUDY --markdown   report/study.md, its answers and tables
python -m analysis.report STUDY --latex      report/study.tex, the same tables as LaTeX (booktabs)

report/reproducibility.md and, once the sealed test has seen a champion, report/model-card.md are part of every report.
All is made of the report's sections, so a number here is the page's number. Text is escaped for where it goes.

Sources: J. Pineau et al., "Improving Reproducibility in Machine Learning Research" (JMLR 22, 2021), checklist v2.0;
M. Mitchell et al., "Model Cards for Model Reporting" (FAT* 2019).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.page.html import spelled
from analysis.page.section import Section, Table, counted, missing, number, plain
from analysis.sections.first_screen import data_source, studied
from analysis.tables.tidy import StudyTables
from study.contract import Outcome, masked

REPORTED = ("evaluation", "reproduction", "claims", "importance", "selection", "variance", "spikes")
LONGEST = 40  # rows of a table in a text; the CSV has the rest
ROOMS_NOTE = "The frames are rendered rooms: no number here can be compared with a published one of NYU Depth v2."
NO_ENERGY = "not measured: no power reading was at hand on the devices that trained"


def markdown(tables: StudyTables, sections: Sequence[Section]) -> str:
    """The study's answers and tables as Markdown (GitHub's tables)."""
    parts = [f"# {literal(tables.name)}", literal(studied(tables))]
    if data_source(tables) == "rooms":
        parts.append(ROOMS_NOTE)
    for section in _reported(sections):
        parts += [f"## {literal(section.title)}", *(literal(answer) for answer in section.answers)]
        for table in _listed(section):
            parts += [
                f"**{literal(table.title)}**{_cut(table)}",
                _grid(table),
                *([literal(table.note)] * bool(table.note)),
            ]
    return "\n\n".join(parts) + "\n"


def latex(tables: StudyTables, sections: Sequence[Section]) -> str:
    """The study's tables as LaTeX, a table environment each, with their sections' first answers as captions."""
    head = [
        f"% Study {_comment(tables.name)}. Needs \\usepackage{{booktabs}}.",
        f"% {_comment(studied(tables))}",
        *([f"% {ROOMS_NOTE}"] if data_source(tables) == "rooms" else []),
    ]
    parts = ["\n".join(head)]
    for section in _reported(sections):
        for table in _listed(section):
            frame = _cells(table).map(_tex)
            frame.columns = [_tex(column) for column in frame.columns]
            caption = f"{table.title}. {section.answers[0] if section.answers else ''} {table.note}".strip()
            body = frame.style.hide(axis="index").to_latex(
                hrules=True, caption=_tex(caption), label=f"tab:{table.name}", position_float="centering"
            )
            parts.append(body.strip())
    return "\n\n".join(parts) + "\n"


def checklist(tables: StudyTables, sections: Sequence[Section]) -> str:
    """The Machine Learning Reproducibility Checklist (v2.0), filled from the study; Markdown."""
    trials, search = tables.trials, dict(tables.study.get("search") or {})
    environment, said = tables.environment, {section.key: section for section in sections}
    counts = trials["outcome"].value_counts()
    ended = ", ".join(f"{counts[o]} {str(o).replace('_', ' ')}" for o in Outcome if o in counts) or "none"
    space = "; ".join(f"{path}: {_range(what)}" for path, what in (search.get("space") or {}).items()) or "no search"
    judge = f"{tables.judge.metric} on validation" if tables.judge is not None else "unknown"
    found = said["evaluation"].data if "evaluation" in said else {}
    scored = f"{found.get('frames')} frames, opened {counted(int(found.get('times_opened', 0)), 'time')}"
    test = scored if found.get("opened") else "still sealed"
    packages = ", ".join(f"{name} {v}" for name, v in (environment.get("packages") or {}).items())
    machine = {k: environment.get(k) for k in ("platform", "cpus", "memory_gib", "devices")}
    rows = {
        "Models and algorithms": [
            ("clear description of the setting, algorithm, model",
             f"recipes {_names(trials, 'recipe')}; encoder {_names(trials, 'config.model.encoder')}; docs/FACTS.md"),
            ("assumptions explained", "the deviation ledger in each recipe's header"),
            ("complexity (time, space)",
             f"{_spread(trials, 'summary.parameters_total')} parameters, {_spread(trials, 'summary.peak_memory_mib')} "
             f"MiB at most in use, {_spread(trials, 'summary.images_per_s')} images/s"),
        ],
        "Data": [
            ("statistics", studied(tables)),
            ("training, validation and test splits",
             f"validation split by {_names(trials, 'config.data.validation.by')}; test set: {test}"),
            ("excluded data and pre-processing",
             f"{_excluded(trials)}; {_spread(trials, 'summary.skipped_frames')} bad frames skipped in a training"),
            ("link to a downloadable version",
             "rendered: python -m trainables.data.rooms" if data_source(tables) == "rooms" else "see studies/nyu.yaml"),
            ("fingerprints", ", ".join(f"{k} {v}" for k, v in tables.data.items() if k in ("train", "test"))),
        ],
        "Code": [
            ("dependencies", packages),
            ("training and evaluation code", f"commit {environment.get('commit')}; {environment.get('command')}"),
            ("(pre-)trained models",
             f"encoder weights: {_names(trials, 'config.model.weights')}; checkpoints under trials/"),
        ],
        "Results": [
            ("range of hyperparameters considered", space),
            ("method to select the best", f"{judge}, by rules hashed before the first training "
             f"({tables.judge_hash}); confirmation on fresh seeds: {json.dumps(plain(tables.study.get('confirm')))}"),
            ("exact number of training and evaluation runs", f"{counted(len(trials), 'training')}: {ended}"),
            ("definition of the measure", "trainables/evaluation/metrics.py; docs/FACTS.md"),
            ("central tendency and variation",
             _first(said.get("evaluation")) + " " + _first(said.get("variance"))),
            ("average runtime", f"{_spread(trials, 'summary.seconds')} s a training; "
             f"{number(float(trials['seconds'].sum()) / 3600)} h in all, trainings beside each other added up"),
            ("energy", energy(tables)),
            ("computing infrastructure", json.dumps(plain(machine))),
        ],
    }  # fmt: skip
    parts = [f"# Reproducibility checklist of {literal(tables.name)}",
             "The Machine Learning Reproducibility Checklist (J. Pineau, v2.0), filled from the study."]  # fmt: skip
    for head, answers in rows.items():
        lines = ["| asked | answer |", "|---|---|"]
        lines += [f"| {literal(asked)} | {literal(masked(str(answer)))} |" for asked, answer in answers]
        parts += [f"## {head}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def model_card(tables: StudyTables, sections: Sequence[Section]) -> str | None:
    """The champion's model card as Markdown; None while the test set is sealed."""
    said = {section.key: section for section in sections}
    evaluation = said.get("evaluation")
    if evaluation is None or not evaluation.data.get("opened"):
        return None
    found = evaluation.data
    key = str(found["champion"])
    (row,) = tables.trials[tables.trials["key"] == key].to_dict("records")
    told = {name: literal(str(row.get(name))) for name in row}
    rooms = data_source(tables) == "rooms"
    metrics = found["summary"][key]
    lines = ["| protocol | " + " | ".join(_metrics(metrics)) + " |", "|---" * (1 + len(_metrics(metrics))) + "|"]
    for protocol, values in metrics.items():
        cells = [number(values.get(name)) if values.get(name) is not None else "-" for name in _metrics(metrics)]
        lines.append(f"| {literal(str(protocol))} | " + " | ".join(cells) + " |")
    size = row.get("config.input")
    shape = " x ".join(map(str, size)) if isinstance(size, (list, tuple)) else "as configured"
    card = [
        f"# Model card: {literal(tables.name)}, {key}",
        "## Model",
        f"- Monocular depth from one color picture; recipe {told['recipe']}, encoder "
        f"{told.get('config.model.encoder')} with weights {told.get('config.model.weights')}.\n"
        f"- {number(row.get('summary.parameters_total'))} parameters; trained at {shape} on "
        f"{number(row.get('images'))} images, seed {row.get('seed')}.\n"
        f"- Input: RGB, 0 to 255. Output: depth in metres. Use: `trainables.load_model(PATH).predict(picture)`, "
        f"`python -m trainables.predict`, or the registered model `models:/{literal(tables.name)}@champion`.",
        "## Intended use and limits",
        "- Made to answer the questions of the study, not to measure distances that someone's safety depends on.\n"
        + (f"- {ROOMS_NOTE} On photographs it has not been tested.\n" if rooms else
           "- Trained on indoor scenes of one sensor: outdoors, and beyond its range, it has not been tested.\n")
        + "- Scale is learned from the training data: pictures of another camera shift it.",
        "## Data",
        f"- {literal(studied(tables))}",
        "## Evaluation",
        "\n".join(f"- {literal(answer)}" for answer in evaluation.answers),
        "\n".join(lines),
        "## Training",
        f"- {told.get('summary.device')}, {number(row.get('summary.seconds'))} s; energy: {energy(tables)}.\n"
        f"- Settings: trials/{key}/config.json; commit {literal(str(tables.environment.get('commit')))}.",
    ]  # fmt: skip
    return "\n\n".join(card) + "\n"


def energy(tables: StudyTables) -> str:
    """What the trainings' devices took, where their power could be read."""
    column = "summary.energy_wh"
    known = tables.trials[column].dropna() if column in tables.trials else pd.Series(dtype=float)
    if known.empty:
        return NO_ENERGY
    return (
        f"{number(float(known.sum()))} Wh by {len(known)} of {counted(len(tables.trials), 'training')}, devices alone"
    )


def literal(text: str) -> str:
    """Text as Markdown shows it: a name in it becomes neither link, picture, HTML nor a table's column."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!$&@/]|(?<=www)\.)", r"\\\1", " ".join(spelled(text).split()))


def _reported(sections: Sequence[Section]) -> list[Section]:
    return [section for section in sections if section.key in REPORTED]


def _listed(section: Section) -> list[Table]:
    """The tables of a section that hold something, those of its headline first."""
    listed = [*(section.headline.tables if section.headline is not None else ()), *section.tables]
    return [table for table in listed if len(table.frame)]


def _cut(table: Table) -> str:
    return f" (the first {LONGEST} of {len(table.frame)} rows)" if len(table.frame) > LONGEST else ""


def _cells(table: Table) -> pd.DataFrame:
    """A table's first rows as text, with units in the heads."""
    frame = table.frame.head(LONGEST).astype(object)
    frame = frame.map(
        lambda value: "-" if missing(value) else number(value) if isinstance(value, float) else str(value)
    )
    return frame.rename(columns={c: f"{c} ({u})" for c, u in table.units.items() if u})


def _grid(table: Table) -> str:
    frame = _cells(table)
    lines = [[literal(str(column)) for column in frame.columns], ["---"] * len(frame.columns)]
    lines += [[literal(cell) for cell in row] for row in frame.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
        ">": r"\textgreater{}", "|": r"\textbar{}"} | {c: f"\\{c}" for c in "&%$#_{}"}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in " ".join(spelled(str(text)).split()))


def _comment(text: str) -> str:
    return " ".join(spelled(text).split())


def _names(trials: pd.DataFrame, column: str) -> str:
    values = trials[column].dropna() if column in trials else pd.Series(dtype=object)
    return ", ".join(dict.fromkeys(str(value) for value in values)) or "none"


def _spread(trials: pd.DataFrame, column: str) -> str:
    """The smallest and largest value of a column."""
    values = pd.to_numeric(trials[column], errors="coerce").dropna() if column in trials else pd.Series(dtype=float)
    if values.empty:
        return "an unknown number of"
    low, high = float(values.min()), float(values.max())
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def _range(what: Mapping[str, Any]) -> str:
    if "choices" in what:
        return " or ".join(json.dumps(plain(value)) for value in what["choices"])
    return f"{what.get('low')} to {what.get('high')}, {what.get('scale', 'linear')}"


def _excluded(trials: pd.DataFrame) -> str:
    lists = trials.get("config.data.exclude", ())
    named = {name for value in lists if isinstance(value, (list, tuple)) for name in value}
    return f"{counted(len(named), 'frame')} left out by data.exclude in some training" if named else "no frame excluded"


def _first(section: Section | None) -> str:
    return str(section.answers[0]) if section is not None and section.answers else ""


def _metrics(summary: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for values in summary.values() for name in values))
