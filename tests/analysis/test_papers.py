"""A study in words: the page's own numbers, escaped for Markdown and LaTeX."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from analysis import papers, report, runs
from analysis.page.section import Headline, Section, Table
from study.contract import Outcome
from tests.analysis.make_results import Training, make_results

HOSTILE = "50% of a_b | [x](http://y) \\ {z} $1 ~ & <b>"


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> runs.StudyTables:
    trainings = [
        Training("search", 0.5, {"optim.lr": 1e-4}, summary={"seconds": 1800.0}),
        Training("search", 0.6, {"optim.lr": 1e-3}, outcome=Outcome.PRUNED),
        Training("search", 0.7, {"optim.lr": 2e-3}, outcome=Outcome.PRUNED, overrides={"data.exclude": ["a", "b"]}),
    ]
    return runs.load(make_results(tmp_path_factory.mktemp("papers") / "study", trainings).root)


def section(rows: int = 2) -> Section:
    listed = Table("claims", "What | holds", pd.DataFrame({"na_me": [HOSTILE] * rows, "rmse": 0.123456}), "100% so",
                   {"rmse": "m"})  # fmt: skip
    return Section("claims", "Claims", ["P1 holds & more."], (), (), {}, Headline((), (), [listed]))


def test_a_markdown_table_keeps_its_columns_and_numbers(tables: runs.StudyTables) -> None:
    text = papers.markdown(tables, [section()])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    for line in lines:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3  # two columns, whatever a name holds
    assert lines[0] == r"| na\_me | rmse (m) |" and lines[2].endswith("| 0.123 |")
    assert re.search(r"(?<!\\)\]\(", text) is None and "<b>" not in text.replace(r"\<b\>", "")


def test_a_long_table_says_how_many_rows_it_leaves_out(tables: runs.StudyTables) -> None:
    text = papers.markdown(tables, [section(papers.LONGEST + 3)])
    assert f"(the first {papers.LONGEST} of {papers.LONGEST + 3} rows)" in text
    assert text.count("0.123") == papers.LONGEST


def test_latex_escapes_every_special_character(tables: runs.StudyTables) -> None:
    text = papers.latex(tables, [section()])
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1 and r"\toprule" in text
    (row, _) = [line for line in text.splitlines() if "50" in line]
    assert r"50\% of a\_b \textbar{} [x](http://y) \textbackslash{} \{z\} \$1 \textasciitilde{} \&" in row
    assert re.search(r"\\caption\{What \\textbar\{\} holds\. P1 holds \\& more\. 100\\% so\}", text)
    assert re.findall(r"(?<!\\)&", row) == ["&"]  # one between two columns


def test_the_checklist_is_filled_from_the_study(tables: runs.StudyTables) -> None:
    text = papers.checklist(tables, report.analyse(tables))
    assert "3 trainings: 1 complete, 2 pruned" in text
    assert "2 frames left out by data.exclude in some training" in text
    assert "test set: still sealed" in text and papers.NO_ENERGY in text
    asked = re.findall(r"^\| (?!asked|---)(.+?) \|", text, re.MULTILINE)
    assert len(asked) == len(set(asked)) == 19


def test_energy_is_added_up_where_it_was_read(tables: runs.StudyTables) -> None:
    trials = tables.trials.assign(**{"summary.energy_wh": [1.5, 2.5, None]})
    known = runs.StudyTables(**{**vars(tables), "trials": trials})
    assert papers.energy(known) == "4 Wh by 2 of 3 trainings, devices alone"


def test_a_sealed_study_has_no_model_card(tables: runs.StudyTables) -> None:
    assert papers.model_card(tables, report.analyse(tables)) is None


def test_words_are_written_beside_the_page(tables: runs.StudyTables, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tables.layout is not None
    root: Path = tables.layout.root
    monkeypatch.setattr(report, "analyse", lambda _: [section()])
    assert report.main([str(root), "--markdown", "--latex"]) == 0
    written = {path.name for path in (root / "report").iterdir()}
    assert {
        "study.md",
        "study.tex",
        "reproducibility.md",
        "study.parquet",
    } <= written and "model-card.md" not in written
    assert (root / "report" / "study.md").read_text(encoding="utf-8") == papers.markdown(tables, [section()])
