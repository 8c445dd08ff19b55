"""The sealed test, on a study whose checkpoints are real (untrained U-Nets) and whose data are tiny."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import final_evaluation, mlflow_store, papers, reproduction, runs, statistics
from analysis.page.section import number
from analysis.sections import cost, gap, sealed_test
from analysis.tables import sealed
from study.contract import Layout
from tests.analysis.make_results import Training, make_results
from trainables.data.dataset import fingerprint, open_test
from trainables.evaluation.evaluate import evaluate
from trainables.evaluation.protocols import PROTOCOLS
from trainables.models.depth_model import build_model
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig, as_dict
from trainables.training import checkpoint

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {"search-0000": (0.50, 0.52, 0.54), "search-0001": (0.60, 0.61, 0.62)}


@pytest.fixture
def study(tmp_path: Path, tiny_config: Callable[..., TrialConfig]) -> Layout:
    """Two confirmed settings with three seeds each, one recipe, no tracking store."""
    return write_study(tmp_path, tiny_config(), None)


def write_study(root: Path, config: TrialConfig, tracking: str | None) -> Layout:
    """The study with untrained weights of its trainings' numbers."""
    trainings = [Training("reproduce", 0.7, group="densedepth"), *(Training("search", v[0]) for v in GROUPS.values())]
    trainings += [
        Training("confirm", value, group=group, origin=group, seed=10 + i)
        for group, values in GROUPS.items()
        for i, value in enumerate(values)
    ]
    layout = make_results(root / "s", trainings, data=fingerprint(config.data), base=as_dict(config))
    if tracking is not None:
        give_tracking(layout, tracking)
    for seed, folder in enumerate(sorted(layout.trials.iterdir())):
        torch.manual_seed(seed)
        model = build_model(config.model, config.target.kind)
        checkpoint.write_checkpoint(folder / "checkpoints" / "best", checkpoint.take_snapshot(model, None, {}), config)
    return layout


def give_tracking(layout: Layout, uri: str) -> None:
    import optuna

    storage = optuna.storages.RDBStorage(f"sqlite:///{layout.ledger}")
    for frozen in storage.get_all_studies():
        settings = frozen.user_attrs["study"] | {"tracking": {"uri": uri}}
        storage.set_study_user_attr(storage.get_study_id_from_name(frozen.study_name), "study", settings)


def stored(layout: Layout, name: str) -> Any:
    return json.loads((layout.evaluation / name).read_text())


def test_baselines_see_every_frame_once_in_order_whatever_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    class Frames:
        depths: ClassVar = [np.full((3, 4 + (i == 3)), float(i), np.float32) for i in range(9)]

        def __len__(self) -> int:
            return len(self.depths)

        def read(self, index: int) -> Any:
            return SimpleNamespace(depth_m=self.depths[index])

    monkeypatch.setattr(final_evaluation, "BASELINE_BATCH", 2)
    found = list(final_evaluation._truths(Frames()))  # type: ignore[arg-type]
    assert [indices for indices, _ in found] == [[0, 1], [2], [3], [4, 5], [6, 7], [8]]
    assert all((truth == torch.tensor(indices)[:, None, None]).all() for indices, truth in found)


def test_the_list_is_frozen_and_hashed_and_scored_once(study: Layout) -> None:
    tables = runs.load(study.root)
    section = final_evaluation.analyse(tables)
    frozen = stored(study, "list.json")
    roles = {entry["name"]: entry["roles"] for entry in frozen["entries"]}
    assert roles == {
        "confirm-0001": ["champion"], "confirm-0000": ["confirmation seed"], "confirm-0002": ["confirmation seed"],
        "reproduce-0000": ["recipe densedepth"], "random guess": ["baseline"], "training mean": ["baseline"],
    }  # fmt: skip
    assert len(frozen["sha256"]) == 64 and section.data["opened"] and section.data["champion"] == "confirm-0001"
    opening = stored(study, "openings.json")
    assert [o["count"] for o in opening] == [1] and "no tracking store" in opening[0]["counted_in"]
    assert opening[0]["list_sha256"] == frozen["sha256"]
    scored = (study.evaluation / "scores.parquet").read_bytes()
    shutil.rmtree(study.trial("confirm-0001") / "checkpoints")
    again = final_evaluation.analyse(runs.load(study.root))  # uses what is stored: the weights are gone
    assert (
        again.data["summary"] == section.data["summary"]
        and (study.evaluation / "scores.parquet").read_bytes() == scored
    )
    assert len(stored(study, "openings.json")) == 1


