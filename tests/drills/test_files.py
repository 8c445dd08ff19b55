"""Durable files: a kill at every fsync and rename of a training, flipped bits, torn, zeroed and missing files.

The fast share of the kills is in tests/trainables/training/test_trainer.py (every operation of one checkpoint).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from study import run
from study.contract import Layout
from tests.drills.table import record
from tests.study.conftest import STUDY, Workplace
from tests.study.test_config import plan_of
from tests.study.test_run import undisturbed
from trainables.data.dataset import open_training
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig, as_dict
from trainables.training import checkpoint, telemetry, trainer

ROOT = Path(__file__).resolve().parents[2]
TIMED = ("speed/", "time/", "memory/", "device/")
Make = Callable[..., TrialConfig]


@pytest.mark.slow
def test_killed_at_any_durable_operation_a_training_goes_on_bit_for_bit(tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config(**{"snapshot_every_steps": 3, "optim.clip_norm": 0.5})
    (tmp_path / "config.json").write_text(json.dumps(as_dict(config)))
    began = time.monotonic()

    def run(*words: str) -> None:
        command = [sys.executable, "-m", "tests.drills.killed", str(tmp_path / "config.json"), str(tmp_path), *words]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})

    run("count")
    operations = (tmp_path / "count" / "operations").read_text().splitlines()
    assert len(operations) > 100
    run(*(str(number) for number in range(len(operations))))
    expected = come_to(tmp_path / "count")
    assert len(expected["kept"]) == 5
    wrong = [f"{n}: {name}" for n, name in enumerate(operations) if come_to(tmp_path / str(n)) != expected]
    count = len(operations)
    record("kill at a durable operation", 0, count, f"{count - len(wrong)} bit-equal", time.monotonic() - began)
    assert not wrong


def come_to(folder: Path) -> dict[str, Any]:
    """What a training comes to, without what is timed: losses, reports, tensors, whole snapshots, and no litter."""
    reports = [json.loads(line) for line in (folder / "reports.jsonl").read_text().splitlines()]
    checkpoints = folder / "checkpoints"
    kept = sorted(path.parent for path in checkpoints.rglob("SHA256.json"))
    for path in kept:
        checkpoint.verify(path)
    return {
        "losses": rows(folder / "trace.parquet"),
        "reports": [{k: v for k, v in r["metrics"].items() if not k.startswith(TIMED)} for r in reports],
        "kept": [path.name for path in kept],
        "tensors": {path.relative_to(folder): path.read_bytes() for path in checkpoints.rglob("*.safetensors")},
        "files": sorted(path.name for path in folder.rglob("*") if path.name != "operations"),
    }


def rows(*paths: Path) -> list[dict[str, Any]]:
    schema = telemetry.pq.read_schema(paths[0])
    tables = [telemetry._read(path, schema).drop_columns(["seconds"]) for path in paths]
    return [row for table in tables for row in table.to_pylist()]


class Halfway:
    """A training as a kill has left it, after two checkpoints of four, and what it is resumed from."""

    def __init__(self, config: TrialConfig, folder: Path) -> None:
        self.config, self.folder, self.whole = config, folder / "training", folder / "whole"
        self.data, asked = open_training(config), 0

        def copy() -> bool:
            nonlocal asked
            asked += 1
            if asked == 8:
                shutil.copytree(folder / "first", self.whole)
            return asked == 8

        with pytest.raises(trainer.Stopped):
            list(trainer.iter_fit(config, folder / "first", data=self.data, stop=copy))
        self.files = sorted(path.relative_to(self.whole) for path in self.whole.rglob("*") if path.is_file())
        self.renew()
        self.expected = self.resumed()

    def renew(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.whole, self.folder)

    def resumed(self) -> dict[str, Any]:
        """What a resume starts from; its files are those that it reads."""
        training = trainer.Training(self.config, self.folder, self.data)
        try:
            now = training.snapshot()
            best = checkpoint.read_weights(self.folder / "checkpoints" / "best")
            parts = sorted((self.folder / "trace").glob("part-*.parquet"))
            return {
                "state": {k: v for k, v in now.state.items() if k not in ("seconds", "torch_rng")},
                "tensors": {**now.weights, **(now.optimiser or {}), **{f"best {k}": v for k, v in best.items()}},
                "rows": rows(*parts),
                "reports": (self.folder / "reports.jsonl").read_bytes(),
                "config": (self.folder / "config.json").read_bytes(),
            }
        finally:
            training.reporter.meter.close()

    def meets(self, damage: Callable[[Path], None], name: Path) -> str:
        """What a resume does with one damaged file: refused, healed, or accepted with other values."""
        self.renew()
        damage(self.folder / name)
        try:
            found = self.resumed()
        except UserError as error:
            path = str(self.folder / name)
            named = path in str(error) or str(Path(path).parent) in str(error)
            return "refused" if named and "restore it" in str(error) and "\n" not in str(error) else f"odd: {error}"
        same = all(found[key] == self.expected[key] for key in found if key != "tensors") and all(
            torch.equal(found["tensors"][key], tensor) for key, tensor in self.expected["tensors"].items()
        )
        return "healed" if same else f"ACCEPTED: {name}"


@pytest.fixture(scope="module")
def halfway(tiny_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Halfway:
    return Halfway(tiny_config(), tmp_path_factory.mktemp("halfway"))


def flip(path: Path, random_: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_flipped_bits_of_a_checkpoint_and_its_trace_are_refused(halfway: Halfway, count: int, seed: int) -> None:
    began = time.monotonic()
    drawn = random.Random(seed)
    kinds: Counter[str] = Counter()
    for kept, files in {
        "checkpoint": [name for name in halfway.files if name.parts[0] == "checkpoints"],
        "trace": [name for name in halfway.files if name.parts[0] == "trace"],
    }.items():
        met = Counter(halfway.meets(lambda path: flip(path, drawn), drawn.choice(files)) for _ in range(count))
        record(f"flipped bit, {kept}", seed, count, str(dict(met)), time.monotonic() - began)
        kinds += met
    assert kinds == {"refused": 2 * count}, f"seed {seed}: {kinds}"


@pytest.mark.parametrize("share", [0.25, pytest.param(1.0, marks=pytest.mark.slow)])
def test_torn_zeroed_and_missing_files_of_a_training_are_healed_or_refused(
    halfway: Halfway, share: float, seed: int
) -> None:
    began = time.monotonic()
    drawn = random.Random(seed)
    damages: dict[str, Callable[[Path], None]] = {
        "torn": lambda path: os.truncate(path, drawn.randrange(path.stat().st_size)),
        "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)) and None,
        "missing": lambda path: shutil.rmtree(path) if path.is_dir() else path.unlink(),
    }
    folders = [Path("checkpoints"), Path("checkpoints/latest"), Path("checkpoints/best"), Path("trace")]
    cases = [(kind, name) for kind in damages for name in halfway.files]
    cases = drawn.sample(cases, int(share * len(cases))) + [("missing", name) for name in folders]
    met: dict[tuple[str, str], str] = {}
    for kind, name in cases:
        met[kind, str(name)] = halfway.meets(damages[kind], name)
    result = str(dict(Counter(met.values())))
    record("torn, zeroed, missing: training", seed, len(met), result, time.monotonic() - began)
    wrong = {case: said for case, said in met.items() if said not in ("refused", "healed")}
    assert not wrong, f"seed {seed}"
    # What a resume writes anew or does not need (pictures) may be healed; the training's state may not be made up.
    healed = {Path(name) for (_, name), said in met.items() if said == "healed"}
    state = {path for path in healed if path.suffix not in (".sha256", ".jpg", ".png")}
    assert state <= {Path("config.json"), Path("reports.jsonl"), Path("summary.json")}, f"seed {seed}: {healed}"


class Closed:
    """The ledger of a study that has ended by itself, and what it is read as."""

    def __init__(self, root: Path) -> None:
        undisturbed(Workplace(root), STUDY + "confirm: {top: 2, seeds: 1}\n")
        self.plan = plan_of(root, STUDY)
        self.layout = Layout(root / "results" / "tiny")
        self.layout.trial("search-0000").mkdir(parents=True)
        self.seal = self.layout.root / "ledger.db.sha256"
        self.files = {path: path.read_bytes() for path in (self.layout.ledger, self.seal)}
        self.expected = self.read()

    def read(self) -> str:
        ledger = run._open(self.plan.study, self.layout)
        try:
            entries = [asdict(entry) for entries in ledger.entries.values() for entry in entries]
            attributes = {phase: study.user_attrs for phase, study in ledger.store.studies.items()}
            return json.dumps([entries, attributes], sort_keys=True, default=str)
        finally:
            for study in ledger.store.studies.values():
                study._storage.remove_session()

    def meets(self, damage: Callable[[Path], None], path: Path, *, sealed: bool) -> str:
        for other, content in self.files.items():
            other.write_bytes(content)
        if not sealed:
            self.seal.unlink()
        damage(path)
        try:
            found = self.read()
        except UserError as error:
            named = str(error).startswith(f"{self.layout.ledger}: the ledger")
            return "refused" if named and "\n" not in str(error) else f"odd: {error}"
        return "nothing changed" if found == self.expected else "ACCEPTED"


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Closed:
    return Closed(tmp_path_factory.mktemp("closed"))


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_flipped_bits_of_a_ledger_are_refused_once_its_study_has_ended(closed: Closed, count: int, seed: int) -> None:
    """Of a study that was killed only some are found, which is counted: SQLite has no checksums."""
    drawn = random.Random(seed)
    for sealed in (True, False):
        began, met = time.monotonic(), Counter[str]()
        paths = [closed.layout.ledger] * 9 + ([closed.seal] if sealed else [])
        for _ in range(count if sealed or count > 20 else 4):
            path = drawn.choice(paths)
            said = closed.meets(lambda path: flip(path, drawn), path, sealed=sealed)
            # The seal has a line for the ledger's copy, too.
            met["refused" if path == closed.seal and said == "nothing changed" else said] += 1
        kind = "ended" if sealed else "killed"
        record(f"flipped bit, ledger of a study that was {kind}", seed, count, str(dict(met)), time.monotonic() - began)
        allowed = {"refused"} if sealed else {"refused", "nothing changed", "ACCEPTED"}
        assert set(met) <= allowed, f"seed {seed}: {met}"


@pytest.mark.parametrize("sealed", [True, False])
def test_a_torn_zeroed_or_missing_ledger_is_refused(closed: Closed, sealed: bool) -> None:
    drawn = random.Random(0)
    path = closed.layout.ledger
    for damage in (
        *(lambda path: os.truncate(path, drawn.randrange(path.stat().st_size)) for _ in range(10)),
        lambda path: path.write_bytes(bytes(path.stat().st_size)) and None,
        lambda path: os.truncate(path, 0),
        Path.unlink,
    ):
        assert closed.meets(damage, path, sealed=sealed) == "refused"


def test_a_ledger_killed_in_the_middle_of_a_write_is_rolled_back(closed: Closed) -> None:
    for path, content in closed.files.items():
        path.write_bytes(content)
    closed.seal.unlink()
    write = "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA cache_size = 1'); "
    write += (
        "c.execute('UPDATE trial_user_attributes SET value_json = value_json || value_json'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", write, str(closed.layout.ledger)], check=False)
    assert closed.layout.ledger.read_bytes() != closed.files[closed.layout.ledger]  # the write has reached the file
    assert closed.read() == closed.expected
