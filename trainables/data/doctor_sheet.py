"""Picture sheet of the doctor: the worst frames, color beside depth, each with its defect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trainables.data.doctor_checks import KINDS, Finding
from trainables.data.doctor_record import Record
from trainables.data.frames import BadFrame, FrameList

MOST, OF_ONE_KIND, ACROSS = 24, 4, 3
TILE_PX: Final = (120, 160)
CAPTION_PX: Final = 30
HOLE: Final = (128, 128, 128)


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
        except BadFrame as error:
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
    scaled = np.clip((depth_m - low) / max(high - low, 1e-6), 0, 1)
    colours = (matplotlib.colormaps["viridis"](scaled)[..., :3] * 255).astype(np.uint8)
    colours[~known] = HOLE
    return Image.fromarray(colours)