def test_the_model_card_has_the_sealed_tests_numbers(study: Layout) -> None:
    tables = runs.load(study.root)
    section = final_evaluation.analyse(tables)
    card = papers.model_card(tables, [section])
    assert card is not None and section.answers[0].partition(" ")[0] in card
    for protocol, metrics in section.data["summary"]["confirm-0001"].items():
        (line,) = [one for one in card.splitlines() if one.startswith(f"| {papers.literal(protocol)} |")]
        assert all(f" {number(value)} " in line for value in metrics.values() if value is not None)


def test_scores_are_the_evaluators_own_under_every_protocol(
    study: Layout, tiny_config: Callable[..., TrialConfig]
) -> None:
    section = final_evaluation.analyse(runs.load(study.root))
    config = tiny_config()
    model, _ = checkpoint.read_model(study.trial("confirm-0001") / "checkpoints" / "best")
    expected = evaluate(model, open_test(config.data), config, list(PROTOCOLS), torch.device("cpu"), 6)
    summary = section.data["summary"]["confirm-0001"]
    assert summary.keys() == expected.summary.keys()
    for protocol, metrics in expected.summary.items():
        for name, value in metrics.items():
            assert summary[protocol][name] == pytest.approx(value, rel=1e-5, nan_ok=True)
    scores = pd.read_parquet(study.evaluation / "scores.parquet")
    assert len(scores) == 6 * len(PROTOCOLS) * 6 and scores["hole_share"].max() == 0


def test_the_champions_way_to_each_protocol_is_stored_and_shown(study: Layout) -> None:
    tables = runs.load(study.root)
    final_evaluation.analyse(tables)
    section = gap.analyse(tables)
    document = stored(study, "evaluation.json")
    champion = next(e for e in document["entries"] if "champion" in e["roles"])
    others = [e for e in document["entries"] if "champion" not in e["roles"]]
    assert champion["walks"]["start"] == "densedepth" and not any(e["walks"]["measured"] for e in others)
    assert set(champion["summary"]) == {run["name"] for run in champion["protocols"].values()}  # no step among them
    against = {fall["protocol"]: fall for fall in section.data["against"]}
    assert set(against) == {"densedepth_scaled", "densedepth_repo", "bts", "ultralytics", "marigold"}
    for protocol, fall in against.items():
        measured = champion["summary"][champion["protocols"][protocol]["name"]]
        assert fall["measured_as_theirs"] == pytest.approx({m: measured[m] for m in fall["ours"]}, rel=1e-9)
        assert not any(fall["published"].values())  # the data are not NYU Depth v2
    steps = {step["convention"]: step for step in against["bts"]["steps"]}
    assert steps["kind of truth"]["note"] == "the data hold no measured truth"
    assert section.answers and len(section.figures) == len(against) and all(f.render() for f in section.figures)
    del champion["walks"]
    tables.evaluation["entries"] = [champion]
    assert "hold no such steps" in gap.analyse(tables).answers[0]
    tables.evaluation.clear()
    assert "sealed" in gap.analyse(tables).answers[0]


def test_the_training_mean_is_the_mean_of_the_training_frames(
    study: Layout, tiny_config: Callable[..., TrialConfig]
) -> None:
    from trainables.data.dataset import open_training

    final_evaluation.analyse(runs.load(study.root))
    scores = pd.read_parquet(study.evaluation / "scores.parquet")
    train, test = open_training(tiny_config()).train, open_test(tiny_config().data)
    mean = np.mean([train.read(i).depth_m.astype(np.float64) for i in range(len(train))], axis=0)
    crop = PROTOCOLS["densedepth"].crop_at(mean.shape)
    truth = test.read(0).depth_m.astype(np.float64)[crop]
    row = scores[
        (scores["entry"] == "training mean") & (scores["requested"] == "densedepth") & (scores["id"] == test.ids[0])
    ]
    assert row["rmse"].item() == pytest.approx(np.sqrt(np.mean((mean[crop].clip(0.1, 10) - truth) ** 2)), rel=1e-5)


