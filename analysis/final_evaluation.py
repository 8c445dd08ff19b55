"""The sealed test: one frozen, hashed list is scored once, and the opening is recorded before a prediction is scored.

`score_test` is the only function of the project that scores targets of the test split (DESIGN.md, house rule 6). The
list is written first: the champion, the other seeds of its confirmation, the judged checkpoint of each recipe, and two
baselines. Scores are kept per image and used again; `--again REASON` opens once more, and that is counted too.

    evaluation/list.json         the frozen list and its SHA-256
    evaluation/openings.json     when it was opened, why, and where that is counted
    evaluation/scores.parquet    one row per entry, protocol and image
    evaluation/pictures.npz      best, median and worst frame of the champion
    evaluation/evaluation.json   means, bands, notes; written last
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import hashlib
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis import evaluation_section, runs, selection, store
from analysis.section import Section, plain
from analysis.tables import StudyTables
from trainables import baselines, checkpoint, cli, device
from trainables.config import DataConfig, TrialConfig
from trainables.data.dataset import fingerprint, open_test, open_training
from trainables.data.frames import FrameList
from trainables.durable import sha256, write_bytes, write_json
from trainables.errors import UserError
from trainables.evaluate import PROTOCOLS, Scorer, predictions
from trainables.metrics import edge_share

BANDS_M = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)  # edges of the distance bands
MEAN_FRAMES = 2000  # training frames, evenly spaced, behind the per-pixel mean
EDGE_THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # Sobel magnitudes at which edges are counted
GUESS_SEED = 0
RANDOM_GUESS, TRAINING_MEAN = "random guess", "training mean"


def analyse(tables: StudyTables) -> Section:
    """The section; opens the sealed test where the study has ended and nothing is stored yet."""
    try:
        open_once(tables, None)
    except UserError as error:
        tables.notes.append(f"The sealed test was not opened: {error}.")
    return evaluation_section.build(tables)


def open_once(tables: StudyTables, again: str | None) -> None:
    """Fill tables.evaluation and tables.extras['scores'], from what is stored or by opening the test.

    Raises UserError where the study has not ended, nothing can be evaluated, or the opening cannot be recorded.
    """
    if tables.layout is None:
        return
    folder = tables.layout.evaluation
    if not (tables.evaluation and again is None):
        if missing := tables.unfinished():
            raise UserError(f"the study has not ended ({'; '.join(missing)}); go on by study.run --resume")
        with _alone(folder):
            done = folder / "evaluation.json"
            if again is not None or not done.exists():  # another process may have opened it meanwhile
                _open(tables, folder, again or "all phases have ended")
            tables.evaluation.update(json.loads(done.read_text()))
    tables.extras["scores"] = pd.read_parquet(folder / "scores.parquet")


def freeze(tables: StudyTables, folder: Path) -> dict[str, Any]:
    """Write the list of what will be scored, with its hash; the list before it is kept. Returns the list."""
    chosen = selection.choose(tables)
    if chosen is None or tables.judge is None:
        raise UserError("nothing can be evaluated: no training is complete with a judged value")
    roles: dict[str, list[str]] = {chosen.champion: ["champion"]}
    if chosen.phase == "confirm":
        for key in chosen.members:
            roles.setdefault(key, []).extend([] if key == chosen.champion else ["confirmation seed"])
    for group in dict.fromkeys(tables.phase("reproduce")["group"]):
        best = tables.judge.choose(selection.judged_rows(tables, "reproduce", str(group)))
        if best is not None:
            roles.setdefault(best.champion, []).append(f"recipe {group}")
    part = checkpoint.BEST if tables.judge.report == "best" else checkpoint.LATEST
    entries = [_entry(tables, key, role, part) for key, role in roles.items()]
    entries += [{"name": name, "roles": ["baseline"], "key": None} for name in (RANDOM_GUESS, TRAINING_MEAN)]
    body = {"study": tables.name, "judge_hash": tables.judge_hash, "protocols": list(PROTOCOLS), "entries": entries}
    digest = hashlib.sha256(json.dumps(plain(body), sort_keys=True).encode()).hexdigest()
    path = folder / "list.json"
    if path.exists():
        write_bytes(folder / f"list-{sha256(path)[:12]}.json", path.read_bytes())
    frozen = body | {"sha256": digest, "frozen_at": _now()}
    write_json(path, plain(frozen))
    return frozen


def _entry(tables: StudyTables, key: str, roles: Sequence[str], part: str) -> dict[str, Any]:
    weights = tables.folder(key) / "checkpoints" / part / checkpoint.WEIGHTS
    known = weights.exists()
    entry = {"name": key, "roles": list(roles), "key": key, "checkpoint": f"trials/{key}/checkpoints/{part}"}
    return entry | {"weights_sha256": sha256(weights) if known else None, "missing": not known}


def _open(tables: StudyTables, folder: Path, reason: str) -> None:
    """Freeze, record, then score."""
    assert tables.layout is not None
    frozen = freeze(tables, folder)
    champion = next((e for e in frozen["entries"] if "champion" in e["roles"]), None)
    if champion is None or champion["missing"]:
        raise UserError(
            f"{champion and champion['checkpoint']}: the champion's checkpoint is missing; restore its folder"
        )
    configs = {e["name"]: _config(tables, e) for e in frozen["entries"] if e["key"] and not e["missing"]}
    reference = configs[champion["name"]]
    prints = {_test_key(c.data): str(fingerprint(c.data)["test"]) for c in configs.values()}
    _same_data(tables, prints[_test_key(reference.data)])
    opened = []
    for digest in dict.fromkeys(prints.values()):
        facts = {"list_sha256": frozen["sha256"], "reason": reason}
        count = store.record_opening(tables, digest, facts)
        opened.append({"test_data": digest, "at": _now(), **facts, "count": count, "counted_in": "tracking store"})
    log = folder / "openings.json"
    earlier = json.loads(log.read_text()) if log.exists() else []
    for opening in opened:
        if opening["count"] is None:
            known = sum(e["test_data"] == opening["test_data"] for e in earlier)
            opening |= {"count": known + 1, "counted_in": "this results folder (the study has no tracking store)"}
    write_json(log, [*earlier, *opened])
    results = [score_test(tables, entry, configs, reference) for entry in frozen["entries"] if not entry.get("missing")]
    scores = pd.DataFrame([row for result in results for row in result["rows"]])
    buffer = io.BytesIO()
    scores.to_parquet(buffer, index=False)
    write_bytes(folder / "scores.parquet", buffer.getvalue())
    pictures, shown = _pictures(tables, champion, reference, scores)
    write_bytes(folder / "pictures.npz", pictures)
    document = {
        "list": frozen,
        "openings": [*earlier, *opened],
        "entries": [{k: v for k, v in result.items() if k != "rows"} for result in results],
        "champion": champion["name"],
        "judge": {"metric": tables.judge.metric, "protocol": tables.judge.protocol} if tables.judge else None,
        "pictures": shown,
        "scored_at": _now(),
    }
    write_json(folder / "evaluation.json", plain(document))


def score_test(
    tables: StudyTables, entry: Mapping[str, Any], configs: Mapping[str, TrialConfig], reference: TrialConfig
) -> dict[str, Any]:
    """Score one entry of the frozen list on the test split, under every protocol.

    A recipe is scored on the test split of its own data settings: another split may hold its training frames. The
    baselines are scored on the champion's. Returns rows per image and protocol, means, distance bands, and notes.
    """
    config = configs.get(str(entry["name"]), reference)
    frames = open_test(config.data)
    scorer = Scorer(list(PROTOCOLS), frames.truth)
    bands = np.zeros((len(BANDS_M) - 1, 3))
    edges: list[Tensor] = []
    holes: dict[str, float] = {}
    for indices, pred, truth in _predicted(tables, entry, config, frames):
        ids = [frames.ids[i] for i in indices]
        scorer.add(ids, [frames.scenes[i] for i in indices], pred, truth)
        bands += _banded(pred, truth)
        edges.append(torch.stack([edge_share(m, truth > 0, list(EDGE_THRESHOLDS)).cpu() for m in (truth, pred)], dim=1))
        holes |= dict(zip(ids, (truth <= 0).float().mean((1, 2)).tolist(), strict=True))
    evaluation = scorer.finish()
    return {
        "name": entry["name"],
        "roles": entry["roles"],
        "key": entry["key"],
        "recipe": config.recipe if entry["key"] else None,
        "test_data": _test_key(config.data),
        "same_test_data": _test_key(config.data) == _test_key(reference.data),
        "source": config.data.source,
        "frames": len(frames),
        "scenes": len({s for s in frames.scenes if s is not None}) if None not in frames.scenes else None,
        "summary": evaluation.summary,
        "protocols": {
            name: {"name": r.name_as_run, "comparable": r.comparable, "note": r.note}
            for name, r in evaluation.resolved.items()
        },
        "bands": [
            {"from_m": low, "to_m": high, "pixels": int(n), "abs_rel": relative / n, "rmse": float(np.sqrt(square / n))}
            for (low, high), (n, relative, square) in zip(pairwise(BANDS_M), bands, strict=True)
            if n
        ],
        "edges": _edge_rows(torch.cat(edges)),
        "rows": [{"entry": entry["name"], **row, "hole_share": holes[row["id"]]} for row in evaluation.rows],
    }


def _predicted(
    tables: StudyTables, entry: Mapping[str, Any], config: TrialConfig, frames: FrameList
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Frame indices, predicted and true depth in metres: of a checkpoint, or of a baseline."""
    if entry["key"] is not None:
        yield from predictions(*_model(tables, entry, frames, config))
        return
    means: dict[tuple[int, int], Tensor] = {}
    chosen_device = device.choose_device(config)  # scoring a full-size test set takes minutes on a CPU
    train = open_training(config).train if entry["name"] == TRAINING_MEAN else None
    for i in range(len(frames)):
        truth = torch.from_numpy(np.ascontiguousarray(frames.read(i).depth_m))[None].to(chosen_device)
        size = (truth.shape[1], truth.shape[2])
        if train is None:
            yield [i], baselines.random_guess((1, *size), GUESS_SEED + i).to(chosen_device), truth
            continue
        if size not in means:
            chosen = np.unique(np.linspace(0, len(train) - 1, min(len(train), MEAN_FRAMES)).astype(int))
            training = (train.read(int(k)).depth_m for k in chosen)
            means[size] = baselines.mean_depth_map(training, size).to(chosen_device)
        yield [i], means[size], truth


