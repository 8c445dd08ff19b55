"""`python -m trainables.train RECIPE`: one training, without Ray, MLflow or a GPU; its stages one after the other."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.runtime import cli
from trainables.runtime.durable import check_folder
from trainables.runtime.errors import Diverged, OutOfMemory, Stopped, UserError
from trainables.settings.registry import METRICS

if TYPE_CHECKING:
    from trainables.settings.config import TrialConfig
    from trainables.training.progress import Report

EXAMPLE = (
    "python -m trainables.train densedepth --set data.source=rooms --set model.weights=null "
    "--set 'input=[96,128]' --set budget_images=480 --set validate_every_images=240 --out results/alone"
)


def main(argv: list[str] | None = None) -> int:
    """The command; exit code 1 when the training diverged or memory ran out, 130 after a request to stop."""
    parser = cli.parser("trainables.train", __doc__ or "", EXAMPLE)
    parser.add_argument("recipe", metavar="RECIPE", help="a published system, or RECIPE+VARIANT")
    parser.add_argument("--set", metavar="PATH=VALUE", action="append", default=[], dest="assignments")
    parser.add_argument("--out", type=cli.path, help="folder of the training (default: results/trainings/RECIPE)")
    return cli.run(parser, _train, argv)


def _train(args: argparse.Namespace) -> Any:
    from trainables.data.dataset import prepare_data
    from trainables.settings.assignments import parse_assignments
    from trainables.settings.config import PREVIOUS_STAGE
    from trainables.settings.recipe import load_recipe
    from trainables.training.trainer import iter_fit

    out = args.out or Path("results/trainings") / args.recipe
    stages = load_recipe(args.recipe, parse_assignments(args.assignments))
    folders = [out / f"stage-{config.stage}" if len(stages) > 1 else out for config in stages]
    for folder in folders:
        _check_out(folder)
    results: list[dict[str, Any]] = []
    previous: Path | None = None
    for config, folder in zip(stages, folders, strict=True):
        if config.start_from == PREVIOUS_STAGE and previous is not None:
            config = config.model_copy(update={"start_from": str(previous / "checkpoints" / "best")})
        prepare_data(config.data)
        try:
            with stopping() as told:
                for report in iter_fit(config, folder, stop=told.is_set, own_process=True):
                    _say(config, report)
        except Stopped as error:
            print(f"{error}; the same command continues from there", file=sys.stderr)
            return {"folder": str(folder), "outcome": "stopped", "reason": str(error)}, 130
        except (Diverged, OutOfMemory) as error:
            outcome = "diverged" if isinstance(error, Diverged) else "out_of_memory"
            print(f"{outcome}: {error}", file=sys.stderr)
            return {"folder": str(folder), "outcome": outcome, "reason": str(error)}, 1
        results.append(
            {"folder": str(folder), "outcome": "complete", "images": report.images, "metrics": report.metrics}
        )
        previous = folder
    return {"stages": results}


def _check_out(folder: Path) -> None:
    """Raise UserError unless a folder is new, empty or a training's: a training replaces files and clears leftovers."""
    check_folder(folder)
    if not folder.is_dir():
        return
    settings = folder / "config.json"
    try:
        ours = {"recipe", "budget_images"} <= json.loads(settings.read_bytes()).keys()
    except FileNotFoundError:  # a training that was killed before it wrote its settings left no other file, either
        ours = all(entry.is_dir() or entry.name.startswith(".") for entry in folder.iterdir())
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise UserError(f"{folder} holds files of something other than a training; name a new folder with --out")


def _say(config: TrialConfig, report: Report) -> None:
    shown = dict.fromkeys((config.best_metric, "rmse", "delta1"))
    known = {name: report.metrics[f"val/{name}"] for name in shown if f"val/{name}" in report.metrics}
    scores = ", ".join(f"{name} {value:.3f} {METRICS[name].unit}".rstrip() for name, value in known.items())
    print(
        f"{config.recipe} stage {config.stage}: {report.images:,} of {config.budget_images:,} images, "
        f"train loss {report.metrics['train/loss']:.4f}, val {scores}, "
        f"{report.metrics['speed/images_per_s']:.1f} images/s",
        flush=True,
    )


@contextlib.contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one ends the process."""
    told = threading.Event()

    def stop(number: int, frame: object) -> None:
        if told.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        told.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
