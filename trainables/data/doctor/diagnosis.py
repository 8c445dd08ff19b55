"""`python -m trainables.data.doctor ROOT`: defects of a data set, found before anything trains.

Reads every frame of both splits once, in any published form, keeps a small record of each, and reports: a table, a
picture sheet of the worst (color beside depth, each with its defect), JSON, and the list of ids that `data.exclude` can
leave out. It also writes the manifest that later reads are checked against, or checks the data against the one that is
there. Nothing is trained or scored.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from threadpoolctl import threadpool_limits

from trainables import colors
from trainables.data import manifest as manifests
from trainables.data.dataset import open_training
from trainables.data.doctor.checks import KINDS, WHOLE_SPLIT, Finding, findings
from trainables.data.doctor.pairing import References, depth_edges, picture_edges, reduced, small_depth
from trainables.data.doctor.record import Record, examine, examined
from trainables.data.doctor.units import doubts
from trainables.data.formats import forms
from trainables.data.frames import FrameList
from trainables.data.pairs import Absent
from trainables.data.stand_in import stand_in_at
from trainables.runtime import cli, durable
from trainables.runtime.errors import UserError
from trainables.settings.assignments import parse_assignments
from trainables.settings.config import DataConfig, TrialConfig, as_dict
from trainables.settings.recipe import load_recipe

REFERENCES: Final = 48  # frames that say what fit chance gives
PARALLEL_FROM: Final = 2000  # frames from which starting processes pays
CHUNK: Final = 64
REPORT: Final = "doctor.json"
SHEET: Final = "doctor.png"
LISTED: Final = 20  # rows of the table of the worst
EVERY_S: Final = 30.0  # between two lines of progress
FIRST: Final = 4 * CHUNK  # frames after which the pace is known
ManifestUse = Literal["check", "renew", "ignore"]
SPLITS: Final[tuple[Literal["train", "test"], ...]] = ("train", "test")


@dataclass(frozen=True)
class Opened:
    """A data set as a training would open it. closed: split -> why not; absent: those of them that are not there."""

    data: DataConfig
    splits: dict[str, FrameList]
    closed: dict[str, str]
    absent: frozenset[str]

    @property
    def form(self) -> str:
        """data.source."""
        return self.data.source


def open_splits(root: Path, form: str | None, overrides: Mapping[str, Any]) -> Opened:
    """The splits that can be opened, in the form and with the kind of depth that open most where neither is given.

    overrides: settings of `data` by their path. Raises UserError where no split can be opened.
    """
    if not root.exists():
        raise UserError(f"{root} does not exist; name the data's folder, archive or file")
    if (other := stand_in_at(root)) is not None:
        raise UserError(f"{root} {other}; name the data's folder, archive or file")
    names = [form] if form else sorted(set(forms()) - {"rooms"}, key=lambda name: name == "list")  # list takes any
    kinds = {n: [overrides["data.depth"]] if "data.depth" in overrides else forms()[n].DEPTHS for n in names}
    tried = [_open(name, root, {**overrides, "data.depth": kind}) for name in names for kind in kinds[name]]
    best = max(tried, key=lambda opened: (len(opened.splits), -len(opened.closed.keys() - opened.absent)))
    if best.splits:
        return best
    reasons = [f"{o.form}: {o.closed[s]}" for o in tried for s in o.closed if form or s not in o.absent]
    if not reasons:
        known = "; ".join(f"{name}: {module.MARK}" for name, module in forms().items())
        raise UserError(f"{root} holds none of the known forms of data ({known}); name the form with --form and its "
                        "lists with --set data.lists.train=...")  # fmt: skip
    raise UserError(f"{root} is not a readable data set ({'; '.join(dict.fromkeys(reasons))})")


def _open(form: str, root: Path, overrides: Mapping[str, Any]) -> Opened:
    data = load_recipe("densedepth", {"data.source": form, "data.root": str(root), **overrides})[0].data
    splits: dict[str, FrameList] = {}
    closed: dict[str, str] = {}
    absent = set()
    for split in SPLITS:
        try:
            splits[split] = forms()[form].open_split(data, split)
        except UserError as error:
            closed[split] = str(error)
            absent |= {split} if isinstance(error, Absent) else set()
    return Opened(data, splits, closed, frozenset(absent))


def whole_findings(opened: Opened, seen: Sequence[Record]) -> tuple[list[Finding], dict[str, Any]]:
    """Findings about whole splits (what a training asks of the data, units), and the settings that would mend them."""
    found = []
    for split, reason in opened.closed.items():
        kind = "not_opened" if split not in opened.absent else "no_test" if split == "test" else "no_training"
        found.append(Finding(kind, split, "", reason, 1.0))
    if "train" in opened.splits:
        try:
            open_training(_training(opened.data))
        except UserError as error:
            found.append(Finding("no_training", "train", "", str(error), 1.0))
    data, settings = opened.data, dict[str, Any]()
    stated = data.depth_scale is not None or data.max_depth_m is not None
    for split, frames in opened.splits.items():
        own = [r for r in seen if r.split == split]
        for doubt in doubts(own, frames.reader.steps(), data.reach_m, stated=stated):
            found.append(Finding(doubt.kind, split, "", doubt.detail, 1.0))
            settings |= doubt.settings
    return found, settings


def _training(data: DataConfig) -> TrialConfig:
    """A training on the data: that of the paper, which leaves bad frames out; each has a finding of its own."""
    (config,) = load_recipe("densedepth")
    return config.model_copy(update={"data": data.model_copy(update={"on_bad_frame": "skip"})})


def data_block(opened: Opened, better: Mapping[str, Any], exclude: Sequence[str]) -> str:
    """Settings of `data`, as YAML to paste into a study or a recipe: those that are not the recipe's own."""
    plain = as_dict(load_recipe("densedepth")[0].data)
    chosen = as_dict(opened.data) | dict(better) | ({"exclude": list(exclude)} if exclude else {})
    said = {key: value for key, value in chosen.items() if key in ("source", "root") or value != plain[key]}
    return yaml.safe_dump({"data": said}, sort_keys=False, allow_unicode=True, width=1000)


