"""Report section on the sealed test: the stored scores of analysis/final_evaluation.py as answers, figures and tables.

Nothing here opens the test. Intervals are paired bootstraps clustered by scene; pooled protocols have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from analysis import selection, statistics
from analysis.page import pictures
from analysis.page.section import Figure, Headline, Section, Table, number, plain
from analysis.page.style import BLUE, CYCLE
from analysis.tables import sealed
from analysis.tables.published import comparable, obstacles
from analysis.tables.tidy import StudyTables
from trainables.evaluation.protocols import PROTOCOLS
from trainables.settings.registry import METRICS

BOOTSTRAP_SEED = 0
TITLE = "How good is it really? The sealed test"
Row = dict[str, Any]


def build(tables: StudyTables) -> Section:
    """The section from the stored scores; one sentence while the test is sealed."""
    document, scores = tables.evaluation, tables.extras.get("scores")
    if not document or scores is None:
        reasons = tables.unfinished()
        why = f"the study has not ended ({'; '.join(reasons)})" if reasons else "it has not been opened"
        other = [note for note in tables.notes if note.startswith("The sealed test")]
        answer = f"The test set is still sealed: {why}." if not other else other[-1]
        chosen = selection.choose(tables)
        said = [answer] if chosen is None or tables.judge is None else [_so_far(tables.judge.metric, chosen), answer]
        data = {"opened": False, "reason": why}
        return Section("evaluation", TITLE, [answer], (), (), data, Headline(said))
    entries: dict[str, Row] = {entry["name"]: entry for entry in document["entries"]}
    champion = entries[document["champion"]]
    metric, protocol = document["judge"]["metric"], document["judge"]["protocol"]
    unit = selection.unit_of(metric)
    own = _values(scores, champion["name"], protocol, metric)
    estimate = statistics.by_scene(own["value"].tolist(), own["scene"].tolist(), BOOTSTRAP_SEED)
    versus = _versus(scores, entries, champion, protocol, metric)
    failed = _failed(scores, protocol)
    data = {
        "opened": True, "champion": champion["name"], "metric": metric, "protocol": champion["protocols"][protocol],
        "frames": champion["frames"], "measured": len(own), "failed": failed, "scenes": champion["scenes"],
        "estimate": estimate.as_dict(), "versus": {name: e.as_dict() for name, e in versus.items()},
        "openings": document["openings"], "times_opened": document["opened"]["count"],
        "list_sha256": document["list"]["sha256"],
        "summary": {name: entry["summary"] for name, entry in entries.items()},
        "bands": {name: entry["bands"] for name, entry in entries.items()},
    }  # fmt: skip
    answers = [
        _measured(champion, protocol, metric, unit, estimate, len(own)),
        *_failures(entries, failed),
        *_against(champion, entries, versus, metric, unit),
        *_seeds(champion, entries, protocol, metric, unit),
        *_missing(document),
        *_openings(document),
        *_changed(tables, document),
    ]
    figures = [
        _distribution(tables, entries, scores, champion, protocol, metric, unit),
        _bands(tables, entries, champion),
        *_holes(tables, own, champion, metric, unit),
    ]
    said = [_champion(champion, entries, scores, protocol, metric, unit, estimate), *_failures(entries, failed)]
    headline = Headline(said, _pictures(tables, document))
    result_tables = [_protocol_table(entries), _versus_table(versus, metric, unit), _openings_table(document)]
    return Section("evaluation", TITLE, answers, figures, result_tables, plain(data), headline)


def _so_far(metric: str, chosen: selection.Chosen) -> str:
    """The champion before the test has been opened."""
    value = f"{number(chosen.median)} {selection.unit_of(metric)}".strip()
    return f"Best so far is {chosen.champion}, with a validation {metric} of {value} ({chosen.phase})."


def _champion(
    champion: Row,
    entries: Mapping[str, Row],
    scores: pd.DataFrame,
    protocol: str,
    metric: str,
    unit: str,
    estimate: statistics.Estimate,
) -> str:
    """The champion against the training frames' mean depth per pixel, in one sentence."""
    start = f"On {champion['frames']} unseen test frames the champion {champion['name']} has {metric} "
    mean = entries.get(sealed.TRAINING_MEAN)
    own = _values(scores, champion["name"], protocol, metric).set_index("id")
    other = _values(scores, sealed.TRAINING_MEAN, protocol, metric).set_index("id")
    both = own.index.intersection(other.index)
    if mean is None or not mean["same_test_data"] or both.empty:
        return f"{start}{estimate.words(unit)}."
    a, b = own.loc[both, "value"].tolist(), other.loc[both, "value"].tolist()
    below = statistics.reduction_by_scene(a, b, own.loc[both, "scene"].tolist(), BOOTSTRAP_SEED)
    size = statistics.Estimate(abs(below.value), *(_ordered(below)), below.n)
    clear = "" if below.distinguishable or below.low is None else ", not distinguishable from none"
    better = "" if (below.value < 0) == METRICS[metric].higher_is_better else ", which is worse"
    return (
        f"{start}{number(estimate.value)} {unit}".rstrip()
        + f", {size.words('%').replace(' %', '%')} {'above' if below.value < 0 else 'below'} the training frames' mean "
        + f"depth per pixel ({number(float(np.mean(b)))} {unit}".rstrip()
        + f"){better}{clear}."
    )


