"""`python -m analysis.report`: judges, explains, and writes results/STUDY/report.html with its figures and tables.

First what each section has to say in a line (analysis/sections/first_screen.py); below, question by question, an answer
in a sentence, then the picture, then the table. A study that has not ended, or in which nothing was completed, gets a
report that says so. Of the sealed test only analysis/final_evaluation.py knows.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from analysis import claims, final_evaluation, importance, papers, reproduction, selection, variance
from analysis.mlflow_store import log_to_parent, run_pages
from analysis.page import html
from analysis.page.section import Section, Table
from analysis.runs import load
from analysis.sections import (
    compare,
    cost,
    first_screen,
    frames,
    gap,
    learned,
    overview,
    pruning,
    sealed_test,
    search_budget,
    search_space,
    timeline,
    trainings,
)
from analysis.spikes import causes
from analysis.tables.tidy import StudyTables, read_table, write_table
from trainables.runtime import cli
from trainables.runtime.durable import write_bytes
from trainables.runtime.errors import UserError
from trainables.settings.yamlfile import read_yaml

STUDY_FILE = Path("study.yaml")
PAGE_FILE, FILES = "report.html", "report"  # the page, and the folder of its figures and tables beside it
TABLE = "study.parquet"  # the released table, in the report's folder
RERUN = "quarantine.yaml"  # a study with and without the suspect samples, beside it
CHECKLIST, CARD = "reproducibility.md", "model-card.md"  # beside it, too
WORDS = {"markdown": ("study.md", papers.markdown), "latex": ("study.tex", papers.latex)}  # beside it where asked for

EVIDENCE: Sequence[tuple[str, Callable[[StudyTables], Any]]] = (  # what is measured before anything is said
    ("sealed test", final_evaluation.collect),
    ("step traces", causes.collect),
)
PAGE: Sequence[tuple[str, Callable[[StudyTables], Section]]] = (  # in the page's order, the first screen's included
    ("evaluation", sealed_test.build),
    ("frames", frames.analyse),
    ("learned", learned.analyse),
    ("reproduction", reproduction.analyse),
    ("gap", gap.analyse),
    ("claims", claims.analyse),
    ("importance", importance.analyse),
    ("space", search_space.analyse),
    ("budget", search_budget.analyse),
    ("pruning", pruning.analyse),
    ("spikes", causes.analyse),
    ("selection", selection.analyse),
    ("variance", variance.analyse),
    ("curves", overview.curves),
    ("history", overview.history),
    ("outcomes", overview.outcomes),
    ("timeline", timeline.analyse),
    ("trainings", trainings.analyse),
    ("cost", cost.cost),
    ("data", cost.data),
)


def analyse(tables: StudyTables) -> list[Section]:
    """Every section, in the page's order; each one's seconds go to the cost section and to provenance."""
    sections, took = [], {}
    for name, measure in EVIDENCE:
        started = time.perf_counter()
        measure(tables)
        took[name] = time.perf_counter() - started
    for name, question in PAGE:
        started = time.perf_counter()
        sections.append(question(tables))
        took[name] = time.perf_counter() - started
    made = {
        "report made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **{f"report, {name} (s)": f"{seconds:.2f}" for name, seconds in took.items()},
    }
    timed = [_timed(section, took) if section.key == "cost" else section for section in sections]
    return [*timed, cost.provenance(tables, made)]


def _timed(section: Section, took: dict[str, float]) -> Section:
    rows = pd.DataFrame([{"part": name, "seconds": seconds} for name, seconds in took.items()])
    table = Table(
        "report-timings", "How long each part of this report took", rows, "Without drawing.", {"seconds": "s"}
    )
    return replace(section, tables=[*section.tables, table])


def write(tables: StudyTables, sections: Sequence[Section], folder: Path, links: Mapping[str, str]) -> Path:
    """Write report.html, and report/ with every figure and table as files, into `folder`; the page's path.

    links: key -> address of a training's run in the MLflow UI.
    """
    asked = [claim for section in sections if section.key == "claims" for claim in section.data.get("claims", ())]
    verdicts = [(claim["id"], claim["verdict"]) for claim in asked]
    inside = html.anchors(sections, links)
    leads = [html.lead(*entry, inside) for entry in first_screen.headlines(tables, sections, verdicts)]
    parts = [html.part(section, inside, links) for section in sections]
    footer = (
        f"{tables.name}: every figure and table also lies in report/ as SVG, PNG and CSV; {TABLE} regenerates them."
    )
    text = html.render(tables.name, leads, parts, footer)
    files: dict[str, bytes] = {}
    shown_parts: list[html.Lead | html.Part] = [*leads, *parts]
    for one in shown_parts:
        for shown in one.figures:
            files.update(shown.files)
        for listed in one.tables:
            files.update(listed.files)
    beside = folder / FILES
    if beside.exists():
        shutil.rmtree(beside)
    for name, content in files.items():
        write_bytes(beside / name, content)
    rerun = next((section.data["rerun"] for section in sections if section.data.get("rerun")), None)
    if rerun is not None:
        write_bytes(beside / RERUN, yaml.safe_dump(rerun, sort_keys=False, allow_unicode=True).encode())
    write_bytes(beside / CHECKLIST, papers.checklist(tables, sections).encode())
    card = papers.model_card(tables, sections)
    if card is not None:
        write_bytes(beside / CARD, card.encode())
    write_table(tables, beside / TABLE)
    write_bytes(folder / PAGE_FILE, text.encode())
    return folder / PAGE_FILE


def _free(folder: Path) -> Path:
    """The folder itself. Raises UserError where a page or a folder lies in it that no report wrote: writing replaces
    both.
    """
    for name in (FILES, PAGE_FILE):
        if (folder / name).exists() and not (folder / FILES / TABLE).is_file():
            raise UserError(
                f"{folder / name}: not a report of this command, which would replace it; move one of the two"
            )
    return folder


def default_study() -> str:
    """The name in ./study.yaml. Raises UserError where there is none."""
    if not STUDY_FILE.exists():
        raise UserError(f"{STUDY_FILE}: no such file here; name a study or its results folder")
    name = (read_yaml(STUDY_FILE).value or {}).get("name")
    if not isinstance(name, str):
        raise UserError(f"{STUDY_FILE} has no name; name a study or its results folder")
    return name


def report(args: argparse.Namespace) -> dict[str, Any]:
    """The command's work: its JSON document."""
    started = time.perf_counter()
    if args.from_table is not None and args.study is not None:
        raise UserError(f"--from-table {args.from_table} is a study by itself; leave out {args.study}, or the table")
    if args.from_table is not None:
        tables, folder = read_table(args.from_table), _free(args.from_table.parent)
    elif str(args.study).endswith(".parquet"):
        raise UserError(f"{args.study} is a released table; write --from-table {args.study}")
    else:
        tables = load(args.study or default_study())
        if tables.layout is None:
            raise UserError(f"{args.study} has no results folder")
        folder = tables.layout.root
    sections = analyse(tables)
    if args.second is not None:
        sections.insert(0, compare.analyse(tables, load(args.second)))
    links, away = _links(tables)
    path = write(tables, sections, folder, links)
    for name, make in (WORDS[asked] for asked in WORDS if getattr(args, asked)):
        write_bytes(folder / FILES / name, make(tables, sections).encode())
        print(folder / FILES / name)
    registered = None
    if away is None:
        try:
            mirror(tables, sections, folder)
            registered = register(tables)
        except UserError as error:
            away = error
    if away is not None:
        print(f"the report is written, but not mirrored: {away}", file=sys.stderr)
    print(f"{path}: {len(sections)} sections in {time.perf_counter() - started:.1f} s")
    return {"report": str(path), "model": registered, "sections": {section.key: section.data for section in sections}}


