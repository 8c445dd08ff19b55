"""The page as files and in a real browser: no network, nothing a name could run, sortable tables, no overflow."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure as Canvas

from analysis import mlflow_store, papers, report, runs
from analysis.page import html, style
from analysis.page.section import Section, Table
from analysis.sections import compare, cost, overview
from analysis.tables import tidy
from study.contract import Outcome
from tests.analysis.make_results import JUDGE, Training, make_results, planted_study, planted_trace, settings_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to open the page in")

SHAPES = (
    "<script>window.hit=1</script>{n}", "<img src=x onerror=window.hit=1>{n}", '" onmouseover="window.hit=1" x="{n}',
    "'><svg onload=window.hit=1>{n}", "javascript:window.hit=1//{n}", "</style><style>body{{display:none}}{n}",
    "</script><script>window.hit=1</script>{n}", "{{{{ 7*7 }}}}{n}", "{{% raw %}}{n}", "${{window.hit=1}}{n}",
    "$\\frac{{{n}}}{{$", "<!--{n}", "&lt;b&gt;{n}&#x3c;", "=HYPERLINK(\"http://x\",{n})",
    "+{n}", "-{n}+cmd|' /C calc'!A0",
    "@SUM({n})", "]]>{n}", "<base href=//x>{n}", "expression(window.hit={n})",
)  # fmt: skip
PAYLOADS = [shape.format(n=n) for n in range(10) for shape in SHAPES]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with everything, reported."""
    layout, _ = planted_study(tmp_path_factory.mktemp("planted") / "planted", 3, trials=24, steps=120)
    assert report.main([str(layout.root)]) == 0
    return layout.report


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 payloads as reasons, sample names and settings; bidi and control characters; a hostile study name."""
    root = tmp_path_factory.mktemp("hostile") / "hostile"
    rng = np.random.default_rng(0)
    trace = planted_trace(rng, steps=150, batch_size=2, samples=PAYLOADS, bad={PAYLOADS[0]: 30.0})
    trainings = [Training("search", 0.5, outcome=Outcome.FAILED, reason=text) for text in PAYLOADS]
    trainings += [Training("search", 0.4, overrides={"data.root": "\u202efdp.exe\u2066 \x00\x1b[31m<b>"}, trace=trace)]
    study = settings_of("hostile", trainings, JUDGE) | {"name": PAYLOADS[0]}
    layout = make_results(root, trainings, study=study)
    assert report.main([str(root)]) == 0
    return layout.report


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank figures, for tests of what a page says: drawing takes most of a page's time, and `planted` is drawn."""
    monkeypatch.setattr(style, "drawn", lambda figure: Canvas(figsize=(1, 1)))


def open_page(browser: Any, path: Path, **context: Any) -> tuple[Any, list[str], list[str]]:
    shown = browser.new_context(**context).new_page()
    said: list[str] = []
    asked: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(path.as_uri())
    return shown, said, [url for url in asked if not url.startswith("data:") and url != path.as_uri()]


def test_the_policy_names_exactly_what_is_inlined(planted: Path) -> None:
    text = planted.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None and policy.group(1).startswith("default-src 'none';")
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        pieces = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.S)
        digests = [base64.b64encode(hashlib.sha256(piece.encode()).digest()).decode() for piece in pieces]
        assert len(digests) == 1 and f"{directive} 'sha256-{digests[0]}'" in policy.group(1)
    assert "unsafe" not in policy.group(1) and " style=" not in text and not re.search(r"\son\w+=", text)
    assert not re.findall(r'(?:src|href)="(?!data:|#|trials/[a-z]+-\d+/")[^"]*"', text)


def test_figures_and_tables_also_lie_beside_the_page(planted: Path) -> None:
    names = {path.name for path in (planted.parent / "report").iterdir()}
    text = planted.read_text(encoding="utf-8")
    for figure in re.findall(r'<figure id="figure-([^"]+)"', text):
        assert f"{figure}.csv" in names and {f"{figure}.svg", f"{figure}.png"} & names
    for table in re.findall(r'id="table-([^"]+)"', text):
        assert f"{table}.csv" in names
    trials = pd.read_csv(planted.parent / "report" / "search-trials.csv")
    assert len(trials) == 24 and trials["key"].is_unique


def unfold(shown: Any) -> None:
    """Open everything that is folded up."""
    shown.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")


@needs_browser
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_or_asks_the_network(browser: Any, planted: Path, width: int, scheme: str) -> None:
    shown, said, asked = open_page(
        browser, planted, viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    unfold(shown)
    assert said == [] and asked == []
    assert shown.evaluate("document.documentElement.scrollWidth") == width
    outside = shown.evaluate(
        "w => [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg') "
        "&& e.getBoundingClientRect().right > w + 1).map(e => e.tagName + '.' + e.className)",
        width,
    )
    assert outside == []
    ink, paper = shown.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > sum(map(int, re.findall(r"\d+", paper)[:3]))) == (
        scheme == "dark"
    )
    shown.context.close()


