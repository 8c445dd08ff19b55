"""Verdicts on a study's claims, from the paired trainings of each, by rule (analysis/statistics.py).

A pair shares seed, order and budget. A pair with a training that did not complete is counted, not used: that an arm
makes trainings diverge is said in the reason.

What claims measure of a training (study.contract.QUANTITIES) are functions of a study to {key: value}:

validation metrics      of the report that the judge takes: the best by its own metric, or the last
overfit_gap             the last report's validation loss, in float32, minus its training loss, which is one with
                        augmentation and in the training's precision
spikes_per_1000_steps   loss spikes of the step trace (analysis/spikes/traces.py) per 1,000 steps
damage_after_spikes     how much worse the judged metric is at the validation after spikes than at the one before
                        them, summed over such spans of a training; a span without worsening is 0, no spike is 0
seconds, images_per_s, peak_memory_mib   what the training took, by its own summary
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from analysis import pairs, runs, statistics
from analysis.page.section import Figure, Headline, Section, Table, counted, number, plain
from analysis.page.style import BLUE, FAINT, GREY
from analysis.selection import unit_of
from analysis.spikes import causes
from analysis.statistics import ALIKE, FAILS, HOLDS, UNTESTABLE, UNTOLD, Direction
from analysis.tables.tidy import StudyTables
from study.contract import QUANTITIES, Claim, Outcome

TITLE = "What was claimed, and does it hold?"
EXPECTED = {
    "a_better": "a better",
    "b_better": "b better",
    "a_more": "a more",
    "a_less": "a less",
    "a_not_better": "a not better",
    "no_difference": "no difference",
    "open": "open",
}
MEANING = {  # what an arm means that changes the measurement instead of the training
    "data.validation": "Arms that differ in data.validation hold out other frames, and so train on others: the "
    "difference compares two rulers. What a split by frame gains is a leak between neighbours, not a better model.",
    "mirrored": "Arms that differ in mirrored alone train the same network: the difference is that of averaging the "
    "answer with the mirrored picture's, and of the report that is best under it.",
}
DRAWN = 2  # pairs from which a claim is drawn


@dataclass(frozen=True)
class ClaimAnswer:
    """A claim and its verdict. effect: mean paired difference of what was measured, above zero arm `a` is better, in
    `unit`; low, high: its 95% interval, None below three pairs; n: pairs; mean_a, mean_b: each arm's mean over them.
    differs: the effect in words. also: the other quantities, in sentences.
    """

    id: str
    who: str
    statement: str
    arm_a: str
    arm_b: str
    measured: str
    unit: str
    expected: str
    effect: float | None
    low: float | None
    high: float | None
    n: int
    verdict: str
    reason: str
    also: tuple[str, ...] = ()
    differences: Mapping[int, float] | None = None  # seed -> difference
    mean_a: float | None = None
    mean_b: float | None = None
    differs: str | None = None


def answers(tables: StudyTables) -> list[ClaimAnswer]:
    """Every claim of the study with its verdict, in the study's order."""
    measured = {name for claim in tables.claims if claim.untestable is None for name in claim.measured}
    known = {name: measured_values(tables, name) for name in measured}
    return [_answer(tables, claim, known) for claim in tables.claims]


def analyse(tables: StudyTables) -> Section:
    """The section: verdicts in a table, and the paired differences behind them."""
    found = answers(tables)
    if not found:
        return Section("claims", TITLE, ["This study tests no claim (claims.test)."])
    settings = " ".join(side.settings for claim in tables.claims for side in (claim.a, claim.b))
    sentences = [_counted(found), *(_sentence(answer) for answer in found if not _untold(answer))]
    if not tables.claims_unchanged:
        sentences.append("The claims are not those hashed before the first training.")
    sentences += [_errors(tables.claims), *(note for path, note in MEANING.items() if path in settings)]
    figure = _figure(tables, found)
    return Section("claims", TITLE, sentences, [figure] if len(figure.data) else [], [_table(found)],
                   plain({"claims": [asdict(answer) for answer in found]}), _headline(found))  # fmt: skip


