"""The public API: names, lazy imports, one result for one training, and a process that stays its caller's."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import trainables
from trainables import evaluate, fit, iter_fit, load_model, load_recipe, open_training
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig

Make = Callable[..., TrialConfig]
ROOT = Path(__file__).resolve().parents[2]
TIMED = ("speed/", "time/", "memory/", "device/")


def untimed(report: trainables.Report) -> dict[str, float]:
    return {name: value for name, value in report.metrics.items() if not name.startswith(TIMED)}


def test_every_public_name_is_there_for_readers_and_for_type_checkers() -> None:
    tree = ast.parse((ROOT / "trainables" / "__init__.py").read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    names = {alias.asname for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names == set(trainables.__all__)
    assert names <= set(dir(trainables))
    for name in names:
        assert getattr(trainables, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = trainables.fitt  # type: ignore[attr-defined]


def test_settings_are_read_without_torch() -> None:
    code = "import sys; sys.modules.update(dict.fromkeys(('torch', 'ray', 'mlflow', 'numpy'))); import trainables;"
    code += "config, = trainables.load_recipe('densedepth'); print(type(config) is trainables.TrialConfig)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stdout == "True\n", ran.stderr


def test_the_version_stands_in_one_place() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert cited == trainables.__version__
    assert 'version = { attr = "trainables.__version__" }' in (ROOT / "pyproject.toml").read_text()


def test_fit_gives_what_iter_fit_yields(tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config()
    result, reports = fit(config, tmp_path / "fit"), list(iter_fit(config, str(tmp_path / "iter")))
    assert [untimed(report) for report in result.reports] == [untimed(report) for report in reports]
    assert result.summary["images"] == 48
    model = load_model(result.checkpoint)
    assert (model.config, model.network.training, model.metric) == (config, False, True)
    best = min(report.metrics["val/rmse"] for report in result.reports)
    validation = open_training(config).validation
    (means,) = evaluate(model, validation, ["densedepth"]).summary.values()
    assert means["rmse"] == pytest.approx(best, rel=1e-5)
    truth, pred = validation.read(0).depth_m, model.predict(validation.read(0).rgb)
    assert pred.shape == truth.shape and pred.dtype == np.float32
    with pytest.raises(UserError, match=r"no protocol densdepth \(did you mean densedepth\?\)"):
        evaluate(model, validation, ["densdepth"])


def test_rooms_are_rendered_where_they_are_not_there(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rooms = {"train_scenes": 2, "test_scenes": 1, "frames_per_scene": 2, "size": [48, 64]}
    settings = {f"data.rooms.{name}": value for name, value in rooms.items()}
    settings |= {"data.source": "rooms", "data.root": None, "data.validation.share": 0.5}
    config = tiny_config(**settings, batch_size=2, budget_images=4, validate_every_images=4)
    assert fit(config, tmp_path / "run").reports[-1].final


def test_threads_and_random_state_are_the_callers(tiny_config: Make, tmp_path: Path) -> None:
    """Also between reports, and what the caller draws there changes nothing of the training."""
    config = tiny_config(seed=3)
    kept = fit(config, tmp_path / "alone").reports
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(11)
        expected = torch.rand(3).tolist()
        torch.manual_seed(11)
        reports, drawn = [], []
        for report in iter_fit(config, tmp_path / "watched"):
            reports.append(report)
            drawn.append(float(torch.rand(())))
            assert torch.get_num_threads() == 2
        assert [*drawn, float(torch.rand(()))] == expected
        assert [untimed(report) for report in reports] == [untimed(report) for report in kept]

        torch.manual_seed(11)
        left = iter_fit(config, tmp_path / "left")
        next(left)
        left.close()  # type: ignore[attr-defined]
        assert (torch.get_num_threads(), torch.rand(3).tolist()) == (2, expected)

        fit(config, tmp_path / "own", own_process=True)
        assert torch.get_num_threads() == config.threads == 1
    finally:
        torch.set_num_threads(threads)


def test_malloc_is_changed_only_in_a_process_of_ones_own(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr("trainables.runtime.device.keep_freed_memory", lambda: called.append(1))
    fit(tiny_config(), tmp_path / "lent")
    assert not called
    fit(tiny_config(), tmp_path / "own", own_process=True)
    assert called


def test_recipes_are_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"no setting optim\.lrr \(did you mean lr\?\)"):
        load_recipe("densedepth", {"optim.lrr": 1})
