"""Report section on the gap: the champion's number in each published protocol's way, one convention at a time.

From the scores that analysis/final_evaluation.py stored when it opened the test; nothing is scored here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from analysis import waterfall
from analysis.page.section import Section
from analysis.tables.published import ELSEWHERE, on_nyu
from analysis.tables.tidy import StudyTables
from trainables.evaluation.protocols import PROTOCOLS, Kind

TITLE = "Which number would it be in another's way?"


def analyse(tables: StudyTables) -> Section:
    """The section; one sentence where the test is sealed, or was opened before walks were stored."""
    entries = {entry["name"]: entry for entry in tables.evaluation.get("entries", [])}
    champion = entries.get(tables.evaluation.get("champion"))
    if champion is None:
        return Section("gap", TITLE, ["The test is sealed, so nothing can be compared yet."])
    if not champion.get("walks", {}).get("measured"):
        return Section("gap", TITLE, ["The stored scores hold no such steps; opening the test again measures them."])
    falls = _falls(champion)
    beside = on_nyu(champion)
    answers = [f"{fall.target.who}: {sentence}" for fall in falls for sentence in fall.sentences()[:1]]
    answers += [] if beside else [ELSEWHERE]
    caption = f"Champion {champion['name']}, {champion['frames']} test frames. The order of the steps matters."
    figures = [waterfall.figure(fall, f"gap-{fall.target.protocol.name}", caption) for fall in falls]
    data = {"champion": champion["name"], "against": [fall.document() for fall in falls]}
    return Section("gap", TITLE, answers, figures, [waterfall.table(falls, "gap")], data)


def _falls(champion: Mapping[str, Any]) -> list[waterfall.Waterfall]:
    """A waterfall for each protocol whose steps were measured; published numbers stand in it on NYU Depth v2 alone."""
    walks = champion["walks"]
    start = PROTOCOLS[walks["start"]]
    kind: Kind = "relative" if champion["target"] == "relative" else "metric"
    ours = champion["summary"][champion["protocols"][start.name]["name"]]
    falls = []
    for goal in waterfall.targets(start, kind):
        stored = walks["measured"].get(goal.protocol.name)
        if stored is None:
            continue
        goal = goal if on_nyu(champion) else replace(goal, published={}, who=f"protocol {goal.protocol.name}")
        unmeasured = waterfall.unmeasured_truth(goal, walks["truth"])
        if goal.published and goal.mirrored is None:
            unmeasured[waterfall.MIRRORED] = f"{goal.who} does not state it"
        elif goal.published and goal.mirrored != walks["mirrored"]:
            unmeasured[waterfall.MIRRORED] = "the champion was scored once, averaged as its settings say"
        path = [step for step in waterfall.walk(start, goal.protocol) if step[0] in stored]
        measured = {name: stored[name] for name, _ in path if name not in unmeasured}
        falls.append(waterfall.built(goal, start, ours, path, measured, unmeasured))
    return falls
