"""Scores of any model's maps: the contract, the counted opening, and gaps whose causes are planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy.io import savemat

from analysis import score, waterfall
from analysis.statistics import average_by_scene
from tests.conftest import write_tiny
from trainables.data.dataset import fingerprint, open_test
from trainables.data.frames import FrameList
from trainables.evaluation import scoring
from trainables.evaluation.evaluate import evaluate
from trainables.evaluation.protocols import PROTOCOLS
from trainables.models.depth_model import build_model
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig
from trainables.settings.recipe import load_recipe
from trainables.training import checkpoint

SIZE = (48, 64)
FRAMES, TESTS = 9, (0, 3, 4)


def frames_of(root: Path, source: str = "kaggle") -> FrameList:
    return open_test(load_recipe("densedepth", {"data.source": source, "data.root": str(root)})[0].data)


def write_maps(folder: Path, frames: FrameList, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(frames.ids):
        np.save(folder / f"{Path(name).stem.removesuffix('_colors')}.npy", change(frames.read(i).depth_m))
    return folder


@pytest.fixture
def run(tmp_path: Path, empty_store: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The command with --json: its document, or its error where it refuses."""
    store = tmp_path / "mlflow.db"
    store.write_bytes(empty_store.read_bytes())

    def call(*arguments: object) -> Any:
        command = [str(a) for a in arguments]
        command += ["--json"] if "--tracking" in command else ["--json", "--tracking", f"sqlite:///{store}"]
        code = score.main(command)
        document = json.loads(capsys.readouterr().out)
        assert code == (2 if "error" in document else 0)
        return document

    return call


def test_the_document_has_the_numbers_of_the_public_function(
    run: Callable[..., Any], tiny_root: Path, tmp_path: Path
) -> None:
    frames = frames_of(tiny_root)
    maps = write_maps(tmp_path / "maps", frames, lambda t: 1.1 * t)
    document = run(maps, "--data", tiny_root)
    assert list(document) == ["frames", "protocols", "notes"] and document["frames"] == 6
    expected = scoring.score([1.1 * frames.read(i).depth_m for i in range(6)], frames).summary
    assert document["protocols"].keys() == expected.keys()
    for name, metrics in expected.items():
        for metric, value in metrics.items():
            found = document["protocols"][name][metric]
            assert found["value"] == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True)
            assert found["low"] is None and found["high"] is None
    said = " ".join(document["notes"])
    assert "no intervals" in said and "opened 1 times" in said and "nothing is resized" in said
    assert "opened 2 times" in " ".join(run(maps, "--data", tiny_root, "--source", "kaggle")["notes"])


def test_intervals_are_by_scene(run: Callable[..., Any], tmp_path: Path) -> None:
    root = write_tiny(tmp_path / "nyu")
    lines, scenes = [], []
    for i in range(30):
        new, old = (f"data/nyu2_test/{n:05d}" for n in (100 + i, i % 6))
        for what in ("colors", "depth"):
            (root / f"{new}_{what}.png").write_bytes((root / f"{old}_{what}.png").read_bytes())
        lines.append(f"{new}_colors.png,{new}_depth.png")
        scenes.append(f"{new}_colors.png,scene_{i}")
    (root / "data/nyu2_test.csv").write_text("\n".join(lines) + "\n")
    (root / "data/scenes.csv").write_text("\n".join(scenes) + "\n")
    rng = np.random.default_rng(0)
    maps = write_maps(tmp_path / "maps", frames_of(root), lambda t: t * rng.uniform(0.8, 1.3))
    document = run(maps, "--data", root)
    assert document["frames"] == 30 and "no intervals" not in " ".join(document["notes"])
    for name in ("densedepth", "densedepth_repo", "image_median", "pixel_pool"):
        e = document["protocols"][name]["rmse"]
        assert e["low"] < e["value"] < e["high"]


