"""The notebook docs/tour.ipynb and the README's example of the API: their code runs as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.make_results import planted_study

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, where the default study has run."""
    made = tmp_path_factory.mktemp("tour")
    planted_study(made / "results" / "rooms", seed=0)
    return made


def run(blocks: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that blocks of code leave, run one after the other in a folder, with no window for their figures."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "example", "exec"), names)
    return names


def test_the_notebook_trains_scores_predicts_and_reads_a_study(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads((ROOT / "docs" / "tour.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names = run(["".join(cell["source"]) for cell in cells], folder, monkeypatch)
    assert [report.images for report in names["result"].reports] == [24, 48]
    assert len(names["scores"].summary) == 3
    assert names["depth_m"].shape == names["frame"].depth_m.shape
    said = capsys.readouterr().out
    assert "did you mean lr?" in said and "best rmse" in said


def test_the_readme_example_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = run([block], folder, monkeypatch)
    assert names["depth_m"].shape == (64, 96)
    assert names["result"].reports[-1].final
