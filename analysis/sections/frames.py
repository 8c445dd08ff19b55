"""Frame by frame: configurations of the sealed test compared by more than a mean, over seeds and scenes together.

A configuration is all of its seeds that were scored: the champion's confirmation, the seeds of a recipe, a baseline.
Performance profile, inter-quartile mean and probability of improvement: analysis/resampling.py, with its sources. Only
entries scored on the champion's test data take part. Nothing here opens the test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from analysis import resampling
from analysis.page.section import Figure, Section, Table, counted, number, plain
from analysis.page.style import CYCLE
from analysis.resampling import Scores
from analysis.selection import unit_of, with_unit
from analysis.tables import sealed
from analysis.tables.tidy import StudyTables
from trainables.settings.registry import METRICS

TITLE = "Better on how many frames?"
SEED = 0
POINTS = 60  # of a profile
MOST = 6  # profiles in one picture
CHAMPION = "champion"
Row = dict[str, Any]


def analyse(tables: StudyTables) -> Section:
    """The section from the stored scores; one sentence while the test is sealed."""
    document, scores = tables.evaluation, tables.extras.get("scores")
    if not document or scores is None:
        return Section("frames", TITLE, ["The test set is still sealed, so no frames can be compared."])
    metric, protocol = document["judge"]["metric"], document["judge"]["protocol"]
    known = _configurations(document, scores, metric, protocol)
    if CHAMPION not in known:
        return Section("frames", TITLE, [f"The champion has no {metric} on any test frame, so none can be compared."])
    sign = -1.0 if METRICS[metric].higher_is_better else 1.0
    rows = [_row(name, own, known[CHAMPION], sign) for name, own in known.items()]
    unit = unit_of(metric)
    frame = _profiles(known, sign)
    units = dict.fromkeys(("mean", "mean_low", "mean_high", "iqm", "iqm_low", "iqm_high"), unit)
    note = (
        "Intervals are 95%, over scenes and, from three seeds on, over seeds together. iqm: mean of the middle half of "
        "all seeds' frames. champion_better: probability that a training of the champion's configuration beats one of "
        "this on a frame drawn at random. Each row stands for itself: nothing is corrected for asking of several."
    )
    table = Table("frames-configurations", "Configurations on the test frames", pd.DataFrame(rows), note, units)
    figure = _figure(frame, known, metric, document, tables)
    return Section("frames", TITLE, _sentences(rows, metric, unit), [figure], [table], plain({"configurations": rows}))


def _configurations(document: Mapping[str, Any], scores: pd.DataFrame, metric: str, protocol: str) -> dict[str, Scores]:
    """The scored seeds of each configuration by name, the champion's first, on frames that all seeds have values of."""
    own = scores[(scores["requested"] == protocol) & ~scores["failed"].astype(bool)].dropna(subset=[metric])
    values = {
        str(name): list(zip(rows["id"], (s if isinstance(s, str) else None for s in rows["scene"]), rows[metric],
                            strict=True))
        for name, rows in own.groupby("entry")
    }  # fmt: skip
    groups: dict[str, list[str]] = {}
    for entry in document["entries"]:
        if entry["name"] in values and entry["same_test_data"]:
            for name in sealed.configurations(entry):
                groups.setdefault(name, []).append(entry["name"])
    ordered = sorted(groups, key=lambda name: name != CHAMPION)
    return {name: resampling.matched([values[seed] for seed in groups[name]]) for name in ordered}


def _row(name: str, own: Scores, champion: Scores, sign: float) -> Row:
    mean = resampling.mean(own, SEED)
    middle = resampling.interquartile_mean(own, SEED)
    row: Row = {
        "configuration": name, "seeds": len(own.values), "frames": len(own.scenes), "mean": mean.value,
        "mean_low": mean.low, "mean_high": mean.high, "iqm": middle.value, "iqm_low": middle.low,
        "iqm_high": middle.high, "n": mean.n, "champion_better": None, "better_low": None, "better_high": None,
        "no_interval": None,
    }  # fmt: skip
    if name != CHAMPION and own.values.shape[1] == champion.values.shape[1]:
        signed = [Scores(sign * one.values, one.scenes) for one in (champion, own)]
        chance = resampling.improvement(signed[0], signed[1], SEED)
        row |= {"champion_better": chance.value, "better_low": chance.low, "better_high": chance.high}
        row["no_interval"] = resampling.no_interval(*signed)
    return row


