"""Replayed spikes: each from the snapshot before it, with its worst sample and without.

`python -m analysis.spikes STUDY --replay` trains those few steps again and keeps them in trials/KEY/replays/; every
later report shows what is kept.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from analysis.page import style
from analysis.page.pictures import Row, depth_rows
from analysis.page.section import Figure, Table, number
from analysis.tables.tidy import StudyTables
from trainables.runtime.durable import write_bytes, write_json
from trainables.runtime.errors import UserError
from trainables.training import checkpoint
from trainables.training.replay import Replay, replay

FOLDER = "replays"  # of a training
STEPS_AFTER = 10  # steps that are replayed after the spike's
GONE = 0.5  # share of the rise that goes with the sample, from which on the sample is the cause
SHOWN = 4
RUNS = {"as it was": "as_it_was", "without the sample": "without"}


def replay_all(tables: StudyTables, spikes: pd.DataFrame, say: Callable[[str], None]) -> None:
    """Replay every snapshot whose spike the analysis found too, and that has not been replayed."""
    for key, snapshot, step, row in _snapshots(tables, spikes):
        if row is None:
            say(f"{key}, step {step}: seen as a spike in training, not by the analysis; left alone")
            continue
        say(f"{key}, step {step}: replayed with and without {row['sample']}")
        _keep(replay(snapshot, [str(row["sample"])], STEPS_AFTER), row, _kept(snapshot))


def waiting(tables: StudyTables, spikes: pd.DataFrame) -> int:
    """How many spikes `replay_all` would replay; none for a released table, which has no snapshots."""
    return 0 if tables.layout is None else sum(row is not None for *_, row in _snapshots(tables, spikes))


def _snapshots(tables: StudyTables, spikes: pd.DataFrame) -> Iterator[tuple[str, Path, int, pd.Series[Any] | None]]:
    """Each snapshot not replayed yet of a training that spiked: key, folder, step, the nearest spike of its batch."""
    for key in spikes["key"].unique() if len(spikes) else ():
        for snapshot in sorted((tables.folder(str(key)) / "checkpoints" / checkpoint.SPIKES).glob("step-*")):
            if _kept(snapshot).exists():
                continue
            state = checkpoint.read_state(snapshot)
            step, batch = int(state["spike_step"]), state["spike_samples"]
            own = spikes[(spikes["key"] == key) & spikes["sample"].isin(batch)]
            own = own[(own["step"] - step).abs() <= STEPS_AFTER]
            nearest = own.iloc[(own["step"] - step).abs().argsort()]
            yield str(key), snapshot, step, nearest.iloc[0] if len(own) else None


def _kept(snapshot: Path) -> Path:
    """Where the replay of a snapshot is kept: trials/KEY/replays/."""
    return snapshot.parents[2] / FOLDER / f"{snapshot.name}.json"


def _keep(found: Replay, row: pd.Series[Any], path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, rgb=found.rgb, truth_m=found.truth_m, prediction_m=found.prediction_m)
    write_bytes(path.with_suffix(".npz"), buffer.getvalue())
    names = ("first_step", "spike_step", "left_out", "target_min", "target_max", "hole_share")
    facts = {name: getattr(found, name) for name in names}
    losses = {name: [v if math.isfinite(v) else None for v in getattr(found, name)] for name in RUNS.values()}
    usual = float(row["usual_loss"])  # unknown in the first steps, where only a loss that is not finite is a spike
    facts |= {"usual_loss": usual if math.isfinite(usual) else None, "cause": str(row["cause"])}
    write_json(path, facts | losses)


def read(tables: StudyTables) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(one row per replay, one row per replayed step and run); from the released table where there is no folder."""
    names = ("spikes.replays", "spikes.replayed_steps")
    if tables.layout is None:
        return tables.extras.get(names[0], pd.DataFrame()), tables.extras.get(names[1], pd.DataFrame())
    replays, steps = [], []
    for path in sorted(tables.layout.trials.glob(f"*/{FOLDER}/step-*.json")):
        try:
            kept = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); remove it, then replay again") from error
        key, spike = path.parent.parent.name, int(kept["spike_step"])
        length = max(len(kept[run]) for run in RUNS.values())
        peaks = {name: _peak(kept[run], spike - int(kept["first_step"]), length) for name, run in RUNS.items()}
        usual = math.nan if kept["usual_loss"] is None else float(kept["usual_loss"])
        gone = share_gone(peaks["as it was"], peaks["without the sample"], usual)
        facts = {name: kept[name] for name in ("cause", "usual_loss", "target_min", "target_max", "hole_share")}
        replays.append(
            {"key": key, "step": spike, "sample": kept["left_out"][0]} | peaks | {"share_gone": gone} | facts
        )
        steps += [
            {"key": key, "spike_step": spike, "step": int(kept["first_step"]) + i, "run": name, "loss": loss}
            for name, run in RUNS.items()
            for i, loss in enumerate(kept[run])
        ]
    frames = pd.DataFrame(replays), pd.DataFrame(steps)
    tables.extras.update({name: frame for name, frame in zip(names, frames, strict=True) if len(frame)})
    return frames