@needs_browser
def test_tables_sort_and_downloads_hold_the_data(browser: Any, planted: Path, tmp_path: Path) -> None:
    shown, said, _ = open_page(browser, planted, viewport={"width": 1440, "height": 900})
    table = shown.locator("#table-search-trials")
    assert table.get_attribute("open") is None  # closed until it is asked for
    table.locator("summary").click()
    column = [head.strip() for head in table.locator("th button").all_inner_texts()].index("number")
    for order in (1, -1):
        table.locator("th button").nth(column).click()
        numbers = [int(text) for text in table.locator(f"tbody td:nth-child({column + 1})").all_inner_texts()]
        assert numbers == sorted(numbers, reverse=order < 0) and len(numbers) == 24
    assert table.locator("th").nth(column).get_attribute("aria-sort") == "descending"
    with shown.expect_download() as waiting:
        shown.locator("#figure-learning-curves a.csv").click()
    waiting.value.save_as(tmp_path / "curves.csv")
    beside = planted.parent / "report" / "learning-curves.csv"
    assert (tmp_path / "curves.csv").read_bytes() == beside.read_bytes()
    assert said == []
    shown.context.close()


@needs_browser
def test_a_filter_leaves_the_rows_that_hold_every_word(browser: Any, planted: Path) -> None:
    shown, said, _ = open_page(browser, planted, viewport={"width": 1440, "height": 900})
    table = shown.locator("#table-trainings")
    table.locator("summary").click()
    rows = table.locator("tbody tr")
    texts = [text.lower() for text in rows.all_text_contents()]
    for words in ("search-0003", "Search complete", "no such training", ""):
        table.locator(".filter input").fill(words)
        expected = [all(word in text for word in words.lower().split()) for text in texts]
        assert [row.is_visible() for row in rows.all()] == expected
    assert said == []
    shown.context.close()


@needs_browser
def test_a_key_leads_to_the_trainings_own_entry(browser: Any, planted: Path) -> None:
    shown, said, _ = open_page(browser, planted, viewport={"width": 1440, "height": 900})
    entry = shown.locator("#training-search-0003")
    assert not entry.locator(".command").is_visible()
    shown.locator("#table-search-trials summary").click()
    shown.locator("#table-search-trials td a", has_text="search-0003").click()
    assert entry.locator(".command").is_visible() and entry.locator("polyline").is_visible()
    assert entry.locator(".command").inner_text().startswith("python -m trainables.train densedepth --set ")
    assert said == []
    shown.context.close()


@needs_browser
def test_two_hundred_payloads_are_shown_and_none_runs(browser: Any, hostile: Path) -> None:
    shown, said, asked = open_page(browser, hostile, viewport={"width": 390, "height": 900})
    assert shown.evaluate("window.hit") is None and said == [] and asked == []
    unfold(shown)
    cells = set(shown.locator("#table-not-completed tbody td").all_inner_texts())
    assert [text for text in PAYLOADS if text not in cells] == [] and len(set(PAYLOADS)) == 200
    assert shown.title() == PAYLOADS[0] and shown.locator("h1").inner_text() == PAYLOADS[0]
    body = shown.locator("body").inner_text()
    assert "[U+202E]fdp.exe[U+2066]" in body and "\u202e" not in body
    assert shown.evaluate("document.documentElement.scrollWidth") == 390
    exported = (hostile.parent / "report" / "not-completed.csv").read_text(encoding="utf-8")
    assert "\"'=HYPERLINK" in exported and '"=HYPERLINK' not in exported
    shown.context.close()


