"""Calibration: one checkpoint, of no study, scored on a test split under every protocol, beside published numbers.

    python -m trainables.weights_keras nyu.h5 --out released
    python -m analysis.calibration released --data-root nyu_test.zip --source eigen

With the weights that the authors of DenseDepth released, the row densedepth_repo must show what their evaluator says of
them (analysis/tables/published.py, FACTS.md section 6). It opens the test split, so the opening is recorded like any
other, before anything is scored; the scoring is analysis/final_evaluation.py's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import final_evaluation, mlflow_store
from analysis.page.section import Section, Table, number, plain
from analysis.tables.published import ROWS
from analysis.tables.tidy import StudyTables, report_frame, trial_frame
from trainables.evaluation.protocols import PROTOCOLS
from trainables.runtime import cli
from trainables.runtime.durable import sha256
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig
from trainables.settings.registry import FORMS
from trainables.training import checkpoint

REPOSITORY = "densedepth_repo"  # the protocol of the published evaluator
REASON = "calibration of one checkpoint"


def calibrate(folder: Path, root: str, source: str, tracking: str) -> Section:
    """The section: the checkpoint's row under every protocol, and the published rows of those protocols.

    Raises UserError for a checkpoint or data that cannot be used, and where the opening cannot be recorded.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no checkpoint folder; name one, for example {checkpoint.BEST} of a training")
    trained = checkpoint.read_config(folder)
    data = trained.data.model_copy(update={"source": source, "root": root})
    config = trained.model_copy(update={"data": data})
    entry: dict[str, Any] = {
        "name": folder.name, "roles": ["calibration"], "key": folder.name, "checkpoint": str(folder.resolve()),
        "weights_sha256": sha256(folder / checkpoint.WEIGHTS),
    }  # fmt: skip
    tables = _tables(folder.name, tracking)
    digest = final_evaluation.test_digest(config.data)
    frozen = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
    count = mlflow_store.record_opening(tables, digest, {"list_sha256": frozen, "reason": REASON})
    result = final_evaluation.score_test(tables, entry, {folder.name: config}, config)
    return _section(result, config, digest, count)


def _tables(name: str, tracking: str) -> StudyTables:
    """No study, but the tracking store that counts openings."""
    return StudyTables(
        name=f"calibration of {name}", layout=None, study={"tracking": {"uri": tracking}}, judge=None, judge_hash=None,
        data={}, environment={}, timings={}, planned={}, trials=trial_frame([]), reports=report_frame([]),
        evaluation={},
    )  # fmt: skip


def _section(result: dict[str, Any], config: TrialConfig, digest: str, count: int | None) -> Section:
    rows = []
    for asked, run in result["protocols"].items():
        row: dict[str, Any] = {"who": result["name"], "protocol": run["name"], "comparable": run["comparable"]}
        rows.append(row | result["summary"][run["name"]] | {"note": run["note"]})
        if not run["comparable"]:
            continue
        rows += [
            {"who": known.who, "protocol": asked, "comparable": True, **known.metrics, "note": known.note}
            for known in ROWS
            if known.protocol == asked
        ]
    best = result["protocols"][REPOSITORY]["name"]
    said = ", ".join(f"{name} {number(result['summary'][best][name])}" for name in PROTOCOLS[REPOSITORY].metrics)
    answers = [
        f"On {result['frames']} frames of {config.data.source}, under {best}: {said}.",
        f"These test data have now been opened {count} times, in the count of the tracking store.",
    ]
    frame = pd.DataFrame(rows)
    table = Table("calibration", "Every protocol, and what was published under it", frame, "", {"rmse": "m"})
    document = {"summary": result["summary"], "protocols": result["protocols"], "test_data": digest, "openings": count}
    return Section("calibration", "Is the ruler the published one?", answers, (), [table], plain(document))


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = cli.parser(
        "analysis.calibration",
        "Score one checkpoint on a test split under every protocol; the opening is recorded.",
        "python -m analysis.calibration released --data-root nyu_test.zip --source eigen",
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder, for example of trainables.weights_keras")
    parser.add_argument("--data-root", required=True, metavar="ROOT", help="what data.root is in a study")
    parser.add_argument("--source", choices=FORMS, default="eigen", help="form of the data (eigen)")
    parser.add_argument(
        "--tracking", metavar="URI", default="sqlite:///mlflow.db", help="store that counts openings (%(default)s)"
    )

    def body(args: argparse.Namespace) -> Any:
        section = calibrate(args.checkpoint, args.data_root, args.source, args.tracking)
        print(section.text())
        return {"answers": list(section.answers), "data": section.data}

    return cli.run(parser, body, None if argv is None else list(argv))


if __name__ == "__main__":
    sys.exit(main())
