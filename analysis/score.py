"""`python -m analysis.score PREDICTIONS --data ROOT`: any model's depth maps, or a checkpoint, under every protocol.

    python -m analysis.score maps/ --data nyu_data.zip
    python -m analysis.score maps.npy --data nyu_depth_v2_labeled.mat --kind disparity
    python -m analysis.score results/rooms/trials/confirm-0000/checkpoints/best --data nyu_data.zip --against zoedepth

The maps are of the test frames, so the opening is recorded in the tracking store like any other, before anything is
scored. With `--against` the way to a published number follows, one convention at a time (analysis/waterfall.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import pandas as pd
import torch

from analysis import mlflow_store, statistics, waterfall
from analysis.page import style
from analysis.page.section import Section, Table, number, plain
from analysis.tables.published import NYU_TEST_FRAMES
from analysis.tables.tidy import StudyTables, report_frame, trial_frame
from trainables.data.dataset import open_test
from trainables.data.doctor.diagnosis import open_splits
from trainables.data.formats import forms
from trainables.data.frames import FrameList
from trainables.evaluation.evaluate import Evaluation, Scorer, predictions
from trainables.evaluation.inspection import inspect, scale_of
from trainables.evaluation.maps import DepthMaps, open_maps
from trainables.evaluation.protocols import KINDS, PROTOCOLS, RELATIVE_PROTOCOL, Kind, Protocol
from trainables.evaluation.scoring import Job, batch_truths, fitting, gather, score_maps, truth_readers
from trainables.runtime import cli, device
from trainables.runtime.durable import sha256, write_bytes
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig, TrialConfig
from trainables.settings.recipe import load_recipe
from trainables.settings.registry import FORMS, METRICS
from trainables.training import checkpoint

SEED: Final = 0
START: Final[Mapping[Kind, str]] = {
    "metric": "densedepth", "inverse": "densedepth", "relative": RELATIVE_PROTOCOL, "disparity": "marigold_disparity",
}  # fmt: skip
NAMED: Final = 5


@dataclass(frozen=True)
class Source:
    """Whose depth is scored: maps, or a checkpoint of ours. scale: whole numbers to the metre; None: as stored."""

    name: str
    digest: str
    kind: Kind
    maps: DepthMaps | None
    scale: float | None
    config: TrialConfig | None

    def evaluate(self, frames: FrameList, protocols: Sequence[Protocol], mirrored: bool | None = None) -> Evaluation:
        """Scores on frames, those of the maps or, of a checkpoint, any. mirrored: another than the training's."""
        if self.maps is not None:
            maps, scale = self.maps, self.scale
            return score_maps((maps.map(i, scale) for i in range(len(maps))), frames, protocols, kind=self.kind)
        assert self.config is not None
        config = self.config if mirrored is None else self.config.model_copy(update={"mirrored": mirrored})
        chosen = device.choose_device(config)
        model, _ = checkpoint.read_model(Path(self.name))
        model = model.to(chosen).to(memory_format=torch.channels_last)
        reaching = [protocol.reaching(frames.max_depth_m) for protocol in protocols]
        scorer, readers = Scorer(reaching, frames.truth), truth_readers(frames)

        def jobs() -> Iterator[Job]:
            for indices, pred, truth in predictions(model, frames, config, chosen, config.batch_size):
                truths = batch_truths(frames, readers, indices, truth)
                ids, scenes = [frames.ids[i] for i in indices], [frames.scenes[i] for i in indices]
                yield partial(scorer.measure, ids, scenes, pred, truths)

        gather(scorer, jobs(), len(frames) if chosen.type == "cpu" else 1)  # a GPU is busy with one
        return scorer.finish()