def references(frames: FrameList) -> References | None:
    """Evenly spaced frames that have depth, with their scenes; None where fewer than two can be read."""
    pictures, depths, scenes = [], [], []
    for i in np.unique(np.linspace(0, len(frames) - 1, REFERENCES).astype(int)).tolist():
        try:
            frame = frames.read(i)
        except UserError:
            continue  # reported when its turn comes
        if (frame.depth_m > 0).mean() > 0.2:
            pictures.append(picture_edges(reduced(frame.rgb)))
            depths.append(depth_edges(small_depth(frame.depth_m)))
            scenes.append(frames.scenes[i])
    return References(pictures, depths, scenes) if len(pictures) > 1 else None


def records(splits: dict[str, FrameList], step: Callable[[], None], workers: int) -> list[Record]:
    """The record of every frame, in the order of the lists."""
    result = []
    for split, frames in splits.items():
        chance = references(frames if len(frames) >= REFERENCES or "train" not in splits else splits["train"])
        parallel = workers > 1 and len(frames) >= PARALLEL_FROM
        whole = range(len(frames))
        found = _in_processes(frames, split, chance, workers) if parallel else examined(frames, whole, split, chance)
        for record in found:
            result.append(record)
            step()
    return result


_job: tuple[FrameList, str, References | None] | None = None  # of a worker process


def _start(frames: FrameList, split: str, chance: References | None) -> None:
    global _job
    torch.set_num_threads(1)  # a process per core
    threadpool_limits(1, user_api="blas")
    _job = (frames, split, chance)


def _chunk(start: int) -> list[Record]:
    assert _job is not None
    frames, split, chance = _job
    return [examine(frames, i, split, chance) for i in range(start, min(start + CHUNK, len(frames)))]


def _in_processes(frames: FrameList, split: str, chance: References | None, workers: int) -> Iterator[Record]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(frames, split, chance)) as pool:
        for found in pool.map(_chunk, range(0, len(frames), CHUNK)):
            yield from found


