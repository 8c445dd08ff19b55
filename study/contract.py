"""Contract between study and analysis: results layout, names of metrics, tags and outcomes, the judge's ranking.

Standard library, and the registry of names; analysis imports this module and nothing else of study (DESIGN.md, house
rule 1).

    results/NAME/
        study.yaml            the study as it was resolved, with its overrides
        ledger.db             Optuna's storage: one Optuna study per phase, named NAME/PHASE
        ledger.db.sha256      its SHA-256, once the study has ended by itself; ledger.backup.db: its copy
        study.lock            the owner: pid, host, since
        study.log
        artifacts/            last pictures of trainings, for optuna-dashboard --artifact-dir
        trials/KEY/           what one training leaves behind (trainables/training/trainer.py); KEY is PHASE-NNNN
        evaluation/           frozen list and scores of the sealed test
        report.html, report/  page, figures, tables
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from trainables.settings.registry import METRICS, Metric

RESULTS = Path("results")
PHASES = ("reproduce", "claims", "search", "confirm")
DEVICE_SECONDS = "device_seconds"  # what a training took: its own seconds times its devices


class Outcome(StrEnum):
    """Outcome of a training. RUNNING is not one: the training has not ended yet."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    FAILED = "failed"
    OUT_OF_MEMORY = "out_of_memory"


OPTUNA_STATE = {Outcome.COMPLETE: "COMPLETE", Outcome.PRUNED: "PRUNED"}  # every other outcome: FAIL
MLFLOW_STATUS = {Outcome.COMPLETE: "FINISHED", Outcome.PRUNED: "KILLED"}  # every other outcome: FAILED


class Attr:
    """User attributes of a ledger trial."""

    KEY = "key"  # PHASE-NNNN
    CONFIG = "config"  # the TrialConfig as a mapping
    DIGEST = "digest"  # SHA-256 of key, config, group and origin, which never change
    GROUP = "group"  # trainings that differ by seed alone share it
    OUTCOME = "outcome"
    REASON = "reason"  # one sentence
    DETAIL = "detail"  # traceback, where there is one
    STEP = "step"  # of a divergence
    ATTEMPTS = "attempts"  # how often it was started
    DEATHS = "deaths"  # workers that ended without a report of it since its last new report
    JUDGED = "judged"  # the pruner's last answer: [images, whether it gave the training up, names of its notes]
    ORIGIN = "origin"  # confirm: key of the search trial it repeats; claims: the arms that it serves, [{claim, arm}]
    SUMMARY = "summary"  # last report's summary: steps, images, seconds, peak memory, parameters, ...


class StudyAttr:
    """User attributes of every ledger study (NAME/PHASE)."""

    STUDY = "study"  # the resolved study.yaml
    JUDGE = "judge"  # the judge's settings
    JUDGE_HASH = "judge_hash"  # SHA-256 of them, written before trial 1
    CLAIMS = "claims"  # the claims that the study tests, each a Claim as a mapping
    CLAIMS_HASH = "claims_hash"  # SHA-256 of what they state, written before trial 1
    DATA = "data"  # fingerprint of the data, written before trial 1
    ENVIRONMENT = "environment"  # versions, host, devices, git commit
    TIMINGS = "timings"  # seconds of each part of the run
    PLANNED = "planned"  # how many trainings the phase will hold; ended when as many have an outcome
    SPENT = "spent"  # the limit of the budget that ended the study before all of that; None: it may continue


PREVIEWS = "previews"  # in a training's folder, IMAGES.jpg at its reports (trainables/training/pictures.py)


class Tag:
    """MLflow tags."""

    STUDY = "study"
    PHASE = "phase"
    KEY = "trial_key"
    OUTCOME = "outcome"
    REASON = "reason"
    RECIPE = "recipe"
    SEED = "seed"
    GROUP = "group"
    WEIGHTS = "weights_sha256"  # of a registered model, and of a checkpoint that MLflow lists as a model
    CHECKPOINT = "checkpoint"  # the folder of such a checkpoint, within the study's
    PICTURES = "pictures_to"  # the images seen at the last report whose picture was sent


