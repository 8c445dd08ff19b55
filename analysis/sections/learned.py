"""Learning check of the judged checkpoint of each recipe, and of the champion, on a few validation frames.

A published system described its failures only in words ("all gray", "only learned edges or colour hues": FACTS.md
section 7, relative_unet), and a mean error alone does not distinguish them: trainables/evaluation/sanity.py does. What
was measured stays in evaluation/learned.json under the SHA-256 of the weights, and in the released table, so that a
report can be made again when the checkpoints are gone. The test split is never read here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from analysis import runs, selection
from analysis.page.section import Headline, Section, Table, counted, number, plain, records
from analysis.tables.tidy import StudyTables, read_json
from trainables.data.dataset import TrainingData, check_rendered, open_training
from trainables.data.samples import resize_rgb
from trainables.data.split import evenly
from trainables.evaluation import baselines
from trainables.evaluation.evaluate import predictions
from trainables.evaluation.sanity import diagnose
from trainables.runtime import device
from trainables.runtime.durable import sha256, write_json
from trainables.runtime.errors import UserError
from trainables.training import checkpoint

FRAMES = 12  # validation frames, evenly spaced
MEAN_FRAMES = 200  # training frames, evenly spaced, behind the mean map
TITLE = "Did it learn?"
NUMBERS = (
    "spread_ratio", "across_ratio", "error_ratio", "depth_correlation", "luminance_correlation", "luminance_of_truth",
)  # fmt: skip
COLUMNS = ("training", "roles", "recipe", "stage", "frames", *NUMBERS, "verdict")
NOTE = (
    "spread_ratio, across_ratio: how much predictions vary within a frame, and at a pixel across frames, over the "
    "truth (ln depth). error_ratio: abs_rel over that of the training frames' mean depth map; relative depth is fitted "
    "to each frame first, and so is the map. Correlations: of ln prediction with ln truth, with luminance (absolute), "
    "and of ln truth with luminance. Low spread is constant; an error ratio near 1 is no better than the mean map."
)
Row = dict[str, Any]


def analyse(tables: StudyTables) -> Section:
    """The section; diagnoses each checkpoint without a stored diagnosis, where it can be read."""
    if tables.layout is None:
        stored = tables.extras.get("learned")
        if stored is None:
            answer = "Not known: this released table holds no diagnosis; make the report from the results folder."
            return Section("learned", TITLE, [answer], data={"trainings": []})
        rows = records(stored)
    else:
        judged = judged_trainings(tables)
        if not judged:
            answer = f"No training has a judged checkpoint: {selection.why_none(tables)}."
            return Section("learned", TITLE, [answer], data={"trainings": []})
        rows = _rows(tables, tables.layout.evaluation / "learned.json", judged)
        tables.extras["learned"] = pd.DataFrame(plain(rows), columns=list(COLUMNS))
    table = Table("learned", "What the predictions depend on", pd.DataFrame(rows, columns=list(COLUMNS)), NOTE)
    answers = _answers(rows)
    failed = [row for row in rows if not _unknown(row) and row["verdict"] != "learned"]
    headline = Headline(answers[: 1 + len(failed)], warn=True) if failed else None
    return Section("learned", TITLE, answers, (), [table], plain({"trainings": rows}), headline)


def judged_trainings(tables: StudyTables) -> dict[str, list[str]]:
    """Keys of the trainings to check, with their roles: as the sealed test's list, and earlier stages."""
    roles: dict[str, list[str]] = {}
    chosen = selection.choose(tables)
    if chosen is None or tables.judge is None:
        return roles
    roles[chosen.champion] = ["champion"]
    reproduced = tables.phase("reproduce")
    for group in dict.fromkeys(reproduced["group"]):
        best = tables.judge.choose(selection.judged_rows(tables, "reproduce", str(group)))
        if best is None:
            continue
        roles.setdefault(best.champion, []).append(f"recipe {group}")
        members = reproduced[reproduced["group"] == group].set_index("key")
        own = members.loc[best.champion]
        stage = pd.to_numeric(members["stage"])
        earlier = members[(members["seed"] == own["seed"]) & (stage < stage[best.champion])]
        for key in earlier.index:
            roles.setdefault(str(key), []).append(f"earlier stage of {group}")
    return roles


