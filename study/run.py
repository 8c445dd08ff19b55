"""`python -m study.run`: plan a study and run its phases, resumable at any time. analysis.report reports.

Everything heavy is imported where it is used, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.methods import PRUNERS, SAMPLERS
from trainables.runtime import cli
from trainables.runtime.cli import terminable
from trainables.runtime.durable import make_private
from trainables.runtime.errors import UserError
from trainables.runtime.locks import owned

if TYPE_CHECKING:
    from study.config import Study
    from study.contract import Layout
    from study.ledger import Ledger
    from study.plan import Plan
    from study.session import Session

INTERRUPTED = 130
MIRROR_WAIT_S = 60.0  # how long the end of a study waits for MLflow


def main(argv: list[str] | None = None, worker: type | None = None) -> int:
    """The command. `worker`: another class than trainables.ray_trainable.TrainingWorker (tests)."""
    arguments = cli.parser(
        "study.run",
        "Plan a study and train it: reproduce, claims, search, confirm. Results lie in results/NAME.\n\n"
        f"search.sampler: {', '.join(SAMPLERS)}\nsearch.pruner.kind: {', '.join(PRUNERS)}",
        "python -m study.run study.yaml --set search.trials=20 --resume",
    )
    arguments.add_argument("study", nargs="?", type=cli.path, default=Path("study.yaml"), help="the study (study.yaml)")
    arguments.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override one setting")
    arguments.add_argument("--plan", action="store_true", help="print trainings, time, disk and memory; start nothing")
    arguments.add_argument("--measure", action="store_true", help="with --plan: time a few steps first")
    arguments.add_argument("--resume", action="store_true", help="continue results/NAME, or begin")
    arguments.add_argument("--sync", action="store_true", help="refill MLflow from results/NAME and end")

    def body(args: argparse.Namespace) -> Any:
        with terminable():
            return _command(args, worker)

    return cli.run(arguments, body, argv)


def _command(args: argparse.Namespace, worker: type | None) -> Any:
    from study.config import load_study
    from study.contract import RESULTS, Layout

    if args.measure and not args.plan:
        raise UserError("--measure goes with --plan")
    study = load_study(args.study, args.set)
    layout = Layout(RESULTS / study.config.name)
    if args.sync:
        return _sync(study, layout)
    holds = _holds(study, layout)
    if holds and not args.resume and not args.plan:
        raise UserError(f"{layout.root} holds this study already; continue with --resume, or give it another name")
    began = time.monotonic()
    from study import preflight
    from study.plan import make_plan

    plan = make_plan(study)
    preflight.refuse(plan)
    if args.plan:
        return _plan(plan, layout if holds else None, args)
    from study.notify import noticed

    return noticed(study.config.notify, study.config.name, lambda: _run(plan, layout, worker, began))


def _holds(study: Study, layout: Layout) -> bool:
    """Whether a study has begun there: of a start that was refused, a ledger without trainings may be left."""
    if layout.trials.is_dir() and any(layout.trials.iterdir()):
        return True
    if not layout.ledger.exists():
        return False
    from study.ledger import read_ledger

    return any(read_ledger(layout, None, study.judge)[1].values())


def _plan(plan: Plan, begun: Layout | None, args: argparse.Namespace) -> Any:
    """Print the plan. begun: where the study has begun; with --resume what it has done is not counted."""
    from study import preflight
    from study.contract import StudyAttr
    from study.estimate import show_plan
    from study.ledger import read_ledger

    preflight.check_data(plan)
    if begun is None:
        return show_plan(plan, measure=args.measure)
    if not args.resume:
        document = show_plan(plan, measure=args.measure)
        print(f"{begun.root} holds this study already: --resume continues it, and --plan --resume says what is left")
        return document
    with _answering(plan.study.config.ledger):
        attributes, entries = read_ledger(begun, plan.study.config.ledger, plan.study.judge)
    if StudyAttr.STUDY in attributes:
        for note in preflight.compare(plan, attributes[StudyAttr.STUDY], attributes.get(StudyAttr.CLAIMS)):
            print(f"changed since the study began: {note}")
    return show_plan(plan, measure=args.measure, begun=entries)


def _run(plan: Plan, layout: Layout, worker: type | None, began: float) -> Any:
    from study import preflight
    from study.search import inert
    from study.tracking import check_reachable

    uri = plan.study.config.tracking.uri
    if uri is not None:
        check_reachable(uri)
    _make_root(layout)
    timings = {"settings_s": time.monotonic() - began}
    with owned(layout.root / "study.lock"), _answering(plan.study.config.ledger):
        preparing = time.monotonic()
        data = preflight.prepare(plan)
        timings["data_s"] = time.monotonic() - preparing
        if not layout.ledger.exists():  # a search that has begun is the same ever after
            probing = time.monotonic()
            for note in inert.refuse_inert(plan):
                print(note)
            timings["probes_s"] = time.monotonic() - probing
        ledger = _open(plan.study, layout)
        for note in preflight.record(ledger.store, plan, data, preflight.environment()):
            print(f"changed since the study began: {note}")
        _write_study(plan.study, layout)
        return _phases(plan, ledger, data, worker, timings)


def _make_root(layout: Layout) -> None:
    """Make the study's folder, closed to other users. Raises UserError where something else has its name."""
    for folder in (layout.root.parent, layout.root):
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError as error:
            what = f"a link to {folder.readlink()}, where no folder is" if folder.is_symlink() else "a file"
            raise UserError(f"{folder} is {what}; make a folder there, or rename {folder}") from error
    if note := make_private(layout.root):
        print(note)


