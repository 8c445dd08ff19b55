"""The ledger: Optuna's storage as the one record of every training of every phase (DESIGN.md, house rule 9).

A training enters in one transaction with everything that is known of it, so a kill leaves it whole or not at all. Its
outcome is written last of its attributes, then reported to Optuna; a kill between the two is finished on opening.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from study import ledger_file
from study.compose import Planned
from study.contract import DEVICE_SECONDS, OPTUNA_STATE, PHASES, Attr, Judge, Layout, Outcome, StudyAttr, trial_key
from study.entry import Entry, digest, read_entry
from study.space import Dimension, label
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig, as_dict, stored_config

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

Direction = Literal["minimize", "maximize"]
NOTHING: Final[dict[str, Any]] = {}  # one for all ended trainings; never written to
RUNG = "completed_rung_"  # system attributes of Optuna's halving pruners


class Ledger:
    """A study's ledger, opened by its one owner. `objectives`: the search's, where there are two."""

    def __init__(
        self, layout: Layout, url: str | None, judge: Judge, pruner: Any, objectives: Sequence[str] = ()
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.layout, self.judge = layout, judge
        if url is None:
            ledger_file.check(layout)
        direction: Direction = "minimize" if judge.minimise else "maximize"
        self.directions: list[Direction] = [direction, "minimize"] if objectives else [direction]  # of the search
        self.storage = storage = optuna.storages.RDBStorage(
            url or f"sqlite:///{layout.ledger}",
            engine_kwargs={} if url else {"connect_args": {"timeout": ledger_file.BUSY_S}},
        )
        self.studies: dict[str, optuna.Study] = {
            phase: optuna.create_study(
                storage=storage,
                study_name=f"{layout.name}/{phase}",
                directions=self.directions if phase == "search" else [direction],
                sampler=optuna.samplers.RandomSampler(),
                pruner=pruner if phase == "search" and pruner is not None else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            for phase in PHASES
        }
        self.sqlite, self.planned = url is None, dict[str, int]()
        nothing = pruner is None or isinstance(pruner, optuna.pruners.NopPruner)
        self.prunes = not nothing and not objectives
        if objectives:
            _name_objectives(self.studies["search"], objectives)
        self.distributions: dict[str, dict[str, Any]] = {}  # those of ended trials, one for all that are equal
        self.trainings: dict[int, TrialConfig] = {}
        self.entries: dict[str, list[Entry]] = {}
        self.entered: dict[str, dict[tuple[str, int, int], Entry]] = {}
        for phase in PHASES:
            self.entries[phase] = [read_entry(phase, frozen, judge) for frozen in self.frozen(phase)]
            self.entered[phase] = {entry.identity: entry for entry in self.entries[phase]}
            for entry in self.entries[phase]:
                if entry.outcome is not None and entry.ended is None:
                    self._tell(entry)

    def frozen(self, phase: str) -> list[FrozenTrial]:
        """Optuna's own view of a phase's trials, in order."""
        return self.studies[phase].get_trials(deepcopy=False)

    def add(self, planned: Planned, dimensions: tuple[Dimension, ...], params: Mapping[str, Any]) -> Entry:
        """Enter a training as running. `params`: the searched settings that Optuna learns from."""
        import optuna

        study = self.studies[planned.phase]
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
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params={path: label(params[path]) for path in spaces},
                distributions={path: d.distribution() for path, d in spaces.items()},
                user_attrs=attrs,
            )
        )
        entry = read_entry(planned.phase, study.get_trials(deepcopy=False)[-1], self.judge)
        if entry.number != number:
            raise UserError(f"{self.layout.ledger}: another process writes to this ledger; end it, then --resume")
        self.entries[planned.phase].append(entry)
        self.entered[planned.phase][entry.identity] = entry
        return entry

    def start(self, entry: Entry) -> None:
        """Count an attempt."""
        entry.attempts += 1
        self._trial(entry).set_user_attr(Attr.ATTEMPTS, entry.attempts)

    def count_death(self, entry: Entry) -> None:
        """Count a worker that ended without a report of it."""
        entry.deaths += 1
        self._trial(entry).set_user_attr(Attr.DEATHS, entry.deaths)

    def forgive_deaths(self, entry: Entry) -> None:
        """Reset the count of deaths: the training has got further since."""
        entry.deaths = 0
        self._trial(entry).set_user_attr(Attr.DEATHS, 0)

    def report(self, entry: Entry, images: int, value: float) -> bool:
        """Write the judged metric after so many images; False where it is known (a resumed training repeats itself)."""
        if images in entry.history:
            return False
        self.storage.set_trial_intermediate_value(entry.trial_id, images, value)  # Trial.report refuses two objectives
        entry.history[images] = value
        return True

    def should_prune(self, entry: Entry) -> bool:
        """The pruner's decision on the last report."""
        if not self.prunes:
            return False
        return self._judge(entry, self._trial(entry).should_prune())

    def should_have_pruned(self, entry: Entry) -> bool:
        """What it has said of the last report. Where a kill came before the answer was written, it is asked again.

        A halving pruner notes that a report is judged before it judges it, and answers no from then on. So it is asked
        on a copy without the note, and what it notes there is noted here: others are judged by it.
        """
        import optuna

        if not (self.prunes and entry.history):
            return False
        images = max(entry.history)
        if entry.judged is not None and entry.judged[0] == images:
            return entry.judged[1]
        study, trials = self.studies[entry.phase], self.studies[entry.phase].get_trials()
        own, known = trials[entry.number], dict(trials[entry.number].system_attrs)
        noted = {n for n, value in known.items() if n.startswith(RUNG) and value == entry.history[images]}
        own.system_attrs = {name: value for name, value in known.items() if name not in noted}
        copy = optuna.create_study(study_name=study.study_name, directions=self.directions, pruner=study.pruner)
        copy.add_trials(trials)
        answer = study.pruner.prune(copy, copy.get_trials()[entry.number])
        for name, value in copy.get_trials()[entry.number].system_attrs.items():
            if name not in known:
                self.storage.set_trial_system_attr(entry.trial_id, name, value)
        return self._judge(entry, answer)

    def _judge(self, entry: Entry, answer: bool) -> bool:
        entry.judged = max(entry.history), bool(answer)
        self._trial(entry).set_user_attr(Attr.JUDGED, entry.judged)
        return entry.judged[1]

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
        trial = self._trial(entry)
        known = {Attr.REASON: reason, Attr.DETAIL: detail, Attr.STEP: step, Attr.SUMMARY: entry.summary or None}
        for name, value in known.items():
            if value is not None:
                trial.set_user_attr(name, value)
        trial.set_user_attr(Attr.OUTCOME, outcome.value)
        entry.outcome, entry.reason = outcome, reason
        self._tell(entry)

    def release(self, *ended: Entry) -> None:
        """Drop from memory what nobody asks of ended trainings: a study may have many thousands. Optuna's own view of
        them, which stays as long as the ledger is open, keeps what samplers and pruners look at.
        """
        trials = {phase: self.frozen(phase) for phase in {entry.phase for entry in ended}}
        for entry in ended:
            self._release(entry, trials[entry.phase][entry.number])

    def _release(self, entry: Entry, kept: FrozenTrial) -> None:
        kept.user_attrs = NOTHING
        kept.params = {sys.intern(name): value for name, value in kept.params.items()}
        kept.distributions = self.distributions.setdefault(str(kept.distributions), kept.distributions)
        entry.config, entry.summary, entry.history = NOTHING, NOTHING, kept.intermediate_values

    def training(self, entry: Entry) -> TrialConfig:
        """A training's settings, read from the storage and validated again; kept: few are asked for, but often."""
        if entry.trial_id not in self.trainings:
            attrs = self.storage.get_trial(entry.trial_id).user_attrs
            self.trainings[entry.trial_id] = stored_config(json.dumps(attrs[Attr.CONFIG]))
        return self.trainings[entry.trial_id]

    def rows(self, phase: str) -> list[dict[str, Any]]:
        """A phase's trainings as the judge ranks them."""
        return [{"key": e.key, "outcome": e.outcome, "value": e.value, "group": e.group} for e in self.entries[phase]]

    def attribute(self, name: str) -> Any:
        """A study attribute, or None."""
        return self.studies[PHASES[0]].user_attrs.get(name)

    def set_attributes(self, values: Mapping[str, Any]) -> None:
        """Write study attributes to every phase."""
        for study in self.studies.values():
            for name, value in values.items():
                if study.user_attrs.get(name) != value:
                    study.set_user_attr(name, value)

    def set_planned(self, counts: Mapping[str, int]) -> None:
        """Write how many trainings each phase will hold."""
        self.planned |= counts
        for phase, count in counts.items():
            if self.studies[phase].user_attrs.get(StudyAttr.PLANNED) != count:
                self.studies[phase].set_user_attr(StudyAttr.PLANNED, count)

    def backup(self) -> None:
        """Copy a sqlite ledger, whole or not at all."""
        if self.sqlite:
            ledger_file.backup(self.layout)

    def close(self) -> None:
        """Let go of the storage's connections, and seal a sqlite ledger."""
        self.storage.remove_session()
        if self.sqlite:
            ledger_file.seal(self.layout)

    def _trial(self, entry: Entry) -> optuna.Trial:
        import optuna

        return optuna.trial.Trial(self.studies[entry.phase], entry.trial_id)

    def _tell(self, entry: Entry) -> None:
        import optuna

        assert entry.outcome is not None
        state = optuna.trial.TrialState[OPTUNA_STATE.get(entry.outcome, "FAIL")]
        values = [value for value in self._objectives(entry).values() if value is not None]
        self.studies[entry.phase].tell(entry.number, values if entry.outcome is Outcome.COMPLETE else None, state)
        entry.ended = datetime.now()

    def _objectives(self, entry: Entry) -> dict[str, float | None]:
        """The values of a complete training, for Optuna."""
        judged = {self.judge.metric: entry.value}
        alone = len(self.studies[entry.phase].directions) == 1
        return judged if alone else judged | {DEVICE_SECONDS: entry.summary.get(DEVICE_SECONDS)}


def _name_objectives(study: optuna.Study, names: Sequence[str]) -> None:
    """For those who open the ledger with Optuna's own tools."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental
        if study.metric_names is None and len(study.directions) == len(names):
            study.set_metric_names(list(names))
