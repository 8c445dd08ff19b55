"""Two objectives, and a finished study that is extended by longer confirmations: over the ledger, without Ray."""

from __future__ import annotations

import copy
import json
import sqlite3
from collections import Counter
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from analysis import runs, selection
from analysis.sections import overview
from study import preflight
from study.contract import Judge, Layout, Outcome
from study.display import Display
from study.ledger import Ledger
from study.search.propose import propose
from study.session import FINISHED, Session
from tests.study.test_config import plan_of
from trainables.message import Message
from trainables.runtime.errors import UserError
from trainables.settings.config import as_dict, flat

TEXT = """
name: tiny
data: {source: rooms}
trial: {model.weights: null, threads: 1, budget_images: 40, validate_every_images: 20}
search:
  trials: 12
  sampler: tpe
  objectives: [rmse, device_seconds]
  space:
    optim.lr: {low: 1e-5, high: 1e-1, scale: log}
    batch_size: {choices: [2, 4, 8]}
"""
ALONE = TEXT.replace("  objectives: [rmse, device_seconds]\n", "")
CONFIRMED = ALONE.replace("trials: 12", "trials: 3") + "confirm: {top: 2, seeds: 2}\n"
Config = dict[str, Any]


def begun(root: Path, text: str, devices: float = 1.0) -> Session:
    """A driver's session, as a study's command makes it."""
    plan = plan_of(root, text)
    layout = Layout(root / "results" / "tiny")
    layout.root.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(layout, None, plan.study.judge, plan.study.config.search.objectives)
    preflight.record(ledger.store, plan, {}, {})
    return Session(plan, ledger, [], lambda: 1, lambda: 0, devices=devices)


def judged(config: Config, images: int) -> float:
    """A small batch is good and slow."""
    return float(abs(config["optim"]["lr"] - 1e-3) + config["batch_size"] / 10 + 1 / images + config["seed"] / 1e6)


def took(config: Config) -> float:
    return 100.0 / float(config["batch_size"]) + float(config["optim"]["lr"])


def go(root: Path, text: str, *, killed: Collection[int] = (), torn: int = 0) -> Ledger:
    """The study to its end. `killed`: moments (reports and ends, counted) at which a new driver takes over; `torn`: the
    end at which the driver is killed between the outcome and what Optuna is told.
    """
    moment, session, left = 0, begun(root, text, devices=2.0), {*killed, *([torn] if torn else [])}
    while isinstance(spec := session.next("one"), dict):
        config = json.loads(spec["config"])
        for images in range(20, config["budget_images"] + 1, 20):
            moment += 1
            if moment in killed:
                break
            metrics = {f"val/{session.ledger.judge.metric}": judged(config, images)}
            report = {"images": images, "metrics": metrics, "final": images == config["budget_images"]}
            assert session.take("one", Message("report", report=report))
        else:
            moment += 1
        if moment not in killed:
            if moment == torn:
                session.ledger._tell = lambda entry: None  # type: ignore[method-assign]
            last = Message("complete", summary={"seconds": took(config)})
            session.ended("one", error=False, detail="", last=last)
        if moment in (*killed, torn):
            assert session.ledger.store.frozen("search")[-1].state.name == "RUNNING"
            session.ledger.store.close()
            session = begun(root, text, devices=2.0)
            left.remove(moment)
    assert not left, f"trainings do not end at {left}"
    return session.ledger


def kept(ledger: Ledger) -> list[Any]:
    return [(t.params, t.values, t.state, t.intermediate_values) for t in ledger.store.frozen("search")]


