"""What a training gets of machines, and what cannot be shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from study import resources
from study.resources import Share, share_of
from tests.study.test_config import TEXT, plan_of
from trainables.runtime.errors import UserError

EVEN = TEXT.replace("{low: 2, high: 16, scale: log}", "{choices: [4, 8]}")
FIRST = EVEN.replace("  trials: 8\n", "  trials: 8\n  first: [{batch_size: 5}]\n")


def test_a_share_is_threads_and_decoders_and_gpus_where_there_are_any(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TEXT, "data.workers=1")
    assert share_of(plan, [{"CPU": 8.0}]) == Share(2, 0.0)
    assert share_of(plan, [{"CPU": 8.0, "GPU": 2.0}]) == Share(2, 1.0)
    assert Share(2, 1.0).fits([{"CPU": 8.0, "GPU": 2.0}]) == 2
    assert Share(1, 0.25).fits([{"CPU": 8.0, "GPU": 1.0}]) == 4
    for setting, machine, sentence in (
        ("resources.gpus_per_trial=3", {"CPU": 8.0, "GPU": 2.0}, "3 wanted, 2 there"),
        ("resources.gpus_per_trial=1.5", {"CPU": 8.0, "GPU": 2.0}, "neither whole nor a part"),
        ("resources.cpus_per_trial=0.5", {"CPU": 8.0}, "0.5 is not a whole number of CPUs"),
        ("trial.threads=16", {"CPU": 8.0}, "needs 16 CPUs and there are 8; lower trial.threads"),
    ):
        with pytest.raises(UserError, match=sentence):
            share_of(plan_of(tmp_path, TEXT, setting), [machine])


def test_a_share_has_one_worker_per_whole_gpu_or_as_many_as_are_asked_for(tmp_path: Path) -> None:
    large = [{"CPU": 8.0, "GPU": 4.0}]
    two = share_of(plan_of(tmp_path, EVEN, "resources.gpus_per_trial=2", "data.workers=1"), large)
    assert two == Share(4, 2.0, 2)
    assert two.bundles == [{"CPU": 2.0, "GPU": 1.0}] * 2
    assert two.fits(large) == 2
    asked = plan_of(tmp_path, EVEN, "resources.workers_per_trial=2")
    assert share_of(asked, [{"CPU": 8.0}]) == Share(2, 0.0, 2)
    assert share_of(asked, large) == Share(2, 2.0, 2)
    assert share_of(plan_of(tmp_path, EVEN, "resources.gpus_per_trial=0.5"), large).bundles == [
        {"CPU": 1.0, "GPU": 0.5}
    ]


@pytest.mark.parametrize(
    ("text", "settings", "sentence"),
    [
        (TEXT, ["gpus_per_trial=2"], r"study.yaml:11: search.space.batch_size: a batch of 3 has no 2 equal parts"),
        (EVEN, ["gpus_per_trial=4"], r"study.yaml:3: trial.batch_size: a batch of 2 has no 4 equal parts"),
        (FIRST, ["workers_per_trial=2"], r"study.yaml:8: search.first: a batch of 5 has no 2 equal parts"),
        (EVEN, ["gpus_per_trial=0.5", "workers_per_trial=2"], "2, of which each trains on one GPU, .* is 0.5; make"),
        (EVEN, ["workers_per_trial=2", "cpus_per_trial=3"], "cpus_per_trial: 3 cannot be shared equally by 2 workers"),
    ],
)
def test_what_workers_cannot_share_is_refused(tmp_path: Path, text: str, settings: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        share_of(plan_of(tmp_path, text, *(f"resources.{s}" for s in settings)), [{"CPU": 8.0, "GPU": 4.0}])


SMALL, HEAD = {"CPU": 4.0, "GPU": 1.0}, {"CPU": 0.0}


def test_a_share_has_its_place_on_one_machine(tmp_path: Path) -> None:
    """Of a cluster whose head has no CPUs, and whose machines are smaller than all of them together."""
    plan = plan_of(tmp_path, TEXT, "trial.threads=3", "resources.gpus_per_trial=1")
    cluster = [HEAD, SMALL, SMALL]
    assert share_of(plan, cluster) == Share(3, 1.0)
    assert Share(3, 1.0).fits(cluster) == 2 and Share(3, 0.0).fits([*cluster, {"CPU": 2.0}]) == 2
    assert Share(8, 2.0, 2).fits(cluster) == 1  # a process on each
    own = plan_of(tmp_path, TEXT, "trial.threads=null")
    assert share_of(own, cluster).cpus == 4  # not the cluster's eight
    assert share_of(own, [{"CPU": 16.0}, SMALL]) == Share(4, 1.0)  # the CPUs of machines with a GPU
    for setting, machines, sentence in (
        ("trial.threads=6", cluster, "needs 6 CPUs and 1 GPUs on one machine and the largest machine has 4; lower"),
        ("trial.threads=6", [HEAD, {"CPU": 4.0}, {"CPU": 4.0}], "needs 6 CPUs and the largest machine has 4; lower"),
        ("trial.threads=1", [HEAD], "needs 1 CPUs and there are 0; lower trial.threads"),
        ("trial.threads=null", [HEAD], "needs 1 CPUs and there are 0; lower trial.threads"),
        ("resources.gpus_per_trial=1", [HEAD], "1 wanted, 0 there"),
        ("resources.cpus_per_trial=6", cluster, "and the largest machine has 4; lower resources.cpus_per_trial"),
    ):
        with pytest.raises(resources.TooFew, match=sentence):
            share_of(plan_of(tmp_path, TEXT, setting), machines)


def test_machines_of_a_cluster_have_a_while_to_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = iter([[], [HEAD], [HEAD], [HEAD, SMALL], [HEAD]])
    monkeypatch.setattr(resources, "_nodes", lambda: next(seen))
    monkeypatch.setattr(resources, "LOOK_S", 0.01)
    plan = plan_of(tmp_path, TEXT, "trial.threads=1")
    assert resources.share_on(plan, growing=True) == Share(1, 1.0)
    assert capsys.readouterr().out.count("waiting 60 s for others to join") == 1
    with pytest.raises(UserError, match="needs 1 CPUs and there are 0"):
        resources.share_on(plan, growing=False)
