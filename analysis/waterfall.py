"""Waterfall of a gap between two numbers: from ours to a published one, one convention at a time.

The maps stay the same; the protocol changes from ours to theirs, a convention a step, and each step's effect is the
difference that it makes. What the steps leave is the remainder: the models' own difference, and what could not be
measured. Effects depend on the order of the steps, which is always that of CONVENTIONS.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pandas as pd
from matplotlib.figure import Figure as Canvas

from analysis.page.section import Figure, Table, number, plain
from analysis.page.style import BLUE, FAINT, GREEN, GREY, VERMILION
from analysis.tables.published import ROWS, Published
from trainables.evaluation.protocols import ALIGNED, PROTOCOLS, Crop, Kind, Protocol
from trainables.runtime.errors import UserError
from trainables.settings.registry import METRICS
from trainables.settings.yamlfile import nearest

# A convention and the fields of a protocol that are it; the two without fields are changed by whoever predicts.
TRUTH, MIRRORED, FRAMES = "kind of truth", "test-time averaging", "list of test frames"
CONVENTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "crop": ("crop",),
    "mask": ("valid_m",),
    TRUTH: ("truth",),
    "resize": ("resize",),
    "aggregation": ("average",),
    "swapped arguments": ("arguments_swapped",),
    "alignment": ("scaling",),
    MIRRORED: (),
    "clipping": ("clip_m",),
    FRAMES: ("frames",),
}
VISIBLE: Final = 5e-5  # least effect that a sentence names
DRAWN: Final = ("rmse", "abs_rel", "delta1")  # panels of the figure, those of them that were published
Values = Mapping[str, float]


@dataclass(frozen=True)
class Target:
    """What a number is compared with: a published row, or a protocol alone, under which nothing was published."""

    name: str
    who: str
    protocol: Protocol
    published: Values
    source: str
    mirrored: bool | None

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is compared."""
        return tuple(name for name in self.protocol.metrics if not self.published or name in self.published)


def target(name: str) -> Target:
    """The target of a name: of a published row or its system, or of a protocol. Raises UserError."""
    for row in ROWS:
        if name in (row.key, row.who):
            if row.protocol is None:
                raise UserError(
                    f"--against {name}: its protocol is not stated ({row.note or row.source}); name another"
                )
            return _row(row)
    if name in PROTOCOLS:
        protocol = PROTOCOLS[name]
        return Target(name, f"protocol {name}", protocol, {}, protocol.source, None)
    names = [row.key for row in ROWS if row.protocol is not None] + list(PROTOCOLS)
    raise UserError(
        f"--against {name}: no published row of that name{nearest(name, names)}; there are {', '.join(names)}"
    )


def _row(row: Published) -> Target:
    assert row.protocol is not None
    return Target(row.key, row.who, PROTOCOLS[row.protocol], row.metrics, row.source, row.mirrored)


def targets(start: Protocol, kind: Kind) -> list[Target]:
    """The first published row of each other protocol that maps of a kind can be measured under."""
    rows: dict[str, Published] = {}
    for row in ROWS:
        if row.protocol not in (None, start.name) and PROTOCOLS[str(row.protocol)].fits(kind):
            rows.setdefault(str(row.protocol), row)
    return [_row(row) for row in rows.values()]


def walk(start: Protocol, end: Protocol) -> list[tuple[str, Protocol]]:
    """Convention and protocol of each step in which two protocols differ, the last one `end` but for its name.

    Each measures what both do, under a name of its own.
    """
    common = tuple(name for name in end.metrics if name in start.metrics)
    steps, now = [], replace(start, metrics=common)
    for convention, fields in CONVENTIONS.items():
        changed = {field: getattr(end, field) for field in fields if getattr(end, field) != getattr(now, field)}
        if changed:
            now = replace(now, name=f"{start.name} to {end.name}: {convention}", **changed)
            steps.append((convention, now))
    return steps


@dataclass(frozen=True)
class Step:
    """A convention that changes, from what to what, and its effect on each metric; none where it was not measured."""

    convention: str
    before: str
    after: str
    effect: Values
    note: str


