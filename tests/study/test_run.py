"""The study's command, in processes of their own: outcomes, kills, owners, resume."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from study import plan, preflight, run
from study.contract import Attr, Layout
from study.ledger import Ledger
from study.session import Session
from tests.study import standin
from tests.study.conftest import STUDY, Workplace, wait_until
from tests.study.standin import report_of, value_of
from tests.study.test_config import plan_of
from trainables.message import Message

FEW = {  # event -> outcome, in the order of the trials after the first
    "raise": "failed",
    "diverge": "diverged",
    "die once": "complete",
}
ALL = FEW | {
    "die": "failed",
    "hang": "failed",
    "exit": "failed",
    "segfault": "failed",
    "silent": "failed",
    "memory": "out_of_memory",
    "starved": "out_of_memory",
    "nan": "diverged",
    "inf": "diverged",
}
STORED = {"complete": ("COMPLETE", "FINISHED")}  # any other outcome: FAIL and FAILED


@pytest.mark.parametrize("name", ["results", "results/tiny"])
@pytest.mark.parametrize("kind", ["dangling", "file", "link to a file"])
def test_a_results_folder_that_cannot_be_made_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "check_parts", standin.unchecked)
    Path("study.yaml").write_text(STUDY + "tracking: {uri: null}\n")
    place = Path(name)
    place.parent.mkdir(exist_ok=True)
    Path("other").touch()
    if kind == "file":
        place.touch()
    else:
        place.symlink_to(tmp_path / "other" if kind == "link to a file" else "/mnt/away/results")
    assert run.main(["study.yaml"]) == 2
    said = capsys.readouterr().err
    what = {"dangling": "a link to /mnt/away/results, where no folder is", "file": "a file"}.get(
        kind, "where no folder"
    )
    assert f"{name} is " in said and what in said and len(said.splitlines()) == 1
    assert not place.is_dir()


def params(workplace: Workplace) -> dict[str, object]:
    return {key: (t.params, t.values, t.state, t.intermediate_values) for key, t in workplace.ledger().items()}


@pytest.mark.parametrize("events", [FEW, pytest.param(ALL, marks=pytest.mark.slow)], ids=["few", "all"])
def test_every_way_to_end_reaches_ledger_and_mlflow_alike(
    workplace: Workplace, cluster: str, events: dict[str, str]
) -> None:
    kinds = dict(enumerate(events, start=1))
    text = STUDY.replace("trials: 6", f"trials: {len(kinds) + 1}\n  sampler: random")
    text = text.replace("kind: successive_halving", "kind: none")
    text += f"resources: {{silence_limit_s: 8, gpus_per_trial: 0.5, cpus_per_trial: 1, address: '{cluster}'}}\n"
    workplace.write(text, **{f"search_{number:04d}": event for number, event in kinds.items()})
    done = workplace.run("--json")
    assert done.returncode == 0, done.stderr
    expected = {"search-0000": "complete"} | {f"search-{n:04d}": events[event] for n, event in kinds.items()}
    restarted = {f"search-{n:04d}" for n, event in kinds.items() if event in ("die", "die once", "segfault")}
    assert most_at_once(done.stderr, restarted) == 2  # two halves of one logical GPU
    assert json.loads(done.stdout)["trainings"]["search"] == Counter(expected.values())
    ledger, mlflow = workplace.ledger(), {run["name"]: run for run in workplace.mlflow()}
    assert set(ledger) == set(mlflow) == set(expected)
    for key, outcome in expected.items():
        state, status = STORED.get(outcome, ("FAIL", "FAILED"))
        assert (ledger[key].user_attrs[Attr.OUTCOME], ledger[key].state.name) == (outcome, state), key
        assert (mlflow[key]["tags"]["outcome"], mlflow[key]["status"]) == (outcome, status), key
    key_of = {event: f"search-{number:04d}" for number, event in kinds.items()}
    assert ledger[key_of["diverge"]].user_attrs[Attr.STEP] == 7
    assert "ValueError: a bug" in ledger[key_of["raise"]].user_attrs[Attr.DETAIL]
    if "die" in key_of:
        assert ledger[key_of["die"]].user_attrs[Attr.DEATHS] == 2
    assert ledger[key_of["die once"]].user_attrs[Attr.ATTEMPTS] == 2
    assert len([m for m in mlflow[key_of["die once"]]["metrics"] if m[0] == "val/rmse"]) == 5
    if "nan" in key_of:
        assert not mlflow[key_of["nan"]]["metrics"]
    starts = [(workplace.root / "results/tiny/trials" / key / "starts.log").read_text().split() for key in expected]
    assert len({process for process, *_ in starts}) < len(expected)  # workers are reused
    assert {card for _, _, card, *_ in starts} == {"0"}
    assert not (workplace.root / "results/tiny/.ray").exists()  # nothing of Tune's own is kept
    log = (workplace.root / "results/tiny/study.log").read_text()
    words = {key: outcome.replace("_", " ") for key, outcome in expected.items()}
    assert [log.count(f"{key} {ended}") for key, ended in words.items()] == [1] * len(expected)  # once each


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_stopped_and_extended_it_goes_on_as_if_undisturbed(
    workplace: Workplace,
    tmp_path: Path,
    cluster: str,
    kills: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seed: int,
) -> None:
    """One training at a time: the study on a cluster, killed and resumed, equals one whose trainings are asked for and
    reported in this process, without Ray and undisturbed, bit for bit; one driver at a time.
    """

    def refused(*words: str) -> str:
        """What the command says, in this process, of a study that it does not run."""
        with monkeypatch.context() as patch:
            patch.chdir(workplace.root)
            patch.setattr(preflight, "prepare", standin.prepared)
            patch.setattr(plan, "check_parts", standin.unchecked)
            assert run.main(["study.yaml", *words]) == 2
        return capsys.readouterr().err

    text = STUDY.replace("trials: 6", "trials: 10") + "confirm: {top: 2, seeds: 1}\n"
    calm = Workplace(tmp_path / "calm")
    calm.root.mkdir()
    undisturbed(calm, text)
    workplace.write(text + f"resources: {{cpus_per_trial: 4, address: '{cluster}'}}\n")
    moments = random.Random(seed)
    for _ in range(kills):
        driver = workplace.start("--resume", "--set", "search.trials=8", pause_s=0.1)
        wait_until(lambda: len(_folders(workplace)) > 0, driver, "nothing began")
        time.sleep(moments.uniform(0, 4))
        driver.kill()
        driver.communicate()
    driver, before = workplace.start("--resume", pause_s=1.0), set(_folders(workplace))
    wait_until(lambda: len(_folders(workplace)) > len(before), driver, "nothing began")
    second = refused("--resume")
    assert f"process {driver.pid} on" in second and len(second.splitlines()) == 1

    def goes_on() -> bool:
        """A training has just made its second report, of which the pruner says nothing, and is at its third."""
        logs = [state.parent / "computed.log" for state in set(_folders(workplace)) - before]
        return any(log.exists() and len(log.read_text().splitlines()) == 2 for log in logs)

    wait_until(goes_on, driver, "no training went on")
    driver.send_signal(signal.SIGTERM)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, err
    assert "continue with --resume" in out
    assert [path.parent.name for path in workplace.root.glob("results/tiny/trials/*/stopped")]  # by itself, in time
    assert "--resume" in refused()
    done = workplace.run("--resume", pause_s=0.01)
    assert done.returncode == 0, done.stderr
    assert params(workplace) == params(calm), f"seed {seed}"
    assert "PRUNED" in {t.state.name for t in calm.ledger().values()}
    runs, ledger = workplace.mlflow(), workplace.ledger()
    assert sorted(child["name"] for child in runs) == sorted(ledger)
    for child in runs:
        steps = [step for name, step, _, _ in child["metrics"] if name == "val/rmse"]
        assert sorted(steps) == sorted(ledger[child["name"]].intermediate_values), child["name"]
    changed = refused("--resume", "--set", "trial.budget_images=200")
    assert "trial.budget_images is 200, but the study began with 100" in changed


def undisturbed(place: Workplace, text: str) -> None:
    """The study's ledger as it comes about when nothing happens to it."""
    planned = plan_of(place.root, text)
    layout = Layout(place.root / "results" / "tiny")
    layout.root.mkdir(parents=True)
    session = Session(planned, Ledger(layout, None, planned.study.judge), [], lambda: 1, lambda: 0)
    while isinstance(session.next("only"), dict):
        settings = session.live["only"].entry.config
        for images in range(20, 101, 20):
            report = report_of(value_of(settings, images), images, 100)
            if not session.take("only", Message("report", report=report)):
                break
        session.ended("only", error=False, detail="")
    session.ledger.store.close()


def most_at_once(lines: str, restarted: set[str]) -> int:
    """The most trainings that ran at one time, by a study's own lines; those that die and start again apart."""
    running: set[str] = set()
    most = 0
    for line in lines.splitlines():
        key, _, rest = line.partition(" ")
        if key.startswith("search-") and key not in restarted:
            (running.add if rest.startswith("started") else running.discard)(key)
            most = max(most, len(running))
    return most


def _folders(workplace: Workplace) -> list[Path]:
    return list(workplace.root.glob("results/tiny/trials/*/state.json"))
