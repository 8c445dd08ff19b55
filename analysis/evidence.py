"""Frames of suspect samples: the doctor's findings on them, and pictures beside a prediction.

Losses say that a sample is unlike the others, frames say why. Small training sets are examined whole; of large ones
the most suspicious samples with their neighbours, which the doctor compares them with.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError

from analysis.pictures import Row, depth_rows
from analysis.section import Figure, number
from analysis.tables import StudyTables
from study.contract import Outcome
from trainables import checkpoint
from trainables.config import TrialConfig, stored_config
from trainables.data.dataset import open_training
from trainables.data.doctor import references
from trainables.data.doctor_checks import KINDS, findings
from trainables.data.doctor_record import examine
from trainables.data.frames import FrameList
from trainables.data.pairing import NEIGHBOURS
from trainables.errors import UserError
from trainables.evaluate import predictions

WHOLE = 600  # frames up to which a training set is examined whole
MOST = 60  # suspects of a larger one
PICTURED = 6


def training_frames(tables: StudyTables) -> tuple[FrameList, TrialConfig] | None:
    """The training frames of the study's first matched training; None, with a note, where they cannot be read now."""
    if tables.layout is None:
        return None
    for key in tables.trials["key"]:
        path = tables.folder(str(key)) / "config.json"
        if not path.exists():
            continue
        try:
            config = stored_config(path.read_bytes())
        except ValidationError as error:
            what = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors()[:3])
            tables.notes.append(
                f"{path.parent.name}: config.json is of another version ({what}); frames are not shown."
            )
            return None
        if config.data.pairing != "matched" or config.data.overfit is not None:
            continue
        try:
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
    records = [examine(frames, i, "train", chance) for i in chosen]
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
            caption=f"Training frames; prediction of {key}, checkpoint {folder.name}. Holes are grey.",
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
    order = merged["suspicion"].replace(math.inf, 1e9)
    return merged.iloc[np.lexsort((merged["sample"], -order))].reset_index(drop=True)
