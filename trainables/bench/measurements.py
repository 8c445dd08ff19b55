"""`python -m trainables.bench`: the speed of a training beside the plain loop a user would otherwise run.

Both run in turn, the plain loop in a process of its own, and every ratio is taken within a pair; medians and ranges are
printed. The plain loop restates DenseDepth's published PyTorch port (ialhashim/DenseDepth@2e15107 PyTorch/train.py)
with this project's model and loss: float32, NCHW, Adam as torch makes it, `.item()` each step, frames decoded by PIL in
the main process.

Each time is also a share of a limit measured before and after: the step's floating-point operations (torch's counter,
matrix products and convolutions) over the best matrix rate of device and precision. A share above 1 is an error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from trainables.bench.limit import matrix_rate, profile, share_of_limit, spread, step_flops
from trainables.bench.training import (
    Elsewhere,
    interleave,
    loaded_loop,
    plain_loop,
    port_loader,
    resident_batches,
    seconds,
    training_of,
)
from trainables.runtime import cli
from trainables.runtime.errors import UserError

EXAMPLE = (
    "python -m trainables.bench step --set data.source=rooms --set model.weights=null --set 'input=[240,320]' "
    "--set batch_size=4 --set threads=2"
)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = cli.parser("trainables.bench", __doc__ or "", EXAMPLE)
    parser.add_argument(
        "what",
        nargs="?",
        choices=sorted(BENCHES),
        help="one measurement (default: all but compile and together, which take minutes)",
    )
    parser.add_argument("--recipe", default="densedepth")
    parser.add_argument("--set", metavar="PATH=VALUE", action="append", default=[], dest="assignments")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs that count (default: 5)")
    parser.add_argument("--steps", type=int, default=10, help="steps of each side of a pair (default: 10)")
    return cli.run(parser, _bench, argv)


def _bench(args: argparse.Namespace) -> Any:
    from trainables.data.dataset import prepare_data
    from trainables.settings.assignments import parse_assignments
    from trainables.settings.recipe import load_recipe

    if args.pairs < 1 or args.steps < 1:
        raise UserError("--pairs and --steps must be at least 1")
    config = load_recipe(args.recipe, parse_assignments(args.assignments))[0]
    prepare_data(config.data)
    chosen = [args.what] if args.what else sorted(set(BENCHES) - {"compile", "together"})
    results = {}
    for name in chosen:
        results[name] = BENCHES[name](config, args.pairs, args.steps)
        print(f"{name}:")
        for key, value in results[name].items():
            print(f"  {key}: {_show(value)}")
    return results


def bench_step(config: Any, pairs: int, steps: int) -> dict[str, Any]:
    """The step on batches already in memory: this trainer's against the plain loop's."""
    with contextlib.closing(Elsewhere(plain_loop, config)) as plain, training_of(config) as training:
        batches = resident_batches(training)
        before = matrix_rate(training.learner.device, training.learner.dtype)

        def ours() -> None:
            for _ in range(steps):
                training.train_step(batches)
            training.flush()

        timings = interleave({"ours": ours, "plain": lambda: plain.run(steps)}, pairs, training.learner.device)
        rate = max(before, matrix_rate(training.learner.device, training.learner.dtype))
        flops = step_flops(training, next(batches))
    images = steps * config.batch_size
    return _compare(timings, images) | share_of_limit(timings["ours"], flops * steps, rate) | _where(training)


def bench_loader(config: Any, pairs: int, steps: int) -> dict[str, Any]:
    """Frames per second of one core, augmentation included: this loader, its cache, and the port's PIL loader."""
    import torch

    from trainables.data.dataset import open_training
    from trainables.data.loader import TrainLoader, augment
    from trainables.runtime.device import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()  # as a training does; the port's loader gains by it, too
    device = torch.device("cpu")
    everything, count = open_training(config).train, steps * config.batch_size
    frames = everything.subset(list(range(min(count, len(everything)))))  # a round is a pass: the first fills the cache

    def run(loader: Any) -> Callable[[], None]:
        iterator = iter(loader)

        def body() -> None:
            for _ in range(steps):
                augment(next(iterator), device)

        return body

    with tempfile.TemporaryDirectory() as folder:
        single = config.model_copy(update={"data": config.data.model_copy(update={"workers": 0, "cache": None})})
        cached = config.model_copy(update={"data": config.data.model_copy(update={"workers": 0, "cache": folder})})
        port = port_loader(config)

        def plain() -> None:
            for index in range(count):
                port(index % len(frames))

        bodies = {
            "ours": run(TrainLoader(frames, single, 0)),
            "cached": run(TrainLoader(frames, cached, 0)),
            "plain": plain,
        }
        timings = interleave(bodies, pairs, device)
    result = {f"{name}_frames_per_s": spread([count / t for t in times]) for name, times in timings.items()}
    for name in ("ours", "cached"):
        result[f"{name}_over_plain"] = spread([p / o for p, o in zip(timings["plain"], timings[name], strict=True)])
    return result