def test_an_interval_is_of_the_average_that_a_protocol_takes() -> None:
    """Planted frames of 30 scenes: the interval of each average covers its own value, not the others'."""
    rng = np.random.default_rng(1)
    scenes = [f"s{i % 40}" for i in range(400)]
    values, pixels = rng.exponential(1, 400), rng.integers(1, 1000, 400)
    heavy = np.where(values > 2, 50 * pixels, pixels)  # large errors where there are many pixels
    mean = average_by_scene(values, heavy, scenes, "per_image", 2, 0)
    median = average_by_scene(values, heavy, scenes, "image_median", 2, 0)
    pooled = average_by_scene(values, heavy, scenes, "pooled", 2, 0)
    assert median.value == np.median(values) and mean.value == pytest.approx(values.mean())
    assert pooled.value == pytest.approx(np.sqrt((values**2 * heavy).sum() / heavy.sum()))
    for one in (mean, median, pooled):
        assert one.low is not None and one.high is not None and one.low < one.value < one.high
    assert median.high < mean.low and mean.high < pooled.low
    assert average_by_scene(values[:20], heavy[:20], scenes[:20], "pooled", 2, 0).low is None


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_checkpoint_is_scored_as_evaluate_scores_it(
    run: Callable[..., Any], tmp_path: Path, tiny_config: Callable[..., TrialConfig], tiny_root: Path, mirrored: bool
) -> None:
    config = tiny_config(**{"data.root": None, "mirrored": mirrored})  # as converted weights: they know of no data
    torch.manual_seed(0)
    model = build_model(config.model, config.target.kind)
    checkpoint.write_checkpoint(tmp_path / "released", checkpoint.take_snapshot(model, None, {}), config)
    arguments = (tmp_path / "released", "--data", tiny_root, "--against", "densedepth_released")
    document = run(*arguments, "--figure", tmp_path / "fall.png")
    data = tiny_config().data
    scored = evaluate(model.eval(), open_test(data), config, list(PROTOCOLS), torch.device("cpu"), 4).summary
    for protocol, metrics in scored.items():
        found = {name: e["value"] for name, e in document["protocols"][protocol].items()}
        expected = {name: value if np.isfinite(value) else None for name, value in metrics.items()}
        assert found == pytest.approx(expected, rel=1e-5)
    assert len(fingerprint(data)["test"]) == 64
    step = {s["convention"]: s for s in document["against"]["steps"]}
    changed = {"mirrored": True}
    if mirrored:
        assert "test-time averaging" not in step  # theirs are mirrored, too
    else:
        again = evaluate(
            model, open_test(data), config.model_copy(update=changed), ["densedepth_repo"], torch.device("cpu"), 4
        )
        expected = again.summary["densedepth_repo"]["rmse"] - scored["densedepth_repo"]["rmse"]
        assert step["test-time averaging"]["effect"]["rmse"] == pytest.approx(expected, abs=1e-9)
    adds_up(document["against"])


def adds_up(against: dict[str, Any]) -> None:
    """Our number + all steps = ours measured as theirs; + the remainder = the published one."""
    for metric, ours in against["ours"].items():
        end = ours + sum(step["effect"][metric] or 0.0 for step in against["steps"])
        assert against["measured_as_theirs"][metric] == pytest.approx(end, abs=1e-12)
        if against["published"][metric] is not None:
            assert end + against["remainder"][metric] == pytest.approx(against["published"][metric], abs=1e-12)


