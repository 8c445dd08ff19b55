"""Checks of the doctor: findings over the records of all frames, each kind with its meaning for a training."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from trainables.data.doctor import coarse, pairing
from trainables.data.doctor.pairing import Company, Evidence
from trainables.data.doctor.record import HASH_SIDE, Record

Level = Literal["harm", "warning", "note"]
NEAR_BITS: Final = 20  # hashes that differ in no more, and thumbnails by no more than NEAR_LEVELS: the same picture
NEAR_LEVELS: Final = 6.0
TOO_FEW_KNOWN, MANY_HOLES = 0.01, 0.9  # shares of pixels
SATURATED_SHARE: Final = 0.3  # of the known pixels
ONE_SIDED: Final = 2.0  # how much further off a neighbour may be for the first and last frame of a scene
FLAT_LEVELS: Final = 1.0  # standard deviation of a picture's levels under which it shows nothing
KINDS: Final[dict[str, tuple[Level, str]]] = {  # kind of finding -> level and what it means
    "not_opened": ("harm", "a split is there and cannot be opened"),
    "no_training": ("harm", "no training starts from it"),
    "unit": ("harm", "the unit of the stored depth is another one, by all likelihood"),
    "stretched": ("harm", "depth is stretched to each frame's own range"),
    "hole_value": ("harm", "a value for holes is read as a depth"),
    "inverted": ("harm", "what is near is stored as far"),
    "unreadable": ("harm", "missing, damaged, of the wrong form, or colour and depth of different size"),
    "changed": ("harm", "not the file that the manifest was made of"),
    "all_holes": ("harm", "all or nearly all of the depth is holes"),
    "saturated": ("harm", "a large part of the depth is the largest value"),
    "beyond_range": ("harm", "depth beyond what the form can hold"),
    "constant_depth": ("harm", "every known pixel has the same depth"),
    "constant_colour": ("harm", "the picture shows nothing"),
    "wrong_pair": ("harm", "colour and depth do not belong together"),
    "flipped": ("harm", "the depth is mirrored against the picture"),
    "shifted": ("harm", "the depth lies off the picture"),
    "bit_depth": ("harm", "depth is stored with another unit than the rest of its split"),
    "same_picture_other_depth": ("harm", "one picture is listed with two different depths"),
    "leak": ("harm", "a test picture is (nearly) in the training split too"),
    "scene_in_two_splits": ("harm", "training and test share a place"),
    "no_test": ("warning", "there is no test split to score on"),
    "coarse_truth": ("warning", "test depth has 8 bits: the score cannot be finer than its steps"),
    "many_holes": ("warning", "most of the depth is holes"),
    "other_size": ("warning", "not the size of most frames of the split"),
    "duplicate": ("warning", "the same picture and depth twice in one split"),
    "white_border": ("note", "the picture has a white frame, as NYU has"),
}
WHOLE_SPLIT: Final = (
    "not_opened",
    "no_training",
    "unit",
    "stretched",
    "hole_value",
    "inverted",
    "no_test",
    "coarse_truth",
)
MISREAD: Final = {"unit", "stretched", "hole_value"}  # findings that explain these of every frame:
EXPLAINED: Final = {"beyond_range", "saturated", "constant_depth"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with one frame; `weight` sorts the worst to the front within a kind."""

    kind: str
    split: str
    id: str
    detail: str
    weight: float

    @property
    def level(self) -> Level:
        return KINDS[self.kind][0]


def findings(records: Sequence[Record], whole: Sequence[Finding] = ()) -> list[Finding]:
    """Everything that is wrong, the most harmful first. whole: what is known of whole splits."""
    misread = {finding.split for finding in whole if finding.kind in MISREAD}
    found = [f for r in records for f in _of_one(r) if not (r.split in misread and f.kind in EXPLAINED)]
    found += whole
    readable = [record for record in records if record.error is None]
    for split in sorted({record.split for record in readable}):
        own = [record for record in readable if record.split == split]
        found += _against_the_rest(own, split)
        found += _copies(own)
        found += _pairs(own)
    found += _across([r for r in readable if r.split == "train"], [r for r in readable if r.split == "test"])
    order = list(KINDS)
    return sorted(found, key=lambda f: (order.index(f.kind), -f.weight, f.id))


