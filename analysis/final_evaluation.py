"""The sealed test: one frozen, hashed list is scored once, and the opening is recorded before a prediction is scored.

`score_test` is the only function of the project that scores targets of the test split (DESIGN.md, house rule 8). The
list is written first: the champion, the other seeds of its confirmation, the judged checkpoint of each recipe and its
other seeds, and two baselines. Scores are kept per image and used again; `--again REASON` opens once more, and that is
counted too. What is kept, and how it is counted: analysis/tables/sealed.py.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis import mlflow_store, runs, waterfall
from analysis.page.section import Section, plain
from analysis.sections import sealed_test
from analysis.tables import sealed
from analysis.tables.tidy import StudyTables
from trainables.data.dataset import check_rendered, open_test, open_training
from trainables.data.frames import FrameList
from trainables.evaluation import baselines
from trainables.evaluation.evaluate import Scorer, predictions
from trainables.evaluation.metrics import edge_share
from trainables.evaluation.protocols import PROTOCOLS, Kind, Protocol
from trainables.evaluation.scoring import batch_truths, truth_readers
from trainables.runtime import device, locks
from trainables.runtime.durable import sha256, write_bytes, write_json
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig, TrialConfig
from trainables.training import checkpoint

BANDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)  # edges of the distance bands, as shares of the largest depth
MEAN_FRAMES = 2000  # training frames, evenly spaced, behind the per-pixel mean
EDGE_THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # Sobel magnitudes at which edges are counted
GUESS_SEED = 0
BASELINE_BATCH = 8  # frames that a baseline is scored on at once


def analyse(tables: StudyTables) -> Section:
    """The section; opens the sealed test where the study has ended and nothing is stored yet."""
    collect(tables)
    return sealed_test.build(tables)


def collect(tables: StudyTables) -> None:
    """Fill in the scores, opening the test where the study has ended; why not is a note."""
    try:
        open_once(tables, None)
    except UserError as error:
        tables.notes.append(f"The sealed test was not opened, or its scores cannot be used: {error}.")


def open_once(tables: StudyTables, again: str | None) -> None:
    """Fill tables.evaluation and tables.extras['scores'], from what is stored or by opening the test.

    Raises UserError where the study has not ended, nothing can be evaluated, the opening cannot be recorded, or what is
    stored is damaged.
    """
    if tables.layout is None:
        if again is not None:
            raise UserError(f"--again: a released table cannot open the test; name the results folder of {tables.name}")
        return
    folder = tables.layout.evaluation
    tables.evaluation.clear()
    if again is not None or not (folder / sealed.DONE).exists():
        if missing := tables.unfinished():
            raise UserError(f"the study has not ended ({'; '.join(missing)}); continue it with study.run --resume")
        if not tables.judge_unchanged and len(tables.trials):
            raise UserError("the judge's settings in the ledger are not those hashed before the first training; "
                            "restore the ledger")  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(folder / ".lock"):  # one opening at a time: a second process waits, then finds the scores
            if again is not None or not (folder / sealed.DONE).exists():  # another process may have opened it meanwhile
                _open(tables, folder, again or "all phases have ended")
    document, tables.extras["scores"] = sealed.stored(folder)
    tables.evaluation.update(document | sealed.counted(tables, folder, document["test_data"]))


def _open(tables: StudyTables, folder: Path, reason: str) -> None:
    """Freeze, record, then score."""
    assert tables.layout is not None
    frozen = sealed.freeze(tables, folder)
    champion = next((e for e in frozen["entries"] if "champion" in e["roles"]), None)
    if champion is None or champion["missing"]:
        raise UserError(
            f"{champion and champion['checkpoint']}: the champion's checkpoint is missing; restore its folder"
        )
    configs = {e["name"]: _config(tables, e) for e in frozen["entries"] if e["key"] and not e["missing"]}
    reference = configs[champion["name"]]
    prints: dict[str, str] = {}  # one look per test split: it reads every byte
    for config in configs.values():
        prints[_test_key(config.data)] = prints.get(_test_key(config.data)) or test_digest(config.data)
    _same_data(tables, prints.values())
    openings = sealed.openings(folder)
    for digest in dict.fromkeys(prints.values()):
        facts = {"list_sha256": frozen["sha256"], "reason": reason}
        counted = mlflow_store.record_opening(tables, digest, facts)
        count = max(counted or 0, sealed.most(openings, digest) + 1)
        where = sealed.HERE if counted is None else sealed.STORE
        openings.append({"test_data": digest, "at": sealed.now(), **facts, "count": count, "counted_in": where})
    write_json(folder / sealed.OPENINGS, openings)
    results = _scored(tables, frozen["entries"], configs, reference)
    scores = pd.DataFrame([row for result in results for row in result["rows"]])
    pictures, shown = _pictures(tables, champion, reference, scores)
    buffer = io.BytesIO()
    scores.to_parquet(buffer, index=False)
    files = {sealed.SCORES: buffer.getvalue(), sealed.PICTURES: pictures}
    for name, content in files.items():
        write_bytes(folder / name, content)
    document = {
        "list": frozen,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "test_data": prints[_test_key(reference.data)],
        "entries": [{k: v for k, v in result.items() if k != "rows"} for result in results],
        "champion": champion["name"],
        # relative depth is measured by a protocol of its own, whatever the study's is
        "judge": {"metric": tables.judge.metric, "protocol": reference.protocol} if tables.judge else None,
        "pictures": shown,
        "scored_at": sealed.now(),
    }
    write_json(folder / sealed.DONE, plain(document))


def _scored(
    tables: StudyTables, frozen: Sequence[Mapping[str, Any]], configs: Mapping[str, TrialConfig], reference: TrialConfig
) -> list[dict[str, Any]]:
    """What `score_test` says of each entry whose checkpoint is there; on a CPU a few entries beside each other.

    Models are built here, as many as are scored at once: torchvision takes an encoder apart by patching every module's
    call for a moment, in all threads.
    """
    listed = [entry for entry in frozen if not entry.get("missing")]
    side = len(listed) if device.choose_device(reference).type == "cpu" else 1  # a GPU is busy with one
    pool, workers = device.side_by_side(side, "score")
    results: list[dict[str, Any]] = []
    with pool:
        for few in (listed[i : i + workers] for i in range(0, len(listed), workers)):
            models = [_model(tables, e, configs[e["name"]]) if e["key"] is not None else None for e in few]
            results += pool.map(lambda e, m: score_test(tables, e, configs, reference, m), few, models)
    return results


def score_test(
    tables: StudyTables,
    entry: Mapping[str, Any],
    configs: Mapping[str, TrialConfig],
    reference: TrialConfig,
    model: torch.nn.Module | None = None,
) -> dict[str, Any]:
    """Score one entry of the frozen list on the test split, under every protocol; `model`: the entry's, once built.

    A recipe is scored on the test split of its own data settings: another split may hold its training frames. The
    baselines are scored on the champion's. Returns rows per image and protocol, means, distance bands, and notes.
    """
    config = configs.get(str(entry["name"]), reference)
    frames = open_test(config.data)
    kind: Kind = "relative" if entry["key"] and config.target.kind == "relative" else "metric"
    walks = _walks(config, kind) if "champion" in entry["roles"] else {}
    steps = {step.name: step for walk in walks.values() for _, step in walk}
    protocols = [protocol.reaching(frames.max_depth_m) for protocol in (*PROTOCOLS.values(), *steps.values())]
    scorer, readers = Scorer(protocols, frames.truth), truth_readers(frames)
    edges_m = [round(share * frames.max_depth_m, 6) for share in BANDS]
    bands = np.zeros((len(edges_m) - 1, 3))
    edges: list[Tensor] = []
    holes: dict[str, float] = {}
    for indices, pred, truth in _predicted(tables, entry, config, frames, model):
        ids = [frames.ids[i] for i in indices]
        truths = batch_truths(frames, readers, indices, truth)
        scorer.add(ids, [frames.scenes[i] for i in indices], pred, truths)
        bands += _banded(pred, truth, edges_m)
        edges.append(torch.stack([edge_share(m, truth > 0, list(EDGE_THRESHOLDS)).cpu() for m in (truth, pred)], dim=1))
        holes |= dict(zip(ids, (truth <= 0).float().mean((1, 2)).tolist(), strict=True))
    evaluation = scorer.finish()
    registered = {name: run for name, run in evaluation.resolved.items() if name in PROTOCOLS}
    return {
        "name": entry["name"],
        "roles": entry["roles"],
        "key": entry["key"],
        "recipe": config.recipe if entry["key"] else None,
        "test_data": _test_key(config.data),
        "target": config.target.kind if entry["key"] else None,
        "same_test_data": _test_key(config.data) == _test_key(reference.data),
        "source": config.data.source,
        "frames": len(frames),
        "scenes": len({s for s in frames.scenes if s is not None}) if None not in frames.scenes else None,
        "summary": {run.name_as_run: evaluation.summary[run.name_as_run] for run in registered.values()},
        "protocols": {
            name: {"name": r.name_as_run, "comparable": r.comparable, "note": r.note} for name, r in registered.items()
        },
        "walks": {
            "start": config.protocol,
            "truth": sorted(readers),
            "mirrored": config.mirrored,
            "measured": {
                name: {what: evaluation.summary[evaluation.resolved[step.name].name_as_run] for what, step in walk}
                for name, walk in walks.items()
            },
        },
        "bands": [
            {"from_m": low, "to_m": high, "pixels": int(n), "abs_rel": relative / n, "rmse": float(np.sqrt(square / n))}
            for (low, high), (n, relative, square) in zip(pairwise(edges_m), bands, strict=True)
            if n
        ],
        "edges": _edge_rows(torch.cat(edges)),
        "rows": [
            {"entry": entry["name"], **row, "hole_share": holes[row["id"]], "failed": _failed(row)}
            for row in evaluation.rows
            if row["requested"] in PROTOCOLS
        ],
    }


def _walks(config: TrialConfig, kind: Kind) -> dict[str, list[tuple[str, Protocol]]]:
    """The steps from the judge's protocol to each protocol with published rows (analysis/waterfall.py)."""
    start = PROTOCOLS[config.protocol]
    if not start.fits(kind):
        return {}
    ways = {goal.protocol.name: waterfall.walk(start, goal.protocol) for goal in waterfall.targets(start, kind)}
    return {name: [step for step in way if step[0] != waterfall.FRAMES] for name, way in ways.items()}