def _values(scores: pd.DataFrame, entry: str, protocol: str, metric: str) -> pd.DataFrame:
    """Per frame: id, scene, hole_share, value of one entry under one protocol; frames without a value are left out."""
    own = scores[(scores["entry"] == entry) & (scores["requested"] == protocol)]
    own = own.rename(columns={metric: "value"})[["id", "scene", "hole_share", "value"]]
    return own.dropna(subset=["value"]).reset_index(drop=True)


def _versus(
    scores: pd.DataFrame, entries: Mapping[str, Row], champion: Row, protocol: str, metric: str
) -> dict[str, statistics.Estimate]:
    """How much worse every other entry of the same test data is than the champion, frame by frame."""
    sign = -1.0 if METRICS[metric].higher_is_better else 1.0
    own = _values(scores, champion["name"], protocol, metric).set_index("id")
    result = {}
    for name, entry in entries.items():
        if name == champion["name"] or not entry["same_test_data"]:
            continue
        other = _values(scores, name, protocol, metric).set_index("id")
        both = own.index.intersection(other.index)
        difference = sign * (other.loc[both, "value"] - own.loc[both, "value"])
        scenes = own.loc[both, "scene"].tolist()
        result[name] = statistics.by_scene(difference.tolist(), scenes, BOOTSTRAP_SEED)
    return result


def _measured(
    champion: Row, protocol: str, metric: str, unit: str, estimate: statistics.Estimate, measured: int
) -> str:
    fair, why = comparable(champion, protocol)
    note = "" if fair else f" (not comparable with published numbers: {[*obstacles(champion), why][0]})"
    kind = "" if PROTOCOLS[protocol].average == "per_image" else " (mean over frames; the table's row is pooled)"
    frames = champion["frames"] if measured == champion["frames"] else f"{measured} of {champion['frames']}"
    return (
        f"On {frames} test frames the champion {champion['name']} reaches {metric} "
        f"{estimate.words(unit)}{kind} under protocol {champion['protocols'][protocol]['name']}{note}."
    )


def _failed(scores: pd.DataFrame, protocol: str) -> dict[str, int]:
    """Per entry the frames on which its prediction was no number, where there are any."""
    rows = scores[(scores["requested"] == protocol) & scores["failed"]]
    return {str(name): len(own) for name, own in rows.groupby("entry", sort=False)}


def _failures(entries: Mapping[str, Row], failed: Mapping[str, int]) -> list[str]:
    if not failed:
        return []
    said = ", ".join(f"{name} on {count} of {entries[name]['frames']} frames" for name, count in failed.items())
    return [f"Failed, because the prediction is not finite, and left out of the means over frames: {said}."]


def _missing(document: Mapping[str, Any]) -> list[str]:
    gone = [f"{', '.join(e['roles'])} ({e['checkpoint']})" for e in document["list"]["entries"] if e.get("missing")]
    return (
        [f"On the frozen list, but not scored, because the checkpoint is missing: {'; '.join(gone)}."] if gone else []
    )


def _against(
    champion: Row, entries: Mapping[str, Row], versus: Mapping[str, statistics.Estimate], metric: str, unit: str
) -> list[str]:
    sentences = []
    for name, estimate in versus.items():
        if "baseline" in entries[name]["roles"]:
            clear = "" if estimate.distinguishable or estimate.low is None else ", not distinguishable"
            verb = "worse" if estimate.value >= 0 else "better"
            size = statistics.Estimate(abs(estimate.value), *_ordered(estimate), estimate.n)
            sentences.append(f"The {name} baseline is {verb} by {size.words(unit)}{clear}.")
    return sentences