def _phases(plan: Plan, ledger: Ledger, data: Mapping[str, Any], worker: type | None, timings: dict[str, float]) -> Any:
    from study import cluster, executor, resources
    from study.display import Display
    from study.endings import Listener, write_notes
    from study.mirror import Mirror
    from study.schedule import limits
    from study.session import Session

    config = plan.study.config
    starting = time.monotonic()
    uri = config.tracking.uri
    address = config.resources.address
    with cluster.ray_running(address):
        share = resources.share_on(plan, growing=address is not None)
        timings["start_s"] = time.monotonic() - starting
        mirror = None  # begun after Ray: importing both at once would take longer than one after the other
        if uri is not None:
            mirror = Mirror(uri, ledger.layout, plan.study.resolved, data)
            for entry in ledger.everything():
                mirror.reported(entry, 0, {})
        display = Display(ledger, config.confirm.images, device_share=share.gpus or 1.0)
        capacity = resources.capacity_of(share, growing=address is not None)
        listeners: list[Listener] = [display, *([mirror] if mirror else [])]
        budget = limits(config.budget, ledger, share.gpus or 1.0)
        session = Session(plan, ledger, listeners, capacity, executor.memory_kills, budget, share.gpus or 1.0)

        training = time.monotonic()
        with display:
            executor.execute(
                session, share, worker or _training_worker(), display.tick, config.resources.silence_limit_s
            )
            timings["training_s"] = time.monotonic() - training
            document, code = _end(session, ledger, timings, display) if session.blocked is None else ({}, 2)
    if mirror is not None:
        missing = mirror.close(MIRROR_WAIT_S, finished=not session.stop.asked)
        document["mlflow"] = missing or "complete"
        if missing:
            print(missing)
    if session.blocked is not None:
        raise UserError(f"{session.blocked}; nothing is lost: continue with --resume")
    if not session.stop.asked:
        write_notes(ledger)
    ledger.store.close()
    return document, code


def _training_worker() -> type:
    from trainables.ray_trainable import TrainingWorker

    return TrainingWorker