EXPERIMENT = "DenseDepth"  # of MLflow, for the runs of every study
ARTIFACTS = "mlartifacts"  # the folder of MLflow's files beside a store that is a file
PARENT = "study"  # the phase tag of a study's parent run


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store, None for any other store."""
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:") else None


def store_lock(uri: str) -> Path | None:
    """The file to lock while a fresh SQLite store of MLflow is made (two processes at once leave it unusable)."""
    path = sqlite_file(uri)
    return None if path is None else path.with_name(f".{path.name}.lock")


def store_problem(uri: str, name: str, number: str, stage: str, location: str) -> str | None:
    """Why an experiment of MLflow (name, id, lifecycle stage, artifact location) cannot be written to; None: it can.

    It was deleted, which keeps its name taken; or the store is a file that was moved or copied, while its experiments
    keep their files where it lay before.
    """
    if stage != "active":
        cure = f"MLFLOW_TRACKING_URI={masked(uri)} mlflow experiments restore --experiment-id {number}"
        return f"tracking.uri: the experiment {name} was deleted in {masked(uri)}; restore it: {cure}"
    file, kept = sqlite_file(uri), local_folder(location)
    if file is None or kept is None or kept.name != ARTIFACTS or kept.resolve() == file.parent / ARTIFACTS:
        return None
    return (
        f"tracking.uri: {file} was moved or copied, its files are still those in {kept}; "
        "rename it, and study.run --sync fills a new one, or name the store beside those files"
    )


def local_folder(location: str) -> Path | None:
    """The folder of an artifact location of MLflow on this machine; None for one elsewhere."""
    parts = urlsplit(location)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") and parts.path else None


def masked(text: str) -> str:
    """A URI, or a text with some in it (JSON and YAML, too), without users and passwords."""
    return re.sub(r"//[^/\s\"']*@", "//***@", text)


@dataclass(frozen=True)
class Layout:
    """Where a study's files lie."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.db"

    @property
    def study_file(self) -> Path:
        return self.root / "study.yaml"

    @property
    def log(self) -> Path:
        return self.root / "study.log"

    @property
    def trials(self) -> Path:
        return self.root / "trials"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def trial(self, key: str) -> Path:
        """The folder of one training."""
        return self.trials / key


def trial_key(phase: str, number: int) -> str:
    """'search-0003' from the phase and the number of the trial in that phase's Optuna study."""
    return f"{phase}-{number:04d}"


def confirm_group(key: str, images: int | None) -> str:
    """The group of a search trial's confirmations; `images`: where they see more than the trial itself did."""
    return key if images is None else f"{key}@{images}"


def confirm_images(group: str) -> int:
    """The images that a group's confirmations were extended to; 0 for every other group."""
    extended = re.fullmatch(r"search-\d+@(\d+)", group)
    return int(extended[1]) if extended else 0


