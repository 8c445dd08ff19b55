"""Retention of checkpoints: those of ended trainings that nothing needs any more are removed.

Kept: the checkpoint that the judge scores, of every complete training; of the search only those of its best trials,
which can still be confirmed or become the champion; in recipes of several stages also the one that the next stage
starts from. Snapshots before loss spikes stay, for replay. What runs is never touched.
"""

from __future__ import annotations

import shutil

from study.contract import Outcome
from study.ledger import Ledger
from study.plan import Plan

LATEST, BEST = "latest", "best"  # of trainables/training/checkpoint.py, which needs torch


def sweep(ledger: Ledger, plan: Plan) -> None:
    """Remove what is not needed any more; may be called at any time, and again."""
    awaited = {(p.phase, p.after) for p in (*plan.reproduce, *plan.claims) if p.after is not None}
    judged = BEST if ledger.judge.report == "best" else LATEST
    kept = max(1, plan.study.config.confirm.top)
    best = {row["key"] for row in ledger.judge.rank(ledger.rows("search"))[:kept]}
    for phase, entries in ledger.entries.items():
        for entry in entries:
            if entry.outcome is None or entry.swept:
                continue
            needed = {judged, BEST} if (phase, entry.identity) in awaited else {judged}
            if entry.outcome is not Outcome.COMPLETE or (phase == "search" and entry.key not in best):
                needed = set()
            for part in {LATEST, BEST} - needed:
                folder = ledger.layout.trial(entry.key) / "checkpoints" / part
                if folder.exists():
                    shutil.rmtree(folder)
            entry.swept = not needed  # for good: what is better than a trial stays better