@dataclass(frozen=True)
class Waterfall:
    """The way from `ours` under a protocol to a target: our number + all effects + the remainder = theirs."""

    target: Target
    start: str
    ours: Values
    steps: tuple[Step, ...]

    @property
    def theirs_of_ours(self) -> Values:
        """Our maps' number under the target's protocol, as far as it could be measured."""
        return {m: self.ours[m] + sum(step.effect.get(m, 0.0) for step in self.steps) for m in self.ours}

    @property
    def remainder(self) -> Values:
        """What the steps leave of the gap; empty where nothing was published."""
        return {m: value - self.theirs_of_ours[m] for m, value in self.target.published.items() if m in self.ours}

    def sentences(self) -> list[str]:
        """The gap, the steps from the largest on, and what remains."""
        said = []
        for metric in [m for m in DRAWN if m in self.ours]:
            unit = METRICS[metric].unit
            parts = sorted(
                (step for step in self.steps if abs(step.effect.get(metric, 0.0)) >= VISIBLE),
                key=lambda step: -abs(step.effect[metric]),
            )
            named = (
                ", ".join(f"{step.convention} {_signed(step.effect[metric])}" for step in parts) or "no step matters"
            )
            end = self.theirs_of_ours[metric]
            text = f"{metric}: {_with(self.ours[metric], unit)} under {self.start}, {_with(end, unit)} measured as "
            text += f"{self.target.who} was ({named})"
            if metric in self.remainder:
                left = self.remainder[metric]
                text += f"; published is {_with(self.target.published[metric], unit)}, so {_signed(left)} remains"
            said.append(f"{text}.")
        said += [f"{step.convention}: {step.note}." for step in self.steps if step.note and not step.effect]
        return said

    def document(self) -> dict[str, Any]:
        """As JSON."""
        steps = [
            {"convention": s.convention, "from": s.before, "to": s.after,
             "effect": {m: s.effect.get(m) for m in self.ours}, "note": s.note}
            for s in self.steps
        ]  # fmt: skip
        document: dict[str, Any] = plain(
            {"name": self.target.name, "who": self.target.who, "source": self.target.source,
             "protocol": self.target.protocol.name, "start": self.start, "ours": dict(self.ours), "steps": steps,
             "measured_as_theirs": dict(self.theirs_of_ours),
             "published": {m: self.target.published.get(m) for m in self.ours},
             "remainder": {m: self.remainder.get(m) for m in self.ours}}
        )  # fmt: skip
        return document


def built(
    goal: Target,
    start: Protocol,
    ours: Values,
    path: Sequence[tuple[str, Protocol]],
    measured: Mapping[str, Values],
    unmeasured: Mapping[str, str],
) -> Waterfall:
    """The waterfall over a `walk`. measured: by convention, our number when its step is done; unmeasured: why not.

    Test-time averaging, which no protocol holds, is a step where either says something of it.
    """
    metrics = [m for m in goal.metrics if ours.get(m) is not None and math.isfinite(ours[m])]
    now = {m: ours[m] for m in metrics}
    protocols = dict(path)
    before, steps = start, []
    for convention in CONVENTIONS:
        after = protocols.get(convention, before)
        if convention not in protocols and convention not in measured and convention not in unmeasured:
            continue
        effect: dict[str, float] = {}
        if convention in measured:
            effect = {m: measured[convention][m] - now[m] for m in metrics}
            now = {m: measured[convention][m] for m in metrics}
        was, becomes = (_shown(one, convention) for one in (before, after))
        if convention == MIRRORED:
            was = "ours"
            becomes = {True: "with the mirrored image", False: "none", None: "not stated"}[goal.mirrored]
        steps.append(Step(convention, was, becomes, effect, unmeasured.get(convention, "")))
        before = after
    return Waterfall(goal, start.name, {m: ours[m] for m in metrics}, tuple(steps))


def unmeasured_truth(goal: Target, kinds: Collection[str]) -> dict[str, str]:
    """Why the kind of truth is no measured step, where the data do not hold the target's."""
    if goal.protocol.truth is None or goal.protocol.truth in kinds:
        return {}
    return {TRUTH: f"the data hold no {'measured' if goal.protocol.truth == 'raw' else 'in-painted'} truth"}


def _shown(protocol: Protocol, convention: str) -> str:
    """A protocol's convention in words."""
    low, high = protocol.valid_m
    values = {
        "crop": crop_words(protocol.crop),
        "mask": f"{low:g} to {high:g} m",
        TRUTH: protocol.truth or "any",
        "resize": f"the {protocol.resize} is resized",
        "aggregation": protocol.average.replace("_", " "),
        "swapped arguments": "swapped" if protocol.arguments_swapped else "not swapped",
        "alignment": ALIGNED[protocol.scaling] or "none",
        "clipping": f"{protocol.clip_m[0]:g} to {protocol.clip_m[1]:g} m",
        FRAMES: protocol.frames.replace("_", " "),
    }
    return values.get(convention, "")


def crop_words(crop: Crop | None) -> str:
    """A crop as rows and columns."""
    return "none" if crop is None else f"{crop.edges[0]:g}:{crop.edges[1]:g}, {crop.edges[2]:g}:{crop.edges[3]:g}"


