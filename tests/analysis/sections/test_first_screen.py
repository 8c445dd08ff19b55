"""The first screen: its order, the step it proposes, and nothing drawn, listed or compared that says nothing."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure as Canvas

from analysis import importance, report, reproduction, runs, statistics
from analysis.page import html, style
from analysis.page.section import Figure, Headline, Section, Table
from analysis.sections import first_screen
from analysis.spikes import replays
from analysis.tables.published import ELSEWHERE, PAPER, STRUCTURE
from analysis.tables.tidy import StudyTables
from study.contract import Outcome
from tests.analysis.make_results import PAPER as PAPER_SETTING
from tests.analysis.make_results import Training, make_results, planted_study
from tests.analysis.test_reproduction import entry


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "drawn", lambda figure: Canvas(figsize=(1, 1)))


def written(root: Path) -> str:
    assert report.main([str(root)]) == 0
    return (root / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_the_first_screen_answers_in_its_order_with_or_without_the_folder(tmp_path: Path) -> None:
    layout, _ = planted_study(tmp_path / "planted", 3, trials=45, steps=60)
    text = written(layout.root)
    order = re.findall(r'id="first-(\w+)"', text)
    wanted = ["studied", "evaluation", "claims", "importance", "spikes", "next"]
    assert [key for key in order if key in wanted] == wanted and order[0] == "studied" and order[-1] == "next"
    assert text.index('id="first-next"') < text.index("<nav")
    assert 'id="table-first-claims"' in text and 'id="table-first-importance"' in text
    released = tmp_path / "released" / "study.parquet"
    released.parent.mkdir()
    shutil.copy(layout.root / "report/study.parquet", released)
    assert report.main(["--from-table", str(released)]) == 0
    again = (released.parent / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'id="first-(\w+)"', again) == order


@pytest.mark.usefixtures("undrawn")
def test_a_section_with_nothing_to_show_is_one_line(tmp_path: Path) -> None:
    text = written(make_results(tmp_path / "s", [Training("search", 0.5, history=[0.5])]).root)
    shown = dict(re.findall(r'<section id="(\w+)"[^>]*?( class=brief)?>', text))
    assert {key for key, brief in shown.items() if brief} >= {"importance", "variance", "claims", "spikes"}
    assert "No rows" not in text and not re.findall(
        r'id="table-[^"]+" open>\s*<summary>[^<]*<span class="count">0 ', text
    )
    drawn = re.findall(r'<figure id="figure-([^"]+)"', text)
    assert drawn == []  # one training with one report: every plot would have one point


def test_an_empty_table_and_an_empty_figure_are_left_out() -> None:
    bare = Figure("f", "F", "", "", lambda canvas, data: None, pd.DataFrame({"x": []}))
    part = html.part(Section("k", "K", ["said"], [bare], [Table("t", "T", pd.DataFrame(columns=["x"]))]), {}, {})
    assert part.brief and not part.figures and not part.tables
    assert not html.part(Section("k", "K", ["said"], (), [Table("t", "T", pd.DataFrame({"x": [1]}))]), {}, {}).brief


@pytest.mark.usefixtures("undrawn")
def test_no_sentence_begins_with_too_few(tmp_path: Path) -> None:
    few = [Training("search", 0.5 + 0.1 * i, PAPER_SETTING | {"optim.lr": 1e-4 * (i + 1)}) for i in range(3)]
    few += [Training("search", 1.0, PAPER_SETTING, outcome=Outcome.DIVERGED, step=3)]
    few += [Training("confirm", 0.5, group="search-0000", origin="search-0000", seed=s, outcome=o)
            for s, o in ((1, Outcome.COMPLETE), (2, Outcome.DIVERGED), (3, Outcome.DIVERGED))]  # fmt: skip
    text = written(make_results(tmp_path / "s", few).root)
    assert not re.search(r"(?:>|[.:;]\s)\s*[Tt]oo few", text)
    assert "n = 3 of 4 trials complete: to say which of 6 settings matter takes at least 18." in text
    assert "1 of 4 trials diverged: to say which setting does it takes 3 that diverged and 3 that did not." in text


def numbers_of(section: Section) -> str:
    """Everything that a section says or shows, as text."""
    frames = [table.frame for table in section.tables] + [figure.data for figure in section.figures]
    return "\n".join([*section.answers, *(frame.to_csv() for frame in frames), str(section.data["verdicts"])])


@pytest.mark.parametrize(("changes", "beside"), [({}, True), ({"source": "rooms"}, False), ({"frames": 180}, False)])
def test_published_numbers_stand_beside_those_of_nyu_alone(
    tmp_path: Path, changes: dict[str, Any], beside: bool
) -> None:
    ours = dict.fromkeys((*PAPER.metrics, "mssim_10", "mssim_255", "edge_f1_0.5", "edge_f1_0.2"), 0.111)
    layout = make_results(tmp_path / "s", [Training("reproduce", 0.46, group="densedepth")])
    tables = runs.load(layout.root)
    guess = entry(ours, **changes) | {"name": "random guess", "roles": ["baseline"]}
    tables.evaluation.update({"entries": [entry(ours, **changes), guess], "champion": "reproduce-0000"})
    section = reproduction.analyse(tables)
    text = numbers_of(section)
    for value in (PAPER.metrics["delta1"], PAPER.metrics["rmse"], 0.39, STRUCTURE[PAPER.who]["mssim"], 0.745):
        assert (str(value) in text) == beside, value
    assert (ELSEWHERE in section.answers) == (not beside)
    reason = "the data are rendered rooms" if changes.get("source") else "the test split has 180 frames"
    said = [*section.answers, *(table.frame.to_csv() for table in section.tables)]
    assert sum(part.count(reason) for part in said) == (0 if beside else 1)  # one row, for all that it is asked against
    assert ("reproduction" in {figure.name for figure in section.figures}) == beside
    assert "mSSIM depends on a data range" in text and "scaling alone moves" in text  # measured here, so still said


def ended(root: Path, **changes: Any) -> StudyTables:
    """A finished study of rooms whose champion stopped improving."""
    trainings = [
        Training("search", 0.5, history=[0.7, 0.5, 0.6], overrides={"data.source": "rooms"}),
        Training("search", 0.6, history=[0.6, 0.61]),
    ]
    return replace(runs.load(make_results(root, trainings).root), **changes)


def proposed(tables: StudyTables, verdicts: list[tuple[str, str]] | None = None) -> str:
    headline = first_screen.next_step(tables, verdicts or [])
    assert len(headline.sentences) == 1
    return headline.command


def test_the_next_step_follows_from_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tables = ended(tmp_path / "results" / "s")
    study = {
        **tables.study,
        "confirm": {"top": 0},
        "claims": {"test": ["P1", "P2", {"P3": {"seeds": 5, "margin": 0.1}}]},
    }
    tables = replace(tables, study=study, planned={**tables.planned, "claims": 0})
    assert "studies/nyu.yaml --plan" in proposed(tables)
    assert proposed(replace(tables, layout=None)) == proposed(tables)
    nyu = replace(tables, trials=tables.trials.assign(**{"config.data.source": "kaggle"}))
    assert proposed(nyu) == ""
    told = [("P1", "holds"), ("P2", "cannot be told (3 seeds; about 9 would do)"), ("P3", "not testable here: why")]
    assert proposed(tables, told).endswith(
        """study.run results/s/study.yaml --set name=s-9-seeds --set 'claims.test=[{"P2": {"seeds": 9}}]' """
        "--set 'reproduce.recipes=[]' --set search.trials=0 --set confirm.top=0"
    )
    told[2] = ("P3", "cannot be told (5 seeds; about 12 would do)")  # on more than its own 5
    assert '{"P2": {"seeds": 9}}, {"P3": {"seeds": 12, "margin": 0.1}}]' in proposed(tables, told)
    assert "nyu" in proposed(tables, [("P2", "cannot be told (3 seeds; about 900 would do)")])
    rows = tables.reports[tables.reports["key"] == "search-0000"].head(2)
    others = tables.reports[tables.reports["key"] != "search-0000"]
    improving = replace(tables, reports=pd.concat([rows, others]))
    images = int(rows["images"].iloc[-1])
    assert proposed(improving).endswith(f"study.run results/s/study.yaml --resume --set confirm.images={2 * images}")
    monkeypatch.setattr(replays, "waiting", lambda *_: 2)
    assert proposed(improving, told).endswith("analysis.spikes results/s --replay")
    unfinished = replace(tables, planned={"search": 9})
    assert proposed(unfinished).endswith("study.run results/s/study.yaml --resume")
    spent = replace(unfinished, spent="budget.images is 100, and 120 are spent")
    assert proposed(spent).endswith("--resume --set budget.images=200")
    assert "nyu" in proposed(replace(unfinished, layout=None))


def test_a_study_is_named_in_a_line_and_its_state_stands_under_it(tmp_path: Path) -> None:
    rooms = {"data.source": "rooms"}
    members = [Training("search", 0.5, overrides=rooms), Training("search", 0.6, outcome=None, overrides=rooms)]
    layout = make_results(tmp_path / "s", members)
    tables = runs.load(layout.root)
    said = first_screen.studied(tables)
    assert said.startswith(
        "densedepth (densenet169) on rendered rooms, in NYU's folder layout (400 training, 40 validation frames) at "
        "480 x 640"
    )
    assert said.endswith("2 trainings of 2,400 images each (1 complete, 1 running).")
    entries = first_screen.headlines(tables, [], [])
    assert [key for key, _, _ in entries] == ["studied", "state", "next"] and entries[1][2].warn


def test_what_matters_is_a_row_with_its_interval(tmp_path: Path) -> None:
    layout, _ = planted_study(tmp_path / "planted", 1, trials=45)
    headline = importance.analyse(runs.load(layout.root)).headline
    assert isinstance(headline, Headline)
    row = headline.tables[0].frame.iloc[0]
    assert row["setting"] == "optim.lr" and row["beyond chance"]
    assert re.fullmatch(r"0\.\d+ to 0\.\d+", row["95% interval"])


def test_how_far_below_the_mean_is_resampled_in_both_by_scene() -> None:
    rng = np.random.default_rng(0)
    scenes = [f"s{i // 6}" for i in range(240)]
    hard = np.repeat(rng.uniform(0.5, 1.5, 40), 6)  # of a scene: it moves both alike
    found = statistics.reduction_by_scene(list(0.7 * hard), list(hard), scenes, 0)
    assert found.value == pytest.approx(30) and found.low == pytest.approx(30) and found.high == pytest.approx(30)
    noisy = statistics.reduction_by_scene(list(0.7 * hard * rng.uniform(0.9, 1.1, 240)), list(hard), scenes, 0)
    assert noisy.low is not None and noisy.high is not None and noisy.n == "40 scenes"
    assert (
        noisy.low < noisy.value < noisy.high and noisy.value == pytest.approx(30, abs=2) and noisy.high - noisy.low < 3
    )
    assert statistics.reduction_by_scene([0.5] * 6, [1.0] * 6, scenes[:6], 0).low is None
