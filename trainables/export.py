"""`python -m trainables.export CHECKPOINT --onnx`: a checkpoint as an ONNX model, checked by the protocol's score.

The model takes images (N, 3, rows, columns), float32 in 0 to 1, at the training's input size, any N, and gives depth_m
(N, rows, columns), float32 in metres, at twice the network's output: what the reference code calls its prediction. The
mirrored average is inside where the training used it. Input size, target, recipe and the SHA-256 of the weights are in
its metadata. Needs the extra `onnx` (pip install "densedepth-study[onnx]").

Check: both models predict the same frames of the training's own validation split, and are scored by its own protocol.
The largest difference of a pixel alone would say little: one at a depth edge may differ and no score.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.runtime import cli
from trainables.runtime.durable import sha256, write_bytes
from trainables.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

    from trainables.data.frames import FrameList
    from trainables.settings.config import TrialConfig
    from trainables.trained import TrainedModel

TOLERANCE = 1e-4  # of every metric of the protocol, absolute
FRAMES = 50
EXAMPLE = "python -m trainables.export results/rooms/trials/confirm-0000/checkpoints/best --onnx --out depth.onnx"
INSTALL = 'install it with: pip install "densedepth-study[onnx]"'


@dataclass(frozen=True)
class Check:
    """Scores of both models on the same frames. worst: largest difference of a metric; pixel_m: of a pixel (m)."""

    protocol: str
    frames: int
    checkpoint_scores: dict[str, float]
    onnx_scores: dict[str, float]
    worst: float
    pixel_m: float


def export_onnx(model: TrainedModel, weights_sha256: str) -> bytes:
    """The model as ONNX. Raises UserError where the extra `onnx` is not installed."""
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch's exporter writes through it
    except ImportError as error:
        raise UserError(f"--onnx needs {error.name}, which is not here; {INSTALL}") from None
    import torch

    example = torch.zeros(2, 3, *model.config.input)
    answer = _answering(model)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the exporter reports on its own steps
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            answer, (example,), dynamo=True, input_names=["images"], output_names=["depth_m"],
            dynamic_shapes=({0: torch.export.Dim("n", min=1)},), verbose=False,
        )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    facts = {
        "recipe": model.config.recipe, "input": "x".join(map(str, model.config.input)),
        "target": model.config.target.kind, "mirrored": str(model.config.mirrored), "weights_sha256": weights_sha256,
        "units": "m" if model.metric else "arbitrary",
    }  # fmt: skip
    onnx.helper.set_model_props(proto, facts)
    return bytes(proto.SerializeToString())


def _answering(model: TrainedModel) -> torch.nn.Module:
    """Images to metres as one module, on the CPU, in eval mode."""
    from torch import Tensor, nn

    from trainables.evaluation.evaluate import predict_depth_m

    network, config = model.network.cpu().eval(), model.config

    class Answer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Tensor:
            return predict_depth_m(self.network, images, config, config.mirrored)

    return Answer()


def check(model: TrainedModel, path: Path, frames: FrameList) -> Check:
    """Both models' scores on the frames, by the training's own protocol. Raises UserError without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"the check needs onnxruntime, which is not here; {INSTALL}") from None
    import torch

    from trainables.data.loader import EvalLoader
    from trainables.evaluation.evaluate import Scorer, predict_depth_m, resize_depth
    from trainables.evaluation.protocols import PROTOCOLS

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    network, config = model.network.cpu().eval(), model.config
    scorers = [Scorer([PROTOCOLS[config.protocol].reaching(frames.max_depth_m)], frames.truth) for _ in range(2)]
    pixel_m = 0.0
    for ids, images, depths_m, indices in EvalLoader(frames, config, 1):
        inputs = images.float().div_(255.0)
        with torch.inference_mode():
            ours = predict_depth_m(network, inputs, config, config.mirrored)
        theirs = torch.from_numpy(session.run(["depth_m"], {"images": inputs.numpy()})[0])
        pixel_m = max(pixel_m, float((ours - theirs).abs().max()))
        truth = torch.from_numpy(depths_m[0])[None]
        for scorer, depth in zip(scorers, (ours, theirs), strict=True):
            size = (truth.shape[1], truth.shape[2])
            scorer.add(ids, [frames.scenes[i] for i in indices], resize_depth(depth, size), {frames.truth: truth})
    first, second = (next(iter(scorer.finish().summary.values())) for scorer in scorers)
    worst = max(abs(first[name] - second[name]) for name in first)
    return Check(config.protocol, len(frames), first, second, worst, pixel_m)


