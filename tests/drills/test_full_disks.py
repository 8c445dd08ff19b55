"""Full disks, real ones: a tmpfs of a few MB under the files in question. One sentence, nothing short under a final
name, nothing called lost, and a clean resume when there is room again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import sqlite3
import subprocess
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy

from study.contract import Attr, Layout
from study.executor import Guard, tune_classes
from study.ledger import Ledger
from study.session import FINISHED, Session
from tests.drills.table import record
from tests.drills.test_files import come_to
from tests.study.conftest import STUDY, Workplace
from tests.study.test_config import plan_of
from tests.study.test_run import params, undisturbed
from trainables.data.dataset import open_training
from trainables.message import RESULT_KEY, Message
from trainables.ray_trainable import _ending
from trainables.runtime.errors import Stopped, UserError, refused_by_disk
from trainables.settings.config import TrialConfig
from trainables.training import checkpoint, trainer

Mount = Callable[[Path, int], "Disk"]


class Disk:
    """A file system of its own, and a file that fills it."""

    def __init__(self, folder: Path, mib: int) -> None:
        self.folder, self.ballast = folder, folder / "ballast"
        folder.mkdir(parents=True, exist_ok=True)
        options = f"size={mib}m"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode != 0:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.decode().strip()}")

    def fill(self, leave: int = 0) -> None:
        free = shutil.disk_usage(self.folder).free
        with self.ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(free - leave, 1))

    def free(self) -> None:
        self.ballast.unlink()


@pytest.fixture
def mount() -> Iterator[Mount]:
    disks: list[Disk] = []

    def make(folder: Path, mib: int) -> Disk:
        disks.append(Disk(folder, mib))
        return disks[-1]

    if os.getuid() != 0:
        pytest.skip("only root may mount a small file system")
    yield make
    for disk in reversed(disks):
        subprocess.run(["umount", "--lazy", str(disk.folder)], check=True)


@pytest.mark.parametrize("count", [1, pytest.param(40, marks=pytest.mark.slow)])
def test_a_training_meets_a_full_disk_anywhere_and_goes_on_bit_for_bit(
    tiny_config: Callable[..., TrialConfig], tmp_path: Path, mount: Mount, count: int, seed: int
) -> None:
    """The room left is drawn, little as often as much, so that trace, weights, optimiser, state, digests and reports
    meet it in turn.
    """
    few = count == 1
    config = tiny_config(**({"budget_images": 24, "validate_every_images": 12} if few else {}))
    steps, room = (6, 20 << 10) if few else (12, 1600 << 10)
    began = time.monotonic()
    drawn, disk, data = random.Random(seed), mount(tmp_path / "small", 8), open_training(config)
    list(trainer.iter_fit(config, tmp_path / "count", data=data))
    expected, met = come_to(tmp_path / "count"), Counter[str]()
    everywhere = {"part", "latest", "best", "enough room"}
    for number in range(count if few else 4 * count):  # a place that has not been met is drawn for longer
        if number >= count and everywhere <= met.keys():
            break
        folder, full_at, asked = disk.folder / str(number), drawn.randrange(steps), 0
        leave = int(room ** drawn.random())

        def fill() -> bool:
            nonlocal asked
            if asked == full_at:  # noqa: B023
                disk.fill(leave)  # noqa: B023
            asked += 1
            return False

        try:
            list(trainer.iter_fit(config, folder, data=data, stop=fill))
            met["enough room"] += 1
        except OSError as error:
            sentence = refused_by_disk(error)
            assert sentence is not None and str(folder) in sentence and "make room" in sentence, f"seed {seed}: {error}"
            name = sentence.split(":")[0]
            met[Path(name).parent.name if "checkpoints" in name else Path(name).name.split("-")[0]] += 1
            for kept in (folder / "checkpoints").glob("[!.]*"):
                checkpoint.verify(kept)
        disk.free()
        list(trainer.iter_fit(config, folder, data=data))
        assert come_to(folder) == expected, f"seed {seed}, number {number}"
        shutil.rmtree(folder)
    record(
        "disk full: a training's own files",
        seed,
        met.total(),
        f"all bit-equal; met at {dict(met)}",
        time.monotonic() - began,
    )
    assert everywhere <= met.keys() or (few and "enough room" not in met), f"seed {seed}: {met}"


def test_a_training_in_want_of_room_stops_the_study_and_stays_running(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, STUDY)
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    session = Session(plan, Ledger(layout, None, plan.study.judge), [], lambda: 2, lambda: 0)
    for worker in ("one", "two"):
        assert isinstance(session.next(worker), dict)
    full = OSError(errno.ENOSPC, "No space left on device", "trials/latest")
    assert session.take("one", _ending(full)) is False
    assert session.stop.asked and session.stop.file.exists() and not session.stopped()
    assert session.take("two", _ending(Stopped("at a checkpoint"))) is False
    assert session.stopped()
    assert session.blocked == (
        "search-0000: trials/latest: No space left on device; make room or choose another folder"
    )
    for worker in ("one", "two"):
        session.ended(worker, error=False, detail="")
    assert [entry.outcome for entry in session.ledger.entries["search"]] == [None, None]


def test_a_full_ledger_ends_the_study_and_is_no_trainings_fault(tmp_path: Path) -> None:
    """Tune would drop the error, or take it for the training's."""
    plan = plan_of(tmp_path, STUDY)
    layout = Layout(tmp_path / "results" / "tiny")
    layout.root.mkdir(parents=True)
    session = Session(plan, Ledger(layout, None, plan.study.judge), [], lambda: 1, lambda: 0)
    session.next("one")
    with contextlib.closing(sqlite3.connect(layout.ledger)) as small:
        (pages,) = small.execute("PRAGMA page_count").fetchone()
    engine = session.ledger.store.studies["search"]._storage._backend.engine  # type: ignore[attr-defined]
    sqlalchemy.event.listen(engine, "checkout", lambda c, *rest: c.execute(f"PRAGMA max_page_count = {pages}"))
    guard = Guard(session)
    searcher, scheduler = (kind(guard) for kind in tune_classes()[:2])
    trial = types.SimpleNamespace(trial_id="one")
    failed = Message("failed", reason="a bug", detail="x" * 100_000)
    scheduler.on_trial_result(None, trial, {RESULT_KEY: failed.to_json()})
    searcher.on_trial_complete("one", error=True)
    assert guard.over() and searcher.suggest("two") == FINISHED
    with pytest.raises(UserError, match="disk is full; make room or choose another folder; nothing is lost"):
        guard.check()
    session.ledger.store.close()
    engine.dispose()
    (again,) = Ledger(layout, None, plan.study.judge).entries["search"]
    assert again.outcome is None