def _of_one(r: Record) -> Iterable[Finding]:
    if r.error is not None:
        yield Finding("unreadable", r.split, r.id, r.error, 1.0)
        return
    if r.holes >= 1 - TOO_FEW_KNOWN:
        yield Finding("all_holes", r.split, r.id, f"{r.holes:.1%} holes", r.holes)
        return
    if r.holes > MANY_HOLES:
        yield Finding("many_holes", r.split, r.id, f"{r.holes:.1%} holes", r.holes)
    if r.farthest_m > r.max_depth_m * 1.001:
        yield Finding("beyond_range", r.split, r.id, f"up to {r.farthest_m:.1f} m", r.farthest_m)
    elif r.nearest_m == r.farthest_m:
        yield Finding("constant_depth", r.split, r.id, f"{r.nearest_m:.2f} m everywhere", 1.0)
    elif r.saturated > SATURATED_SHARE:
        yield Finding("saturated", r.split, r.id, f"{r.saturated:.0%} of the known pixels at the limit", r.saturated)
    if r.levels < FLAT_LEVELS:
        yield Finding("constant_colour", r.split, r.id, f"levels vary by {r.levels:.2f}", 1.0)
    if r.border_px:
        yield Finding("white_border", r.split, r.id, f"{r.border_px} px", r.border_px)


def _against_the_rest(records: Sequence[Record], split: str) -> Iterable[Finding]:
    if not records:
        return
    size, _ = Counter(r.size for r in records).most_common(1)[0]
    deep = Counter(r.bits for r in records if r.holes < 1).most_common(1)
    bits = deep[0][0] if deep else 0
    for r in records:
        if r.size != size:
            yield Finding("other_size", split, r.id, f"{r.size[1]}x{r.size[0]}, most are {size[1]}x{size[0]}", 1.0)
        if r.holes < 1 and r.bits != bits:
            yield Finding("bit_depth", split, r.id, f"{_form(r.bits)}, most are {_form(bits)}", 1.0)
    if split == "test" and bits == 8:
        yield Finding("coarse_truth", split, records[0].id, f"all {len(records)} test depths", 1.0)


def _form(bits: int) -> str:
    return f"{bits}-bit" if bits else "floating point"


def _copies(records: Sequence[Record]) -> Iterable[Finding]:
    pictures = defaultdict(list)
    for r in records:
        pictures[r.rgb_digest].append(r)
    for same in pictures.values():
        for r in same[1:]:
            if r.depth_digest == same[0].depth_digest:
                yield Finding("duplicate", r.split, r.id, f"same as {same[0].id}", 1.0)
            else:
                yield Finding("same_picture_other_depth", r.split, r.id, f"also listed as {same[0].id}", 1.0)


def _pairs(records: Sequence[Record]) -> Iterable[Finding]:
    """Pairs that do not belong together: by their edges and neighbours, or because another picture has that depth."""
    broken = {r.id for r in records if r.holes >= 1 - TOO_FEW_KNOWN or r.saturated > SATURATED_SHARE}
    judged = {r.id for r in records if r.evidence is not None and r.id not in broken}
    known = company(records)
    accused = set()
    for r in records:
        if r.id not in judged or r.evidence is None:
            continue
        kind = pairing.verdict(r.evidence, known.get(r.number))
        if kind is not None:
            accused.add(r.id)
            yield Finding(kind, r.split, r.id, _reason(kind, r.evidence, known.get(r.number)), -r.evidence.z)
    depths = defaultdict(list)
    for r in records:
        if r.id not in broken and r.nearest_m < r.farthest_m:
            depths[r.depth_digest].append(r)
    for same in depths.values():
        looks = [r for r in same if _bits_apart(r.hash, same[0].hash) > 4 * NEAR_BITS]
        if not looks:
            continue
        fits = {r.id: pairing.belonging(r.evidence, known.get(r.number)) if r.evidence else 0.0 for r in same}
        owner = max(fits, key=fits.__getitem__)
        for r in same:
            if r.id != owner and r.id not in accused:
                yield Finding("wrong_pair", r.split, r.id, f"its depth is that of {owner}", -fits[r.id])


def _reason(kind: str, evidence: Evidence, others: Company | None) -> str:
    if kind == "flipped":
        return f"fit {evidence.fit:.2f}, mirrored {evidence.flip[1]} {evidence.flip[0]:.2f}"
    if kind == "shifted":
        fit, dx, dy = evidence.shift
        return f"fit {evidence.fit:.2f}, moved by {dx / pairing.COLUMNS:+.0%} / {dy / pairing.ROWS:+.0%} {fit:.2f}"
    near = "no neighbours known" if others is None else f"{others.unlike:.1f} times as far from its neighbours as usual"
    return f"fit {evidence.fit:.2f} is {evidence.z:+.1f} sd from chance; {near}"


