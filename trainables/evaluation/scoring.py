"""Scores of depth maps that any model made, under every protocol at once.

Maps may be metric depth, its inverse, or depth or disparity without a scale, which only the protocols that fit scale
and shift can measure. Frames are measured beside each other on the CPU's cores; where the data hold both kinds of
truth, each protocol gets its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from trainables.data.frames import BadFrame, Depth, FrameList, Reader
from trainables.evaluation.evaluate import Evaluation, Measured, Scorer
from trainables.evaluation.maps import Map
from trainables.evaluation.protocols import KINDS, PROTOCOLS, Kind, Protocol, Truth
from trainables.runtime import device
from trainables.runtime.errors import UserError
from trainables.settings.yamlfile import nearest

FARTHEST_M = 1000.0  # depth of an inverse depth of 0 or below, before a protocol clips it
SHAPE_TOLERANCE = 0.02  # by which a whole frame's proportions may change: inputs are often multiples of 14 or 32
AHEAD = 2  # frames read ahead, per thread
Job = Callable[[], Measured]


def score(
    predictions: Iterable[npt.ArrayLike] | Mapping[str, npt.ArrayLike],
    data: FrameList,
    protocols: Sequence[str] | None = None,
    *,
    kind: Kind = "metric",
) -> Evaluation:
    """Scores of depth maps (rows, columns), one per frame of `data` in its order, or by the frames' ids.

    kind: what the maps hold, one of protocols.KINDS. protocols: by name; None: all that mean anything for that kind.
    A map of another size is resized, so it must show the whole frame. `summary` of the result maps each protocol, by
    its name as run on these data, to its averages; `rows` holds every frame's values. Raises UserError for maps that
    are missing, too many, of other proportions, or not finite, and for an unknown protocol or kind.

    >>> from trainables import load_model, open_training
    >>> frames = open_training(load_model(checkpoint).config).validation
    >>> truth = [frames.read(i).depth_m for i in range(len(frames))]
    >>> evaluation = score([1.1 * depth_m for depth_m in truth], frames, ["densedepth"])
    >>> round(evaluation.summary["densedepth"]["abs_rel"], 3)
    0.1
    """
    if kind not in KINDS:
        raise UserError(f"no kind of map {kind}{nearest(kind, KINDS)}; the kinds are {', '.join(KINDS)}")
    for name in protocols or ():
        if name not in PROTOCOLS:
            raise UserError(f"no protocol {name}{nearest(name, PROTOCOLS)}; the protocols are {', '.join(PROTOCOLS)}")
        if not PROTOCOLS[name].fits(kind):
            raise UserError(f"protocol {name} cannot measure {kind} maps ({KINDS[kind]}): it fits no scale and shift")
    chosen = [PROTOCOLS[name] for name in protocols] if protocols is not None else fitting(kind)
    if isinstance(predictions, Mapping):
        odd = sorted(set(predictions) ^ set(data.ids))
        if odd:
            raise UserError(f"predictions: their ids and the frames' differ, for example in {odd[0]}; give one of each")
        predictions = [predictions[name] for name in data.ids]
    return score_maps((np.asarray(one) for one in predictions), data, chosen, kind=kind)


def fitting(kind: Kind) -> list[Protocol]:
    """The registered protocols under which maps of a kind mean anything."""
    return [protocol for protocol in PROTOCOLS.values() if protocol.fits(kind)]


def score_maps(
    maps: Iterable[npt.NDArray[np.generic]], frames: FrameList, protocols: Sequence[Protocol], *, kind: Kind
) -> Evaluation:
    """Scores of one map per frame, in the frames' order, under protocols as values. Raises UserError."""
    reaching = [protocol.reaching(frames.max_depth_m) for protocol in protocols]
    scorer = Scorer(reaching, frames.truth, disparity=kind == "disparity")
    readers = truth_readers(frames)

    def jobs() -> Iterator[Job]:
        count = 0
        for i, values in enumerate(maps):
            if i >= len(frames):
                raise UserError(f"predictions: more maps than the {len(frames)} frames; give one for each")
            truths = truths_of(frames, readers, i)
            checked = whole_map(values, truths[frames.truth].shape, frames.ids[i])
            yield partial(_measured, scorer, frames, i, checked, truths, kind)
            count += 1
        if count < len(frames):
            raise UserError(f"predictions: {count} maps for {len(frames)} frames; {frames.ids[count]} has none")

    gather(scorer, jobs(), len(frames))
    return scorer.finish()