def _sentences(rows: Sequence[Row], metric: str, unit: str) -> list[str]:
    first = rows[0]
    band = f" (n = {first['n']}, no interval)" if first["mean_low"] is None else (
        f" (95% interval {number(first['mean_low'])} to {number(first['mean_high'])}, n = {first['n']})"
    )  # fmt: skip
    seeds = f"{counted(first['seeds'], 'seed')} of the champion's configuration"
    said = [
        f"Over {seeds} and {first['frames']} test frames the mean {metric} is "
        f"{number(first['mean'])} {unit}".rstrip() + f"{band}, and that of the "
        f"middle half of the frames {number(first['iqm'])} {unit}".rstrip() + "."
    ]  # fmt: skip
    for row in rows[1:]:
        if row["champion_better"] is None:
            continue
        band = "" if row["better_low"] is None else (
            f" (95% interval {row['better_low']:.0%} to {row['better_high']:.0%})"
        )  # fmt: skip
        why = "" if band else f" (no interval: {row['no_interval']})"
        said.append(
            f"On a frame drawn at random a training of the champion's configuration beats {row['configuration']} with "
            f"probability {row['champion_better']:.0%}{band}{why}."
        )
    return said


def _profiles(known: Mapping[str, Scores], sign: float) -> pd.DataFrame:
    """Share of frames at least as good as each threshold: configuration, threshold, share, low, high."""
    drawn = {name: one for name, one in known.items() if name != sealed.RANDOM_GUESS}  # far off all others
    drawn = dict(list(drawn.items())[:MOST])
    every = np.concatenate([one.values.ravel() for one in drawn.values()])
    thresholds = np.unique(np.quantile(every, np.linspace(0.0, 1.0, POINTS)))  # close where values are
    parts = []
    for name, one in drawn.items():
        share, below, above = resampling.profile(Scores(sign * one.values, one.scenes), sign * thresholds, SEED)
        nothing = np.full(len(thresholds), np.nan)
        parts.append(pd.DataFrame({"configuration": name, "threshold": thresholds, "share": share,
                                   "low": nothing if below is None else below,
                                   "high": nothing if above is None else above}))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _figure(
    frame: pd.DataFrame, known: Mapping[str, Scores], metric: str, document: Mapping[str, Any], tables: StudyTables
) -> Figure:
    at = "at least" if METRICS[metric].higher_is_better else "at most"
    shown = list(dict.fromkeys(frame["configuration"]))

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        for colour, (name, rows) in zip(CYCLE, data.groupby("configuration", sort=False), strict=False):
            axes.fill_between(rows["threshold"], rows["low"].fillna(rows["share"]), rows["high"].fillna(rows["share"]),
                              color=colour, alpha=0.15, linewidth=0)  # fmt: skip
            axes.plot(rows["threshold"], rows["share"], color=colour, label=f"{name} ({known[str(name)].n})")
        axes.set(xlabel=f"{with_unit(metric)} of a test frame: {at}", ylabel="share of frames", ylim=(0, 1))
        axes.legend(fontsize=7.5)

    left = [name for name in known if name not in shown]
    more = f" In the table alone: {', '.join(left)}." if left else ""
    champion = next(entry for entry in document["entries"] if entry["name"] == document["champion"])
    return Figure(
        "frames-profile", "Performance profile over test frames",
        f"Share of test frames with {metric} {at} each value, for {len(shown)} configurations.",
        f"{champion['frames']} test frames, every seed's counted; band: pointwise 95% where there are 30 known scenes. "
        "A curve above another at every value is better whatever error one can bear; where curves cross, a mean hides "
        f"that each is better on some frames. Bands are not a test of the difference.{more} Study {tables.name}, test "
        "split.",
        draw, frame, size_in=(5.2, 3.6),
    )  # fmt: skip