def _headline(found: Sequence[ClaimAnswer]) -> Headline:
    """The verdicts in a table that a reader takes in at once; why a claim is not testable stands in the section."""
    rows = [
        {
            "claim": answer.id, "verdict": UNTESTABLE if answer.verdict.startswith(UNTESTABLE) else answer.verdict,
            "statement": f"{answer.statement.rstrip('.')} ({answer.who})",
            "a against b": f"{answer.arm_a} against {answer.arm_b}", "expected": answer.expected,
            "measured": _measured(answer), "difference": answer.differs, "seeds": answer.n or None,
        }
        for answer in found
    ]  # fmt: skip
    note = "measured: means of the pairs that share a seed; difference: with its 95% interval from three pairs on."
    return Headline([_counted(found)], (), [Table("first-claims", "Claims", pd.DataFrame(rows), note)])


def _measured(answer: ClaimAnswer) -> str:
    """'rmse (m): 0.452 against 0.628'."""
    name = answer.measured.replace("_", " ").replace("1000", "1,000")
    named = name if answer.unit in ("", name) else f"{name} ({answer.unit})"
    if answer.mean_a is None or answer.mean_b is None:
        return named
    return f"{named}: {number(answer.mean_a)} against {number(answer.mean_b)}"


def _answer(tables: StudyTables, claim: Claim, known: Mapping[str, Values]) -> ClaimAnswer:
    name = claim.measured[0]
    unit, expected = quantity_unit(tables, name), EXPECTED[claim.expected]
    if claim.margin is not None:
        expected += f" (margin {number(claim.margin)}{f' {unit}' if unit else ''})"
    said = (claim.id, claim.who, claim.statement, claim.a.name, claim.b.name, name, unit, expected)
    if claim.untestable is not None:
        return ClaimAnswer(*said, None, None, None, 0, f"{UNTESTABLE}: {claim.untestable}", f"{claim.untestable}.")
    a, b = pairs.arms(tables, claim)
    differences = _differences(a, b, name, known[name])
    told = statistics.verdict(list(differences.values()), _direction(claim), claim.margin)
    estimate = told.estimate
    also = tuple(
        f"{other}: {_words(statistics.paired(list(more.values())), claim, other, quantity_unit(tables, other))}"
        for other in claim.measured[1:]
        if (more := _differences(a, b, other, known[other]))
    )
    effect: float | None = None
    differs: str | None = None
    means: tuple[float | None, float | None] = (None, None)
    if differences:
        effect = estimate.value
        word, turned = _turned(estimate, claim, name)
        differs = f"a {word} by {number(turned.value)}" if turned.value else "none"
        if turned.low is not None:
            differs += f" ({number(turned.low)} to {number(turned.high)})"
        first, second = (float(np.mean([known[name][side[s]["key"]] for s in differences])) for side in (a, b))
        means = (first, second)
    reason = _words(estimate, claim, name, unit) if differences else f"no pair of complete trainings shows {name}"
    return ClaimAnswer(*said, effect, estimate.low, estimate.high, len(differences), told.words,
                       f"{reason}{_lost(claim, a, b)}.", also, differences, *means, differs)  # fmt: skip


def _differences(a: Mapping[int, pairs.Row], b: Mapping[int, pairs.Row], name: str, known: Values) -> dict[int, float]:
    """a against b by seed, above zero where a is better."""
    sign = 1.0 if QUANTITIES[name].higher_is_better else -1.0
    keys = {seed: (a[seed]["key"], b[seed]["key"]) for seed in pairs.complete(a, b)}
    return {
        seed: sign * (known[first] - known[second])
        for seed, (first, second) in keys.items()
        if first in known and second in known
    }


def _direction(claim: Claim) -> Direction:
    """More and less as better and worse."""
    if claim.expected == "a_more" or claim.expected == "a_less":
        good = (claim.expected == "a_more") == QUANTITIES[claim.measured[0]].higher_is_better
        return "a_better" if good else "b_better"
    return claim.expected


def _words(estimate: statistics.Estimate, claim: Claim, name: str, unit: str) -> str:
    """'a better by 0.031 m (95% interval 0.012 to 0.050, n = 3 paired seeds)'."""
    word, turned = _turned(estimate, claim, name)
    return f"a {word} by {turned.words(unit)}" if turned.value else f"no difference, {turned.words(unit)}"


def _turned(estimate: statistics.Estimate, claim: Claim, name: str) -> tuple[str, statistics.Estimate]:
    """How `a` differs (better, worse; more, less, where the claim is about that), and by how much, above zero."""
    more = claim.expected in ("a_more", "a_less") and name == claim.measured[0]
    flip = more and not QUANTITIES[name].higher_is_better
    value, low, high = estimate.value, estimate.low, estimate.high
    if flip:
        value, low, high = -value, None if high is None else -high, None if low is None else -low
    up, down = ("more", "less") if more else ("better", "worse")
    if value < 0:
        value, low, high = -value, None if high is None else -high, None if low is None else -low
        up = down
    return up, statistics.Estimate(value, low, high, estimate.n)


