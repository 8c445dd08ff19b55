"""The ledger: Optuna's storage as the one record of every training of every phase (DESIGN.md, house rule 9).

A training enters in one transaction with everything that is known of it, so a kill leaves it whole or not at all. Its
outcome is written last of its attributes, then reported to Optuna; a kill between the two is finished on opening.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from study.compose import Identity, Planned
from study.contract import DEVICE_SECONDS, OPTUNA_STATE, PHASES, Attr, Judge, Layout, Outcome, trial_key
from study.search.space import Dimension, label
from study.store import Store, damage, damaged, readable, reader
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig, as_dict, stored_config

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial


class Judged(NamedTuple):
    """The pruner's last answer: after how many images, whether it gave the training up, and the names of all that it
    has noted of the training so far.
    """

    images: int
    gave_up: bool
    notes: Sequence[str] = ()  # a ledger of an earlier version has none


@dataclass(slots=True)
class Entry:
    """One training: its settings, its progress, its outcome. `history`: images seen -> the judge's metric; `searched`:
    path -> value of the settings that Optuna proposed, as it keeps them.
    """

    phase: str
    number: int
    trial_id: int
    group: str
    config: dict[str, Any]
    origin: Any
    attempts: int
    deaths: int
    outcome: Outcome | None
    reason: str | None
    value: float | None
    started: datetime
    ended: datetime | None
    summary: dict[str, Any]
    history: dict[int, float] = field(default_factory=dict)
    searched: dict[str, Any] = field(default_factory=dict)
    judged: Judged | None = None  # the pruner's last answer
    swept: bool = False  # none of its checkpoints is left (study/endings.py)
    seed: int = field(init=False)
    stage: int = field(init=False)
    batch_size: int = field(init=False)
    budget_images: int = field(init=False)

    def __post_init__(self) -> None:
        self.seed, self.stage = int(self.config["seed"]), int(self.config["stage"])
        self.batch_size, self.budget_images = int(self.config["batch_size"]), int(self.config["budget_images"])

    @property
    def key(self) -> str:
        return trial_key(self.phase, self.number)

    @property
    def identity(self) -> tuple[str, int, int]:
        return (self.group, self.seed, self.stage)

    def training(self) -> TrialConfig:
        """Its settings, validated again."""
        return stored_config(json.dumps(self.config), f"{self.key} of the ledger")


def read_entry(phase: str, frozen: FrozenTrial, judge: Judge) -> Entry:
    """The entry of one of Optuna's trials. Raises ValueError where it is not what was written."""
    attrs = frozen.user_attrs
    outcome = attrs.get(Attr.OUTCOME)
    history = dict(frozen.intermediate_values)
    if Attr.DIGEST in attrs and attrs[Attr.DIGEST] != digest(attrs):
        raise ValueError(f"what {phase} {frozen.number} is to train has changed")
    if frozen.datetime_start is None:
        raise ValueError(f"{phase} {frozen.number} never began")
    return Entry(
        phase=phase,
        number=frozen.number,
        trial_id=frozen._trial_id,
        group=attrs[Attr.GROUP],
        config=attrs[Attr.CONFIG],
        origin=attrs[Attr.ORIGIN],
        attempts=attrs[Attr.ATTEMPTS],
        deaths=attrs[Attr.DEATHS],
        outcome=Outcome(outcome) if outcome else None,
        reason=attrs.get(Attr.REASON),
        value=judge.value([{f"val/{judge.metric}": v} for _, v in sorted(history.items())]),
        started=frozen.datetime_start,
        ended=frozen.datetime_complete,
        summary=attrs.get(Attr.SUMMARY) or {},
        history=history,
        searched=frozen.params,
        judged=Judged(*attrs[Attr.JUDGED]) if Attr.JUDGED in attrs else None,
    )


def digest(attrs: Mapping[str, Any]) -> str:
    """Digest of a training's attributes that never change."""
    fixed = [attrs[name] for name in (Attr.KEY, Attr.CONFIG, Attr.GROUP, Attr.ORIGIN)]
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