def bench_end_to_end(config: Any, pairs: int, steps: int) -> dict[str, Any]:
    """The same step fed by the real loader and from memory: the share of speed that loading leaves."""
    from trainables.data.loader import TrainLoader

    with training_of(config) as training:
        resident = resident_batches(training)
        loaded = iter(TrainLoader(training.data.train, config, 0))

        def run(batches: Iterator[Any]) -> Callable[[], None]:
            def body() -> None:
                for _ in range(steps):
                    training.train_step(batches)
                training.flush()

            return body

        timings = interleave({"loaded": run(loaded), "resident": run(resident)}, pairs, training.learner.device)
    images = steps * config.batch_size
    return {
        "loaded_images_per_s": spread([images / t for t in timings["loaded"]]),
        "resident_images_per_s": spread([images / t for t in timings["resident"]]),
        "loaded_over_resident": spread([r / t for t, r in zip(timings["loaded"], timings["resident"], strict=True)]),
    } | _where(training)


def bench_trace(config: Any, pairs: int, steps: int) -> dict[str, Any]:
    """The same steps with the step trace and without, from memory."""
    with (
        training_of(config.model_copy(update={"trace": True})) as traced,
        training_of(config.model_copy(update={"trace": False})) as bare,
    ):
        batches = resident_batches(traced)

        def run(training: Any) -> Callable[[], None]:
            def body() -> None:
                for _ in range(steps):
                    training.train_step(batches)
                training.flush()
                if training.trace is not None:
                    training.trace.flush()

            return body

        timings = interleave({"traced": run(traced), "bare": run(bare)}, pairs, traced.learner.device)
    ratios = [t / b for t, b in zip(timings["traced"], timings["bare"], strict=True)]
    return {"traced_over_bare": spread(ratios)} | _where(traced)


def bench_evaluation(config: Any, pairs: int, steps: int) -> dict[str, Any]:
    """Seconds to score the validation frames under every protocol, with mirrored averaging as the config says."""
    from trainables.evaluation.evaluate import evaluate
    from trainables.evaluation.protocols import PROTOCOLS

    with training_of(config) as training:
        frames = training.data.validation

        def body() -> None:
            evaluate(
                training.learner.model, frames, config, list(PROTOCOLS), training.learner.device, config.batch_size
            )

        timings = interleave({"ours": body}, pairs, training.learner.device)
    per_frame = [t / len(frames) for t in timings["ours"]]
    return {
        "frames": len(frames),
        "seconds": spread(timings["ours"]),
        "seconds_per_frame": spread(per_frame),
    } | _where(training)


def bench_profile(config: Any, pairs: int, steps: int) -> dict[str, Any]:
    """Where the time of a step goes: each operation's own share, the largest first."""
    with training_of(config) as training:
        batches = resident_batches(training)

        def body() -> None:
            for _ in range(steps):
                training.train_step(batches)
            training.flush()

        body()
        return profile(body, training.learner.device) | _where(training)