def _ordered(estimate: statistics.Estimate) -> tuple[float | None, float | None]:
    if estimate.low is None or estimate.high is None or estimate.value >= 0:
        return estimate.low, estimate.high
    return -estimate.high, -estimate.low


def _seeds(champion: Row, entries: Mapping[str, Row], protocol: str, metric: str, unit: str) -> list[str]:
    named = champion["protocols"][protocol]["name"]
    others = [e for e in entries.values() if sealed.CONFIRMATION in e["roles"]]
    values = [e["summary"][named][metric] for e in [champion, *others] if named in e["summary"]]
    known = [v for v in values if v is not None and math.isfinite(v)]
    if len(known) < 2:
        return []
    low, high = f"{number(min(known))} {unit}".strip(), f"{number(max(known))} {unit}".strip()
    return [f"Its configuration's {len(known)} seeds lie between {low} and {high} on the test set."]


def _openings(document: Mapping[str, Any]) -> list[str]:
    opened = document["opened"]
    times = "once" if opened["count"] == 1 else f"{opened['count']} times"
    warning = "" if opened["count"] == 1 else "; after the first, the test set is no longer unseen"
    where = str(opened["counted_in"]).removeprefix("this ")
    return [f"These test data have been opened {times}, counted in the {where}{warning}."]


def _changed(tables: StudyTables, document: Mapping[str, Any]) -> list[str]:
    now = selection.choose(tables)
    if now is None or now.champion == document["champion"]:
        return []
    return [
        f"The list was frozen at {document['list']['frozen_at']} with champion {document['champion']}; today the judge "
        f"would choose {now.champion}. Only --again REASON scores that one."
    ]


def _protocol_table(entries: Mapping[str, Row]) -> Table:
    rows = []
    for name, entry in entries.items():
        for asked, run in entry["protocols"].items():
            measured = entry["summary"][run["name"]]
            row = {"entry": name, "role": ", ".join(entry["roles"]), "protocol": run["name"], "frames": entry["frames"]}
            note = (
                run["note"]
                if entry["same_test_data"]
                else "; ".join(["another test split", *filter(None, [run["note"]])])
            )
            rows.append(row | measured | {"comparable": comparable(entry, asked)[0], "note": note})
    frame = pd.DataFrame(rows)
    last = ["comparable", "note"]
    frame = frame[[c for c in frame.columns if c not in last] + last]
    against = dict.fromkeys(reason for entry in entries.values() for reason in obstacles(entry))
    note = "Every entry of the frozen list under every protocol; `comparable`: with numbers published under that name."
    note += f" What no protocol changes: {'; '.join(against)}." if against else ""
    return Table("evaluation-protocols", "All protocols side by side", frame, note, {"rmse": "m", "sq_rel": "m"})


def _versus_table(versus: Mapping[str, statistics.Estimate], metric: str, unit: str) -> Table:
    rows = [
        {"entry": name, f"{metric} worse by": e.value, "low": e.low, "high": e.high, "n": e.n}
        for name, e in versus.items()
    ]
    frame = pd.DataFrame(rows, columns=["entry", f"{metric} worse by", "low", "high", "n"])
    note = "Frame by frame against the champion, 95% bootstrap by scene; only entries of the same test frames."
    return Table(
        "evaluation-versus",
        "Against the champion",
        frame,
        note,
        {f"{metric} worse by": unit, "low": unit, "high": unit},
    )


def _openings_table(document: Mapping[str, Any]) -> Table:
    columns = ["at", "reason", "count", "counted_in", "test_data", "list_sha256"]
    return Table("evaluation-openings", "Openings of the sealed test", pd.DataFrame(document["openings"])[columns])