def _failed(row: Mapping[str, Any]) -> bool:
    """Whether the prediction was NaN; None (nothing to measure) is not a failure. Parquet keeps both as null."""
    return any(isinstance(value, float) and math.isnan(value) for value in row.values())


def _predicted(
    tables: StudyTables,
    entry: Mapping[str, Any],
    config: TrialConfig,
    frames: FrameList,
    model: torch.nn.Module | None = None,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Frame indices, predicted and true depth in metres: of a checkpoint, or of a baseline."""
    chosen_device = device.choose_device(config)  # scoring a full-size test set takes minutes on a CPU
    if entry["key"] is not None:
        model = model or _model(tables, entry, config)
        yield from predictions(model, frames, config, chosen_device, config.batch_size)
        return
    train = open_training(config).train if entry["name"] == sealed.TRAINING_MEAN else None
    means: dict[tuple[int, int], Tensor] = {}
    for indices, truth in _truths(frames):
        size = (truth.shape[1], truth.shape[2])
        if train is None:
            pred = torch.cat([baselines.random_guess((1, *size), GUESS_SEED + i, frames.max_depth_m) for i in indices])
        else:
            if size not in means:
                chosen = np.unique(np.linspace(0, len(train) - 1, min(len(train), MEAN_FRAMES)).astype(int))
                training = (train.read(int(k)).depth_m for k in chosen)
                means[size] = baselines.mean_depth_map(training, size)
            pred = means[size].expand(len(indices), *size)
        yield indices, pred.to(chosen_device), truth.to(chosen_device)


def _truths(frames: FrameList) -> Iterator[tuple[list[int], Tensor]]:
    """Indices and true depth of consecutive frames of one size, a few at a time."""
    read = ((i, torch.from_numpy(np.ascontiguousarray(frames.read(i).depth_m))) for i in range(len(frames)))
    for _, run in groupby(read, key=lambda pair: pair[1].shape):
        while few := list(islice(run, BASELINE_BATCH)):
            yield [i for i, _ in few], torch.stack([truth for _, truth in few])


def _model(tables: StudyTables, entry: Mapping[str, Any], config: TrialConfig) -> torch.nn.Module:
    """The model of an entry, on its device. Raises UserError where its weights are not those of the list."""
    folder = Path(entry["checkpoint"])
    folder = folder if tables.layout is None else tables.layout.root / folder  # no layout: one checkpoint of no study
    if sha256(folder / checkpoint.WEIGHTS) != entry["weights_sha256"]:
        raise UserError(f"{folder}: its weights changed after the list was frozen; restore the checkpoint")
    model, _ = checkpoint.read_model(folder)
    return model.to(device.choose_device(config)).to(memory_format=torch.channels_last)


def _config(tables: StudyTables, entry: Mapping[str, Any]) -> TrialConfig:
    assert tables.layout is not None
    return checkpoint.read_config(tables.layout.root / entry["checkpoint"])


def _banded(pred_m: Tensor, truth_m: Tensor, edges_m: Sequence[float]) -> np.ndarray:
    """Per distance band: valid pixels, sum of |error| / truth, sum of squared error."""
    truth = truth_m.double()
    error = pred_m.double() - truth
    rows = []
    for low, high in pairwise(edges_m):
        inside = (truth > low) & (truth <= high)
        gaps = error[inside]
        rows.append([float(inside.sum()), float((gaps.abs() / truth[inside]).sum()), float(gaps.square().sum())])
    return np.asarray(rows)


def _edge_rows(shares: Tensor) -> list[dict[str, float]]:
    """Mean share of pixels that are edges, of truth and prediction, by threshold; from (N, 2, T)."""
    means = shares.nanmean(0)
    rows = zip(EDGE_THRESHOLDS, means[0].tolist(), means[1].tolist(), strict=True)
    return [{"threshold": t, "truth": truth, "prediction": pred} for t, truth, pred in rows]


def _pictures(
    tables: StudyTables, champion: Mapping[str, Any], config: TrialConfig, scores: pd.DataFrame
) -> tuple[bytes, list[dict[str, Any]]]:
    """Best, median and worst frame of the champion by the judge's metric, as npz arrays, and which they are."""
    assert tables.judge is not None
    judge, frames = tables.judge, open_test(config.data)
    own = scores[(scores["entry"] == champion["name"]) & (scores["requested"] == config.protocol)]
    own = own.dropna(subset=[judge.metric]).sort_values([judge.metric, "id"], ascending=[judge.minimise, True])
    arrays: dict[str, np.ndarray] = {}
    shown: list[dict[str, Any]] = []
    if len(own):
        places = {"best": 0, "median": (len(own) - 1) // 2, "worst": len(own) - 1}
        rank = {label: own.iloc[place] for label, place in places.items()}
        index = [frames.ids.index(str(row["id"])) for row in rank.values()]
        found = _predicted(tables, champion, config, frames.subset(index))
        maps = {i: (p, t) for places_, pred, true in found for i, p, t in zip(places_, pred, true, strict=True)}
        for number, (label, row) in enumerate(rank.items()):
            pred, truth = maps[number]
            arrays |= {f"{label}_pred_m": pred.cpu().numpy(), f"{label}_truth_m": truth.cpu().numpy()}
            arrays[f"{label}_rgb"] = frames.read(index[number]).rgb
            shown.append({"label": label, "id": str(row["id"]), judge.metric: float(row[judge.metric])})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue(), shown


def test_digest(data: DataConfig) -> str:
    """SHA-256 of the test split alone, as in `fingerprint`; some published forms hold no other split."""
    check_rendered(data)
    frames = open_test(data)
    return str(frames.reader.digest(frames.rgb_of, content=True)[0])


def _test_key(data: DataConfig) -> str:
    """What decides the test split: settings that differ in nothing else are scored on the same frames."""
    place = (data.source, data.root, data.rooms if data.source == "rooms" else None, data.depth, data.split)
    reading = (data.lists.test, data.columns, data.depth_scale, data.max_depth_m, data.hole_values)
    return hashlib.sha256(repr((place, reading)).encode()).hexdigest()[:12]


def _same_data(tables: StudyTables, found: Iterable[str]) -> None:
    """Refuse test data that are none the study began with (a recipe's own data stand under the recipe's name)."""
    prints = [tables.data, *(v for v in tables.data.values() if isinstance(v, Mapping))]
    then = [str(p["test"]) for p in prints if p.get("test")]
    for digest in found:
        if then and digest not in then:
            changed = f"SHA-256 {digest[:12]}, then {then[0][:12]}"
            raise UserError(f"the test data changed since the study began ({changed}); put them back")


def _asked(tables: StudyTables, args: argparse.Namespace) -> None:
    if args.again is not None and not args.again.strip():
        raise UserError("--again: give the reason in words")
    open_once(tables, args.again)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m analysis.final_evaluation STUDY [--again REASON]`."""
    purpose = "Open the sealed test once, or show what it said."
    again = {"metavar": "REASON", "help": "open it once more; the reason is recorded"}
    options = {"--again": again}
    return runs.command("final_evaluation", purpose, sealed_test.build, argv, options=options, before=_asked)


if __name__ == "__main__":
    sys.exit(main())