def test_pooling_and_swapped_arguments_are_named_with_their_size(
    run: Callable[..., Any], tiny_root: Path, tmp_path: Path
) -> None:
    frames = frames_of(tiny_root)
    factors = iter(np.linspace(1.0, 1.5, 6))
    maps = write_maps(tmp_path / "maps", frames, lambda t: t * next(factors))
    document = run(maps, "--data", tiny_root, "--against", "densedepth_released", "--figure", tmp_path / "f.png")
    against = document["against"]
    steps = {step["convention"]: step["effect"] for step in against["steps"] if step["effect"]["rmse"] is not None}
    assert list(steps) == ["aggregation", "swapped arguments"]
    crop = PROTOCOLS["densedepth"].crop_at(SIZE)
    errors = [
        (np.clip(np.load(maps / f"{i:05d}.npy"), 0.1, 10)[crop] - frames.read(i).depth_m[crop]).astype(float)
        for i in range(6)
    ]
    pooled, per_image = np.sqrt(np.mean(np.square(errors))), np.mean([np.sqrt(np.mean(e**2)) for e in errors])
    assert steps["aggregation"]["rmse"] == pytest.approx(pooled - per_image, rel=1e-5)
    assert steps["swapped arguments"]["rmse"] == pytest.approx(0, abs=1e-9)
    assert steps["swapped arguments"]["abs_rel"] < -0.02 and abs(steps["aggregation"]["abs_rel"]) < 1e-9
    assert against["remainder"]["rmse"] == pytest.approx(0.5485 - pooled, rel=1e-5)
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    adds_up(against)


def write_labeled(root: Path) -> list[np.ndarray]:
    """The .mat with a raw truth and an in-painted one that is 1 m off inside the crop; the raw maps."""
    root.mkdir()
    raw = [np.full(SIZE, 2.0 + 0.1 * i, np.float32) for i in range(FRAMES)]
    filled = [depth.copy() for depth in raw]
    for depth in filled:
        depth[10:30, 10:40] += 1  # a sixth of the crop
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"] = np.full((FRAMES, 3, *SIZE[::-1]), 99, np.uint8)
        file["rawDepths"] = np.stack([depth.T for depth in raw])
        file["depths"] = np.stack([depth.T for depth in filled])
        references = np.empty((1, FRAMES), h5py.ref_dtype)
        for i in range(FRAMES):
            letters = file.create_dataset(f"#refs#/{i}", data=np.array([[ord(c)] for c in f"room_{i:04d}"], np.uint16))
            references[0, i] = letters.ref
        file["scenes"] = references
    numbers = {"trainNdxs": [[i + 1] for i in range(FRAMES) if i not in TESTS], "testNdxs": [[i + 1] for i in TESTS]}
    savemat(root / "splits.mat", numbers)
    return raw


def test_in_painted_against_raw_and_the_last_frames(run: Callable[..., Any], tmp_path: Path) -> None:
    raw = write_labeled(tmp_path / "nyu")
    maps = tmp_path / "maps"
    maps.mkdir()
    for i, depth in enumerate(raw):
        np.save(maps / f"{i:05d}.npy", depth if i in TESTS else 2 * depth)  # twice as far on every other frame
    document = run(maps, "--data", tmp_path / "nyu", "--against", "bts_densenet161", "--figure", tmp_path / "f.png")
    assert {"densedepth", "bts"} < document["protocols"].keys()  # each has the truth that it asks for
    assert "6 maps of frames outside the test list are not read" in document["notes"]
    assert document["protocols"]["bts"]["rmse"]["value"] == 0
    steps = {step["convention"]: step["effect"] for step in document["against"]["steps"]}
    top, bottom, left, right = 4, 47, 4, 60  # BTS's crop at a tenth
    off = np.sqrt(20 * 30 / ((bottom - top) * (right - left)))
    assert steps["kind of truth"]["rmse"] == pytest.approx(-off, rel=1e-6)
    adds_up(document["against"])

    last = run(maps, "--data", tmp_path / "nyu", "--against", "depth_estimation", "--figure", tmp_path / "f.png")
    steps = {step["convention"]: step["effect"] for step in last["against"]["steps"]}
    others = range(FRAMES - len(TESTS), FRAMES)  # none of the test frames
    filled = [raw[i] + np.pad(np.ones((20, 30)), ((10, 18), (10, 24))) for i in others]
    expected = np.sqrt(np.mean([np.square(2 * raw[i] - f) for i, f in zip(others, filled, strict=True)]))
    assert last["against"]["measured_as_theirs"]["rmse"] == pytest.approx(expected, rel=1e-6)
    assert steps["list of test frames"]["rmse"] > 1.5
    adds_up(last["against"])