def _end(session: Session, ledger: Ledger, timings: dict[str, float], display: Any) -> tuple[dict[str, Any], int]:
    """Say how the run ended, and keep how long its parts took."""
    from study.contract import PHASES, Outcome, StudyAttr

    past = ledger.store.attribute(StudyAttr.TIMINGS) or {}
    total = {name: past.get(name, 0.0) + seconds for name, seconds in timings.items()}
    for phase in PHASES:
        spans = [(e.started, e.ended) for e in ledger.entries[phase] if e.ended is not None]
        if spans:
            total[f"{phase}_s"] = (max(end for _, end in spans) - min(start for start, _ in spans)).total_seconds()
    ledger.store.set_attributes({StudyAttr.TIMINGS: total})
    ledger.store.backup()
    counts = {
        phase: {str(o): n for o in Outcome if (n := sum(e.outcome is o for e in ledger.entries[phase]))}
        | ({"running": n} if (n := sum(e.outcome is None for e in ledger.entries[phase])) else {})
        for phase in PHASES
        if ledger.entries[phase]
    }
    best = display.best()
    document: dict[str, Any] = {
        "study": ledger.layout.name,
        "results": str(ledger.layout.root),
        "ended": not session.stop.asked,
        "trainings": counts,
        "best": None if best is None else {"key": best.key, ledger.judge.metric: best.value},
        "timings_s": {name: round(seconds, 2) for name, seconds in total.items()},
    }
    if session.schedule.spent:
        document["spent"] = session.schedule.spent
        display.say(f"{session.schedule.spent}: nothing more was begun; raise it and continue with --resume")
    if session.schedule.exhausted:
        tried = len(ledger.entries["search"])
        display.say(f"the search ended after {tried} trials: no other settings are left that it could try")
    session.stop.withdraw()
    display.say(display.summary())
    if session.stop.asked:
        display.say(f"stopped; nothing is lost: continue with --resume (results in {ledger.layout.root})")
        return document, INTERRUPTED
    if best is None:
        display.say(f"no training came to its end; see {ledger.layout.log}")
        return document, 1
    display.say(f"done; now: python -m analysis.report {ledger.layout.name}")
    return document, 0


@contextlib.contextmanager
def _answering(url: str | None) -> Iterator[None]:
    """A ledger on a server that goes away ends the study with one sentence."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    from study.contract import masked

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        if url is None:
            raise
        cause = masked(str(error.__cause__ or error).splitlines()[0])
        raise UserError(f"ledger: {masked(url)} fails ({cause}); nothing is lost: repair it, then --resume") from error


def _open(study: Study, layout: Layout) -> Ledger:
    from study.ledger import Ledger
    from study.store import readable

    with readable(layout):
        return Ledger(layout, study.config.ledger, study.judge, study.config.search.objectives)


def _write_study(study: Study, layout: Layout) -> None:
    import yaml

    from trainables.runtime.durable import write_bytes

    text = yaml.safe_dump(study.resolved, sort_keys=False, allow_unicode=True)
    write_bytes(layout.study_file, f"# The study as it was resolved, overrides included.\n{text}".encode())


def _sync(study: Study, layout: Layout) -> Any:
    """Refill MLflow from ledger and results folder."""
    from study.contract import StudyAttr
    from study.mirror import Mirror
    from study.tracking import check_reachable

    uri = study.config.tracking.uri
    if uri is None:
        raise UserError(f"{study.document.where('tracking.uri')} is null, so there is nothing to refill; name a store")
    if not layout.ledger.exists() and study.config.ledger is None:
        raise UserError(f"{layout.root}: no such study has run; start it without --sync")
    check_reachable(uri)
    _make_root(layout)
    with owned(layout.root / "study.lock"):
        ledger = _open(study, layout)
        mirror = Mirror(uri, layout, study.resolved, ledger.store.attribute(StudyAttr.DATA) or {})
        entries = ledger.everything()
        for entry in entries:
            mirror.ended(entry)
        missing = mirror.close(MIRROR_WAIT_S + len(entries), finished=all(e.outcome is not None for e in entries))
        ledger.store.close()
    if missing:
        raise UserError(missing)
    print(f"{len(entries)} trainings of {layout.name} are in MLflow")
    return {"study": layout.name, "trainings": len(entries)}


if __name__ == "__main__":
    raise SystemExit(main())
