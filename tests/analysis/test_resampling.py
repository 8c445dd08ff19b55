"""Resampling over seeds and scenes: values by hand and by scipy, intervals that hold in drawn studies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis import resampling
from analysis.resampling import Scores

SCENES, FRAMES = 40, 2  # frames of each scene


def scores(values: np.ndarray, scenes: int = SCENES) -> Scores:
    return Scores(values, tuple(f"room {place % scenes}" for place in range(values.shape[1])))


def drawn(rng: np.random.Generator, seeds: int, luck: float, rooms: np.ndarray) -> Scores:
    """Seeds that differ by luck, on rooms that differ by their own errors; the true mean is 0.5."""
    own = 0.5 + luck * rng.standard_normal((seeds, 1)) + np.tile(rooms, FRAMES)
    return scores(own + 0.02 * rng.standard_normal((seeds, SCENES * FRAMES)))


def test_values_by_hand_and_by_scipy() -> None:
    few = scores(np.array([[1.0, 2.0, 3.0, 10.0], [2.0, 2.0, 4.0, 12.0]]), scenes=4)
    assert resampling.mean(few, 0).value == pytest.approx(4.5)
    assert resampling.interquartile_mean(few, 0).value == pytest.approx(2.75)  # of 1 2 2 [2 2 3 4] 10 12: 2 2 3 4
    share, low, high = resampling.profile(few, np.array([1.0, 2.0, 12.0]), 0)
    assert share.tolist() == [0.125, 0.5, 1.0] and low is None and high is None  # four scenes carry no band
    rng = np.random.default_rng(0)
    many = scores(rng.standard_normal((5, 80)))
    assert resampling.interquartile_mean(many, 0).value == pytest.approx(stats.trim_mean(many.values.ravel(), 0.25))
    other = scores(rng.standard_normal((4, 80)))
    by_frame = [stats.mannwhitneyu(b, a).statistic / 20 for a, b in zip(many.values.T, other.values.T, strict=True)]
    assert resampling.improvement(many, other, 0).value == pytest.approx(np.mean(by_frame))


def test_few_seeds_or_scenes_carry_less() -> None:
    rng = np.random.default_rng(1)
    two, three = (scores(rng.standard_normal((seeds, 80))) for seeds in (2, 3))
    assert resampling.mean(two, 0).n == "2 seeds x 40 scenes, the luck of seeds not included"
    assert resampling.mean(three, 0).n == "3 seeds x 40 scenes"
    assert resampling.mean(scores(three.values, scenes=29), 0).low is None
    unknown = Scores(three.values, (None,) * 80)
    assert resampling.mean(unknown, 0).low is None and unknown.n == "3 seeds x 80 frames of unknown scenes"
    assert resampling.improvement(three, three, 0).low is None  # 3 and 3 in order happen in one of ten alike studies
    assert resampling.no_interval(three, three) == "3 and 3 seeds are too few"
    four = scores(rng.standard_normal((4, 80)))
    assert resampling.improvement(four, four, 0).low and resampling.no_interval(four, four) is None
    assert resampling.no_interval(Scores(four.values, (None,) * 80), four) == "scenes are unknown"
    assert resampling.no_interval(scores(four.values, scenes=29), four) == "29 scenes are too few"


@pytest.mark.parametrize(("seeds", "luck", "room"), [(3, 0.02, 0.02), (5, 0.02, 0.1)])
def test_intervals_hold_the_truth(monkeypatch: pytest.MonkeyPatch, seeds: int, luck: float, room: float) -> None:
    """In 95% of drawn studies, three standard errors of 120 less at most; scenes alone would in far fewer."""
    monkeypatch.setattr(resampling, "DRAWS", 200)
    studies, held, alone, alike = 120, 0, 0, 0
    for study in range(studies):
        rng = np.random.default_rng(study)
        rooms = room * rng.standard_normal(SCENES)
        ours, others = (drawn(rng, seeds, luck, rooms) for _ in range(2))
        found = resampling.mean(ours, study)
        assert found.low is not None and found.high is not None
        held += found.low <= 0.5 <= found.high
        single = resampling.mean(scores(ours.values[:1]), study)
        assert single.low is not None and single.high is not None
        alone += single.low <= 0.5 <= single.high
        chance = resampling.improvement(ours, others, study)
        alike += chance.low is None or (chance.high is not None and chance.low <= 0.5 <= chance.high)
    assert held / studies > 0.95 - 3 * (0.05 * 0.95 / studies) ** 0.5
    assert alike / studies > 0.95 - 3 * (0.05 * 0.95 / studies) ** 0.5
    assert alone < held or room > 0.05


def test_seeds_are_matched_on_the_frames_that_all_have() -> None:
    found = resampling.matched(
        [[("a", "x", 1.0), ("b", "x", 2.0), ("c", None, 3.0)], [("c", None, 5.0), ("a", "x", 4.0)]]
    )
    assert found.values.tolist() == [[1.0, 3.0], [4.0, 5.0]] and found.scenes == ("x", None)