def mirror(tables: StudyTables, sections: Sequence[Section], folder: Path) -> None:
    """Put page, figures and a summary on the study's parent run. Raises UserError where the store is away."""
    if tables.layout is None:
        return
    said = [f"- **{section.title}** {papers.literal(section.answers[0])}" for section in sections if section.answers]
    log_to_parent(tables, {"": folder / PAGE_FILE, FILES: folder / FILES}, "\n".join(said))


def register(tables: StudyTables) -> str | None:
    """Register the champion that the sealed test has seen as an MLflow model; None where there is none, or no store."""
    if tables.layout is None or not tables.evaluation:
        return None
    from analysis import served_model

    registered = served_model.publish(tables)
    if registered is not None:
        print(f"{registered} is registered, alias champion; README says how to serve it")
    return registered


def _links(tables: StudyTables) -> tuple[Mapping[str, str], UserError | None]:
    """Where the MLflow UI shows each training, and why it cannot be said."""
    try:
        return run_pages(tables), None
    except UserError as error:
        return {}, error


def main(argv: list[str] | None = None) -> int:
    """Make a report."""
    arguments = cli.parser(
        "analysis.report",
        "Judge and explain a study; write one self-contained page.",
        "python -m analysis.report rooms",
    )
    arguments.add_argument(
        "study", nargs="?", help="a study's name or its results folder; default: the name in study.yaml"
    )
    arguments.add_argument("second", nargs="?", metavar="STUDY2", help="a second study to set beside it")
    arguments.add_argument(
        "--from-table", type=cli.path, metavar="FILE", help="a released table instead of a results folder"
    )
    arguments.add_argument(
        "--markdown", action="store_true", help="also write the answers and tables as report/study.md"
    )
    arguments.add_argument("--latex", action="store_true", help="also write the tables as report/study.tex")
    return cli.run(arguments, report, argv)


if __name__ == "__main__":
    sys.exit(main())