class Ledger:
    """The entries of a study, in memory as in its store. `objectives`: the search's, where there are two."""

    def __init__(
        self,
        layout: Layout,
        url: str | None,
        judge: Judge,
        objectives: Sequence[str] | None = None,
    ) -> None:
        self.layout, self.judge = layout, judge
        self.store = Store(layout, url, judge.metric, "minimize" if judge.minimise else "maximize", objectives)
        self.entries: dict[str, list[Entry]] = {}
        self.entered: dict[str, dict[Identity, Entry]] = {}
        for phase in PHASES:
            self.entries[phase] = [read_entry(phase, frozen, judge) for frozen in self.store.frozen(phase)]
            self.entered[phase] = {entry.identity: entry for entry in self.entries[phase]}
            for entry in self.entries[phase]:
                if entry.outcome is not None and entry.ended is None:
                    self._tell(entry)

    def everything(self) -> list[Entry]:
        """The entries of all phases."""
        return [entry for entries in self.entries.values() for entry in entries]

    def add(self, planned: Planned, dimensions: tuple[Dimension, ...], params: Mapping[str, Any]) -> Entry:
        """Enter a training as running. `params`: the searched settings that Optuna learns from."""
        import optuna

        number = len(self.entries[planned.phase])
        spaces = {d.path: d for d in dimensions if d.path in params}
        attrs = {
            Attr.KEY: trial_key(planned.phase, number),
            Attr.CONFIG: as_dict(planned.config),
            Attr.GROUP: planned.group,
            Attr.ORIGIN: planned.origin,
            Attr.ATTEMPTS: 0,
            Attr.DEATHS: 0,
        }
        attrs[Attr.DIGEST] = digest(attrs)
        self.store.studies[planned.phase].add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params={path: label(params[path]) for path in spaces},
                distributions={path: d.distribution() for path, d in spaces.items()},
                user_attrs=attrs,
            )
        )
        entry = read_entry(planned.phase, self.store.frozen(planned.phase)[-1], self.judge)
        if entry.number != number:
            raise UserError(f"{self.layout.ledger}: another process writes to this ledger; end it, then --resume")
        self.entries[planned.phase].append(entry)
        self.entered[planned.phase][entry.identity] = entry
        return entry

    def start(self, entry: Entry) -> None:
        """Count an attempt."""
        entry.attempts += 1
        self.store.set_trial(entry.trial_id, {Attr.ATTEMPTS: entry.attempts})

    def set_deaths(self, entry: Entry, deaths: int) -> None:
        """Write how many workers have ended without a report of it since the training last got further."""
        entry.deaths = deaths
        self.store.set_trial(entry.trial_id, {Attr.DEATHS: deaths})

    def report(self, entry: Entry, images: int, value: float) -> bool:
        """Write the judged metric after so many images; False where it is known (a resumed training repeats itself)."""
        if images in entry.history:
            return False
        self.store.set_value(entry.trial_id, images, value)
        entry.history[images] = value
        return True

    def finish(
        self,
        entry: Entry,
        outcome: Outcome,
        *,
        reason: str | None = None,
        detail: str | None = None,
        step: int | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> None:
        """Write how a training ended. A complete one without a value of every objective is a failed one."""
        if entry.outcome is not None:
            return
        entry.value = self.judge.value([{f"val/{self.judge.metric}": v} for _, v in sorted(entry.history.items())])
        entry.summary = dict(summary or {})
        missing = [name for name, value in self._objectives(entry).items() if value is None]
        if outcome is Outcome.COMPLETE and missing:
            outcome, reason = Outcome.FAILED, f"it ended without a report of {missing[0]}"
        known = {Attr.REASON: reason, Attr.DETAIL: detail, Attr.STEP: step, Attr.SUMMARY: entry.summary or None}
        given = {name: value for name, value in known.items() if value is not None}
        self.store.set_trial(entry.trial_id, given | {Attr.OUTCOME: outcome.value})
        entry.outcome, entry.reason = outcome, reason
        self._tell(entry)

    def rows(self, phase: str) -> list[dict[str, Any]]:
        """A phase's trainings as the judge ranks them."""
        return [{"key": e.key, "outcome": e.outcome, "value": e.value, "group": e.group} for e in self.entries[phase]]

    def _tell(self, entry: Entry) -> None:
        import optuna

        assert entry.outcome is not None
        state = optuna.trial.TrialState[OPTUNA_STATE.get(entry.outcome, "FAIL")]
        values = [value for value in self._objectives(entry).values() if value is not None]
        study = self.store.studies[entry.phase]
        study.tell(entry.number, values if entry.outcome is Outcome.COMPLETE else None, state)
        entry.ended = datetime.now()

    def _objectives(self, entry: Entry) -> dict[str, float | None]:
        """The values of a complete training, for Optuna."""
        judged = {self.judge.metric: entry.value}
        alone = len(self.store.studies[entry.phase].directions) == 1
        return judged if alone else judged | {DEVICE_SECONDS: entry.summary.get(DEVICE_SECONDS)}


def read_ledger(layout: Layout, url: str | None, judge: Judge) -> tuple[dict[str, Any], dict[str, list[Entry]]]:
    """Attributes and entries of a study that has begun, for a reader; nothing is written. Empty where there are none.

    Raises UserError for a damaged sqlite file.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url is None and not layout.ledger.exists():
        return {}, {}
    problem = damage(layout.ledger) if url is None else None
    if problem is not None:
        raise damaged(layout, problem)
    with readable(layout):
        storage = reader(layout.ledger) if url is None else optuna.storages.RDBStorage(url, skip_table_creation=True)
        studies = {one.study_name: one for one in storage.get_all_studies()}
        attributes: dict[str, Any] = {}
        entries: dict[str, list[Entry]] = {}
        for phase in PHASES:
            name = f"{layout.name}/{phase}"
            if name in studies:
                attributes |= studies[name].user_attrs
                trials = storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False)
                entries[phase] = [read_entry(phase, trial, judge) for trial in trials]
        storage.remove_session()
    return attributes, entries


class Pruning:
    """A pruner's decisions about trainings of the search, each kept in the ledger. pruner: None gives nothing up."""

    def __init__(self, ledger: Ledger, pruner: BasePruner | None) -> None:
        self.ledger, self.pruner = ledger, pruner

    def gives_up(self, entry: Entry) -> bool:
        """The decision on the last report."""
        if self.pruner is None:
            return False
        own = self.ledger.store.frozen(entry.phase)[entry.number]
        return self._keep(entry, self.pruner.prune(self.ledger.store.studies[entry.phase], own))

    def gave_up(self, entry: Entry) -> bool:
        """The decision on the last report as it was kept. Where a kill came before that, it is made again.

        A halving pruner notes that a report is judged before it judges it, and answers no from then on. So it is asked
        on a copy without the notes of this report, and what it notes there is noted here: others are judged by it.
        """
        import optuna

        if self.pruner is None or not entry.history:
            return False
        if entry.judged is not None and entry.judged.images == max(entry.history):
            return entry.judged.gave_up
        study = self.ledger.store.studies[entry.phase]
        trials = study.get_trials()
        own, known = trials[entry.number], dict(trials[entry.number].system_attrs)
        earlier = entry.judged.notes if entry.judged is not None else ()
        own.system_attrs = {name: value for name, value in known.items() if name in earlier}
        copy = optuna.create_study(study_name=study.study_name, directions=self.ledger.store.directions)
        copy.add_trials(trials)
        answer = self.pruner.prune(copy, copy.get_trials()[entry.number])
        for name, value in copy.get_trials()[entry.number].system_attrs.items():
            if name not in known:
                self.ledger.store.note(entry.trial_id, name, value)
        return self._keep(entry, answer)

    def _keep(self, entry: Entry, answer: bool) -> bool:
        """Write an answer with the names of the notes there are now: a running trial's system attributes are those."""
        notes = sorted(self.ledger.store.frozen(entry.phase)[entry.number].system_attrs)
        entry.judged = Judged(max(entry.history), bool(answer), notes)
        self.ledger.store.set_trial(entry.trial_id, {Attr.JUDGED: list(entry.judged)})
        return entry.judged.gave_up