def test_steps_that_cannot_be_measured_say_why(run: Callable[..., Any], tiny_root: Path, tmp_path: Path) -> None:
    maps = write_maps(tmp_path / "maps", frames_of(tiny_root), lambda t: 1.2 * t)
    document = run(maps, "--data", tiny_root, "--against", "zoedepth", "--figure", tmp_path / "f.png")
    steps = {step["convention"]: step for step in document["against"]["steps"]}
    assert list(steps) == ["crop", "mask", "kind of truth", "test-time averaging", "clipping"]
    assert steps["kind of truth"]["effect"]["rmse"] is None
    assert steps["kind of truth"]["note"] == "the data hold no measured truth"
    assert "maps alone do not show it" in steps["test-time averaging"]["note"]
    adds_up(document["against"])


def test_what_cannot_be_compared_or_counted_is_refused(
    run: Callable[..., Any], tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = write_maps(tmp_path / "maps", frames_of(tiny_root), lambda t: 1.2 * t)
    scored: list[object] = []
    monkeypatch.setattr(score, "score_maps", lambda *a, **k: scored.append(a))
    for arguments, sentence in (
        (("--against", "btss"), "no published row of that name"),
        (("--against", "michigan"), "its protocol is not stated (evaluation size, crop and target are not stated)"),
        (("--against", "bts_densenet161", "--kind", "disparity"), "bts cannot measure disparity maps"),
        (("--kind", "relative", "--from", "densedepth"), "densedepth cannot measure relative maps"),
        (("--source", "labeled"), "is missing"),
        (("--tracking", "http://127.0.0.1:9"), "tracking"),
    ):
        document = run(maps, "--data", tiny_root, *arguments)
        assert sentence in document["error"] and "\n" not in document["error"]
    (maps / "00002.npy").unlink()
    assert "1 of 6 frames have no depth map" in run(maps, "--data", tiny_root)["error"]
    assert "does not exist" in run(maps, "--data", tmp_path / "nowhere")["error"]
    assert not scored


def test_other_kinds_are_scored_where_they_mean_something(
    run: Callable[..., Any], tiny_root: Path, tmp_path: Path
) -> None:
    frames = frames_of(tiny_root)
    maps = write_maps(tmp_path / "d", frames, lambda t: 5 / t + 0.3)
    document = run(maps, "--data", tiny_root, "--kind", "disparity")
    assert list(document["protocols"]) == ["marigold_disparity crop, in-painted truth"]
    assert document["protocols"]["marigold_disparity crop, in-painted truth"]["abs_rel"]["value"] < 1e-5
    assert any("not measured under densedepth," in note for note in document["notes"])
    half = write_maps(tmp_path / "h", frames, lambda t: (0.1 * t - 0.2)[::2, ::2])
    relative = run(half, "--data", tiny_root, "--kind", "relative", "--against", "marigold_paper",
                   "--figure", tmp_path / "f.png")  # fmt: skip
    assert len(relative["protocols"]) == 3 and any("maps of 24 x 32" in note for note in relative["notes"])
    adds_up(relative["against"])


def test_a_walk_ends_at_its_target_whatever_the_two() -> None:
    for start in PROTOCOLS.values():
        for end in PROTOCOLS.values():
            path = waterfall.walk(start, end)
            last = path[-1][1] if path else start
            assert (last.measured, last.average, last.frames) == (end.measured, end.average, end.frames)
            assert [name for name, _ in path] == [c for c in waterfall.CONVENTIONS if c in dict(path)]
    with pytest.raises(UserError, match=r"did you mean zoedepth\?"):
        waterfall.target("zoedept")
    assert waterfall.target("BTS DenseNet-161").name == "bts_densenet161"
