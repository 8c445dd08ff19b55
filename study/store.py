"""Storage of a ledger: Optuna's storage with its studies, and of a sqlite file damage check, seal and backup.

SQLite keeps no checksums. A study that ends by itself seals the file with its SHA-256, which finds any change; of one
that was killed SQLite's own check finds what breaks the structure, and reading finds what no ledger can hold.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from study.contract import PHASES, Layout, StudyAttr
from trainables.runtime.durable import sha256, sync_file, sync_folder, write_bytes
from trainables.runtime.errors import UserError, refused_by_disk

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

Direction = Literal["minimize", "maximize"]
EMPTY = "it is empty"
DASHBOARD = "dashboard:"  # how the names of optuna-dashboard's system attributes begin
BUSY_S = 30.0  # how long a write waits for a reader of the same sqlite file


class Store:
    """Optuna's storage of one study, opened by its one owner: an Optuna study for each phase.

    url: None for the sqlite file in the study's folder. metric: the judge's. objectives: the search's, where there are
    two.
    """

    def __init__(
        self,
        layout: Layout,
        url: str | None,
        metric: str,
        direction: Direction,
        objectives: Sequence[str] | None = None,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.layout, self.sqlite, self.planned = layout, url is None, dict[str, int]()
        if url is None:
            check(layout)
        self.directions: list[Direction] = [direction, "minimize"] if objectives else [direction]  # of the search
        self.storage = optuna.storages.RDBStorage(
            url or f"sqlite:///{layout.ledger}",
            engine_kwargs={} if url else {"connect_args": {"timeout": BUSY_S}},
        )
        self.studies: dict[str, optuna.Study] = {
            phase: self._study(phase, self.directions if phase == "search" else [direction]) for phase in PHASES
        }
        for phase, study in self.studies.items():
            _name_objectives(study, objectives if objectives and phase == "search" else [metric])

    def _study(self, phase: str, directions: list[Direction]) -> optuna.Study:
        """Optuna's study of a phase; one without trials, of a start that was refused, is made anew where it differs."""
        import optuna

        def made() -> optuna.Study:
            return optuna.create_study(
                storage=self.storage,
                study_name=f"{self.layout.name}/{phase}",
                directions=directions,
                sampler=optuna.samplers.RandomSampler(),
                pruner=optuna.pruners.NopPruner(),  # see study.ledger.Pruning
                load_if_exists=True,
            )

        study = made()
        if [one.name.lower() for one in study.directions] == directions or study.get_trials(deepcopy=False):
            return study
        optuna.delete_study(study_name=study.study_name, storage=self.storage)
        return made()

    def frozen(self, phase: str) -> list[FrozenTrial]:
        """Optuna's own view of a phase's trials, in order; not to be changed."""
        return self.studies[phase].get_trials(deepcopy=False)

    def set_trial(self, trial_id: int, values: Mapping[str, Any]) -> None:
        """Write user attributes of a trial, in their order."""
        for name, value in values.items():
            self.storage.set_trial_user_attr(trial_id, name, value)

    def set_value(self, trial_id: int, images: int, value: float) -> None:
        """Write a trial's judged metric after so many images."""
        self.storage.set_trial_intermediate_value(trial_id, images, value)  # Trial.report refuses two objectives

    def note(self, trial_id: int, name: str, value: Any) -> None:
        """Write what a pruner noted of a trial."""
        self.storage.set_trial_system_attr(trial_id, name, value)

    def attach(self, phase: str, number: int, file: Path) -> None:
        """Attach a copy of a file to a running trial, as optuna-dashboard shows it with --artifact-dir; once."""
        from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact

        trial, files = self.frozen(phase)[number], self.layout.artifacts
        if get_all_artifact_meta(study_or_trial=trial, storage=self.storage):
            return  # attached before a kill
        files.mkdir(exist_ok=True)
        upload_artifact(
            artifact_store=FileSystemArtifactStore(files),
            file_path=str(file),
            study_or_trial=trial,
            storage=self.storage,
        )

    def describe(self, phase: str, notes: Mapping[int, str]) -> None:
        """Write notes (Markdown) by trial, where optuna-dashboard is installed, which shows them, and there is none."""
        try:
            from optuna_dashboard import save_note
        except ImportError:  # the extra `dashboard`
            return
        from optuna.trial import Trial

        study = self.studies[phase]
        known = self.storage.get_study_system_attrs(self.storage.get_study_id_from_name(study.study_name))
        for trial_id, text in notes.items():
            if not any(name.startswith(f"{DASHBOARD}{trial_id}:") for name in known):
                save_note(Trial(study, trial_id), text)

    def attribute(self, name: str) -> Any:
        """An attribute of the study, or None."""
        return self.studies[PHASES[0]].user_attrs.get(name)

    def set_attributes(self, values: Mapping[str, Any]) -> None:
        """Write attributes of the study, to every phase."""
        for study in self.studies.values():
            for name, value in values.items():
                if study.user_attrs.get(name) != value:
                    study.set_user_attr(name, value)

    def set_planned(self, counts: Mapping[str, int]) -> None:
        """Write how many trainings some phases will hold."""
        self.planned |= counts
        for phase, count in counts.items():
            if self.studies[phase].user_attrs.get(StudyAttr.PLANNED) != count:
                self.studies[phase].set_user_attr(StudyAttr.PLANNED, count)

    def backup(self) -> None:
        """Copy a sqlite file, whole or not at all."""
        if self.sqlite:
            backup(self.layout)

    def close(self) -> None:
        """Let go of the storage's connections, and seal a sqlite file."""
        self.storage.remove_session()
        if self.sqlite:
            seal(self.layout)