def test_two_objectives_are_kept_as_optuna_expects_killed_or_not(tmp_path: Path) -> None:
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    calm.mkdir()
    disturbed.mkdir()
    ledger = go(calm, TEXT)
    moments = {1, 5, 8, 34, 35, 40}  # before a report, before an end, twice in one training, in the modelled trials
    assert kept(go(disturbed, TEXT, killed=moments, torn=14)) == kept(ledger)
    plan, known = plan_of(calm, TEXT), ledger.store.frozen("search")[:10]
    assert plan.search_base is not None
    cheap = [copy.deepcopy(trial) for trial in known]
    for trial in cheap:
        trial.values = [trial.values[0], 1 / trial.values[1]]
    base, search = flat(plan.search_base), plan.study.config.search
    drawn = [
        propose(search, plan.dimensions, base, history, seed=0, directions=ledger.store.directions)
        for history in (known, cheap)
    ]
    assert drawn[0] == kept(ledger)[10][0] != drawn[1]  # what a training takes is learned from
    url = f"sqlite:///{calm / 'results/tiny/ledger.db'}"
    study = optuna.load_study(study_name="tiny/search", storage=url)
    assert [d.name for d in study.directions] == ["MINIMIZE", "MINIMIZE"]
    assert study.metric_names == ["rmse", "device_seconds"]
    for trial, entry in zip(study.trials, ledger.entries["search"], strict=True):
        config = as_dict(entry.training())
        assert trial.values == [judged(config, 40), 2.0 * took(config)]
        assert sorted(trial.intermediate_values) == [20, 40]
    section = overview.history(runs.load(calm / "results/tiny"))
    front = [f"search-{trial.number:04d}" for trial in sorted(study.best_trials, key=lambda t: t.values[1])]
    tables, figures = ({part.name: part for part in parts} for parts in (section.tables, section.figures))
    assert tables["search-pareto"].frame["key"].to_list() == front and len(front) > 1  # type: ignore[attr-defined]
    drawn_front = figures["search-pareto"].data  # type: ignore[attr-defined]
    assert drawn_front[drawn_front["front"]]["key"].to_list() == front and len(drawn_front) == 12
    assert figures["search-pareto"].render().axes  # type: ignore[attr-defined]
    said = next(answer for answer in section.answers if "Pareto front" in answer)
    assert (
        said.startswith(f"{len(front)} of 12 complete") and f"from {front[0]} (" in said and f"to {front[-1]} (" in said
    )
    with pytest.raises(UserError, match=r"search.objectives is None, but the study began with \['rmse', 'device_sec"):
        begun(calm, ALONE)


def test_a_training_without_its_seconds_is_no_complete_one_of_two_objectives(tmp_path: Path) -> None:
    session = begun(tmp_path, TEXT.replace("rmse", "delta1") + "judge: {metric: delta1}\n")
    assert session.ledger.store.directions == ["maximize", "minimize"]
    assert isinstance(session.next("one"), dict)
    report = {"images": 40, "metrics": {"val/delta1": 0.5}, "final": True}
    assert session.take("one", Message("report", report=report))
    session.ended("one", error=False, detail="")
    entry = session.ledger.entries["search"][0]
    assert (entry.outcome, entry.reason) == (Outcome.FAILED, "it ended without a report of device_seconds")