def test_an_unfinished_study_stays_sealed_and_says_so(study: Layout) -> None:
    import optuna

    storage = optuna.storages.RDBStorage(f"sqlite:///{study.ledger}")
    storage.set_study_user_attr(storage.get_study_id_from_name("s/confirm"), "planned", 7)
    section = final_evaluation.analyse(runs.load(study.root))
    assert not section.data["opened"] and "confirm has ended 6 of 7 trainings" in section.answers[0]
    assert not (study.evaluation / "openings.json").exists()
    assert final_evaluation.main([str(study.root), "--json"]) == 2


def test_again_needs_a_reason_and_is_counted(study: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    assert final_evaluation.main([str(study.root)]) == 0
    assert final_evaluation.main([str(study.root), "--again", " "]) == 2
    capsys.readouterr()
    assert final_evaluation.main([str(study.root), "--again", "a new crop", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [o["count"] for o in document["data"]["openings"]] == [1, 2]
    assert any("opened 2 times" in answer and "no longer unseen" in answer for answer in document["answers"])


def test_deleting_the_results_folder_does_not_reset_the_count(
    tmp_path: Path, tiny_config: Callable[..., TrialConfig], empty_store: Path
) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for expected in (1, 2):
        layout = write_study(tmp_path, tiny_config(), uri)
        section = final_evaluation.analyse(runs.load(layout.root))
        assert section.data["openings"][-1]["count"] == expected
        assert section.data["openings"][-1]["counted_in"] == "tracking store"
        if expected == 1:
            shutil.rmtree(layout.root)
    tables = runs.load(layout.root)
    digest = section.data["openings"][-1]["test_data"]
    assert mlflow_store.record_opening(tables, digest, {"reason": "another study"}) == 3
    with mlflow_store.tracking_store(tables) as client:
        experiment = client.get_experiment_by_name(mlflow_store.OPENINGS).experiment_id
        client.delete_run(client.search_runs([experiment])[0].info.run_id)  # as the UI does
    again = final_evaluation.analyse(tables)
    assert any("opened 3 times, counted in the tracking store" in answer for answer in again.answers)


def test_the_opening_is_recorded_before_anything_is_scored(study: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(*_: Any) -> Any:
        assert stored(study, "openings.json")[0]["list_sha256"] == stored(study, "list.json")["sha256"]
        raise KeyboardInterrupt

    monkeypatch.setattr(final_evaluation, "score_test", score)
    with pytest.raises(KeyboardInterrupt):
        final_evaluation.open_once(runs.load(study.root), None)
    monkeypatch.undo()
    section = final_evaluation.analyse(runs.load(study.root))
    assert [o["count"] for o in section.data["openings"]] == [1, 2]  # the torn opening counts


def test_a_torn_opening_is_in_the_count_and_those_of_other_data_are_not(
    study: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    final_evaluation.analyse(runs.load(study.root))

    def torn(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(final_evaluation, "score_test", torn)
    with pytest.raises(KeyboardInterrupt):
        final_evaluation.open_once(runs.load(study.root), "a new crop")
    path = study.evaluation / sealed.OPENINGS
    other = {"test_data": "a recipe's own", "at": "", "reason": "", "count": 7, "counted_in": "", "list_sha256": ""}
    path.write_text(json.dumps([*json.loads(path.read_text()), other]))
    section = final_evaluation.analyse(runs.load(study.root))
    assert section.data["opened"] and section.data["times_opened"] == 2 and len(section.data["openings"]) == 3


def test_damaged_and_mixed_files_are_a_sentence(study: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    final_evaluation.analyse(runs.load(study.root))
    done, scores = study.evaluation / sealed.DONE, study.evaluation / sealed.SCORES
    whole = {path: path.read_bytes() for path in (done, scores)}
    pd.read_parquet(scores).head(3).to_parquet(scores)  # as after a kill between the writes of another opening
    section = final_evaluation.analyse(runs.load(study.root))
    assert not section.data["opened"] and "not of one opening" in section.answers[0]
    scores.unlink()
    assert final_evaluation.main([str(study.root)]) == 2 and "--again REASON" in capsys.readouterr().err
    scores.write_bytes(whole[scores])
    done.write_bytes(whole[done][:-9])
    assert final_evaluation.main([str(study.root)]) == 2 and "damaged" in capsys.readouterr().err
    assert len(stored(study, sealed.OPENINGS)) == 1


def test_frames_without_a_finite_prediction_are_failures(study: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = final_evaluation._predicted

    def broken(tables: Any, entry: Any, *rest: Any) -> Any:
        for indices, pred, truth in predicted(tables, entry, *rest):
            lost = torch.zeros(len(pred)).index_fill(0, torch.tensor([0]), torch.nan)[:, None, None]
            yield indices, pred + lost if entry["name"] == "confirm-0001" else pred, truth

    monkeypatch.setattr(final_evaluation, "_predicted", broken)
    section = final_evaluation.analyse(runs.load(study.root))
    batches = section.data["failed"]["confirm-0001"]
    assert 0 < batches < 6 and section.data["measured"] == 6 - batches
    assert section.answers[0].startswith(f"On {6 - batches} of 6 test frames the champion")
    assert section.answers[1].endswith(f"left out of the means over frames: confirm-0001 on {batches} of 6 frames.")


def test_an_edited_judge_is_seen_and_keeps_the_test_sealed(study: Layout) -> None:
    import optuna

    assert "were hashed before" in cost.provenance(runs.load(study.root), {}).answers[0]
    storage = optuna.storages.RDBStorage(f"sqlite:///{study.ledger}")
    for frozen in storage.get_all_studies():
        edited = frozen.user_attrs["judge"] | {"metric": "abs_rel"}
        storage.set_study_user_attr(storage.get_study_id_from_name(frozen.study_name), "judge", edited)
    tables = runs.load(study.root)
    section = final_evaluation.analyse(tables)
    assert not section.data["opened"] and "not those hashed before the first training" in section.answers[0]
    assert "not those hashed" in cost.provenance(tables, {}).answers[0]


def test_relative_depth_is_headlined_by_its_own_protocol_and_never_comparable(
    tmp_path: Path, tiny_config: Callable[..., TrialConfig]
) -> None:
    config = tiny_config(**{"target.kind": "relative", "protocol": "densedepth_affine"})
    layout = write_study(tmp_path, config, None)
    shutil.rmtree(layout.trial("reproduce-0000") / "checkpoints")
    tables = runs.load(layout.root)
    section = final_evaluation.analyse(tables)
    assert "under protocol densedepth_affine" in section.answers[0] and "not comparable" in section.answers[0]
    assert "relative depth has no scale" in section.tables[0].note  # once, not in each row
    assert not section.tables[0].frame["comparable"].any()
    assert any("checkpoint is missing: recipe densedepth (trials/reproduce-0000" in said for said in section.answers)
    assert "it is missing: trials/reproduce-0000" in reproduction.analyse(tables).data["verdicts"][0]["why"]


def test_a_store_that_does_not_answer_keeps_the_test_sealed(study: Layout) -> None:
    give_tracking(study, "http://127.0.0.1:9")
    section = final_evaluation.analyse(runs.load(study.root))
    assert not section.data["opened"] and "cannot be used" in section.answers[0]
    assert not (study.evaluation / "scores.parquet").exists()


def test_changed_weights_and_changed_data_are_refused(study: Layout) -> None:
    tables = runs.load(study.root)
    frozen = sealed.freeze(tables, study.evaluation)
    entry = dict(frozen["entries"][0]) | {"weights_sha256": "0" * 64}
    config = checkpoint.read_config(study.root / entry["checkpoint"])
    with pytest.raises(UserError, match="changed after the list was frozen"):
        final_evaluation.score_test(tables, entry, {entry["name"]: config}, config)
    with pytest.raises(UserError, match="test data changed"):
        final_evaluation._same_data(tables, [str(tables.data["test"]), "0" * 64])


def test_only_the_sealed_file_opens_the_test_split() -> None:
    """House rule 8: besides the data package itself, its doctor and the forms' own tests, nobody calls open_test."""
    allowed = {"analysis/final_evaluation.py", "trainables/data/dataset.py", "trainables/data/doctor/diagnosis.py"}
    allowed |= {"analysis/score.py"}  # what a user brings; it records its openings, too
    callers = set()
    for path in (p for folder in ("analysis", "study", "trainables") for p in (ROOT / folder).rglob("*.py")):
        if "open_test" in named(path.read_text()):
            callers.add(str(path.relative_to(ROOT)))
    assert "analysis/final_evaluation.py" in callers and callers <= allowed
    assert "open_test" in named("from trainables.data.dataset import open_test as innocent")


def named(source: str) -> set[str]:
    """Every name that a source uses or imports, under its own name."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {n.id for n in nodes if isinstance(n, ast.Name)} | {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    return names | {alias.name for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names}


def test_scene_intervals_cover_and_small_ones_are_refused() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for draw in range(100):
        scene = rng.normal(0.5, 0.1, 40)
        values = (scene[:, None] + rng.normal(0, 0.02, (40, 6))).ravel()
        estimate = statistics.by_scene(values.tolist(), np.repeat([f"r{i}" for i in range(40)], 6).tolist(), draw)
        assert estimate.low is not None and estimate.high is not None
        hits += estimate.low <= 0.5 <= estimate.high
    assert 85 <= hits <= 100  # by frame instead of by scene it would be about 55
    few = statistics.by_scene([1.0] * 29, [str(i) for i in range(29)], 0)
    unknown = statistics.by_scene([1.0] * 40, [None] * 40, 0)
    assert few.low is None and few.n == "29 scenes" and unknown.low is None
    assert "no interval" in few.words("m") and "unknown scenes" in unknown.words("m")


def test_the_first_screen_sets_the_champion_against_the_mean_with_three_rows_of_pictures(study: Layout) -> None:
    tables = runs.load(study.root)
    section = final_evaluation.analyse(tables)
    headline = section.headline
    assert headline is not None and len(headline.sentences) == 1
    said = headline.sentences[0]
    own, mean = (section.data["summary"][name] for name in (section.data["champion"], "training mean"))
    own_rmse, mean_rmse = (next(iter(values.values()))["rmse"] for values in (own, mean))
    share = f"{number(abs(100 * (1 - own_rmse / mean_rmse)))}%"
    assert f"has rmse {number(own_rmse)} m, {share} (n = " in said and "no interval" in said
    assert f"the training frames' mean depth per pixel ({number(mean_rmse)} m)" in said
    assert ("which is worse" in said) == (own_rmse > mean_rmse)
    (pictured,) = headline.figures
    assert pictured.name == "evaluation-pictures" and len(pictured.data) == 3
    assert pictured.name not in {figure.name for figure in section.figures}
    released = sealed_test.build(replace(tables, layout=None)).headline
    assert released is not None and released.sentences == headline.sentences and not released.figures


def test_entries_are_scored_beside_each_other_in_the_lists_order(study: Layout) -> None:
    """As one after the other, and torch's own count of threads is as before."""
    before = torch.get_num_threads()
    final_evaluation.analyse(runs.load(study.root))
    kept = [(entry["name"], entry["summary"]) for entry in stored(study, sealed.DONE)["entries"]]
    assert torch.get_num_threads() == before
    assert [name for name, _ in kept] == [entry["name"] for entry in stored(study, "list.json")["entries"]]
    tables = runs.load(study.root)
    frozen = stored(study, "list.json")["entries"]
    configs = {entry["name"]: final_evaluation._config(tables, entry) for entry in frozen if entry["key"]}
    for entry, (_, summary) in zip(frozen, kept, strict=True):
        alone = final_evaluation.score_test(tables, entry, configs, configs["confirm-0001"])["summary"]
        for name, values in summary.items():
            assert {k: v for k, v in alone[name].items() if v == v} == pytest.approx(
                {k: v for k, v in values.items() if v is not None}, rel=1e-6
            )


def test_figures_draw_and_reproduction_says_why_it_cannot_compare(study: Layout) -> None:
    tables = runs.load(study.root)
    for section in (final_evaluation.analyse(tables), reproduction.analyse(tables)):
        for figure in (*section.figures, *(section.headline.figures if section.headline else ())):
            assert figure.render().axes and len(figure.data)
    verdicts = reproduction.analyse(tables).data["verdicts"]
    assert {v["verdict"] for v in verdicts} == {"cannot be compared"}
    assert "the test split has 6 frames, that of NYU Depth v2 654" in verdicts[0]["why"]
    assert "budget_images" in verdicts[0]["why"] or "input" in verdicts[0]["why"]
    assert verdicts[0]["ours_rmse"] > 0 and verdicts[0]["published_rmse"] is None  # no test set of NYU: never beside
    assert any("repository's evaluator" in answer for answer in reproduction.analyse(tables).answers)
    assert sealed_test.build(tables).tables[0].frame["protocol"].nunique() == len(PROTOCOLS)