def scored(args: argparse.Namespace) -> tuple[Section, dict[str, Any]]:
    """The section and the JSON document of the command's arguments. Raises UserError; nothing is then scored."""
    data = _data(args)
    frames = open_test(data)
    goal = waterfall.target(args.against) if args.against is not None else None
    notes: list[str] = []
    source = _source(args, data, frames, notes)
    start = _start(args, source, goal)
    path = [] if goal is None else waterfall.walk(start, goal.protocol)
    steps = [protocol for name, protocol in path if name != waterfall.FRAMES]
    notes.append(_opened(args, frames, source))
    evaluation = source.evaluate(frames, [*fitting(source.kind), *steps])
    document: dict[str, Any] = {"frames": len(frames), "protocols": {}, "notes": notes}
    for protocol in fitting(source.kind):
        run = evaluation.resolved[protocol.name]
        rows = [row for row in evaluation.rows if row["requested"] == protocol.name]
        document["protocols"][run.name_as_run] = _intervals(protocol, rows)
        notes += [f"{run.name_as_run}: {run.note}"] if run.note else []
    notes += _remarks(frames, evaluation, data)
    left = [name for name, protocol in PROTOCOLS.items() if not protocol.fits(source.kind)]
    if left:
        notes.append(f"{source.kind} maps hold {KINDS[source.kind]}: not measured under {', '.join(left)}")
    tables, figures, answers = [_table(document["protocols"])], [], []
    if goal is not None:
        fall = _fall(goal, start, path, evaluation, source, frames, data, args)
        picture = args.figure or Path(f"against_{goal.name}.png")
        caption = f"{source.name} on {len(frames)} test frames of {data.source}. The order of the steps matters."
        figures.append(waterfall.figure(fall, "waterfall", caption))
        write_bytes(picture, style.to_png(figures[0]))
        tables.append(waterfall.table([fall], "waterfall"))
        answers += [*fall.sentences(), f"The waterfall is drawn in {picture}."]
        document["against"] = fall.document() | {"figure": str(picture)}
    answers.insert(0, f"{len(frames)} frames of {data.source} ({args.data}), {source.kind} maps of {source.name}.")
    section = Section("score", "Which number would it be?", answers, figures, tables, document)
    return section, plain(document)


def _data(args: argparse.Namespace) -> DataConfig:
    """Settings of the data; the form is found out where it is not given."""
    settings = {"data.depth": args.depth, "data.split": args.split}
    form = args.source or open_splits(Path(args.data), None, settings).form
    settings |= {"data.source": form, "data.root": str(args.data)}
    return load_recipe("densedepth", settings)[0].data


def _source(args: argparse.Namespace, data: DataConfig, frames: FrameList, notes: list[str]) -> Source:
    """What is scored, every map looked at once. Raises UserError naming the maps that cannot be scored."""
    path: Path = args.predictions
    if path.is_dir() and (path / checkpoint.WEIGHTS).is_file():
        trained = checkpoint.read_config(path)
        config = trained.model_copy(update={"data": data})
        kind: Kind = "relative" if trained.target.kind == "relative" else "metric"
        notes.append("the checkpoint's depth is resized to the truth's size, bilinear, with half-pixel centres")
        return Source(str(path), sha256(path / checkpoint.WEIGHTS), kind, None, None, config)

    def others() -> list[str]:
        return list(forms()[data.source].open_split(data, "train").ids)

    maps = open_maps(path, frames.ids, others)
    notes += maps.notes
    scale, told = scale_of(maps, frames, args.kind, args.scale)
    digest, seen = inspect(maps, scale, frames, args.kind)
    notes += [*told, *seen]
    return Source(str(path), digest, args.kind, maps, scale, None)


def _start(args: argparse.Namespace, source: Source, goal: waterfall.Target | None) -> Protocol:
    """The protocol that the way to the target begins with. Raises UserError for maps that either cannot measure."""
    name = args.begin or START[source.kind]
    for asked, protocol in (("--from", PROTOCOLS[name]), ("--against", goal.protocol if goal else PROTOCOLS[name])):
        if not protocol.fits(source.kind):
            raise UserError(f"{asked}: {protocol.name} cannot measure {source.kind} maps ({KINDS[source.kind]})")
    return PROTOCOLS[name]


def _opened(args: argparse.Namespace, frames: FrameList, source: Source) -> str:
    """Record the opening of these test frames and say how many there are. Raises UserError where it cannot be."""
    store = StudyTables(
        name=f"score of {Path(source.name).name}", layout=None, study={"tracking": {"uri": args.tracking}}, judge=None,
        judge_hash=None, data={}, environment={}, timings={}, planned={}, trials=trial_frame([]),
        reports=report_frame([]), evaluation={},
    )  # fmt: skip
    frozen = hashlib.sha256(json.dumps([source.digest, source.kind, source.scale]).encode()).hexdigest()
    facts = {"list_sha256": frozen, "reason": "score of one model's maps"}
    digest, _ = frames.reader.digest(frames.rgb_of, content=True)
    count = mlflow_store.record_opening(store, digest, facts)
    return f"these test data have now been opened {count} times, in the count of the tracking store"