def _lost(claim: Claim, a: Mapping[int, pairs.Row], b: Mapping[int, pairs.Row]) -> str:
    """Outcomes of trainings without a partner."""
    seeds = len(claim.seeds)
    if len(pairs.complete(a, b)) == seeds:
        return ""
    ended = all(len(side) == seeds and all(row["outcome"] in set(Outcome) for row in side.values()) for side in (a, b))
    return f"; a: {pairs.outcomes(a)}, b: {pairs.outcomes(b)}{'' if ended else f', of {seeds} each'}"


def _untold(answer: ClaimAnswer) -> bool:
    return answer.verdict.startswith((UNTOLD, UNTESTABLE))


def _counted(found: Sequence[ClaimAnswer]) -> str:
    """'Of 9 claims 3 hold, 1 does not hold, ...'."""
    of = {
        name: sum(answer.verdict.startswith(name) for answer in found)
        for name in (HOLDS, FAILS, ALIKE, statistics.A_BETTER, statistics.B_BETTER, UNTOLD, UNTESTABLE)
    }
    parts = [
        f"{of[HOLDS]} {'holds' if of[HOLDS] == 1 else 'hold'}",
        f"{of[FAILS]} {'does' if of[FAILS] == 1 else 'do'} not hold",
        *([f"{counted(asked, 'question')} answered"] if (asked := of["a better"] + of["b better"]) else []),
        *([f"{of[ALIKE]} with no difference beyond the margin"] if of[ALIKE] else []),
        *([f"{of[UNTOLD]} cannot be told"] if of[UNTOLD] else []),
        *([f"{of[UNTESTABLE]} not testable here"] if of[UNTESTABLE] else []),
    ]
    return f"Of {counted(len(found), 'claim')}: {', '.join(parts)}."


def _sentence(answer: ClaimAnswer) -> str:
    statement = answer.statement.rstrip(".")
    return f"{answer.id} ({answer.who}), {statement}: {answer.verdict}, {answer.measured} {answer.reason}"


def _errors(claims: Sequence[Claim]) -> str:
    directed = [
        c for c in claims if c.untestable is None and c.expected in ("a_better", "b_better", "a_more", "a_less")
    ]
    return (
        "Where an arm changes nothing, a claim of a direction holds in 2.5% of studies by chance: of the "
        f"{counted(len(directed), 'claim of that kind')} here {number(0.025 * len(directed))} would."
    )


def _table(found: Sequence[ClaimAnswer]) -> Table:
    columns = [
        "id", "verdict", "statement", "who", "arm_a", "arm_b", "measured", "unit", "expected", "mean_a", "mean_b",
        "effect", "low", "high", "n", "reason", "also",
    ]  # fmt: skip
    rows = [asdict(answer) | {"also": "; ".join(answer.also)} for answer in found]
    frame = pd.DataFrame([{c: row[c] for c in columns} for row in rows], columns=columns)
    note = (
        "mean_a, mean_b: of each arm's paired trainings; effect: mean paired difference, above zero a is better, with "
        "its 95% t interval over n seeds. holds, does not hold: the interval leaves out zero on the expected side, on "
        "the other. No difference: the 90% interval lies within the margin. About m would do: so many seeds would tell "
        "in four of five studies, if these mean and spread are the true ones."
    )
    return Table("claims", "Verdicts", frame, note)


