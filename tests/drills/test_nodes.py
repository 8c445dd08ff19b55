"""A cluster of two nodes, one of which is killed or hangs in the middle of a study; and Ray's head on its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from tests.drills import judge
from tests.drills.table import record
from tests.study.conftest import STUDY, Workplace, wait_until
from tests.study.standin import value_of

GONE_S = 60.0  # by then the driver of a cluster that has gone has ended
ELSEWHERE_S = 120.0  # by then the trainings of a lost node go on; Ray gives a hung one up after about 65 s


class Node:
    """`ray start` in a process of its own, with two CPUs."""

    def __init__(self, place: Workplace, *words: str) -> None:
        command = [str(Path(sys.executable).with_name("ray")), "start", *words, "--num-cpus=2", "--block"]
        quiet = subprocess.DEVNULL
        environment = place.environment | {"RAY_USAGE_STATS_ENABLED": "0"}
        self.process = subprocess.Popen(command, cwd="/", env=environment, stdout=quiet, stderr=quiet)

    def family(self, name: str = "") -> list[psutil.Process]:
        return [p for p in psutil.Process(self.process.pid).children(recursive=True) if p.name().startswith(name)]

    def has(self, process: int) -> bool:
        return any(p.pid == process for p in self.family())

    def end(self) -> None:
        family = [*self.family(), psutil.Process(self.process.pid)] if self.process.poll() is None else []
        for process in family:
            process.kill()
        psutil.wait_procs(family, 10)


@pytest.fixture
def nodes(workplace: Workplace) -> Iterator[tuple[str, Node, Node]]:
    """The cluster's address, its head, another node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    host = ray.util.get_node_ip_address()  # as a driver looks for the node that it is on
    head = Node(workplace, "--head", f"--port={port}", "--include-dashboard=false", f"--node-ip-address={host}")
    address, found = f"{host}:{port}", [head]
    try:
        wait_until(lambda: bool(head.family("raylet")), head.process, "no head")
        time.sleep(3)
        other = Node(workplace, f"--address={address}", "--node-ip-address=127.0.0.2")
        found.append(other)
        wait_until(lambda: bool(other.family("raylet")), other.process, "no second node")
        yield address, head, other
    finally:
        for node in reversed(found):
            node.end()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "hung"])
def test_the_trainings_of_a_lost_node_go_on_elsewhere(
    workplace: Workplace, nodes: tuple[str, Node, Node], how: str
) -> None:
    """The study ends with all of its trainings. What wakes up on a node that hung writes nothing any more."""
    address, _, other = nodes
    began = time.monotonic()
    text = STUDY.replace("trials: 6", "trials: 30").replace("kind: successive_halving", "kind: none")
    workplace.write(f"{text}resources: {{cpus_per_trial: 1, address: '{address}'}}\n")
    driver = workplace.start("--resume", pause_s=1.0)
    there: dict[Path, int] = {}

    def busy() -> bool:
        there.clear()
        there.update({f: p for f, p in running(workplace).items() if other.has(p) and len(lines(f)) >= 2})
        return bool(there)

    wait_until(busy, driver, "no training ran on the second node", 300.0)
    family = other.family()
    struck = time.monotonic()
    victims = other.family("raylet") if how == "killed" else family
    for process in victims:
        process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    elsewhere = {}
    for folder, process in there.items():
        wait_until(lambda f=folder, p=process: owner(f) != p, driver, f"{folder.name} did not go on", ELSEWHERE_S)
        elsewhere[folder.name] = time.monotonic() - struck
        if how == "hung" and len(elsewhere) == 1:
            for stopped in family:
                stopped.send_signal(signal.SIGCONT)
    (workplace.root / "pause").write_text("0.2")
    out, err = driver.communicate(timeout=240)
    assert driver.returncode == 0, (out, err)
    assert max(elsewhere.values()) < ELSEWHERE_S
    wrong = judge.faults(workplace, repeats=2, replay=value_of)
    result = (
        f"trainings went on after {', '.join(f'{s:.0f} s' for s in elsewhere.values())}; {wrong or 'nothing wrong'}"
    )
    record(f"a node {how}", 0, 1, result, time.monotonic() - began)
    assert not wrong, "\n".join(wrong)
    assert len(workplace.ledger()) == 30


@pytest.mark.slow
@pytest.mark.parametrize("what", ["gcs_server", "raylet"])
def test_a_study_whose_cluster_has_gone_says_so_and_is_resumed_on_another(
    workplace: Workplace, nodes: tuple[str, Node, Node], cluster: str, what: str
) -> None:
    address, head, _ = nodes
    began = time.monotonic()
    text = STUDY.replace("kind: successive_halving", "kind: none")
    workplace.write(f"{text}resources: {{cpus_per_trial: 1, address: '{address}'}}\n")
    driver = workplace.start("--resume", pause_s=1.0)
    wait_until(lambda: len(running(workplace)) > 1, driver, "nothing ran")
    struck = time.monotonic()
    head.family(what)[0].kill()
    out, err = driver.communicate(timeout=GONE_S)
    seconds = time.monotonic() - struck
    assert driver.returncode == 1 and len(err.splitlines()) == 1 and "continue with --resume" in err, (out, err)
    (workplace.root / "pause").write_text("0.1")
    done = workplace.run("--resume", "--set", f"resources.address={cluster}")
    assert done.returncode == 0, done.stderr
    wrong = judge.faults(workplace, repeats=4, replay=value_of)
    record(f"a cluster's {what} killed", 0, 1, f"said after {seconds:.0f} s; {wrong}", time.monotonic() - began)
    assert not wrong, "\n".join(wrong)


def running(place: Workplace) -> dict[Path, int]:
    """Folders of trainings that have begun and not ended, and the process that has begun them last."""
    folders = [p.parent for p in place.root.glob("results/*/trials/*/computed.log")]
    return {f: owner(f) for f in folders if '"final": true' not in (f / "reports.jsonl").read_text()}


def lines(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "computed.log").read_text().splitlines()]


def owner(folder: Path) -> int:
    """Who made its last report."""
    return int(lines(folder)[-1][0])