class Progress:
    """A bar on a terminal's standard error; elsewhere a line per tenth and at least every EVERY_S seconds."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.begun = self.shown = time.monotonic()

    def step(self) -> None:
        self.done += 1
        now, terminal = time.monotonic(), sys.stderr.isatty()
        tenth = self.done * 10 // self.total > (self.done - 1) * 10 // self.total
        first = self.done == min(FIRST, self.total)
        due = now - self.shown > (0.2 if terminal else EVERY_S) or (tenth and not terminal)
        if not (due or first or self.done == self.total):
            return
        self.shown = now
        pace = self.done / max(now - self.begun, 1e-9)
        if first and self.total > PARALLEL_FROM:
            print(
                f"{self.what}: {self.total} at {pace:.0f} a second, about {_time(self.total / pace)}", file=sys.stderr
            )
        bar = "#" * (self.done * 30 // self.total)
        left = f"{_time((self.total - self.done) / pace)} left"
        text = f"{self.what} [{bar:<30}] {self.done}/{self.total}, "
        text += left if self.done < self.total else f"{pace:.0f} a second"
        print(
            f"\r{text}" if terminal else text,
            end="\n" if self.done == self.total or not terminal else "",
            file=sys.stderr,
            flush=True,
        )


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def check_manifest(splits: dict[str, FrameList], use: ManifestUse) -> tuple[dict[str, Any], list[Finding]]:
    """Write the manifest where there is none, else compare the data with it; its summary, and what has changed."""
    lists = list(splits.values())
    path = manifests.manifest_path(lists[0].reader)
    if use == "ignore":
        return {"path": str(path), "sha256": None, "state": "left alone"}, []
    known = None if use == "renew" else manifests.load(path)
    if known is not None:
        bar = Progress("manifest", max(len(known["files"]), 1))
        changed = manifests.changed_files(path, known, bar.step)
        found = [Finding("changed", "", name, f"{name} {what}", 1.0) for name, what in changed]
        return {"path": str(path), "sha256": known["sha256"], "state": "changed" if found else "as written"}, found
    bar = Progress("manifest", manifests.steps(lists))
    made = manifests.build(lists, bar.step)
    state = "written"
    try:
        durable.write_json(path, made)
    except OSError as error:
        state = f"not written ({error.strerror}): later reads are not checked"
    return {"path": str(path), "sha256": made["sha256"], "state": state}, []


def diagnose(
    root: Path, form: str | None, overrides: dict[str, Any], use: ManifestUse, workers: int, out: Path
) -> dict[str, Any]:
    """The whole examination; writes doctor.json and doctor.png into `out` and returns the JSON document."""
    _check_outputs(out)
    opened = open_splits(root, form, overrides)
    splits = opened.splits
    bar = Progress("frames", sum(len(frames) for frames in splits.values()))
    seen = records(splits, bar.step, workers)
    manifest, changed = check_manifest(splits, use)
    whole, better = whole_findings(opened, seen)
    found = changed + findings(seen, whole)
    harmful = [f for f in found if f.level == "harm"]
    exclude = sorted({f.id for f in harmful if f.split == "train" and f.kind not in WHOLE_SPLIT})
    document = {
        "root": str(root), "form": opened.form, "depth": opened.data.depth,
        "closed": [f"{opened.form}, {split}: {reason}" for split, reason in opened.closed.items()],
        "harmful": bool(harmful),
        "splits": {split: _summary([r for r in seen if r.split == split]) for split in splits},
        "findings": {k: [_row(f) for f in found if f.kind == k] for k in KINDS if any(f.kind == k for f in found)},
        "exclude": exclude, "data": data_block(opened, better, exclude), "manifest": manifest,
        "sheet": str(out / SHEET),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    durable.write_json(out / REPORT, document)
    draw_sheet(out / SHEET, splits, seen, found)
    return document


def _check_outputs(out: Path) -> None:
    """Raise UserError where the outputs could not be written, or would replace files that no doctor wrote."""
    durable.check_folder(out, REPORT, SHEET)
    for name in (REPORT, SHEET):
        try:
            ours = {"root", "form", "findings"} <= json.loads((out / REPORT).read_text()).keys()
        except (OSError, ValueError, AttributeError):
            ours = False
        if (out / name).exists() and not ours:
            raise UserError(f"{out / name} is not a doctor's and would be replaced; move it, or choose another --out")


def _row(finding: Finding) -> dict[str, Any]:
    return {"id": finding.id, "split": finding.split, "detail": finding.detail}


def _summary(seen: Sequence[Record]) -> dict[str, Any]:
    read = [r for r in seen if r.error is None]
    sizes = Counter(f"{r.size[1]}x{r.size[0]}" for r in read)
    judged = sum(r.evidence is not None for r in read)
    known = [r for r in read if r.holes < 1]
    return {
        "frames": len(seen), "readable": len(read), "scenes": len({r.scene for r in seen if r.scene}),
        "scene_unknown": sum(r.scene is None for r in seen), "sizes": dict(sizes.most_common(5)),
        "depth_bits": dict(Counter(str(r.bits or "float") for r in known)),
        "holes_share": float(np.mean([r.holes for r in read])) if read else None,
        "nearest_m": min((r.nearest_m for r in known), default=None),
        "farthest_m": max((r.farthest_m for r in known), default=None), "pairs_judged": judged,
    }  # fmt: skip


def table(document: dict[str, Any]) -> str:
    """The result as plain text."""
    lines = [f"{document['root']} ({document['form']})", *(f"  not opened: {reason}" for reason in document["closed"])]
    for split, s in document["splits"].items():
        sizes = ", ".join(f"{count} of {size}" for size, count in s["sizes"].items())
        places = f"{s['scenes']} scenes" + (f", unknown for {s['scene_unknown']} frames" if s["scene_unknown"] else "")
        lines.append(f"  {split:<6}{s['frames']:>7} frames, {s['readable']} readable; {places}; {sizes}")
        if s["readable"]:
            bits = ", ".join(f"{count} x {form}" for form, count in s["depth_bits"].items())
            reach = "no depth" if s["nearest_m"] is None else f"{s['nearest_m']:.2f} to {s['farthest_m']:.2f} m"
            lines.append(
                f"        depth {reach}, bits: {bits}, {s['holes_share']:.1%} holes; {s['pairs_judged']} pairs judged"
            )
    lines.append(f"  manifest {document['manifest']['path']}: {document['manifest']['state']}")
    lines.append(f"  {'finding':<26}{'frames':>7}  level    what it means")
    for kind, rows in document["findings"].items():
        lines.append(f"  {kind:<26}{len(rows):>7}  {KINDS[kind][0]:<8} {KINDS[kind][1]}")
    rows = [(kind, row) for kind, found in document["findings"].items() for row in found if KINDS[kind][0] != "note"]
    lines += [f"    {kind}: {row['id'] or row['split']}: {row['detail']}" for kind, row in rows[:LISTED]]
    if len(rows) > LISTED:
        lines.append(f"    ... and {len(rows) - LISTED} more in doctor.json")
    lines.append(
        "  harmful to a training; repair the data, set what is said below, or exclude the named frames"
        if document["harmful"]
        else "  healthy"
    )
    lines += [
        "  settings of these data, for a study or a recipe:",
        *(f"    {x}" for x in document["data"].splitlines()),
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command; exit code 1 when training would be harmed."""
    parser = cli.parser(
        "trainables.data.doctor",
        "What is wrong with a data set, before anything trains.\n"
        "Exit code 0: healthy; 1: a training would be harmed; 2: the command or the data cannot be used.",
        "python -m trainables.data.rooms --set train_scenes=20 --set test_scenes=4 --out data/rooms-small && "
        "python -m trainables.data.doctor data/rooms-small --out results/doctor",
    )
    parser.add_argument("root", type=cli.path, metavar="ROOT", help="folder, zip archive or .mat file of the data")
    parser.add_argument(
        "--out", type=cli.path, help="folder for doctor.json and doctor.png (results/doctor-NAME unless given)"
    )
    parser.add_argument(
        "--form", choices=sorted(set(forms()) - {"rooms"}), help="the published form (found out unless given)"
    )
    parser.add_argument("--split", choices=["official", "80_10_10_by_frame", "80_10_10_by_scene"], default="official")
    parser.add_argument("--depth", choices=["filled", "raw"], help="kind of truth (found out unless given)")
    parser.add_argument("--set", metavar="PATH=VALUE", action="append", default=[], dest="assignments",
                        help="a setting of the data, as a training takes it: --set data.depth_scale=256")  # fmt: skip
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--renew", action="store_const", const="renew", dest="use", default="check",
                       help="write the manifest anew: the data was changed on purpose")  # fmt: skip
    group.add_argument("--no-manifest", action="store_const", const="ignore", dest="use",
                       help="neither write nor check the manifest in the data's folder")  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (large sets only)")

    def body(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
        out = args.out or Path("results") / f"doctor-{args.root.resolve().name}"
        chosen = {"data.split": args.split} | ({"data.depth": args.depth} if args.depth else {})
        for path, value in parse_assignments(args.assignments).items():
            if not path.startswith("data.") or path in ("data.source", "data.root"):
                raise UserError(
                    f"--set {path}: the doctor takes settings of data, but its form by --form and ROOT alone"
                )
            chosen[path] = value
        document = diagnose(args.root, args.form, chosen, args.use, args.workers, out)
        print(table(document))
        return document, int(document["harmful"])

    return cli.run(parser, body, argv)


MOST, OF_ONE_KIND, ACROSS = 24, 4, 3
TILE_PX: Final = (120, 160)
CAPTION_PX: Final = 30


def draw_sheet(path: Path, splits: dict[str, FrameList], records: Sequence[Record], found: Sequence[Finding]) -> None:
    """Write a PNG: up to OF_ONE_KIND frames of every kind, then the rest, worst first."""
    place = {(r.split, r.id): r.number for r in records if r.error is None}
    drawable = [f for f in found if (f.split, f.id) in place and KINDS[f.kind][0] != "note"]
    count: Counter[str] = Counter()
    first: list[Finding] = []
    later: list[Finding] = []
    for finding in drawable:
        count[finding.kind] += 1
        (first if count[finding.kind] <= OF_ONE_KIND else later).append(finding)
    chosen = (first + later)[:MOST]
    rows, columns = TILE_PX
    high, wide = rows + CAPTION_PX, 2 * columns + 8
    lines = max(1, -(-len(chosen) // ACROSS))
    sheet = Image.new("RGB", (wide * ACROSS, high * lines + CAPTION_PX), "white")
    pen = ImageDraw.Draw(sheet)
    title = f"{len(chosen)} of {len(drawable)} findings; colour, depth (dark near, bright far, per frame; grey: hole)"
    pen.text((4, 8), title if drawable else "nothing wrong to show", fill="black")
    for k, finding in enumerate(chosen):
        x, y = k % ACROSS * wide, CAPTION_PX + k // ACROSS * high
        try:
            frame = splits[finding.split].read(place[finding.split, finding.id])
        except UserError as error:
            pen.text((x + 2, y), str(error)[:50], fill="black")
            continue
        size = (columns, rows)
        sheet.paste(Image.fromarray(frame.rgb).resize(size), (x, y))
        sheet.paste(coloured(frame.depth_m).resize(size, Image.Resampling.NEAREST), (x + columns, y))
        pen.text((x + 2, y + rows), f"{finding.kind}: {finding.id[-44:]}", fill="black")
        pen.text((x + 2, y + rows + 13), finding.detail[:54], fill="black")
    sheet.save(path)


def coloured(depth_m: NDArray[np.float32]) -> Image.Image:
    """Depth from its nearest to its farthest value in a colour-blind-safe scale."""
    known = depth_m > 0
    low, high = (float(depth_m[known].min()), float(depth_m[known].max())) if known.any() else (0.0, 1.0)
    return Image.fromarray(colors.depth_rgb(depth_m, low, high))
