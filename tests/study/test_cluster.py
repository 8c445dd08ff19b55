"""What a training gets of a machine, what cannot be shared, and public settings of Ray alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.tune.constants import TUNE_ENV_VARS

from study.cluster import ENVIRONMENT, Share, share_of
from tests.study.test_config import TEXT, plan_of
from trainables.runtime.errors import UserError

EVEN = TEXT.replace("{low: 2, high: 16, scale: log}", "{choices: [4, 8]}")
# Named by Ray's documentation, but in no list that can be imported.
DOCUMENTED = {"RAY_CHDIR_TO_TRIAL_DIR", "RAY_USAGE_STATS_ENABLED"}
FIRST = EVEN.replace("  trials: 8\n", "  trials: 8\n  first: [{batch_size: 5}]\n")


def test_a_share_is_threads_and_decoders_and_gpus_where_there_are_any(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TEXT, "data.workers=1")
    assert share_of(plan, {"CPU": 8.0}) == Share(2, 0.0)
    assert share_of(plan, {"CPU": 8.0, "GPU": 2.0}) == Share(2, 1.0)
    assert Share(2, 1.0).fits({"CPU": 8.0, "GPU": 2.0}) == 2
    assert Share(1, 0.25).fits({"CPU": 8.0, "GPU": 1.0}) == 4
    for setting, resources, sentence in (
        ("resources.gpus_per_trial=3", {"CPU": 8.0, "GPU": 2.0}, "3 wanted, 2 there"),
        ("resources.gpus_per_trial=1.5", {"CPU": 8.0, "GPU": 2.0}, "neither whole nor a part"),
        ("trial.threads=16", {"CPU": 8.0}, "needs 16 CPUs and there are 8; lower trial.threads"),
    ):
        with pytest.raises(UserError, match=sentence):
            share_of(plan_of(tmp_path, TEXT, setting), resources)


def test_a_share_has_one_worker_per_whole_gpu_or_as_many_as_are_asked_for(tmp_path: Path) -> None:
    large = {"CPU": 8.0, "GPU": 4.0}
    two = share_of(plan_of(tmp_path, EVEN, "resources.gpus_per_trial=2", "data.workers=1"), large)
    assert two == Share(4, 2.0, 2)
    assert two.bundles == [{"CPU": 2.0, "GPU": 1.0}] * 2
    assert two.fits(large) == 2
    asked = plan_of(tmp_path, EVEN, "resources.workers_per_trial=2")
    assert share_of(asked, {"CPU": 8.0}) == Share(2, 0.0, 2)
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
        share_of(plan_of(tmp_path, text, *(f"resources.{s}" for s in settings)), {"CPU": 8.0, "GPU": 4.0})


def test_ray_is_set_by_documented_variables_alone() -> None:
    assert ENVIRONMENT.keys() <= TUNE_ENV_VARS | DOCUMENTED
