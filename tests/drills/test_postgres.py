"""A study whose ledger is on PostgreSQL, where that is installed: driver and server are killed with -9."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.drills import judge
from tests.drills.table import record
from tests.study.conftest import STUDY, Workplace, wait_until
from tests.study.standin import value_of

URL = "postgresql://study@127.0.0.1:{port}/postgres"


class Postgres:
    """A server of its own; it refuses to run as root."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.binaries = folder, binaries
        self.user = "postgres" if os.geteuid() == 0 else None
        if self.user:
            shutil.chown(folder, self.user)
        initdb = [binaries / "initdb", "-D", folder / "data", "-U", "study", "-A", "trust"]
        subprocess.run(initdb, user=self.user, cwd=folder, check=True, capture_output=True)
        self.start()

    def start(self) -> None:
        words = ["-D", self.folder / "data", "-p", str(self.port), "-k", self.folder, "-h", "127.0.0.1"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.binaries / "postgres", *words], user=self.user, cwd=self.folder, stdout=log, stderr=log
            )
        ready = [self.binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-q"]
        wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, self.process, "PostgreSQL is not ready")

    def kill(self) -> None:
        family = [*psutil.Process(self.process.pid).children(), psutil.Process(self.process.pid)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # its helpers come and go
                process.kill()
        self.process.wait()
        psutil.wait_procs(family, 10)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    found = shutil.which("postgres")
    if found is None:
        pytest.skip("PostgreSQL is not installed (no `postgres` on the PATH)")
    pytest.importorskip("psycopg", reason="its client is not installed (pip install '.[postgres]')")
    with tempfile.TemporaryDirectory() as folder:
        server = Postgres(Path(folder), Path(found).resolve().parent)
        yield server
        server.kill()


@pytest.mark.slow
def test_kills_with_a_ledger_on_postgresql(workplace: Workplace, postgres: Postgres, seed: int) -> None:
    began = time.monotonic()
    moments = random.Random(seed)
    workplace.url = URL.format(port=postgres.port)
    cpus = max(1, (os.cpu_count() or 1) // 2)
    workplace.write(
        f"{STUDY.replace('trials: 6', 'trials: 16')}resources: {{cpus_per_trial: {cpus}}}\nledger: {workplace.url}\n"
    )
    (workplace.root / "pause").write_text("0.5")
    for kind in ("driver", "server", "driver", "server"):
        driver, before = workplace.start("--resume"), computed(workplace)
        wait_until(lambda b=before: computed(workplace) > b, driver, f"nothing went on before the kill of the {kind}")
        time.sleep(moments.uniform(0, 2))
        if kind == "driver":
            driver.kill()
            driver.communicate()
        else:
            postgres.kill()
            out, err = driver.communicate(timeout=60)
            assert driver.returncode == 2 and len(err.splitlines()) == 1 and "--resume" in err, (seed, out, err)
            postgres.start()
    (workplace.root / "pause").write_text("0.01")
    done = workplace.run("--resume")
    assert done.returncode == 0, (seed, done.stderr)
    wrong = judge.faults(workplace, repeats=8, replay=value_of)
    record("ledger on PostgreSQL, kills", seed, 4, str(wrong or "nothing wrong"), time.monotonic() - began)
    assert not wrong, f"seed {seed}: " + "\n".join(wrong)


def computed(place: Workplace) -> int:
    return sum(p.read_text().count("\n") for p in place.root.glob("results/*/trials/*/computed.log"))
