"""One training of a depth network, its evaluation and its predictions: the public API.

    load_recipe(name, {path: value})      a published system's settings, one TrialConfig per stage
    fit(config, folder)                   trains; a Result: reports, summary, checkpoint
    iter_fit(config, folder)              the same, report by report
    load_model(path).predict(array)       depth in metres of a picture
    open_training(config)                 its training and validation frames
    evaluate(model, data, protocols)      scores of a model on frames

A name is imported when it is first used: settings need no torch, and nothing here needs Ray or MLflow.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainables.config import TrialConfig as TrialConfig
    from trainables.data.dataset import TrainingData as TrainingData
    from trainables.data.dataset import open_training as open_training
    from trainables.errors import Blocked as Blocked
    from trainables.errors import Diverged as Diverged
    from trainables.errors import OutOfMemory as OutOfMemory
    from trainables.errors import Stopped as Stopped
    from trainables.errors import UserError as UserError
    from trainables.evaluate import Evaluation as Evaluation
    from trainables.progress import Report as Report
    from trainables.recipe import load_recipe as load_recipe
    from trainables.recipe import recipe_names as recipe_names
    from trainables.trained import TrainedModel as TrainedModel
    from trainables.trained import evaluate as evaluate
    from trainables.trained import load_model as load_model
    from trainables.trainer import Result as Result
    from trainables.trainer import fit as fit
    from trainables.trainer import iter_fit as iter_fit

__version__ = "0.1.0"

HOMES = {
    "trainables.config": ("TrialConfig",),
    "trainables.data.dataset": ("TrainingData", "open_training"),
    "trainables.errors": ("Blocked", "Diverged", "OutOfMemory", "Stopped", "UserError"),
    "trainables.evaluate": ("Evaluation",),
    "trainables.progress": ("Report",),
    "trainables.recipe": ("load_recipe", "recipe_names"),
    "trainables.trained": ("TrainedModel", "evaluate", "load_model"),
    "trainables.trainer": ("Result", "fit", "iter_fit"),
}
__all__ = sorted(name for names in HOMES.values() for name in names)


class _Package(ModuleType):
    """A package in which a public function keeps its name beside a module of that name (`evaluate`)."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in __all__):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    for module, names in HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