def _with(value: float, unit: str) -> str:
    return f"{number(value)} {unit}".strip()


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"  # no -0.0000


def table(falls: Sequence[Waterfall], name: str) -> Table:
    """One row per step, the first our number, the last two the remainder and theirs."""
    rows: list[dict[str, Any]] = []
    for fall in falls:
        base = {"against": fall.target.name}
        rows.append(base | {"step": f"ours, {fall.start}", "from": "", "to": ""} | dict(fall.ours))
        for step in fall.steps:
            effect = {m: step.effect.get(m) for m in fall.ours}
            rows.append(base | {"step": step.convention, "from": step.before, "to": step.after} | effect)
        rows.append(base | {"step": f"ours as {fall.target.protocol.name}"} | dict(fall.theirs_of_ours))
        if fall.remainder:
            rows.append(base | {"step": "remainder"} | dict(fall.remainder))
            published = {m: fall.target.published[m] for m in fall.ours if m in fall.target.published}
            rows.append(base | {"step": f"published: {fall.target.who}"} | published)
    note = "Steps are effects in the table's order, on the same maps; an empty one was not measured."
    units = {m: METRICS[m].unit for fall in falls for m in fall.ours if METRICS[m].unit}
    return Table(name, "The way to their number, convention by convention", pd.DataFrame(rows), note, units)


def figure(fall: Waterfall, name: str, caption: str) -> Figure:
    """A waterfall for each of the DRAWN metrics that is compared."""
    rows: list[dict[str, Any]] = []
    for metric in [m for m in DRAWN if m in fall.ours] or list(fall.ours)[:1]:
        level = fall.ours[metric]
        rows.append({"metric": metric, "bar": f"ours, {fall.start}", "from": 0.0, "to": level, "kind": "number"})
        for step in fall.steps:
            change = step.effect.get(metric)
            kind = "step" if change is not None else "not measured"
            bar = {"bar": step.convention, "from": level, "to": level + (change or 0.0), "kind": kind}
            rows.append({"metric": metric} | bar)
            level += change or 0.0
        theirs = f"ours as {fall.target.protocol.name}"
        rows.append({"metric": metric, "bar": theirs, "from": 0.0, "to": level, "kind": "number"})
        if metric in fall.remainder:
            end = fall.target.published[metric]
            rows.append({"metric": metric, "bar": "remainder", "from": level, "to": end, "kind": "remainder"})
            rows.append({"metric": metric, "bar": fall.target.who, "from": 0.0, "to": end, "kind": "published"})
    data = pd.DataFrame(rows)
    panels = list(dict.fromkeys(data["metric"]))
    return Figure(
        name, f"From our number to that of {fall.target.who}",
        f"Waterfall of {', '.join(panels)}: our number, the effect of each convention, and the published number.",
        caption, _draw, data, size_in=(2.6 + 2.2 * len(panels), 1.2 + 0.3 * len(data) / len(panels)),
    )  # fmt: skip


def _draw(canvas: Canvas, data: pd.DataFrame) -> None:
    panels = list(data.groupby("metric", sort=False))
    for axes, (metric, rows) in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        better = 1 if METRICS[str(metric)].higher_is_better else -1
        places = range(len(rows))
        for place, (_, row) in zip(places, rows.iterrows(), strict=True):
            change = row["to"] - row["from"]
            colors = {"number": BLUE, "published": GREY, "remainder": FAINT}
            color = colors.get(row["kind"], GREEN if change * better >= 0 else VERMILION)
            if row["kind"] in ("number", "published"):  # a point, not a bar: the axis need not begin at 0
                axes.plot(row["to"], place, "D", color=color, markersize=6)
            else:
                axes.barh(place, change, left=row["from"], color=color, height=0.7)
            text = number(row["to"]) if row["kind"] in ("number", "published") else _signed(change)
            text = "not measured" if row["kind"] == "not measured" else text
            axes.annotate(text, (max(row["from"], row["to"]), place), (3, 0), textcoords="offset points", va="center")
        ends = rows[["from", "to"]].to_numpy()[:, 1]
        low, high = float(ends.min()), float(ends.max())
        room = max(high - low, 0.02 * abs(high), 1e-9)
        axes.set_xlim(max(0.0, low - room), high + 1.2 * room)
        unit = METRICS[str(metric)].unit
        axes.set(yticks=list(places), xlabel=f"{metric} ({unit})" if unit else str(metric))
        axes.invert_yaxis()
        axes.set_yticklabels(rows["bar"] if axes is canvas.axes[0] else [])