@dataclass(frozen=True)
class Judge:
    """How the best configuration is chosen; hashed into the ledger before trial 1.

    metric: a validation metric; direction follows from it. report: the best or the last report counts.
    margins: absolute; reproduced when all metrics are within theirs of the published numbers.
    """

    metric: str
    protocol: str
    report: Literal["best", "last"]
    margins: Mapping[str, float]

    @property
    def minimise(self) -> bool:
        return not METRICS[self.metric].higher_is_better

    def value(self, history: Sequence[Mapping[str, Any]]) -> float | None:
        """The judged value of a training's reports ({'val/<metric>': ...}); None where it has none that is finite."""
        values = [float(r[f"val/{self.metric}"]) for r in history if r.get(f"val/{self.metric}") is not None]
        finite = [v for v in values if math.isfinite(v)]
        if not finite:
            return None
        if self.report == "last":
            return values[-1] if math.isfinite(values[-1]) else None
        return min(finite) if self.minimise else max(finite)

    def rank(self, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Rows {'key', 'outcome', 'value'} from best to worst; only complete ones with a value; ties: the lower key."""
        sign = 1.0 if self.minimise else -1.0
        eligible = [r for r in rows if r["outcome"] == Outcome.COMPLETE and r["value"] is not None]
        return sorted(eligible, key=lambda r: (sign * float(r["value"]), str(r["key"])))

    def longest(self, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The rows that compete: where confirmations were extended to more images, those of the most images on which
        at least one is complete. Trainings that saw more do not win over others by that alone.
        """
        most = max((confirm_images(str(row["group"])) for row in self.rank(rows)), default=0)
        return [row for row in rows if confirm_images(str(row["group"])) == most]

    def choose(self, rows: Sequence[Mapping[str, Any]]) -> Choice | None:
        """The winner of the confirmation: rows {'key', 'outcome', 'value', 'group'} of the confirm phase.

        A group with a training that did not complete cannot win over one whose trainings all did: its missing values
        count as the worst. The champion is the group's median seed (the lower of two middle ones). Only groups of the
        longest budget compete.
        """
        worst = math.inf if self.minimise else -math.inf
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for row in self.longest(rows):
            groups.setdefault(str(row["group"]), []).append(row)
        best: Choice | None = None
        for group, members in sorted(groups.items()):
            ranked = self.rank(members)
            if not ranked:
                continue
            padded = [float(r["value"]) for r in ranked] + [worst] * (len(members) - len(ranked))
            middle = median(padded)
            if best is None or (middle < best.median if self.minimise else middle > best.median):
                champion = ranked[min((len(members) - 1) // 2, len(ranked) - 1)]
                best = Choice(group, middle, str(champion["key"]), tuple(str(r["key"]) for r in members))
        return best


def judge_hash(judge: Judge) -> str:
    """SHA-256 of the judge's settings."""
    return hashlib.sha256(json.dumps(asdict(judge), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Choice:
    """The judge's choice: the winning group, its median value, its champion training and all its trainings."""

    group: str
    median: float
    champion: str
    members: tuple[str, ...]


# What a claim can measure of a training; analysis/claims.py knows how.
QUANTITIES: Mapping[str, Metric] = METRICS | {
    "checkerboard": Metric("", higher_is_better=False),
    "overfit_gap": Metric("", higher_is_better=False),
    "spikes_per_1000_steps": Metric("spikes per 1,000 steps", higher_is_better=False),
    "damage_after_spikes": Metric("", higher_is_better=False),
    "seconds": Metric("s", higher_is_better=False),
    "images_per_s": Metric("images/s", higher_is_better=True),
    "peak_memory_mib": Metric("MiB", higher_is_better=False),
}
Expected = Literal["a_better", "b_better", "a_more", "a_less", "a_not_better", "no_difference", "open"]


@dataclass(frozen=True)
class Arm:
    """One side of a claim: what it is called, its settings, and the ledger group and stage of its judged trainings."""

    name: str
    settings: str
    group: str
    stage: int


@dataclass(frozen=True)
class Claim:
    """A published statement as a paired experiment, written down before anything is trained.

    measured: names of QUANTITIES; the first decides. expected: what the statement says of it: better and worse follow
    the quantity's direction, more and less its value. margin: absolute, in the quantity's unit; a smaller difference is
    none. seeds: of its pairs. untestable: why it cannot be tested here; None: it is.
    """

    id: str
    who: str
    statement: str
    source: str | None
    a: Arm
    b: Arm
    measured: tuple[str, ...]
    expected: Expected
    margin: float | None
    seeds: tuple[int, ...]
    untestable: str | None

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Claim:
        """A claim from the mapping that the ledger holds."""
        arms = {name: Arm(**value[name]) for name in ("a", "b")}
        return cls(**{**value, **arms, "measured": tuple(value["measured"]), "seeds": tuple(value["seeds"])})


def claims_hash(claims: Sequence[Claim]) -> str:
    """SHA-256 of what claims state. Whether one can be tested on this machine is not part of it."""
    stated = [{k: v for k, v in asdict(claim).items() if k != "untestable"} for claim in claims]
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