def _distribution(
    tables: StudyTables,
    entries: Mapping[str, Row],
    scores: pd.DataFrame,
    champion: Row,
    protocol: str,
    metric: str,
    unit: str,
) -> Figure:
    parts = [
        _values(scores, name, protocol, metric).assign(entry=name)
        for name, entry in entries.items()
        if entry["same_test_data"]
    ]
    frame = pd.concat(parts, ignore_index=True)[["entry", "id", "scene", "value"]]

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        near = data.loc[data["entry"] != sealed.RANDOM_GUESS, "value"]
        for place, (name, rows) in enumerate(data.groupby("entry", sort=False)):
            values = np.sort(rows["value"].to_numpy())
            share = np.arange(1, len(values) + 1) / len(values)
            axes.step(values, share, where="post", color=CYCLE[place % len(CYCLE)], label=f"{name} (n = {len(rows)})")
        axes.set(xlabel=f"{metric} of a frame" + (f" ({unit})" if unit else ""), ylabel="share of frames at or below")
        axes.set_xlim(0, 1.05 * float(near.max()) if len(near) else None)  # a random guess lies far off all others
        axes.legend()

    return Figure(
        "evaluation-distribution", "Error per frame",
        f"Cumulative distribution of {metric} over {champion['frames']} test frames, champion and comparisons.",
        f"Test split, protocol {champion['protocols'][protocol]['name']}; one step per frame. Study {tables.name}.",
        draw, frame,
    )  # fmt: skip


def _bands(tables: StudyTables, entries: Mapping[str, Row], champion: Row) -> Figure:
    rows = [
        {"entry": name, **band}
        for name, entry in entries.items()
        if entry["same_test_data"] and (name == champion["name"] or "baseline" in entry["roles"])
        for band in entry["bands"]
    ]
    frame = pd.DataFrame(rows, columns=["entry", "from_m", "to_m", "pixels", "abs_rel", "rmse"])

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        for axes, metric, label in zip(
            canvas.subplots(1, 2), ("rmse", "abs_rel"), ("rmse (m)", "abs_rel"), strict=True
        ):
            for place, (name, band) in enumerate(data.groupby("entry", sort=False)):
                middle = (band["from_m"] + band["to_m"]) / 2
                axes.plot(middle, band[metric], marker="o", color=CYCLE[place % len(CYCLE)], label=str(name))
            axes.set(xlabel="true distance (m)", ylabel=label)
            axes.set_yscale("log" if metric == "abs_rel" else "linear")
        canvas.axes[0].legend()

    return Figure(
        "evaluation-bands", "Error by distance",
        "RMSE and absolute relative error by band of true distance, for the champion and both baselines.",
        f"Pooled over the pixels of each band, whole frames, holes left out. {champion['frames']} test frames.",
        draw, frame, size_in=(7.0, 3.2),
    )  # fmt: skip


def _holes(tables: StudyTables, own: pd.DataFrame, champion: Row, metric: str, unit: str) -> list[Figure]:
    """Nothing where the test truth has no holes."""
    if not (own["hole_share"] > 0).any():
        return []

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        axes = canvas.add_subplot()
        axes.scatter(data["hole_share"], data["value"], s=12, color=BLUE)
        axes.set(xlabel="share of the frame without truth", ylabel=f"{metric}" + (f" ({unit})" if unit else ""))

    figure = Figure(
        "evaluation-holes", "Error by share of holes",
        f"{metric} of each test frame against the share of its pixels that have no truth, n = {len(own)}.",
        f"One dot per test frame of the champion {champion['name']}. Study {tables.name}.",
        draw, own,
    )  # fmt: skip
    return [figure]


def _pictures(tables: StudyTables, document: Mapping[str, Any]) -> list[Figure]:
    if tables.layout is None or not document["pictures"]:
        return []
    metric = document["judge"]["metric"]
    unit = selection.unit_of(metric)
    with np.load(tables.layout.evaluation / sealed.PICTURES, allow_pickle=False) as arrays:
        rows = [
            pictures.Row(
                f"{shown['label']}: {metric} {number(shown[metric])} {unit}".rstrip(),
                arrays[f"{shown['label']}_rgb"],
                arrays[f"{shown['label']}_truth_m"],
                (("prediction", arrays[f"{shown['label']}_pred_m"]),),
            )
            for shown in document["pictures"]
        ]
    ids: Sequence[str] = [f"{shown['label']} {shown['id']}" for shown in document["pictures"]]
    return [
        pictures.depth_rows(
            rows,
            name="evaluation-pictures",
            title="Best, median and worst test frame",
            alt=f"Colour, truth, prediction and error of the champion's best, median and worst frame by {metric}.",
            caption=f"Champion {document['champion']}, test split: {'; '.join(ids)}. {pictures.SCALES}",
        )
    ]