def _intervals(protocol: Protocol, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Each metric's value with its 95% interval, null where there is none."""
    result = {}
    for metric in protocol.metrics:
        kept = [row for row in rows if row[metric] is not None]
        power = 2 if METRICS[metric].root else 1
        estimate = statistics.average_by_scene(
            [row[metric] for row in kept], [row["pixels"] for row in kept], [row["scene"] for row in kept],
            protocol.average, power, SEED,
        )  # fmt: skip
        finite = math.isfinite(estimate.value)
        result[metric] = {
            "value": estimate.value if finite else None,
            "low": estimate.low if finite else None,
            "high": estimate.high if finite else None,
        }
    return result


def _remarks(frames: FrameList, evaluation: Evaluation, data: DataConfig) -> list[str]:
    """What a reader has to know of the frames: intervals, holes without measurement, another test set."""
    scenes = {scene for scene in frames.scenes if scene is not None}
    notes = []
    if None in frames.scenes:
        notes.append("no intervals: the scenes of the frames are not known")
    elif len(scenes) < statistics.MIN_CLUSTERS:
        notes.append(f"no intervals: {len(scenes)} scenes, {statistics.MIN_CLUSTERS} are needed")
    for name in PROTOCOLS:
        empty = [r["id"] for r in evaluation.rows if r["requested"] == name and not r["pixels"]]
        if empty:
            notes.append(f"{name}: {len(empty)} frames have no pixel to measure ({', '.join(empty[:NAMED])})")
    if data.source != "kitti" and len(frames) != NYU_TEST_FRAMES:
        notes.append(
            f"{len(frames)} frames are not the {NYU_TEST_FRAMES} of NYU Depth v2: no published number compares"
        )
    return notes


def _table(protocols: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Table:
    rows = []
    for name, metrics in protocols.items():
        row: dict[str, Any] = {"protocol": name}
        for metric, e in metrics.items():
            ends = f" [{number(e['low'])}, {number(e['high'])}]" if e["low"] is not None else ""
            row[metric] = f"{number(e['value'])}{ends}"
        rows.append(row)
    note = "In brackets: 95% interval, resampled by scene. The notes say which rows carry a protocol's name rightfully."
    return Table("score", "Every protocol on the same maps", pd.DataFrame(rows).fillna("-"), note,
                 {"rmse": "m", "sq_rel": "m"})  # fmt: skip


def _fall(
    goal: waterfall.Target,
    start: Protocol,
    path: Sequence[tuple[str, Protocol]],
    evaluation: Evaluation,
    source: Source,
    frames: FrameList,
    data: DataConfig,
    args: argparse.Namespace,
) -> waterfall.Waterfall:
    """The waterfall; a step that these data or maps cannot show says why."""
    summary = {name: evaluation.summary[run.name_as_run] for name, run in evaluation.resolved.items()}
    measured = {name: summary[protocol.name] for name, protocol in path if name != waterfall.FRAMES}
    unmeasured = waterfall.unmeasured_truth(goal, truth_readers(frames))
    measured = {name: values for name, values in measured.items() if name not in unmeasured}
    if not goal.published:
        pass  # a protocol says nothing of test-time averaging
    elif source.config is None:
        unmeasured[waterfall.MIRRORED] = "maps alone do not show it; score a second set made with, or without, it"
    elif goal.mirrored is None:
        unmeasured[waterfall.MIRRORED] = f"{goal.who} does not state it"
    elif goal.mirrored != source.config.mirrored:
        _mirror(path, measured, source, frames, start, goal.mirrored)
    if any(name == waterfall.FRAMES for name, _ in path):
        others = _last_654(args, data, frames, source)
        if isinstance(others, str):
            unmeasured[waterfall.FRAMES] = others
        else:
            final = replace(path[-1][1], name="on the other frames")
            result = others[1].evaluate(others[0], [final], mirrored=goal.mirrored)
            measured[waterfall.FRAMES] = result.summary[result.resolved[final.name].name_as_run]
    return waterfall.built(goal, start, summary[start.name], path, measured, unmeasured)


def _mirror(
    path: Sequence[tuple[str, Protocol]],
    measured: dict[str, dict[str, float]],
    source: Source,
    frames: FrameList,
    start: Protocol,
    mirrored: bool,
) -> None:
    """Fill in test-time averaging and the step after it, clipping, by predicting once more."""
    before = [protocol for name, protocol in path if name not in (waterfall.FRAMES, "clipping")]
    last = replace(before[-1] if before else start, name="mirrored")
    after = [replace(protocol, name="mirrored and clipped") for name, protocol in path if name == "clipping"]
    result = source.evaluate(frames, [last, *after], mirrored=mirrored)
    for convention, protocol in ((waterfall.MIRRORED, last), *(("clipping", one) for one in after)):
        measured[convention] = result.summary[result.resolved[protocol.name].name_as_run]


def _last_654(
    args: argparse.Namespace, data: DataConfig, frames: FrameList, source: Source
) -> tuple[FrameList, Source] | str:
    """The last 654 of the labelled frames, and the source of their depth; or why they cannot be had."""
    if data.source != "labeled":
        return "the last 654 of the 1449 labelled frames are known in nyu_depth_v2_labeled.mat alone"
    train = forms()[data.source].open_split(data, "train")
    scene = dict(zip((*train.ids, *frames.ids), (*train.scenes, *frames.scenes), strict=True))
    place = dict(zip((*train.ids, *frames.ids), (*train.rgb_of, *frames.rgb_of), strict=True))
    ids = sorted(place)[-len(frames) :]
    numbers = tuple(place[name] for name in ids)
    others = replace(
        frames, ids=tuple(ids), scenes=tuple(scene[name] for name in ids), rgb_of=numbers, depth_of=numbers
    )
    if source.maps is None:
        return others, source
    try:
        return others, replace(source, maps=open_maps(args.predictions, ids, lambda: place))
    except UserError:
        return f"there are no maps of the last {len(frames)} labelled frames beside those of the test list"


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = cli.parser(
        "analysis.score",
        "Score any model's depth maps, or a checkpoint, under every protocol at once; the opening is recorded.",
        "python -m trainables.data.rooms --set train_scenes=2 --set test_scenes=4 --out data/rooms-few && "
        "python -m analysis.score results/rooms/trials/confirm-0000/checkpoints/best --data data/rooms-few "
        "--against densedepth_repo",
    )
    parser.add_argument(
        "predictions", metavar="PREDICTIONS", type=Path,
        help="folder, .zip or .tar of maps named like the frames, one .npy or .npz of all, or a checkpoint folder",
    )  # fmt: skip
    parser.add_argument("--data", required=True, metavar="ROOT", help="the data set: what data.root is in a study")
    parser.add_argument("--source", choices=FORMS, help="form of the data (found out unless given)")
    parser.add_argument("--depth", choices=("filled", "raw"), default="filled",
                        help="truth of protocols that ask for none, where the data hold both (filled)")  # fmt: skip
    splits = get_args(DataConfig.model_fields["split"].annotation)
    parser.add_argument("--split", choices=splits, default="official", help="test frames (official)")
    kinds = "; ".join(f"{name}: {meaning}" for name, meaning in KINDS.items())
    parser.add_argument("--kind", choices=tuple(KINDS), default="metric", help=f"what maps hold (metric). {kinds}")
    parser.add_argument("--scale", type=float, metavar="N", help="stored numbers to the metre, for example 1000 for mm")
    parser.add_argument("--against", metavar="NAME", help="a published row, or a protocol: where the gap comes from")
    parser.add_argument("--from", dest="begin", choices=tuple(PROTOCOLS), metavar="PROTOCOL",
                        help="protocol that the way to --against begins with (one that fits the maps)")  # fmt: skip
    parser.add_argument("--figure", type=Path, metavar="FILE", help="the waterfall as PNG (against_NAME.png)")
    parser.add_argument(
        "--tracking", metavar="URI", default="sqlite:///mlflow.db", help="store that counts openings (%(default)s)"
    )

    def body(args: argparse.Namespace) -> Any:
        device.keep_freed_memory()  # this process is the command's own, and maps come and go
        section, document = scored(args)
        print("\n".join([section.text(), "", "Notes", *document["notes"]]))
        return document

    return cli.run(parser, body, None if argv is None else list(argv))


if __name__ == "__main__":
    sys.exit(main())