def company(records: Sequence[Record]) -> dict[int, Company]:
    """Frame number -> what the rest of its scene says about it.

    Neighbours are the frames before and after in the scene by the number in their names. Scenes of fewer than three
    readable frames are left out.
    """
    scenes = defaultdict(list)
    for r in records:
        if r.scene is not None and r.coarse is not None:
            scenes[r.scene].append(r)
    result: dict[int, Company] = {}
    for members in scenes.values():
        if len(members) < 3:
            continue
        members.sort(key=lambda r: in_order(r.id))
        nearest = [_to_nearest(members, place) for place in range(len(members))]
        usual = max(float(np.median(nearest)), 0.01)
        judged = [r.evidence for r in members if r.evidence is not None]
        scene_z = float(np.median([e.z for e in judged] or [0.0]))
        usual_gain = float(np.median([pairing.shift_gain(e) for e in judged] or [0.0]))
        usuals = [usual * (ONE_SIDED if place in (0, len(members) - 1) else 1) for place in range(len(members))]
        result |= {
            r.number: Company(d / there, scene_z, usual_gain, _along(members, place))
            for place, (r, d, there) in enumerate(zip(members, nearest, usuals, strict=True))
            if np.isfinite(d / there)
        }
    return result


def in_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts names by the numbers in them."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _witnesses(members: Sequence[Record], place: int, fewest: int) -> list[Record]:
    """The frames around one that fit well where there are that many, else all around it."""
    reach = pairing.NEIGHBOURS
    around = [r for r in members[max(0, place - reach) : place + reach + 1] if r is not members[place]]
    trusted = [r for r in around if r.evidence is not None and r.evidence.z >= pairing.TRUSTED_Z]
    return trusted if len(trusted) >= fewest else around


def _to_nearest(members: Sequence[Record], place: int) -> float:
    """Distance of a frame's coarse map to the nearest one around it."""
    own = members[place]
    maps = [r.coarse for r in _witnesses(members, place, 2) if r.coarse is not None]
    return min((coarse.distance(own.coarse, m) for m in maps), default=np.inf) if own.coarse is not None else np.inf


def _along(members: Sequence[Record], place: int) -> float | None:
    """Whether a frame that may be shifted sideways lies off for its neighbours, too; None for all others."""
    own = members[place]
    if own.evidence is None or not own.evidence.shift[1] or pairing.shift_gain(own.evidence) <= pairing.LEAST_GAIN:
        return None
    if own.grey is None or own.coarse is None:
        return None
    gains = [
        coarse.along((own.grey, own.coarse), (r.grey, r.coarse), own.evidence.shift[1])
        for r in _witnesses(members, place, 1)
        if r.grey is not None and r.coarse is not None
    ]
    return float(np.mean(gains)) if gains else None


def _across(train: Sequence[Record], test: Sequence[Record]) -> Iterable[Finding]:
    """Leaks: places in both splits, and test pictures that training holds exactly or nearly."""
    for scene in sorted({r.scene for r in train if r.scene} & {r.scene for r in test if r.scene}):
        both = [sum(r.scene == scene for r in split) for split in (train, test)]
        first = next(r.id for r in test if r.scene == scene)
        yield Finding(
            "scene_in_two_splits", "test", first, f"{scene}: {both[0]} train and {both[1]} test frames", both[1]
        )
    exact = {r.rgb_digest: r for r in train}
    codes, thumbnails = _stack([r.hash for r in train]), _stack([r.thumbnail for r in train])
    for r in test:
        if r.rgb_digest in exact:
            yield Finding("leak", "test", r.id, f"is {exact[r.rgb_digest].id}", 2.0)
            continue
        if not train or r.levels < FLAT_LEVELS:
            continue
        apart = np.bitwise_count(codes ^ np.frombuffer(r.hash, np.uint8)).sum(1)
        for k in np.flatnonzero(apart <= NEAR_BITS).tolist():
            own, other = np.frombuffer(r.thumbnail, np.uint8).astype(float), thumbnails[k].astype(float)
            if np.abs(own - own.mean() - (other - other.mean())).mean() <= NEAR_LEVELS:
                yield Finding(
                    "leak", "test", r.id, f"is nearly {train[k].id} ({apart[k]} of {HASH_SIDE**2} bits differ)", 1.0
                )
                break


def _stack(codes: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(codes), np.uint8).reshape(len(codes), -1) if codes else np.zeros((0, 1), np.uint8)


def _bits_apart(a: bytes, b: bytes) -> int:
    return int(np.bitwise_count(np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).sum())
