"""How trainings end, and which checkpoints stay then."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from optuna.artifacts import get_all_artifact_meta
from optuna.trial import Trial
from optuna_dashboard import get_note

from study.contract import Layout, Outcome
from study.endings import Endings, sweep, write_notes
from study.ledger import Ledger
from study.session import Session
from tests.study.test_config import plan_of
from trainables.message import Kind, Message

TEXT = """\
name: tiny
data: {source: rooms}
trial: {model.weights: null, threads: 1, budget_images: 100}
reproduce: {recipes: [densedepth, psiml_unet], seeds: 1}
search: {trials: 5, space: {optim.lr: {low: 1e-5, high: 1e-2, scale: log}}}
confirm: {top: 2, seeds: 1}
"""


def test_what_judge_stages_and_replay_need_stays_and_nothing_else(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TEXT)
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    ledger = Ledger(layout, None, plan.study.judge)
    session = Session(plan, ledger, [], lambda: 99, lambda: 0)
    values = {"reproduce-0000": 1.0, "reproduce-0001": 1.0, "search-0000": 3.0, "search-0001": 1.0, "search-0002": 2.0,
              "search-0003": 0.5, "search-0004": 0.1}  # fmt: skip
    ends = {"search-0003": Outcome.PRUNED, "search-0004": None}
    for number in range(len(values)):
        assert isinstance(session.next(str(number)), dict)
    entered = {live.entry.key: live.entry for live in session.live.values()}
    assert entered.keys() == values.keys()
    for key, entry in entered.items():
        for part in ("latest", "best", "spikes/step-3"):
            (layout.trial(key) / "checkpoints" / part).mkdir(parents=True)
        ledger.report(entry, 100, values[key])
        outcome = ends.get(key, Outcome.COMPLETE)
        if outcome is not None:
            session.endings.finish(entry, Message(cast(Kind, outcome.value)))
    sweep(ledger, plan)
    left = {p.parent.parent.name + " " + p.name for p in layout.trials.glob("*/checkpoints/*") if p.name != "spikes"}
    assert left == {
        "reproduce-0000 best", "reproduce-0001 best", "search-0001 best", "search-0002 best", "search-0004 best",
        "search-0004 latest",
    }  # fmt: skip
    assert len(list(layout.trials.glob("*/checkpoints/spikes/step-3"))) == len(values)
    write_notes(ledger)
    write_notes(ledger)  # once is enough
    ledger.store.close()
    again = Ledger(layout, None, plan.study.judge).store.studies  # sealed with its notes
    tried = entered["search-0001"].searched["optim.lr"]
    assert get_note(Trial(again["search"], entered["search-0001"].trial_id)) == (
        f"**search-0001: complete**, rmse 1\n\n- `optim.lr` = `{tried}`"
    )
    first = get_note(Trial(again["reproduce"], entered["reproduce-0000"].trial_id))
    assert first == "**reproduce-0000: complete**, rmse 1\n\n`densedepth`, seed 0"


def test_a_training_that_ends_leaves_its_last_picture_and_its_share_of_the_energy(tmp_path: Path) -> None:
    """The picture as an artifact of its trial, once, which the closed ledger's seal includes."""
    plan = plan_of(tmp_path, TEXT)
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    ledger = Ledger(layout, None, plan.study.judge)
    endings = Endings(plan, ledger, [], lambda: 0, devices=0.5)
    entries = [ledger.add(planned, (), {}) for planned in plan.reproduce]
    for images in (90, 100):
        path = layout.trial(entries[0].key) / "previews" / f"{images}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"picture at {images}".encode())
    ledger.store.attach("reproduce", 0, path)  # before a kill
    for entry in entries:
        ledger.report(entry, 100, 1.0)
        endings.finish(entry, Message("complete", summary={"seconds": 8.0, "energy_wh": 4.0}))
    first, second, *_ = ledger.store.frozen("reproduce")
    (attached,) = get_all_artifact_meta(study_or_trial=first, storage=ledger.store.storage)
    assert (attached.filename, attached.mimetype) == ("100.jpg", "image/jpeg")
    assert (layout.artifacts / attached.artifact_id).read_bytes() == b"picture at 100"
    assert not get_all_artifact_meta(study_or_trial=second, storage=ledger.store.storage)
    assert first.user_attrs["summary"] == {"seconds": 8.0, "energy_wh": 2.0, "device_seconds": 4.0}
    ledger.store.close()
    assert Ledger(layout, None, plan.study.judge).entries["reproduce"][0].value == 1.0


def test_a_worker_that_is_killed_for_lack_of_memory_ran_out_of_memory(tmp_path: Path) -> None:
    """Ray's memory monitor says so in its error; the kernel counts its own kills. Any other death is tried again."""
    plan = plan_of(tmp_path, TEXT)
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    ledger = Ledger(layout, None, plan.study.judge)
    kills = iter([0, 0, 0, 1])
    endings = Endings(plan, ledger, [], lambda: next(kills), devices=0)
    entry = ledger.add(plan.reproduce[0], (), {})
    said = endings.of_death(entry, "Task was killed due to the node running low on memory.")
    assert said is not None and said.kind == "out_of_memory"
    assert endings.of_death(entry, "The actor died unexpectedly before finishing this task.") is None
    said = endings.of_death(entry, "")
    assert said is not None and said.kind == "out_of_memory" and "no memory left" in str(said.reason)
    ledger.store.close()
