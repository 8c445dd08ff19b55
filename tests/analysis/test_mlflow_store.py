"""The tracking store for a reader: of a copied or renamed results folder, missing, deleted, moved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure as Canvas
from mlflow import MlflowClient

from analysis import final_evaluation, mlflow_store, report, runs
from analysis.page import style
from study.contract import ARTIFACTS, EXPERIMENT, PARENT, Layout, Tag
from tests.analysis.test_final_evaluation import write_study
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig

ROOMS = {
    "data.source": "rooms",
    "data.root": None,
    "data.rooms.train_scenes": 2,
    "data.rooms.test_scenes": 1,
    "data.rooms.frames_per_scene": 2,
    "data.rooms.size": [48, 64],
    "data.validation.share": 0.5,
}


@pytest.fixture
def study(tmp_path: Path, tiny_config: Callable[..., TrialConfig], empty_store: Path) -> Layout:
    """A study in a project of its own, with its runs in the store there."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(empty_store, project / "mlflow.db")
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiment = client.create_experiment(EXPERIMENT, artifact_location=(project / ARTIFACTS).as_uri())
    client.create_run(experiment, tags={Tag.STUDY: "s", Tag.PHASE: PARENT})
    client.create_run(experiment, tags={Tag.STUDY: "s", Tag.KEY: "confirm-0001"})
    (project / "results").mkdir()
    return write_study(project / "results", tiny_config(), "sqlite:///mlflow.db")


def test_a_renamed_results_folder_is_asked_for_by_the_studys_own_name(study: Layout, tmp_path: Path) -> None:
    renamed = study.root.rename(study.root.with_name("final"))
    tables = runs.load(renamed)
    assert list(mlflow_store.run_pages(tables)) == ["confirm-0001"]
    (tmp_path / "figure.svg").touch()
    assert mlflow_store.log_to_parent(tables, {"": tmp_path / "figure.svg"}, "a summary")
    assert mlflow_store.register(tables, "s", "confirm-0001", "0" * 64, lambda run: _version(study, run)) == "1"


def _version(study: Layout, run: str) -> str:
    client = MlflowClient(f"sqlite:///{study.root.parent.parent / 'mlflow.db'}")
    client.create_registered_model("s")
    return str(client.create_model_version("s", "somewhere", run).version)


def test_a_store_that_is_not_there_is_not_made(study: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a store that lies here would be a copied folder's
    (study.root.parent.parent / "mlflow.db").rename(tmp_path / "kept.db")
    tables, before = runs.load(study.root), set(tmp_path.rglob("*"))
    for use in (
        lambda: mlflow_store.run_pages(tables),
        lambda: mlflow_store.openings(tables, "0" * 64),
        lambda: mlflow_store.record_opening(tables, "0" * 64, {}),
        lambda: mlflow_store.log_to_parent(tables, {}, "a summary"),
    ):
        with pytest.raises(UserError, match=r"mlflow.db is not there; put the study's store"):
            use()
    assert set(tmp_path.rglob("*")) == before


def test_experiments_deleted_in_the_ui_are_named_and_their_openings_count(study: Layout) -> None:
    tables = runs.load(study.root)
    client = MlflowClient(f"sqlite:///{study.root.parent.parent / 'mlflow.db'}")
    assert mlflow_store.record_opening(tables, "0" * 64, {}) == 1
    for name in (EXPERIMENT, mlflow_store.OPENINGS):
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        client.delete_experiment(experiment.experiment_id)
    assert mlflow_store.openings(tables, "0" * 64) == 1
    with pytest.raises(UserError, match=r"DenseDepth sealed test was deleted .*restore it: MLFLOW_TRACKING_URI="):
        mlflow_store.record_opening(tables, "0" * 64, {})
    with pytest.raises(UserError, match=r"DenseDepth was deleted .*restore --experiment-id 1"):
        mlflow_store.log_to_parent(tables, {}, "a summary")


def test_a_moved_project_writes_nothing_where_it_was(study: Layout, tmp_path: Path) -> None:
    shutil.move(tmp_path / "project", tmp_path / "moved")
    tables = runs.load(tmp_path / "moved" / "results" / "s")
    assert list(mlflow_store.run_pages(tables)) == ["confirm-0001"]
    with pytest.raises(UserError, match=rf"was moved or copied, its files are still those in {tmp_path}/project"):
        mlflow_store.log_to_parent(tables, {"": study.report}, "a summary")
    assert not (tmp_path / "project").exists()


def test_a_report_of_a_copied_folder_makes_nothing_elsewhere(
    tmp_path: Path,
    tiny_config: Callable[..., TrialConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No store, and no rendered data: what needs them says so."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(style, "drawn", lambda figure: Canvas(figsize=(1, 1)))  # drawing takes most of a report
    Path("results").mkdir()
    write_study(Path("results"), tiny_config(**ROOMS), "sqlite:///mlflow.db")
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree("results/s", copy)
    monkeypatch.chdir(copy.parent)
    assert report.main(["copy"]) == 0
    said = capsys.readouterr()
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "project"]
    assert "not mirrored: tracking.uri" in said.err and "mlflow.db is not there" in said.err
    page = (copy / "report.html").read_text()
    assert "these rooms are not here" in page
    section = final_evaluation.analyse(runs.load(copy))
    assert "still sealed" in section.answers[0] or "not opened" in section.answers[0]