@pytest.mark.usefixtures("undrawn")
def test_a_failed_an_empty_and_a_running_study_get_a_report_that_says_so(tmp_path: Path) -> None:
    failed = [
        Training("search", 0.5, outcome=Outcome.DIVERGED, step=4, reason="loss is nan", history=[]) for _ in range(3)
    ]
    layouts = {
        "No training of this study was completed.": make_results(tmp_path / "failed", failed),
        "search has ended 2 of 9 trainings": make_results(
            tmp_path / "running",
            [Training("search", 0.5), Training("search", 0.6), Training("search", 0.7, outcome=None)],
            planned={"search": 9},
        ),
    }
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "study.yaml").write_text("name: empty\n")
    for sentence, root in [(s, layout.root) for s, layout in layouts.items()] + [("has not begun", empty)]:
        assert report.main([str(root)]) == 0
        assert sentence in (root / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_a_released_table_makes_the_same_page(planted: Path, tmp_path: Path) -> None:
    released = tmp_path / "released" / "study.parquet"
    released.parent.mkdir()
    shutil.copy(planted.parent / "report" / "study.parquet", released)
    assert report.main(["--from-table", str(released)]) == 0
    first, again = planted.read_text(encoding="utf-8"), (released.parent / "report.html").read_text(encoding="utf-8")

    def sections(text: str) -> dict[str, str]:
        answers = re.findall(r'<section id="(\w+)".*?<div class="answer">(.*?)</div>', text, flags=re.S)
        return {key: answer for key, answer in answers if key not in ("cost", "provenance")}

    assert sections(again) == sections(first) and len(sections(first)) >= 6


def test_a_strangers_table_writes_and_connects_nowhere_else(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No store that the table names is opened or made, and nobody's own folder is replaced."""
    loaded = tidy.read_table(planted.parent / "report" / "study.parquet")
    loaded = replace(loaded, study=dict(loaded.study) | {"tracking": {"uri": f"sqlite:///{tmp_path / 'made.db'}"}})
    released = tmp_path / "paper" / "study.parquet"
    tidy.write_table(loaded, released)
    thesis = tmp_path / "paper" / "report" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("mine")
    assert report.main(["--from-table", str(released)]) == 2 and thesis.read_text() == "mine"
    assert "not a report of this command" in capsys.readouterr().err
    assert mlflow_store.run_pages(loaded) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["paper"]


def test_names_are_no_markdown() -> None:
    text = papers.literal("[a](http://x) <b>*c* `d`\n# www.e.f \u202eg 0.123 m.")
    assert text == r"\[a\](http:\/\/x) \<b\>\*c\* \`d\` \# www\.e.f \[U+202E\]g 0.123 m."


@pytest.mark.usefixtures("undrawn")
def test_two_studies_are_set_side_by_side_and_obstacles_are_named(tmp_path: Path) -> None:
    one = make_results(tmp_path / "one", [Training("search", 0.5)])
    same = make_results(tmp_path / "same", [Training("search", 0.6)])
    other = make_results(tmp_path / "other", [Training("search", 0.6)], budget_images=4800)
    loaded = {layout.name: runs.load(layout.root) for layout in (one, same, other)}
    assert compare.analyse(loaded["one"], loaded["same"]).data["comparable"] is True
    section = compare.analyse(loaded["one"], loaded["other"])
    assert section.data["obstacles"] == ["budget_images is 2400 and 4800"]
    assert "cannot be compared" in section.answers[0]
    assert report.main([str(one.root), str(other.root)]) == 0
    text = one.report.read_text(encoding="utf-8")
    assert '<section id="compare"' in text and "budget_images is 2400 and 4800" in text


def test_trials_that_did_not_complete_stand_behind_those_that_did(tmp_path: Path) -> None:
    trainings = [
        Training("search", 0.5, history=[0.6, 0.5]),
        Training("search", 0.2, outcome=Outcome.DIVERGED, history=[0.2]),
        Training("search", 0.7, history=[0.7, 0.7]),
        Training("search", 0.4, history=[0.4]),
    ]
    tables = runs.load(make_results(tmp_path / "s", trainings).root)
    (table,) = overview.history(tables).tables
    assert table.frame["key"].tolist() == ["search-0003", "search-0000", "search-0002", "search-0001"]
    assert any(answer.startswith("In 1 of 2 complete ones") for answer in overview.curves(tables).answers)


def test_device_hours_are_those_of_all_devices_of_a_training(tmp_path: Path) -> None:
    """50 s each on two devices; the pruned one had seen a quarter of its images."""
    trainings = [Training("search", 0.5), Training("search", 0.9, outcome=Outcome.PRUNED)]
    study = settings_of("s", trainings, JUDGE) | {"resources": {"gpus_per_trial": 2}}
    section = cost.cost(runs.load(make_results(tmp_path / "s", trainings, study=study).root))
    by_name = {table.name: table.frame for table in section.tables}
    assert by_name["cost-phases"]["device_hours"].tolist() == [pytest.approx(2 * 100 / 3600)]
    assert by_name["cost-trainings"]["device_hours"].tolist() == [pytest.approx(2 * 50 / 3600)] * 2
    assert section.data["pruning_saved_device_hours"] == pytest.approx(2 * 150 / 3600)
    assert "0.0556 device-hours" in section.answers[0] and "(0.0833 device-hours)" in section.answers[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing"], "neither a study in results/"),
        (
            ["rooms", "--from-table", "study.parquet"],
            "--from-table study.parquet is a study by itself; leave out rooms",
        ),
        (["rooms", "other", "--from-table", "study.parquet"], "is a study by itself; leave out rooms"),
        (["study.parquet"], "study.parquet is a released table; write --from-table study.parquet"),
    ],
)
def test_a_missing_study_and_one_too_many_are_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report.main(words) == 2
    assert sentence in capsys.readouterr().err


def test_cells_sort_by_their_number_and_show_what_is_missing() -> None:
    frame = pd.DataFrame({"n": [1.23456, np.nan, np.inf], "t": ["a", None, "\u202e"]})
    grid = html.grid(Table("t", "T", frame, "", {"n": "m"}), {})
    assert [[cell.text for cell in row] for row in grid.rows] == [["1.23", "a"], ["–", "–"], ["∞", "\u202e"]]
    assert [row[0].value for row in grid.rows] == ["1.23456", None, "Infinity"]
    text = html.render("t", [], [html.part(Section("k", "K", ["\u202e"], (), [Table("t", "T", frame)]), {}, {})], "")
    assert "\u202e" not in text and "[U+202E]" in text


def test_a_count_is_a_number_whatever_the_table_holds_it_as() -> None:
    """A column of whole numbers holds NumPy's, one with a gap floats."""
    assert cost._count(np.int64(510)) == cost._count(510.0) == "510"
    assert cost._count(None) == cost._count(float("nan")) == "an unknown number of"
