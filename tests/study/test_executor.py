"""Settings of Ray: public ones alone. What a study on Ray comes to is tested in test_run.py."""

from __future__ import annotations

from ray.tune.constants import TUNE_ENV_VARS

from study.executor import ENVIRONMENT

# Named by Ray's documentation, but in no list that can be imported.
DOCUMENTED = {"RAY_CHDIR_TO_TRIAL_DIR", "RAY_USAGE_STATS_ENABLED"}


def test_ray_is_set_by_documented_variables_alone() -> None:
    assert ENVIRONMENT.keys() <= TUNE_ENV_VARS | DOCUMENTED