def _rows(tables: StudyTables, path: Path, judged: dict[str, list[str]]) -> list[Row]:
    assert tables.judge is not None
    stored = read_json(path, tables.notes)
    part = checkpoint.BEST if tables.judge.report == "best" else checkpoint.LATEST
    maps: dict[str, tuple[TrainingData, dict[tuple[int, int], torch.Tensor]]] = {}
    fresh, rows = dict(stored), []
    trials = tables.trials.set_index("key")
    for key, roles in judged.items():
        facts: Row = {"training": key, "roles": ", ".join(roles)}
        facts |= {name: trials.loc[key, name] for name in ("recipe", "stage")}
        folder = tables.folder(key) / "checkpoints" / part
        weights = folder / checkpoint.WEIGHTS
        known = [found for found in stored.values() if found["training"] == key]
        try:
            if not weights.exists():
                measured = known[-1] if known else {"verdict": "not known: its checkpoint is missing"}
            else:
                digest = sha256(weights)
                if digest not in fresh:
                    fresh[digest] = plain({"training": key, **_measure(folder, maps)})
                measured = fresh[digest]
        except UserError as error:
            measured = {"verdict": f"not known: {error}"}
        empty: Row = dict.fromkeys(COLUMNS)
        rows.append(empty | {k: v for k, v in measured.items() if k in COLUMNS} | facts)
    if fresh != stored:
        write_json(path, fresh)
    return rows


def _measure(folder: Path, maps: dict[str, tuple[TrainingData, dict[tuple[int, int], torch.Tensor]]]) -> dict[str, Any]:
    """The diagnosis of one checkpoint as plain values, with its data's settings and their mean maps kept in `maps`."""
    model, config = checkpoint.read_model(folder)
    name = config.data.model_dump_json() + str(config.seed)  # pairing depends on the seed
    if name not in maps:
        check_rendered(config.data)
        maps[name] = open_training(config), {}
    data, means = maps[name]
    chosen = data.validation.subset(evenly(range(len(data.validation)), FRAMES))
    on = device.choose_device(config)
    model = model.to(on).to(memory_format=torch.channels_last)
    preds: list[torch.Tensor] = []
    truths: list[torch.Tensor] = []
    images: list[torch.Tensor] = []
    for indices, pred, truth in predictions(model, chosen, config, on, config.batch_size):
        for i, p, t in zip(indices, pred.cpu(), truth.cpu(), strict=True):
            if not truths or t.shape == truths[0].shape:  # one size: pixels are compared across frames
                preds.append(p)
                truths.append(t)
                images.append(resize_rgb(chosen.read(i).rgb, (t.shape[0], t.shape[1])).float() / 255)
    if not truths:
        raise UserError(f"{folder}: none of its validation frames can be read; run the doctor on the data")
    size = (truths[0].shape[0], truths[0].shape[1])
    if size not in means:
        means[size] = _mean_map(data, size)
    found = diagnose(
        torch.stack(preds), torch.stack(truths), torch.stack(images), means[size],
        relative=config.target.kind == "relative",
    )  # fmt: skip
    numbers = {name: value for name, value in asdict(found).items() if name != "verdicts"}
    return {"frames": len(truths), **numbers, "verdict": "; ".join(found.verdicts) or "learned"}


def _mean_map(data: TrainingData, size: tuple[int, int]) -> torch.Tensor:
    train = data.train
    picked = np.unique(np.linspace(0, len(train) - 1, min(len(train), MEAN_FRAMES)).astype(int))
    return baselines.mean_depth_map((train.read(int(i)).depth_m for i in picked), size)


def _answers(rows: Sequence[Row]) -> list[str]:
    known = [row for row in rows if not _unknown(row)]
    failed = [row for row in known if row["verdict"] != "learned"]
    answers = []
    if known and not failed:
        ratios = ", ".join(f"{row['training']} {number(float(row['error_ratio']))}" for row in known)
        answers.append(
            f"Yes: the predictions of {counted(len(known), 'judged checkpoint')} vary with the picture and beat the "
            f"training frames' mean depth map; abs_rel over the map's, validation frames: {ratios}."
        )
    elif known:
        answers.append(f"{len(failed)} of {len(known)} judged checkpoints did not learn depth from the picture.")
    answers += [f"{row['training']} ({row['roles']}; {row['recipe']}): {row['verdict']}." for row in failed]
    answers += [f"{row['training']} ({row['roles']}): {row['verdict']}." for row in rows if _unknown(row)]
    return answers


def _unknown(row: Row) -> bool:
    return str(row["verdict"]).startswith("not known")


if __name__ == "__main__":
    sys.exit(runs.command("sections.learned", "Say whether the judged checkpoints learned anything.", analyse))
