"""One training of a depth network, its evaluation and its predictions: the public API.

    load_recipe(name, {path: value})      a published system's settings, one TrialConfig per stage
    fit(config, folder)                   trains; a Result: reports, summary, checkpoint
    iter_fit(config, folder)              the same, report by report
    load_model(path).predict(array)       depth in metres of a picture
    open_training(config)                 its training and validation frames
    evaluate(model, data, protocols)      scores of a model on frames
    score(predictions, data, protocols)   scores of depth maps, whatever made them

A name is imported when it is first used: settings need no torch, and nothing here needs Ray or MLflow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainables.data.dataset import TrainingData as TrainingData
    from trainables.data.dataset import open_training as open_training
    from trainables.evaluation.evaluate import Evaluation as Evaluation
    from trainables.evaluation.scoring import score as score
    from trainables.runtime.errors import Blocked as Blocked
    from trainables.runtime.errors import Diverged as Diverged
    from trainables.runtime.errors import OutOfMemory as OutOfMemory
    from trainables.runtime.errors import Stopped as Stopped
    from trainables.runtime.errors import UserError as UserError
    from trainables.settings.config import TrialConfig as TrialConfig
    from trainables.settings.recipe import load_recipe as load_recipe
    from trainables.settings.recipe import recipe_names as recipe_names
    from trainables.trained import TrainedModel as TrainedModel
    from trainables.trained import evaluate as evaluate
    from trainables.trained import load_model as load_model
    from trainables.training.progress import Report as Report
    from trainables.training.trainer import Result as Result
    from trainables.training.trainer import fit as fit
    from trainables.training.trainer import iter_fit as iter_fit

__version__ = "0.1.0"

HOMES = {
    "trainables.settings.config": ("TrialConfig",),
    "trainables.data.dataset": ("TrainingData", "open_training"),
    "trainables.runtime.errors": ("Blocked", "Diverged", "OutOfMemory", "Stopped", "UserError"),
    "trainables.evaluation.evaluate": ("Evaluation",),
    "trainables.evaluation.scoring": ("score",),
    "trainables.training.progress": ("Report",),
    "trainables.settings.recipe": ("load_recipe", "recipe_names"),
    "trainables.trained": ("TrainedModel", "evaluate", "load_model"),
    "trainables.training.trainer": ("Result", "fit", "iter_fit"),
}
__all__ = sorted(name for names in HOMES.values() for name in names)


def __getattr__(name: str) -> Any:
    for module, names in HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