def _model(
    tables: StudyTables, entry: Mapping[str, Any], frames: FrameList, config: TrialConfig
) -> tuple[torch.nn.Module, FrameList, TrialConfig, torch.device, int]:
    folder = Path(entry["checkpoint"])
    folder = folder if tables.layout is None else tables.layout.root / folder  # no layout: one checkpoint of no study
    if sha256(folder / checkpoint.WEIGHTS) != entry["weights_sha256"]:
        raise UserError(f"{folder}: its weights changed after the list was frozen; restore the checkpoint")
    model, _ = checkpoint.load_model(folder)
    chosen = device.choose_device(config)
    return model.to(chosen).to(memory_format=torch.channels_last), frames, config, chosen, config.batch_size


def _config(tables: StudyTables, entry: Mapping[str, Any]) -> TrialConfig:
    assert tables.layout is not None
    return checkpoint.read_config(tables.layout.root / entry["checkpoint"])


def _banded(pred_m: Tensor, truth_m: Tensor) -> np.ndarray:
    """Per distance band: valid pixels, sum of |error| / truth, sum of squared error."""
    truth = truth_m.double()
    error = pred_m.double() - truth
    rows = []
    for low, high in pairwise(BANDS_M):
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
    own = scores[(scores["entry"] == champion["name"]) & (scores["requested"] == judge.protocol)]
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
    frames = open_test(data)
    return str(frames.reader.digest(frames.rgb_of)[0])