def _name_objectives(study: optuna.Study, names: Sequence[str]) -> None:
    """For those who open the ledger with Optuna's own tools."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental
        if study.metric_names is None and len(study.directions) == len(names):
            study.set_metric_names(list(names))


def backup(layout: Layout) -> None:
    """Copy the ledger to ledger.backup.db, whole or not at all."""
    final, temporary = _copy(layout), layout.root / ".ledger.backup.tmp"
    temporary.unlink(missing_ok=True)
    with closing(sqlite3.connect(layout.ledger)) as source, closing(sqlite3.connect(temporary)) as target:
        source.backup(target)
    sync_file(temporary)
    temporary.replace(final)
    sync_folder(layout.root)


def seal(layout: Layout) -> None:
    """Keep the SHA-256 of a ledger that nobody has open, and of the copy that may be put in its place."""
    files = [path for path in (layout.ledger, _copy(layout)) if path.exists()]
    write_bytes(_seal(layout), "\n".join(sha256(path) for path in files).encode())


def check(layout: Layout) -> None:
    """Break the seal of a ledger that is whole. Raises UserError for one that is damaged or has changed since it was
    sealed, or is missing beside trainings that it should list.
    """
    path, sealed = layout.ledger, _seal(layout)
    begun = layout.trials.is_dir() and any(layout.trials.iterdir())
    if not path.exists():
        if begun:
            raise UserError(f"{path}: the ledger is missing, but there are trainings beside it; {advice(layout)}")
        return
    if sealed.exists() and sha256(path).encode() not in sealed.read_bytes().splitlines():
        found = _changed(layout)
        if found is not None:
            raise UserError(
                f"{path}: the ledger has changed since its study ended ({found}); {advice(layout)}, "
                f"or remove {sealed} if you changed it yourself"
            )
        print(f"{path}: optuna-dashboard has kept notes in it since the study ended; the study's own part is unchanged")
    found = damage(path, mode="rw")  # a journal that a kill left in the middle of a write has to be rolled back
    if found == EMPTY and not begun:  # killed while it was made, before the first training
        path.unlink()
        return
    if found is not None:
        raise damaged(layout, found)
    sealed.unlink(missing_ok=True)


def _changed(layout: Layout) -> str | None:
    """What differs between a sealed study's ledger and its sealed copy; None: notes of optuna-dashboard alone."""
    copy, path = _copy(layout), layout.ledger
    if not copy.exists() or sha256(copy).encode() not in _seal(layout).read_bytes().splitlines() or damage(path):
        return "SHA-256 differs"
    with readable(layout):
        (before, notes), (now, later) = _content(copy), _content(path)
    different = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if different:
        return f"{', '.join(different[:3])}{' and more' if different[3:] else ''}"
    return None if notes != later else "SHA-256 differs"


def _content(path: Path) -> tuple[dict[str, str], list[str]]:
    """What a sqlite ledger says of each of its studies and trials, and the notes of optuna-dashboard apart."""
    import optuna

    address = f"sqlite:///file:{quote(str(path))}?mode=ro&uri=true"
    storage = optuna.storages.RDBStorage(address, skip_table_creation=True)
    content: dict[str, str] = {}
    notes: list[str] = []
    for study in storage.get_all_studies():
        trials = storage.get_all_trials(storage.get_study_id_from_name(study.study_name))
        known: list[tuple[str, Any]] = [(study.study_name, study)]
        known += [(f"{study.study_name}, trial {trial.number}", trial) for trial in trials]
        for name, kept in known:
            for key in [key for key in kept.system_attrs if key.startswith(DASHBOARD)]:
                notes.append(f"{name}: {key} = {kept.system_attrs.pop(key)}")
            content[name] = repr(vars(kept))
    storage.remove_session()
    storage.engine.dispose()
    return content, notes


def damage(path: Path, mode: str = "ro") -> str | None:
    """What SQLite says is wrong with a ledger, in a few words."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=BUSY_S)) as connection:
            found = connection.execute("PRAGMA integrity_check").fetchone()[0]
            made = "SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'"
            tables = connection.execute(made).fetchone()[0]
    except sqlite3.DatabaseError as error:
        return str(error)
    if found != "ok":
        return " ".join(str(found).split())  # SQLite writes a line for each thing it finds
    return None if tables else EMPTY


def reader(path: Path) -> optuna.storages.RDBStorage:
    """Optuna's storage of a sqlite file that nothing is written to."""
    import optuna

    address = f"sqlite:///file:{quote(str(path.resolve()))}?mode=ro&uri=true"
    return optuna.storages.RDBStorage(address, skip_table_creation=True)


@contextmanager
def readable(layout: Layout) -> Iterator[None]:
    """Report impossible content of a ledger's file as damage; a full disk or a file in use is not damage."""
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (LookupError, OptunaError, RuntimeError, SQLAlchemyError, TypeError, ValueError) as error:
        if not layout.ledger.exists() or refused_by_disk(error) or "database is locked" in str(error):
            raise
        raise damaged(layout, f"{type(error).__name__}: {error}") from error


def damaged(layout: Layout, problem: str) -> UserError:
    """The error for a damaged ledger."""
    return UserError(f"{layout.ledger}: the ledger is damaged ({problem.splitlines()[0][:200]}); {advice(layout)}")


def advice(layout: Layout) -> str:
    """The cure for a damaged ledger, in words."""
    copy = _copy(layout)
    there = copy.exists()
    return f"put {copy} in its place, then --resume" if there else f"move {layout.root} away and start again"


def _copy(layout: Layout) -> Path:
    return layout.root / "ledger.backup.db"


def _seal(layout: Layout) -> Path:
    return layout.root / "ledger.db.sha256"
