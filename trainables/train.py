"""`python -m trainables.train RECIPE`: one training, without Ray, MLflow or a GPU; its stages one after the other."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from trainables import cli
from trainables.errors import Diverged, OutOfMemory

EXAMPLE = (
    "python -m trainables.train densedepth --set data.source=rooms --set model.weights=null "
    "--set input=[96,128] --set budget_images=480 --set validate_every_images=240 --out results/alone"
)


def main(argv: list[str] | None = None) -> int:
    """The command; exit code 1 when the training diverged or memory ran out."""
    parser = cli.parser("trainables.train", __doc__ or "", EXAMPLE)
    parser.add_argument("recipe", metavar="RECIPE", help="a published system, or RECIPE+VARIANT")
    parser.add_argument("--set", metavar="PATH=VALUE", action="append", default=[], dest="assignments")
    parser.add_argument("--out", type=Path, help="folder of the training (default: results/trainings/RECIPE)")
    return cli.run(parser, _train, argv)


def _train(args: argparse.Namespace) -> Any:
    from trainables.data.dataset import prepare_data
    from trainables.recipe import load_recipe, parse_assignments
    from trainables.trainer import fit

    out = args.out or Path("results/trainings") / args.recipe
    stages = load_recipe(args.recipe, parse_assignments(args.assignments))
    results: list[dict[str, Any]] = []
    previous: Path | None = None
    for config in stages:
        folder = out / f"stage-{config.stage}" if len(stages) > 1 else out
        if config.start_from == "previous_stage" and previous is not None:
            config = config.model_copy(update={"start_from": str(previous / "checkpoints" / "best")})
        prepare_data(config.data)
        try:
            for report in fit(config, folder):
                val = {name.removeprefix("val/"): v for name, v in report.metrics.items() if name.startswith("val/")}
                print(
                    f"{config.recipe} stage {config.stage}: {report.images:,} of {config.budget_images:,} images, "
                    f"train loss {report.metrics['train/loss']:.4f}, val rmse {val['rmse']:.3f} m, "
                    f"delta1 {val['delta1']:.3f}, {report.metrics['speed/images_per_s']:.1f} images/s",
                    flush=True,
                )
        except (Diverged, OutOfMemory) as error:
            outcome = "diverged" if isinstance(error, Diverged) else "out_of_memory"
            print(f"{outcome}: {error}", file=sys.stderr)
            return {"folder": str(folder), "outcome": outcome, "reason": str(error)}, 1
        results.append(
            {"folder": str(folder), "outcome": "complete", "images": report.images, "metrics": report.metrics}
        )
        previous = folder
    return {"stages": results}


if __name__ == "__main__":
    sys.exit(main())