CALM = STUDY.replace("trials: 6", "trials: 8") + "confirm: {top: 2, seeds: 1}\n"


@pytest.mark.slow
@pytest.mark.parametrize("full", ["trials", "results"])
def test_a_study_meets_a_full_disk_and_goes_on(
    workplace: Workplace, tmp_path: Path, cluster: str, mount: Mount, full: str, seed: int
) -> None:
    """The trainings' files, or the ledger with log and all: exit code 2, one sentence, trainings stay running."""
    began, calm = time.monotonic(), Workplace(tmp_path / "calm")
    calm.root.mkdir()
    undisturbed(calm, CALM)
    workplace.write(CALM + f"resources: {{cpus_per_trial: 4, address: '{cluster}'}}\n")
    results = mount(workplace.root / "results", 8)
    trials = mount(workplace.root / "results" / "tiny" / "trials", 4)
    disk = {"trials": trials, "results": results}[full]
    drawn = random.Random(seed)
    for turn in range(3):
        study = workplace.start("--resume", pause_s=0.1)
        before = len(list(workplace.root.glob("results/tiny/trials/*/state.json")))
        while len(list(workplace.root.glob("results/tiny/trials/*/state.json"))) <= before:
            assert study.poll() is None, study.communicate()
            time.sleep(0.05)
        time.sleep(drawn.uniform(0, 1))
        disk.fill(drawn.choice([0, 4096]))
        out, err = study.communicate(timeout=120)
        assert study.returncode == 2, f"seed {seed}, turn {turn}: {out}\n{err}"
        (line,) = err.splitlines()
        assert line.startswith("python -m study.run: ") and "make room" in line, line
        print(line)
        disk.free()
        told = [t.user_attrs.get(Attr.OUTCOME) for t in workplace.ledger().values()]
        assert set(told) <= {None, "complete", "pruned"}, f"seed {seed}"
    done = workplace.run("--resume", pause_s=0.01)
    assert done.returncode == 0, done.stderr
    assert params(workplace) == params(calm), f"seed {seed}"
    record(f"disk full: {full}", seed, 3, "exit 2, one sentence, resumed equal", time.monotonic() - began)


@pytest.mark.slow
def test_mlflows_store_on_a_full_disk_is_refilled_by_sync(workplace: Workplace, cluster: str, mount: Mount) -> None:
    began, store = time.monotonic(), mount(workplace.root / "store", 2)
    shutil.copy(workplace.root / "mlflow.db", store.folder / "mlflow.db")
    workplace.write(STUDY + f"tracking: {{uri: 'sqlite:///store/mlflow.db'}}\nresources: {{address: '{cluster}'}}\n")
    study = workplace.start(pause_s=0.1)
    while not list(workplace.root.glob("results/tiny/trials/*/state.json")):
        assert study.poll() is None, study.communicate()
        time.sleep(0.05)
    store.fill()
    out, err = study.communicate(timeout=200)
    assert study.returncode == 0, err
    assert "Traceback" not in err and "--sync" in out
    again = workplace.run("--sync")
    assert again.returncode == 2 and len(again.stderr.splitlines()) == 1, again.stderr
    store.free()
    done = workplace.run("--sync")
    assert done.returncode == 0, done.stderr
    shutil.copy(store.folder / "mlflow.db", workplace.root / "mlflow.db")
    runs, trials = {run["name"]: run for run in workplace.mlflow()}, workplace.ledger()
    assert set(runs) == set(trials)
    for key, trial in trials.items():
        points = {step: value for name, step, value, _ in runs[key]["metrics"] if name == "val/rmse"}
        assert points == trial.intermediate_values
    record("disk full: MLflow's store", 0, 1, "study complete, --sync filled it", time.monotonic() - began)


@pytest.mark.slow
def test_a_report_meets_a_full_disk(tmp_path: Path, mount: Mount, capsys: pytest.CaptureFixture[str]) -> None:
    from analysis import report
    from tests.analysis.make_results import planted_study

    began, disk = time.monotonic(), mount(tmp_path / "small", 64)
    layout, _ = planted_study(disk.folder / "planted", 3, trials=12, steps=60)
    assert report.main([str(layout.root)]) == 0
    size = sum(path.stat().st_size for path in (layout.root / "report").iterdir())
    for leave in (0, size // 2, size + layout.report.stat().st_size // 2):
        before = layout.report.read_bytes()
        shutil.rmtree(layout.root / "report", ignore_errors=True)
        disk.fill(leave)
        capsys.readouterr()
        assert report.main([str(layout.root)]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "make room" in line]
        assert line.startswith("python -m analysis.report: ")
        assert layout.report.read_bytes() == before
        disk.free()
        assert report.main([str(layout.root)]) == 0
    record("disk full: report", 0, 3, "exit 2, one sentence, old report whole", time.monotonic() - began)
