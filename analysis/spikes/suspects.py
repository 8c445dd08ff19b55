"""Suspect samples: suspicion from each sample's own losses over all trainings, and what their frames show.

A pass of a sample is compared with what was usual at that stage of that training: z = (log loss - median) / scaled MAD
of the passes around it, cut at `most_deviations` so that no single pass decides. Late passes weigh more: a network
that knows nothing finds every sample equally hard. A sample's mean z is then set against all samples, and against what
its neighbours in the scene foretell: they show nearly the same view, so they should be about equally hard.
suspicion is the larger of both, in scaled MADs between samples. A pass without any finite positive loss is `empty`.

Losses say that a sample is unlike the others, its frame says why: the doctor's findings on it, and a picture beside a
prediction. Small training sets are examined whole; of large ones the most suspicious samples with their neighbours,
which the doctor compares them with.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import torch

from analysis.page.pictures import SCALES, Row, depth_rows
from analysis.page.section import Figure, number
from analysis.spikes.traces import SIGMA, Floats, Steps
from analysis.tables.tidy import StudyTables
from study.contract import Outcome
from trainables.data.dataset import check_rendered, open_training
from trainables.data.doctor.checks import KINDS, findings
from trainables.data.doctor.diagnosis import references
from trainables.data.doctor.pairing import NEIGHBOURS
from trainables.data.doctor.record import examined
from trainables.data.frames import FrameList
from trainables.evaluation.evaluate import predictions
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig, stored_config
from trainables.training import checkpoint


@dataclass(frozen=True)
class Rules:
    """How samples are suspected. The report prints them."""

    stage_passes: int  # passes of all samples that make one stage of a training
    most_deviations: float  # of one pass
    first_share: float  # of a training's steps that is not looked at: nothing is learned yet
    scene_frames: int  # frames that a scene needs to be compared within itself
    suspicion: float  # from here on a sample is a suspect
    least_passes: int  # that a suspect needs
    empty_share: float  # of a sample's passes without a valid pixel that makes it a suspect
    finding: float  # what a harmful finding on its frame adds (analysis/spikes/suspects.py)


RULES = Rules(256, 6.0, 0.2, 5, 6.0, 3, 0.5, 6.0)


@dataclass
class Passes:
    """Sums over trainings, one entry per sample id; `add` one trace after another."""

    rules: Rules
    places: dict[str, int] = field(default_factory=dict)
    weighted: Floats = field(default_factory=lambda: np.zeros(0))
    weight: Floats = field(default_factory=lambda: np.zeros(0))
    passes: Floats = field(default_factory=lambda: np.zeros(0))
    empty: Floats = field(default_factory=lambda: np.zeros(0))
    trainings: Floats = field(default_factory=lambda: np.zeros(0))
    among_worst: Floats = field(default_factory=lambda: np.zeros(0))  # trainings in which it is among the worst 5%

    def add(self, steps: Steps) -> None:
        """Take in one training's trace."""
        places = np.array([self.places.setdefault(name, len(self.places)) for name in steps.names], dtype=np.int64)
        self._grow(len(self.places))
        of_step = np.repeat(np.arange(len(steps.step)), np.diff(steps.offsets))
        sample, own = places[steps.sample], steps.own
        count = len(self.places)
        usable = np.isfinite(own) & (own > 0)
        self.passes += np.bincount(sample, minlength=count)
        self.empty += np.bincount(sample[~usable], minlength=count)
        late = usable & (of_step >= self.rules.first_share * len(steps.step))
        sample, own, of_step = sample[late], own[late], of_step[late]
        if len(own) < 2:
            return
        z = stage_deviations(np.log(own), self.rules)
        weight = (of_step + 1) / len(steps.step)
        weighted, total = np.bincount(sample, weight * z, count), np.bincount(sample, weight, count)
        self.weighted += weighted
        self.weight += total
        seen = total > 0
        self.trainings += seen
        means = weighted[seen] / total[seen]
        worst = np.flatnonzero(seen)[means >= np.quantile(means, 0.95)]
        self.among_worst[worst] += 1

    def _grow(self, count: int) -> None:
        for name in ("weighted", "weight", "passes", "empty", "trainings", "among_worst"):
            now: Floats = getattr(self, name)
            setattr(self, name, np.concatenate([now, np.zeros(count - len(now))]))