def test_a_finished_study_is_extended_by_longer_confirmations(tmp_path: Path) -> None:
    """New ones beside the old, nothing twice; only the longest compete; the search's luck is read from the old ones."""
    before = go(tmp_path, CONFIRMED)
    first = [entry.key for entry in before.entries["confirm"]]
    begun_before = selection.analyse(runs.load(tmp_path / "results/tiny"))
    before.store.close()
    longer = CONFIRMED.replace("seeds: 2", "seeds: 2, images: 80")
    session = begun(tmp_path, longer)
    assert session.ledger.store.planned == {"reproduce": 0, "claims": 0, "search": 3, "confirm": 8}
    display = Display(session.ledger, 80, device_share=1.0)
    assert display._images_planned() == 7 * 40 + 4 * 80
    assert isinstance(session.next("one"), dict)  # and is killed
    session.ledger.store.close()
    assert runs.load(tmp_path / "results/tiny").unfinished() == ["confirm has ended 4 of 8 trainings"]
    ledger = go(tmp_path, longer)
    entries = ledger.entries["confirm"]
    assert [entry.key for entry in entries[:4]] == first and len(entries) == 8
    assert Counter(entry.group.partition("@")[2] for entry in entries) == {"": 4, "80": 4}
    for old, new in zip(entries[:4], entries[4:], strict=True):
        assert new.training() == old.training().model_copy(update={"budget_images": 80})
        assert (new.group, new.origin) == (f"{old.group}@80", old.origin)
    for text in (longer, CONFIRMED, CONFIRMED.replace("seeds: 2", "seeds: 2, images: 40")):
        assert begun(tmp_path, text).next("one") == FINISHED
    section = selection.analyse(runs.load(tmp_path / "results/tiny"))
    assert section.data["group"].endswith("@80") and section.data["champion"] in [entry.key for entry in entries[4:]]
    assert begun_before.data["gaps"] == section.data["gaps"] and len(section.data["gaps"]) == 2
    candidates = next(table.frame for table in section.tables if table.name == "selection-candidates")
    assert [group.endswith("@80") for group in candidates["group"]] == [True, True]
    assert "80 images, the most there are, were compared; 4 on fewer do not compete" in section.answers[1]
    for figure in section.figures:
        figure.render()


def test_of_the_longest_confirmations_the_best_wins_though_a_shorter_one_is_better() -> None:
    judge = Judge("rmse", "densedepth", "best", {})
    done, diverged = Outcome.COMPLETE, Outcome.DIVERGED
    planted = (("search-0001", 0.1, done), ("search-0001@80", 0.4, done), ("search-0002@80", 0.3, done))
    rows = [
        {"key": f"confirm-{number:04d}", "group": group, "value": value, "outcome": outcome}
        for number, (group, value, outcome) in enumerate((*planted, ("search-0002@90", 0.2, diverged)))
    ]
    chosen = judge.choose(rows)
    assert chosen is not None and chosen.group == "search-0002@80"


def test_longer_confirmations_need_a_budget_to_be_longer_than(tmp_path: Path) -> None:
    for assignments, sentence in (
        (["confirm.images=39"], "--set confirm.images: 39 are fewer than the search's budget_images (40)"),
        (
            ["confirm.images=80", "search.space.budget_images={choices: [40, 60]}"],
            "--set confirm.images: the search varies budget_images itself",
        ),
        (["confirm.images=80", "search.first=[{budget_images: 60}]"], "the search varies budget_images itself"),
    ):
        with pytest.raises(UserError) as refusal:
            plan_of(tmp_path, CONFIRMED, *assignments)
        assert sentence in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_warm_start_needs_a_whole_ledger_with_as_many_objectives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    go(tmp_path, TEXT.replace("trials: 12", "trials: 2")).store.close()
    ledger = tmp_path / "results/tiny/ledger.db"
    assert len(plan_of(tmp_path, TEXT, "search.warm_start=tiny").earlier) == 2
    warm = ALONE.replace("sampler: tpe", "sampler: tpe\n  warm_start: tiny")
    with pytest.raises(
        UserError, match=r"study.yaml:8: search.warm_start: tiny searched two objectives, this study one"
    ):
        plan_of(tmp_path, warm)
    whole = ledger.read_bytes()
    damaged = [whole[:size] for size in (0, 50, 5000, len(whole) // 2, len(whole) - 4096)]
    damaged += [b"x" * 100 + whole[100:], whole.replace(b'"judge', b"[judge"), whole.replace(b"COMPLETE", b"COMPILED")]
    with closing(sqlite3.connect(ledger)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ix_trials_study_id'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    count = (page - 1) * size + 3
    damaged.append(whole[:count] + b"\0\1" + whole[count + 2 :])  # it can be read, and all trials but one are gone
    for content in damaged:
        ledger.write_bytes(content)
        with pytest.raises(
            UserError, match=r"study.yaml:8: search.warm_start: .*ledger.db is damaged \(.+\); name"
        ) as told:
            plan_of(tmp_path, warm)
        assert "\n" not in str(told.value)