def _peak(losses: list[float | None], place: int, length: int) -> float:
    """The largest loss from the spike on; infinite where the run diverged: not finite, or its end is missing."""
    after = [math.inf if loss is None else loss for loss in losses[place:]]
    return math.inf if len(losses) < length else max(after, default=math.nan)


def share_gone(as_it_was: float, without: float, usual: float) -> float:
    """The share of the rise above the usual loss that goes with the sample; all where it diverges with it alone."""
    if math.isinf(as_it_was):
        return 0.0 if math.isinf(without) else 1.0
    rise = as_it_was - usual
    return (as_it_was - without) / rise if rise > 0 else math.nan


def sentences(replays: pd.DataFrame) -> list[str]:
    """What the replays say."""
    if replays.empty:
        return []
    gone = int((replays["share_gone"] >= GONE).sum())
    first = replays.sort_values("share_gone", ascending=False).iloc[0]
    text = (
        f"Replayed from the snapshot before it, {gone} of {len(replays)} spikes lose at least half of their rise when "
        "another sample of the batch takes the place of the worst one"
    )
    if gone:
        text += (
            f": at step {first['step']} of {first['key']} the loss rises to {_written(first['as it was'])} with "
            f"{first['sample']} and to {_written(first['without the sample'])} without it "
            f"(usual: {number(first['usual_loss'])})"
        )
    return [text + "."]


def _written(peak: float) -> str:
    return "infinity (the training diverges)" if math.isinf(peak) else number(peak)


def figures(tables: StudyTables, replays: pd.DataFrame, steps: pd.DataFrame) -> list[Figure]:
    """Loss with and without the sample, and the samples themselves where the study's folder is at hand."""
    if replays.empty:
        return []
    first = replays.sort_values("share_gone", ascending=False).head(SHOWN)
    chosen = steps.merge(first[["key", "step"]].rename(columns={"step": "spike_step"}), on=["key", "spike_step"])
    result = [
        Figure(
            "spike-replays",
            "Spikes replayed with and without their worst sample",
            f"Training loss around {len(first)} spikes, as it was and without the worst sample.",
            f"{len(first)} of {len(replays)} replays, one training each from its snapshot; in the second run another "
            "sample of the batch takes the place. The dotted line marks the spike.",
            _losses,
            chosen,
            size_in=(5.2, 0.6 + 1.4 * len(first)),
        )
    ]
    rows = []
    for fact in first.to_dict("records") if tables.layout is not None else ():
        for path in tables.folder(str(fact["key"])).glob(f"{FOLDER}/step-*.npz"):
            if json.loads(path.with_suffix(".json").read_text())["spike_step"] != fact["step"]:
                continue
            with np.load(path, allow_pickle=False) as arrays:
                label = f"{fact['sample']}: target {number(fact['target_min'])} to {number(fact['target_max'])}"
                rows.append(Row(label, arrays["rgb"], arrays["truth_m"], (("prediction", arrays["prediction_m"]),)))
    if rows:
        alt = f"Colour, depth, prediction and error of the worst sample of {len(rows)} replayed spikes."
        caption = "Predictions of the weights just before the spike. Holes and extremes are of the spike's batch."
        result.append(depth_rows(rows, name="spike-replayed", title="Their worst samples", alt=alt, caption=caption))
    return result


def table(replays: pd.DataFrame) -> list[Table]:
    """One row per replay."""
    if replays.empty:
        return []
    note = "Largest loss from the spike on; share_gone: of the rise above the usual loss, what goes with the sample."
    return [Table("spike-replays", "Replayed spikes", replays, note, {"hole_share": "share"})]


def _losses(canvas: Canvas, data: pd.DataFrame) -> None:
    groups = list(data.groupby(["key", "spike_step"], sort=False))
    grid = canvas.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axes, ((key, spike), rows) in zip(grid, groups, strict=True):
        for (run, own), colour in zip(rows.groupby("run", sort=False), (style.VERMILION, style.BLUE), strict=False):
            axes.plot(own["step"], own["loss"], color=colour, linewidth=1.1, label=str(run))
        axes.axvline(spike, color=style.GREY, linestyle=":", linewidth=1)
        axes.set_yscale("log")
        axes.set_title(f"{key}, step {spike}")
    grid[len(groups) // 2].set_ylabel("training loss (no unit, log)")
    grid[-1].set_xlabel("optimiser step")
    canvas.legend(*grid[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
