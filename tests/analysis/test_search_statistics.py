"""Statistics of a search: values by hand, and the curve, the overtaking and the regret on searches of known truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import search_statistics
from analysis.statistics import Floats

SPREAD = 0.5  # of the logarithm of a trial's value


def trials(rng: np.random.Generator, count: int, middle: float = 1.0, spread: float = SPREAD) -> Floats:
    return middle * rng.lognormal(0, spread, count)


def test_the_expected_best_by_hand() -> None:
    """Of 1, 2, 3: one 2; the better of two is 1 in 5 of 9 draws, 2 in 3 and 3 in 1, which is 14 / 9."""
    assert search_statistics.expected_best([3.0, 1.0, 2.0]) == pytest.approx([2.0, 14 / 9, 4 / 3])
    curve = search_statistics.budget_curve([3.0, 1.0, 2.0, 2.0, 2.0], [1.0, 2.0, 3.0, 2.0, 2.0], 0)
    assert curve.hours.tolist() == [2.0, 4.0, 6.0, 8.0, 10.0] and len(curve.low) == len(curve.high) == 1


@pytest.mark.parametrize("count", [10, 30, 60])
def test_the_true_curve_lies_inside_the_band(count: int) -> None:
    """All of it at once, in 95% of 300 drawn searches, three standard errors less at most."""
    n = np.arange(1, count // 5 + 1)
    grid = np.sort(trials(np.random.default_rng(1), 100_000))
    above = 1 - np.arange(len(grid) + 1) / len(grid)
    truth = np.array([(above[:-1] ** k - above[1:] ** k) @ grid for k in n])
    held = 0
    for study in range(300):
        curve = search_statistics.budget_curve(trials(np.random.default_rng(study), count).tolist(), [1.0] * count, 0)
        held += bool(((curve.low <= truth) & (truth <= curve.high)).all())
    assert held / 300 > 0.95 - 3 * (0.05 * 0.95 / 300) ** 0.5


def test_a_planted_overtaking_is_found_and_none_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steady trials near 1 win at first; wild ones around 1.6 have the better best of many."""
    monkeypatch.setattr(search_statistics, "BAND_DRAWS", 200)
    rng = np.random.default_rng(0)
    hours = np.ones(60)
    sides = {"steady": (trials(rng, 60, 1.0, 0.05), hours), "wild": (trials(rng, 60, 1.6, 0.8), hours)}
    found = search_statistics.overtaking(sides, 0)
    assert found is not None and (found.early, found.late) == ("steady", "wild")
    assert 1 < found.low <= found.hours <= found.high < 30 and found.sure >= 0.95
    same = 0
    for study in range(100):
        rng = np.random.default_rng(study)
        pair = {name: (trials(rng, 20), np.ones(20)) for name in ("a", "b")}
        same += search_statistics.overtaking(pair, study) is not None
    assert same <= 5


def test_the_rank_correlation_by_hand() -> None:
    """One of ten pairs is out of order: tau = (9 - 1) / 10; z = 1.0986 +- 1.96 * root(0.437)."""
    tau = search_statistics.rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])
    assert tau.value == pytest.approx(0.8) and tau.n == "5 trainings"
    assert tau.low == pytest.approx(np.tanh(np.arctanh(0.8) - 1.96 * 0.437**0.5), abs=1e-3)
    assert search_statistics.rank_correlation([1, 2, 3, 4], [1, 2, 3, 4]).low is None


def test_what_pruning_may_have_cost() -> None:
    """Complete trials end at half or at four fifths of what they had at 100 images."""
    complete = pd.DataFrame(
        {"key": list("abcdef"), "images": 100.0, "value": 1.0, "final": [0.5, 0.5, 0.5, 0.8, 0.8, 0.8]}
    )
    found = search_statistics.regret([(100.0, 0.8)], complete, 0.5, 0)
    assert found is not None and found.pruned == 1
    assert found.missed == pytest.approx(0.5, abs=0.06) and found.loss == pytest.approx(0.05, abs=0.006)
    hopeless = search_statistics.regret([(100.0, 1.5)], complete, 0.5, 0)
    assert hopeless is not None and (hopeless.missed, hopeless.loss) == (0.0, 0.0)
    assert search_statistics.regret([(50.0, 0.8)], complete, 0.5, 0) is None


def test_time_to_a_target_counts_those_that_never_reached_it() -> None:
    found = search_statistics.time_to_target([30.0, None, 10.0, None])
    assert found.seconds.tolist() == [10.0, 30.0] and found.share.tolist() == [0.25, 0.5] and found.half == 30.0
    assert found.low[0] == pytest.approx(0.00631, abs=1e-4) and found.high[0] == pytest.approx(0.806, abs=1e-3)
    assert search_statistics.time_to_target([1.0]).high[0] == 1.0