def _test_key(data: DataConfig) -> str:
    """What decides the test split: settings that differ in nothing else are scored on the same frames."""
    parts = (data.source, data.root, data.rooms if data.source == "rooms" else None, data.depth, data.split)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _same_data(tables: StudyTables, found: str) -> None:
    """Refuse test data that are none the study began with (a recipe's own data stand under the recipe's name)."""
    prints = [tables.data, *(v for v in tables.data.values() if isinstance(v, Mapping))]
    then = [str(p["test"]) for p in prints if p.get("test")]
    if then and found not in then:
        raise UserError(
            f"the test data changed since the study began (SHA-256 {found[:12]}, then {then[0][:12]}); put them back"
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One opening at a time: a second process waits, then finds the scores."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m analysis.final_evaluation STUDY [--again REASON]`."""
    purpose = "Open the sealed test once, or show what it said."
    arguments = cli.parser("analysis.final_evaluation", purpose, "python -m analysis.final_evaluation rooms-quick")
    arguments.add_argument("study", metavar="STUDY", help="a study's name or its results folder")
    arguments.add_argument("--again", metavar="REASON", help="open it once more; the reason is recorded")

    def body(args: argparse.Namespace) -> Any:
        if args.again is not None and not args.again.strip():
            raise UserError("--again: give the reason in words")
        tables = runs.load(args.study)
        open_once(tables, args.again)
        section = evaluation_section.build(tables)
        print(section.text())
        return {
            "study": tables.name,
            "answers": plain(section.answers),
            "data": plain(section.data),
            "notes": tables.notes,
        }

    return cli.run(arguments, body, None if argv is None else list(argv))


if __name__ == "__main__":
    sys.exit(main())