def _figure(tables: StudyTables, found: Sequence[ClaimAnswer]) -> Figure:
    frame = pd.DataFrame(
        [
            {"measured": answer.measured, "unit": answer.unit, "claim": f"{answer.id} {answer.arm_a} / {answer.arm_b}",
             "seed": seed, "difference": difference, "effect": answer.effect, "low": answer.low, "high": answer.high}
            for answer in found if answer.n >= DRAWN for seed, difference in (answer.differences or {}).items()
        ],
        columns=["measured", "unit", "claim", "seed", "difference", "effect", "low", "high"],
    )  # fmt: skip
    panels, lines = frame["measured"].nunique(), frame["claim"].nunique()

    def draw(canvas: Canvas, data: pd.DataFrame) -> None:
        groups = list(data.groupby("measured", sort=False))
        heights = [1 + rows["claim"].nunique() for _, rows in groups]
        grid = canvas.subplots(len(groups), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
        for axes, (name, rows) in zip(grid[:, 0], groups, strict=True):
            _panel(axes, str(name), rows)

    return Figure(
        "claims", "Each claim, seed by seed",
        f"Paired differences of {counted(lines, 'claim')} in {counted(panels, 'panel')}; right of zero a is better.",
        f"Dot: one pair (same seed); bar: 95% t interval from three pairs on; a / b. Study {tables.name}, validation.",
        draw, frame, size_in=(7.0, 0.7 * max(1, panels) + 0.34 * max(1, lines)),
    )  # fmt: skip


def _panel(axes: Any, name: str, rows: pd.DataFrame) -> None:
    """One quantity's claims, the first on top."""
    claims = list(dict.fromkeys(rows["claim"]))[::-1]
    for place, claim in enumerate(claims):
        members = rows[rows["claim"] == claim]
        low, high = pd.to_numeric(members[["low", "high"]].iloc[0])
        if np.isfinite(low):
            axes.hlines(place, low, high, color=FAINT, linewidth=3)
        axes.plot(members["difference"], [place] * len(members), "o", color=BLUE, markersize=4)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(claims)), claims)
    axes.set_ylim(-0.6, len(claims) - 0.4)
    unit = rows["unit"].iloc[0]
    axes.set(xlabel=f"{name}: a better by" + (f" ({unit})" if unit else ""))


Values = dict[str, float]


def measured_values(tables: StudyTables, name: str) -> Values:
    """The quantity of every training that has it."""
    return OTHERS[name](tables) if name in OTHERS else _validated(tables, name)


def quantity_unit(tables: StudyTables, name: str) -> str:
    """The quantity's unit; damage is in the judged metric's."""
    if name == "damage_after_spikes" and tables.judge is not None:
        return unit_of(tables.judge.metric)
    return QUANTITIES[name].unit


def _validated(tables: StudyTables, name: str) -> Values:
    """A validation metric at the report that is judged, so that all of a training's metrics are of the same weights."""
    judge, column = tables.judge, f"val/{name}"
    judged = "" if judge is None else f"val/{judge.metric}"
    if judge is None or not {column, judged} <= set(tables.reports):
        return {}
    rows = tables.reports.dropna(subset=[judged]).sort_values(["key", "images"]).reset_index(drop=True)
    by_key = rows.groupby("key")
    if judge.report == "last":
        chosen = rows.loc[by_key["images"].idxmax()]
    else:
        chosen = rows.loc[by_key[judged].idxmin() if judge.minimise else by_key[judged].idxmax()]
    return _known(chosen.set_index("key")[column])


def _overfit_gap(tables: StudyTables) -> Values:
    if not {"val/loss", "train/loss"} <= set(tables.reports):
        return {}
    last = tables.reports.sort_values(["key", "images"]).groupby("key").tail(1).set_index("key")
    return _known(last["val/loss"] - last["train/loss"])


def _spikes(tables: StudyTables) -> Values:
    found = causes.collect(tables).trainings
    return {} if found.empty else _known((1000 * found["spikes"] / found["steps"]).set_axis(found["key"]))


def _damage(tables: StudyTables) -> Values:
    found = causes.collect(tables)
    if found.trainings.empty:
        return {}
    none = {str(key): 0.0 for key in found.trainings["key"]}
    if found.spikes.empty:
        return none
    spans = found.spikes.drop_duplicates(["key", "validation_before", "validation_after"])
    return none | _known(spans["damage"].clip(lower=0.0).groupby(spans["key"]).sum())


def _of_trials(column: str) -> Callable[[StudyTables], Values]:
    def read(tables: StudyTables) -> Values:
        return _known(tables.trials.set_index("key")[column]) if column in tables.trials else {}

    return read


def _known(column: pd.Series[float]) -> Values:
    numbers = pd.to_numeric(column).dropna()
    return {str(key): float(value) for key, value in numbers.items()}


OTHERS: dict[str, Callable[[StudyTables], Values]] = {
    "overfit_gap": _overfit_gap,
    "spikes_per_1000_steps": _spikes,
    "damage_after_spikes": _damage,
    "seconds": _of_trials("seconds"),
    "images_per_s": _of_trials("summary.images_per_s"),
    "peak_memory_mib": _of_trials("summary.peak_memory_mib"),
}


if __name__ == "__main__":
    sys.exit(runs.command("claims", "Say of each claim whether it holds, from paired trainings.", analyse))