def stage_deviations(logs: Floats, rules: Rules) -> Floats:
    """Each pass's deviations from the median of its stage: consecutive passes of all samples, in order."""
    size = min(rules.stage_passes, len(logs))
    whole = len(logs) // size * size
    stages = logs[:whole].reshape(-1, size)
    middle = np.median(stages, axis=1)
    spread = np.maximum(SIGMA * np.median(np.abs(stages - middle[:, None]), axis=1), 0.03)
    stage = np.minimum(np.arange(len(logs)) // size, len(stages) - 1)  # a rest too short for its own joins the last
    z: Floats = np.clip((logs - middle[stage]) / spread[stage], -rules.most_deviations, rules.most_deviations)
    return z


def scene_of(sample: str) -> str:
    """The folder a sample lies in: the scene, in every published form that has scenes."""
    return str(PurePosixPath(sample).parent)


def suspicion(passes: Passes) -> pd.DataFrame:
    """One row per sample, most suspicious first.

    Columns: sample, scene, suspicion (scaled MADs), excess (mean deviations over its passes), against (all | scene),
    passes, empty_passes, trainings, among_worst (trainings that have it among their worst 5%), suspect.
    """
    names = list(passes.places)
    known = passes.weight > 0
    mean = np.full(len(names), np.nan)
    mean[known] = passes.weighted[known] / passes.weight[known]
    frame = pd.DataFrame({"sample": names, "scene": [scene_of(n) for n in names], "excess": mean})
    # Few passes make a noisy mean: the spread between samples holds that noise too, so rarely seen ones are damped.
    damp = np.sqrt(passes.passes / (passes.passes + passes.rules.least_passes))
    overall = damp * _standard(mean)
    within = damp * _within_scene(frame, passes.rules)
    frame["suspicion"] = np.fmax(overall, within)
    frame["against"] = np.where(np.nan_to_num(within, nan=-np.inf) > overall, "scene", "all")
    frame["passes"] = passes.passes.astype(int)
    frame["empty_passes"] = passes.empty.astype(int)
    frame["trainings"] = passes.trainings.astype(int)
    frame["among_worst"] = passes.among_worst.astype(int)
    hollow = passes.empty >= np.maximum(passes.rules.empty_share * passes.passes, passes.rules.least_passes)
    frame.loc[hollow, "suspicion"] = np.inf
    enough = passes.passes >= passes.rules.least_passes
    frame["suspect"] = hollow | (enough & (frame["suspicion"] >= passes.rules.suspicion).to_numpy())
    return frame.sort_values(["suspicion", "sample"], ascending=[False, True], na_position="last", ignore_index=True)


def _within_scene(frame: pd.DataFrame, rules: Rules) -> Floats:
    """Absolute distance of a frame from what its neighbours along the scene's path foretell, in scaled MADs.

    NaN in scenes with too few frames to say. A path's trend is natural, so neighbours count, not the scene's median. A
    frame far off says nothing about its neighbours: it is taken out before they are judged.
    """
    whole = np.full(len(frame), np.nan)
    known = frame[frame["excess"].notna()]
    paths = []
    for _, rows in known.groupby("scene", sort=False):
        if len(rows) >= rules.scene_frames:
            order = sorted(range(len(rows)), key=lambda i: _natural(str(rows["sample"].iloc[i])))
            paths.append((rows.index.to_numpy()[order], rows["excess"].to_numpy(dtype=float)[order]))
    for places, values in paths:
        whole[places] = values - foretold(values)
    spread = _spread(whole)
    for places, values in paths:
        kept = without_strangers(values, spread * rules.suspicion)
        whole[places] = np.abs(values - foretold(kept)) / spread
    return whole


def without_strangers(values: Floats, limit: float) -> Floats:
    """The values with NaN for those that their neighbours do not foretell to within the limit.

    One such value spoils its neighbours' forecasts, too. So it is not the worst that goes, but whichever value near it
    leaves the others best foretold without it.
    """
    kept = values.copy()
    while True:
        gaps = _gaps(values, kept)
        worst = int(np.argmax(gaps))
        if gaps[worst] < limit:
            return kept
        near = range(max(worst - 2, 0), min(worst + 3, len(values)))
        left = {}
        for place in near:
            if np.isfinite(kept[place]):
                trial = kept.copy()
                trial[place] = np.nan
                left[place] = float(_gaps(values, trial)[max(worst - 4, 0) : worst + 5].sum())
        kept[min(left, key=lambda place: (left[place], -gaps[place]))] = np.nan


def _gaps(values: Floats, kept: Floats) -> Floats:
    """Distance of each kept value from its forecast; 0 for those taken out and where nothing foretells."""
    gaps: Floats = np.nan_to_num(np.abs(values - foretold(kept)))
    gaps[np.isnan(kept)] = 0.0
    return gaps


def foretold(values: Floats) -> Floats:
    """Each value from its neighbours in order: the median of both sides' next values, their mean and their trends.

    Where both next values are missing it is the mean of those after them; NaN where there are none.
    """
    count = len(values)
    padded = np.concatenate([[np.nan, np.nan], values, [np.nan, np.nan]])
    before2, before, after, after2 = (padded[i : i + count] for i in (0, 1, 3, 4))
    ways = np.stack([before, after, (before + after) / 2, 2 * before - before2, 2 * after - after2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column of NaN alone
        middle, further = np.nanmedian(ways, axis=0), np.nanmean([before2, after2], axis=0)
    result: Floats = np.where(np.isnan(middle), further, middle)
    return result


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(piece)) if piece.isdigit() else (1, piece) for piece in re.split(r"(\d+)", name)]


def _standard(values: Floats) -> Floats:
    """Distance from the median in scaled MADs."""
    gaps: Floats = values - np.nanmedian(values) if np.isfinite(values).any() else values
    return gaps / _spread(gaps)


def _spread(gaps: Floats) -> float:
    """Scaled MAD of the known gaps around 0, with a floor; infinite where too few are known to say."""
    known = gaps[np.isfinite(gaps)]
    return max(SIGMA * float(np.median(np.abs(known))), 0.05) if len(known) >= 4 else np.inf


WHOLE = 600  # frames up to which a training set is examined whole
MOST = 60  # suspects of a larger one
PICTURED = 6


def training_frames(tables: StudyTables, keys: Iterable[str]) -> tuple[FrameList, TrialConfig] | None:
    """The training frames of the first matched one of these trainings; None, with a note, where they cannot be read."""
    if tables.layout is None:
        return None
    for key in keys:
        path = tables.folder(str(key)) / "config.json"
        if not path.exists():
            continue
        try:
            config = stored_config(path.read_bytes(), f"{path.parent.name}: config.json")
        except UserError as error:
            tables.notes.append(f"The frames of suspect samples are not shown: {error}.")
            return None
        if config.data.pairing != "matched" or config.data.overfit is not None:
            continue
        try:
            check_rendered(config.data)
            everything = config.data.model_copy(update={"exclude": (), "subset": 1.0})
            return open_training(config.model_copy(update={"data": everything})).train, config
        except UserError as error:
            tables.notes.append(f"The frames of suspect samples could not be looked at: {error}.")
            return None
    return None


def frame_findings(frames: FrameList, ranked: list[str]) -> pd.DataFrame:
    """Harmful findings on the frames: sample, finding, detail. `ranked` are sample ids, most suspicious first."""
    place = {name: i for i, name in enumerate(frames.ids)}
    first = [place[name] for name in ranked[:MOST] if name in place]
    chosen = list(range(len(frames))) if len(frames) <= WHOLE else _around(first, frames)
    chance = references(frames)
    records = list(examined(frames, chosen, "train", chance))
    rows = [(f.id, f.kind, f.detail) for f in findings(records) if KINDS[f.kind][0] == "harm" and f.id in place]
    return pd.DataFrame(rows, columns=["sample", "finding", "detail"]).drop_duplicates("sample")


def _around(places: list[int], frames: FrameList) -> list[int]:
    near = {p + step for p in places for step in range(-NEIGHBOURS - 1, NEIGHBOURS + 2)}
    return sorted(p for p in near if 0 <= p < len(frames))


def pictures(tables: StudyTables, frames: FrameList, suspects: pd.DataFrame) -> list[Figure]:
    """The most suspicious frames: rgb, depth with its holes, a finished training's prediction, and their difference."""
    place = {name: i for i, name in enumerate(frames.ids)}
    rows = suspects[suspects["sample"].isin(place.keys())].head(PICTURED)
    folder = _checkpoint(tables)
    if rows.empty or folder is None:
        return []
    model, config = checkpoint.read_model(folder)
    shown = frames.subset([place[name] for name in rows["sample"]])
    cpu = torch.device("cpu")
    found = {
        index: (pred, truth)
        for indices, preds, truths in predictions(model, shown, config, cpu, 1)
        for index, pred, truth in zip(indices, preds, truths, strict=True)
    }
    lines = []
    for i, row in enumerate(rows.itertuples()):
        pred, truth = (np.asarray(tensor, dtype=np.float32) for tensor in found[i])
        suspicion = float(row.suspicion)  # type: ignore[arg-type]
        said = "no valid pixel" if math.isinf(suspicion) else f"suspicion {number(suspicion)}"
        said = row.finding if isinstance(row.finding, str) else said
        lines.append(Row(f"{row.sample}: {said}", shown.read(i).rgb, truth, (("prediction", pred),)))
    key = folder.parent.parent.name
    return [
        depth_rows(
            lines,
            name="spike-frames",
            title="The most suspicious frames",
            alt=f"Colour, depth, prediction and error of {len(lines)} suspect training frames.",
            caption=f"Training frames; prediction of {key}, checkpoint {folder.name}. {SCALES}",
        )
    ]


def _checkpoint(tables: StudyTables) -> Path | None:
    complete = tables.trials[(tables.trials["outcome"] == Outcome.COMPLETE) & np.isfinite(tables.trials["value"])]
    ascending = tables.judge is None or tables.judge.minimise
    for key in complete.sort_values(["value", "key"], ascending=[ascending, True])["key"]:
        folder = tables.folder(str(key)) / "checkpoints" / checkpoint.BEST
        if folder.is_dir():
            return folder
    return None


def with_findings(suspects: pd.DataFrame, found: pd.DataFrame, weight: float, threshold: float) -> pd.DataFrame:
    """Suspects with the findings on their frames; a finding adds `weight` to the suspicion, and the order follows."""
    merged = (
        suspects.merge(found, on="sample", how="left") if len(found) else suspects.assign(finding=None, detail=None)
    )
    merged["from_losses"] = merged["suspicion"]
    known = merged["finding"].notna()
    merged["suspicion"] = merged["suspicion"].fillna(0.0) + np.where(known, weight, 0.0)
    merged["suspect"] |= known & (merged["suspicion"] >= threshold)
    return by_suspicion(merged)


def by_suspicion(suspects: pd.DataFrame) -> pd.DataFrame:
    """The samples, most suspicious first."""
    order = suspects["suspicion"].replace(math.inf, 1e9)
    return suspects.iloc[np.lexsort((suspects["sample"], -order))].reset_index(drop=True)
