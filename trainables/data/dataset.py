"""Training data: the train list, checked, split by scene, thinned and paired by its settings.

The test split is opened by `open_test` alone (DESIGN.md, house rule 8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from trainables.data.formats import forms
from trainables.data.formats import rooms as rooms_form
from trainables.data.frames import BadFrame, FrameList
from trainables.data.manifest import guarded
from trainables.data.split import evenly, held_out, mispaired, thinned
from trainables.runtime.errors import UserError
from trainables.settings.config import DataConfig, TrialConfig
from trainables.settings.yamlfile import nearest

THOROUGH_FRAMES: Final = 4000  # lists up to this length have all headers read before training, longer ones a sample
_SAMPLED: Final = 500


@dataclass(frozen=True)
class TrainingData:
    """`skipped` holds (id, reason) of the bad frames that `data.on_bad_frame: skip` left out."""

    train: FrameList
    validation: FrameList
    fingerprint: str  # of the whole training list, before any choice
    skipped: tuple[tuple[str, str], ...]


def open_training(config: TrialConfig) -> TrainingData:
    """Training and validation frames. The validation frames depend on the list and `data.validation` alone: trainings
    that differ in subset, exclude or pairing are judged on the same ones.

    Raises UserError for settings that leave nothing, and for the first bad frame unless those are to be skipped.
    """
    data = config.data
    frames = _open(data, "train")
    digest, _ = frames.reader.digest(frames.rgb_of)
    bad = _bad_frames(frames, data.on_bad_frame)
    skipped = tuple((frames.ids[i], reason) for i, reason in bad.items())
    known = set(frames.ids)
    for name in data.exclude:
        if name not in known:
            close = nearest(name, frames.ids)
            raise UserError(f"data.exclude: {name} is not a frame of the training list{close}; remove it")
    if data.overfit is not None:
        name = frames.ids[0] if data.overfit == "first" else data.overfit
        if name not in known:
            raise UserError(
                f"data.overfit: {name} is not a frame of the training list{nearest(name, frames.ids)}; name one"
            )
        one = frames.subset([frames.ids.index(name)])
        return TrainingData(one, one, digest, skipped)
    chosen = data.validation
    held = held_out(frames.scenes, chosen.by, chosen.share, chosen.seed, "data.validation")
    train = thinned([i for i in range(len(frames)) if i not in held], data.subset, data.subset_seed)
    excluded = set(data.exclude)
    train = [i for i in train if i not in bad and frames.ids[i] not in excluded]
    validation = evenly([i for i in sorted(held) if i not in bad], data.validation.max_frames)
    if not train or not validation:
        raise UserError(f"data.{'exclude or data.subset' if not train else 'validation'} leaves no frame; keep some")
    _refuse_crop(frames.subset(train), data)
    matched = frames.subset(train)
    paired = matched if data.pairing == "matched" else mispaired(matched, config.seed)
    return TrainingData(paired, frames.subset(validation), digest, skipped)


def open_test(data: DataConfig) -> FrameList:
    """The test split. Only analysis/final_evaluation.py scores it; raises UserError for its first bad frame."""
    frames = _open(data, "test")
    _bad_frames(frames, "stop")
    return frames


def fingerprint(data: DataConfig) -> dict[str, str | int]:
    """SHA-256 of each split and what each is made of, with the numbers of frames.

    The test split's is of its content: openings are counted by it, and packing must not make it another test set.
    """
    result: dict[str, str | int] = {}
    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    for split in splits:
        frames = _open(data, split)
        result[split], result[f"{split}_of"] = frames.reader.digest(frames.rgb_of, content=split == "test")
        result[f"{split}_frames"] = len(frames)
    result["frames"] = sum(int(result[f"{split}_frames"]) for split in splits)
    return result


def prepare_data(data: DataConfig) -> DataConfig:
    """Render `rooms` where they are not there yet; returns the settings with `root` as an absolute path.

    Workers of a cluster run in folders of their own: give them the returned settings.
    """
    if data.source == "rooms":
        return data.model_copy(update={"root": str(rooms_form.write(data))})
    return data


def check_rendered(data: DataConfig) -> None:
    """Raise UserError where opening the data would render them first: who reads a study makes nothing anew."""
    if data.source == "rooms" and not (folder := rooms_form.folder_of(data)).exists():
        raise UserError(f"{folder}: these rooms are not here; run this in the folder in which the study ran")


def check_data(config: TrialConfig) -> None:
    """Raise UserError for data that a training could not be given, as far as that shows without rendering `rooms`."""
    data = config.data
    if data.source == "rooms" and not rooms_form.folder_of(data).exists():
        rooms_form.check(data)
        return
    open_training(config)
    _open(data, "test")


def _open(data: DataConfig, split: Literal["train", "test"]) -> FrameList:
    return guarded(forms()[data.source].open_split(data, split))  # reads are checked against the doctor's manifest


def _refuse_crop(frames: FrameList, data: DataConfig) -> None:
    """Refuse a border that leaves nothing of the first frame that can be read."""
    if not data.crop_border_px:
        return
    from trainables.data.samples import cropped  # imports torch, which a list of frames does not need

    for i in range(len(frames)):
        try:
            rgb = frames.read(i).rgb
        except BadFrame:
            if data.on_bad_frame == "stop":
                raise
            continue
        cropped(rgb, data.crop_border_px)
        return


def _bad_frames(frames: FrameList, on_bad_frame: Literal["stop", "skip"]) -> dict[int, str]:
    """Position and reason of what shows without decoding. Raises the first BadFrame where training must stop."""
    sampled = set(evenly(range(len(frames)), None if len(frames) <= THOROUGH_FRAMES else _SAMPLED))
    bad: dict[int, str] = {}
    for i, number in enumerate(frames.rgb_of):
        try:
            frames.reader.check(number, thorough=i in sampled)
        except BadFrame as error:
            if on_bad_frame == "stop":
                raise
            bad[i] = str(error)
    if len(bad) == len(frames):
        raise UserError(f"every frame is bad, the first because {bad[0]}")
    return bad