def bench_compile(config: Any, pairs: int, steps: int) -> dict[str, Any]:
    """The step with torch.compile and without, and after how many images compiling has paid for itself."""
    with (
        training_of(config.model_copy(update={"compile": True})) as compiled,
        training_of(config.model_copy(update={"compile": False})) as eager,
    ):
        batches = resident_batches(eager)

        def run(training: Any, count: int) -> Callable[[], None]:
            def body() -> None:
                for _ in range(count):
                    training.train_step(batches)
                training.flush()

            return body

        first = {
            name: seconds(run(one, 1), one.learner.device) for name, one in (("compiled", compiled), ("eager", eager))
        }
        timings = interleave(
            {"compiled": run(compiled, steps), "eager": run(eager, steps)}, pairs, eager.learner.device
        )
    saved = [(e - c) / (steps * config.batch_size) for c, e in zip(timings["compiled"], timings["eager"], strict=True)]
    compiling, per_image = first["compiled"] - first["eager"], statistics.median(saved)
    return {
        "eager_over_compiled": spread([e / c for c, e in zip(timings["compiled"], timings["eager"], strict=True)]),
        "compiling_s": compiling,
        "pays_after_images": round(compiling / per_image) if per_image > 0 else "never",
    } | _where(eager)


def bench_together(config: Any, pairs: int, steps: int) -> dict[str, Any]:
    """Two trainings at once, each with half of the threads, against one with all; and what the second one costs.

    Memory beyond the second process: by how much the machine's available memory fell when it had come and trained,
    less what is that process's own.
    """
    import torch

    threads = config.threads or os.cpu_count() or 2
    if threads < 2:
        raise UserError("threads: two trainings at once need at least 2; set threads=2")
    half = config.model_copy(update={"threads": threads // 2})
    with contextlib.ExitStack() as stack:

        def begin(settings: Any) -> Elsewhere:
            one = stack.enter_context(contextlib.closing(Elsewhere(loaded_loop, settings)))
            one.run(steps)
            return one

        alone, first = begin(config), begin(half)
        before = psutil.virtual_memory().available
        second = begin(half)
        fell, own = (before - psutil.virtual_memory().available) / 2**20, second.own_mib()

        def both() -> None:
            for one in (first, second):
                one.start(steps)
            for one in (first, second):
                one.wait()

        timings = interleave({"two": both, "one": lambda: alone.run(2 * steps)}, pairs, torch.device("cpu"))
    images = 2 * steps * config.batch_size
    return {
        "two_images_per_s": spread([images / t for t in timings["two"]]),
        "one_images_per_s": spread([images / t for t in timings["one"]]),
        "two_over_one": spread([one / two for two, one in zip(timings["two"], timings["one"], strict=True)]),
        "second_process_own_mib": own,
        "second_beyond_its_own_mib": fell - own,
    }


BENCHES: dict[str, Callable[[Any, int, int], dict[str, Any]]] = {
    "step": bench_step,
    "loader": bench_loader,
    "end_to_end": bench_end_to_end,
    "evaluation": bench_evaluation,
    "trace": bench_trace,
    "profile": bench_profile,
    "compile": bench_compile,
    "together": bench_together,
}


def _compare(timings: dict[str, list[float]], images: int) -> dict[str, Any]:
    return {
        "ours_images_per_s": spread([images / t for t in timings["ours"]]),
        "plain_images_per_s": spread([images / t for t in timings["plain"]]),
        "ours_over_plain": spread([p / o for o, p in zip(timings["ours"], timings["plain"], strict=True)]),
    }


def _where(training: Any) -> dict[str, Any]:
    from trainables.runtime import device

    return {
        "device": device.describe(training.learner.device),
        "precision": str(training.learner.dtype).removeprefix("torch."),
        "peak_memory_mib": device.peak_memory_mib(training.learner.device),
    }


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.4g} (min {value['min']:.4g}, max {value['max']:.4g}, n = {value['n']})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