def gather(scorer: Scorer, jobs: Iterable[Job], most: int) -> None:
    """Run jobs, at most `most`, beside each other on the CPU's cores, each on one; gather what they give in order."""
    pool, workers = device.side_by_side(most, "score")
    waiting: deque[Future[Measured]] = deque()
    with pool:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > AHEAD * workers:
                scorer.gather(waiting.popleft().result())
        for future in waiting:
            scorer.gather(future.result())


def _measured(
    scorer: Scorer, frames: FrameList, i: int, values: Map, truths: Mapping[Truth, Depth], kind: Kind
) -> Measured:
    """What one frame gives; runs beside others."""
    pred = torch.from_numpy(in_metres(values, kind))[None]
    given: dict[Truth, torch.Tensor] = {one: torch.from_numpy(depth_m)[None] for one, depth_m in truths.items()}
    return scorer.measure([frames.ids[i]], [frames.scenes[i]], pred, given)


def truth_readers(frames: FrameList) -> dict[Truth, Reader]:
    """A reader of each kind of truth that the data hold."""
    kinds = frames.reader.kinds()
    if len(kinds) == 1:
        return {frames.truth: frames.reader}
    found: dict[Truth, Reader] = {"filled": kinds[0], "raw": kinds[1]}
    return found | {frames.truth: frames.reader}


def truths_of(frames: FrameList, readers: Mapping[Truth, Reader], i: int) -> dict[Truth, Depth]:
    """A frame's depth in metres of every kind, 0 = hole. The color is not decoded."""
    return {kind: np.ascontiguousarray(reader.depth_m(frames.depth_of[i])) for kind, reader in readers.items()}


def batch_truths(
    frames: FrameList, readers: Mapping[Truth, Reader], indices: Sequence[int], truth_m: torch.Tensor
) -> dict[Truth, torch.Tensor]:
    """Truth (N, H, W) of every kind for a batch whose truth of the list's own kind is given, on its device."""
    found: dict[Truth, torch.Tensor] = {frames.truth: truth_m}
    for kind, reader in readers.items():
        if kind not in found:
            depths = np.stack([reader.depth_m(frames.depth_of[i]) for i in indices])
            found[kind] = torch.from_numpy(depths).to(truth_m.device)
    return found


def in_metres(values: Map, kind: Kind) -> Map:
    """Depth in metres of metric and inverse maps; the others stay as they are."""
    if kind != "inverse":
        return values
    return np.reciprocal(np.maximum(values, np.float32(1 / FARTHEST_M)), dtype=np.float32)


def whole_map(values: npt.NDArray[np.generic], size: tuple[int, ...], name: str) -> Map:
    """A map as float32 (rows, columns). Raises BadFrame unless it is finite and shows a whole frame of a size."""
    if values.ndim != 2 or not values.size or values.dtype.kind not in "fiu":
        raise BadFrame(
            f"the map of {name} holds {values.dtype} of shape {values.shape}, not (rows, columns) of numbers"
        )
    result: Map = np.require(values, np.float32, ["C", "W"])
    if not np.isfinite(result).all():
        raise BadFrame(f"the map of {name} holds NaN or infinity; every pixel needs a number")
    if (fault := wrong_shape(result.shape, size)) is not None:
        raise BadFrame(f"the map of {name} {fault}")
    return result


def wrong_shape(found: tuple[int, ...], size: tuple[int, ...]) -> str | None:
    """Why a map of a shape cannot be a whole frame of a size; None where it can."""
    crops = {p.crop for p in PROTOCOLS.values() if p.crop is not None}
    for rows, columns in (crop.at((size[0], size[1])) for crop in crops):
        cut = (rows.stop - rows.start, columns.stop - columns.start)
        if found == cut != size:
            return f"is {found[0]} x {found[1]}, a protocol's crop of {size[0]} x {size[1]}; write the whole frame"
    if abs(found[0] * size[1] / (found[1] * size[0]) - 1) > SHAPE_TOLERANCE:
        turned = " (turned?)" if found == size[::-1] else ""
        return f"is {found[0]} x {found[1]}{turned}, its frame {size[0]} x {size[1]}; write the whole frame upright"
    return None