def _frames(config: TrialConfig, root: Path | None, count: int) -> FrameList:
    """Evenly spaced frames of the training's validation split. Raises UserError where its data are not there."""
    import numpy as np

    from trainables.data.dataset import open_training, prepare_data

    data = config.data if root is None else config.data.model_copy(update={"root": str(root)})
    prepare_data(data)
    validation = open_training(config.model_copy(update={"data": data})).validation
    places = np.unique(np.linspace(0, len(validation) - 1, min(count, len(validation))).round().astype(int))
    return validation.subset([int(place) for place in places])


def _export(args: argparse.Namespace) -> Any:
    from trainables.trained import load_model
    from trainables.training.checkpoint import WEIGHTS

    if args.frames < 1:
        raise UserError("--frames: name at least one frame for the check")
    out: Path = args.out
    if not args.onnx:
        raise UserError("say what to write: --onnx is the one form that there is")
    if out.exists():
        raise UserError(f"{out} is there already; name another file with --out, or remove it")
    model = load_model(args.checkpoint, "cpu")
    frames = _frames(model.config, args.data, args.frames)
    content = export_onnx(model, sha256(args.checkpoint / WEIGHTS))
    scratch = out.with_name(f".{out.name}.unchecked")
    write_bytes(scratch, content)
    try:
        found = check(model, scratch, frames)
        document = {"onnx": str(out), "bytes": len(content), **vars(found), "tolerance": TOLERANCE}
        if not found.worst <= TOLERANCE:
            print(
                f"{out} is not written: on {found.frames} frames its {found.protocol} scores differ by up to "
                f"{found.worst:.2g} from the checkpoint's, more than {TOLERANCE:g}",
                file=sys.stderr,
            )
            return document | {"onnx": None}, 1
        scratch.replace(out)
    finally:
        scratch.unlink(missing_ok=True)
    scores = ", ".join(f"{name} {value:.4f}" for name, value in found.onnx_scores.items())
    print(
        f"{out}: {len(content) / 2**20:.1f} MiB; on {found.frames} validation frames, protocol {found.protocol}: "
        f"{scores}; no score differs from the checkpoint's by more than {found.worst:.1e}, no pixel by more than "
        f"{found.pixel_m:.1e} m"
    )
    return document


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit code 1 where the exported model scores otherwise, and is not written."""
    parser = cli.parser("trainables.export", "Write a checkpoint as an ONNX model, and check its scores.", EXAMPLE)
    parser.add_argument("checkpoint", type=cli.path, metavar="CHECKPOINT", help="a checkpoint folder")
    parser.add_argument("--onnx", action="store_true", help="as an ONNX model")
    parser.add_argument("--out", type=cli.path, default=Path("depth.onnx"), metavar="FILE",
                        help="the file to write (default: depth.onnx)")  # fmt: skip
    parser.add_argument(
        "--data", type=cli.path, metavar="ROOT", help="the training's data, where they lie elsewhere now"
    )
    parser.add_argument("--frames", type=int, default=FRAMES, metavar="N",
                        help=f"validation frames of the check (default: {FRAMES})")  # fmt: skip
    return cli.run(parser, _export, None if argv is None else list(argv))


if __name__ == "__main__":
    sys.exit(main())
