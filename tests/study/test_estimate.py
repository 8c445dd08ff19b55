"""`--plan`: what it prints and refuses; nothing is started, rendered or written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study import preflight
from study.config import load_study
from study.contract import Layout, StudyAttr
from study.display import duration
from study.estimate import table
from study.ledger import Ledger
from study.plan import make_plan
from study.run import _holds, main
from study.session import Session
from tests.study.test_config import plan_of
from trainables.message import Message
from trainables.runtime.errors import UserError

STUDY = """\
name: planned
data: {{source: kaggle, root: {root}}}
trial:
  model.family: unet
  model.encoder: null
  model.weights: null
  model.unet_channels: 4
  model.unet_levels: 2
  model.skips: {{s1: pre_pool, s2: pre_pool, s4: none, s8: none, s16: none, s32: none}}
  input: [48, 64]
  budget_images: 48
  validate_every_images: 24
  threads: 1
search: {{trials: 3, space: {{optim.lr: {{low: 1e-5, high: 1e-2, scale: log}}}}}}
"""


@pytest.fixture
def study_here(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder is the test's own and holds a study.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY.format(root=tiny_root))


def test_columns_of_a_large_plan_stay_apart() -> None:
    rows = [
        {"phase": "reproduce", "trainings": 3, "images": 50_688, "hours": 0.3, "disk_gib": 0.1, "memory_gib": 1.0},
        {"phase": "search", "trainings": 40_550, "images": 400_364_541_000, "hours": 364_541.0, "disk_gib": 123_456.7,
         "memory_gib": 12_345.0},
        {"phase": "confirm", "trainings": 0, "images": 0, "hours": 0.0, "disk_gib": 0.0, "memory_gib": 0.0},
    ]  # fmt: skip
    head, *lines = table(rows).splitlines()
    cells = [[cell for cell in line.split("  ") if cell] for line in (head, *lines)]
    assert [len(line) for line in cells] == [6, 6, 6] and len({len(line) for line in (head, *lines)}) == 1
    assert [cell.strip() for cell in cells[2]] == [
        "search", "40,550", "400,364,541,000", "15,189 days", "123,456.70", "12,345.00",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (6000, "1 h 40 min"), (7500, "2 h 05 min"), (359_000, "99 h 43 min"),
     (360_000, "4 days"), (3.2e7, "370 days"), (1.3e9, "15,046 days")],
)  # fmt: skip
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("data.root={tmp}/nowhere", "data.root {tmp}/nowhere does not exist"),
        ("data.source=h5", "{root}/train holds no SCENE/*.h5"),
        ("data.exclude=[data/nyu2_train/none.jpg]", "data.exclude: data/nyu2_train/none.jpg is not a frame"),
        ("data.overfit=nobody", "data.overfit: nobody is not a frame of the training list"),
        ("data.crop_border_px=24", "data.crop_border_px 24 leaves nothing of 64x48 pixels; lower it"),
        ("search.space.data.crop_border_px={{choices: [0, 24]}}", "data.crop_border_px 24 leaves nothing"),
        ("search.first=[{{data.crop_border_px: 24}}]", "data.crop_border_px 24 leaves nothing"),
        ("data.cache={root}/data/nyu2_train.csv/x", "/x cannot be made in {root}/data/nyu2_train.csv (it is a file)"),
        ("trial.input=[32, 32]", None),
        ("trial.input=[40, 32]", None),
        ("trial.model.unet_levels=6", "input: 48 x 64 is too small for the encoder, which halves it to 1/64"),
        ("resources.cpus_per_trial=4000", "a training needs 4000 CPUs and there are"),
        ("trial.threads=4000", "trial.threads: a training needs 4000 CPUs"),
        ("resources.gpus_per_trial=99", "resources.gpus_per_trial: 99 wanted"),
    ],
)
@pytest.mark.usefixtures("study_here")
def test_the_plan_refuses_what_a_run_would_refuse(
    setting: str,
    sentence: str | None,
    tiny_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = setting.format(tmp=tmp_path, root=tiny_root)
    code = main(["--plan", "--json", "--set", given])
    told = capsys.readouterr()
    if sentence is None:
        assert code == 0 and json.loads(told.out)["phases"][2]["trainings"] == 3
    else:
        assert code == 2 and sentence.format(tmp=tmp_path, root=tiny_root) in json.loads(told.out)["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


@pytest.mark.usefixtures("study_here")
def test_the_plan_of_a_study_on_a_cluster_does_not_judge_it_by_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    more = "--set=resources.cpus_per_trial=4096"
    assert main(["--plan", more]) == 2
    assert "needs 4096 CPUs and there" in capsys.readouterr().err
    assert main(["--plan", more, "--set=resources.address=10.0.0.5:6379"]) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert said.endswith(
        "1 training at once at this machine's speed; the cluster at 10.0.0.5:6379 is asked when the study starts"
    )


@pytest.mark.parametrize(
    ("rooms", "sentence"),
    [
        ({"train_scenes": 1}, r"data\.validation is by scene, but the list has 1 scene\(s\)"),
        ({"train_scenes": 2, "frames_per_scene": 1, "defects": {"all_holes": 3}}, r"data\.rooms\.defects plants 3"),
        ({"train_scenes": 2}, None),
    ],
)
def test_rooms_are_looked_at_before_they_are_rendered(
    rooms: dict[str, object], sentence: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = STUDY.format(root=f"null, rooms: {json.dumps(rooms)}").replace("kaggle", "rooms")
    plan = plan_of(tmp_path, text)
    if sentence is None:
        preflight.check_data(plan)
    else:
        with pytest.raises(UserError, match=sentence):
            preflight.check_data(plan)
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("study_here")
def test_a_limit_that_ends_the_study_before_its_trainings_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for limit, said in ((100, True), (144, False)):
        assert main(["--plan", "--set", f"budget.images={limit}"]) == 0
        assert ("budget.images is 100 and these take 144: it ends" in capsys.readouterr().out) is said


def begun(tmp_path: Path, ended: int, half: bool) -> None:
    """A study of which so many trainings have ended, and one is half way."""
    plan = make_plan(load_study(tmp_path / "study.yaml", []))
    layout = Layout(tmp_path / "results" / "planned")
    layout.root.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(layout, None, plan.study.judge)
    preflight.record(ledger.store, plan, {}, {})
    session = Session(plan, ledger, [], lambda: 1, lambda: 0)
    for number in range(ended + half):
        session.next("w")
        layout.trial(f"search-{number:04d}").mkdir(parents=True)
        report = {"images": 48 if number < ended else 24, "metrics": {"val/rmse": 1.0}, "final": number < ended}
        session.take("w", Message("report", report=report))
        if number < ended:
            session.ended("w", error=False, detail="")
    ledger.store.close()


@pytest.mark.parametrize(("ended", "half", "left", "images"), [(3, False, 0, 0), (1, True, 2, 72), (2, False, 1, 48)])
@pytest.mark.usefixtures("study_here")
def test_a_resumed_plan_counts_what_is_left(
    ended: int,
    half: bool,
    left: int,
    images: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begun(tmp_path, ended, half)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["--plan", "--resume", "--json"]) == 0
    told = capsys.readouterr()
    document = json.loads(told.out)
    search = document["phases"][2]
    assert (search["trainings"], search["images"], document["ended"]["search"]) == (left, images, ended)
    assert f"{ended} trainings of planned have ended; this is left:" in told.err
    assert (document["hours"] == 0) is (left == 0)
    assert main(["--plan"]) == 0
    assert "holds this study already: --resume continues it" in capsys.readouterr().out
    assert main([]) == 2 and "holds this study already; continue with --resume" in capsys.readouterr().err
    assert main(["--plan", "--resume", "--set", "trial.budget_images=96"]) == 2
    assert "trial.budget_images is 96, but the study began with 48" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_refused_start_leaves_nothing_that_refuses_the_mended_settings(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY.format(root=tiny_root) + "tracking: {uri: null}\n")
    for setting in ("trial.threads=4000", "data.root=nowhere"):
        assert main(["--set", setting]) == 2
        assert not (tmp_path / "results" / "planned" / "ledger.db").exists()
    begun(tmp_path, 0, False)  # as where the cluster's machines turned out too small, after the ledger was made
    study = load_study(tmp_path / "study.yaml", ["judge.metric=delta1", "trial.threads=2"])
    mended = make_plan(study)
    ledger = Ledger(Layout(tmp_path / "results" / "planned"), None, study.judge)
    assert preflight.record(ledger.store, mended, {}, {}) == []
    assert ledger.store.attribute(StudyAttr.JUDGE)["metric"] == "delta1"
    assert {s.directions[0].name for s in ledger.store.studies.values()} == {"MAXIMIZE"}
    ledger.store.close()
    assert not _holds(study, ledger.layout)
