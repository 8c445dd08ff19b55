"""Model that MLflow serves: an image in, its depth in metres out; models from code, no pickle (house rule 2).

MLflow runs this file itself to load the model, so its top imports only MLflow and `trainables`, which travels with it.

    python -m analysis.served_model STUDY          registers the champion with alias `champion`
    mlflow models serve -m models:/NAME@champion --env-manager local
    {"dataframe_records": [{"image": "<base64 of a PNG or JPEG>"}]}   ->   {"predictions": [{"depth_m": [[...]]}]}
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array
from PIL import Image

import trainables
from trainables.predict import read_picture
from trainables.trained import load_model
from trainables.training import checkpoint

NEEDS = ("mlflow", "torch", "torchvision", "numpy", "pandas", "pillow", "safetensors", "pydantic", "pyyaml", "h5py",
         "kornia", "timm", "psutil")  # fmt: skip
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.binary, "image")]),
    outputs=Schema([ColSpec(Array(Array(DataType.double)), "depth_m")]),
)


class DepthOfPicture(mlflow.pyfunc.PythonModel):
    """A trained checkpoint behind MLflow's interface, with the same pictures in and depth out as trainables.predict."""

    def load_context(self, context: Any) -> None:
        """Load the checkpoint artifact, hash-checked."""
        self.model = load_model(context.artifacts["checkpoint"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Depth in metres, rows of columns, for each encoded picture in column `image`."""
        return pd.DataFrame({"depth_m": [self._depth(content) for content in model_input["image"]]})

    def _depth(self, content: bytes) -> list[list[float]]:
        with tempfile.NamedTemporaryFile(prefix="picture-") as file:
            file.write(content)
            file.flush()
            rgb = read_picture(Path(file.name))
        depth: list[list[float]] = self.model.predict(rgb).astype(np.float64).tolist()
        return depth


def log(folder: Path, run_id: str, name: str, tags: dict[str, str]) -> str:
    """Log a checkpoint folder as a model of a run and register it under a name; the version."""
    requirements = [f"{name}=={version(name).partition('+')[0]}" for name in NEEDS]
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.pyfunc.log_model(
            name="depth",
            python_model=str(Path(__file__).resolve()),
            artifacts={"checkpoint": str(folder)},
            code_paths=[str(Path(trainables.__file__).parent)],  # the package as it is installed here
            signature=SIGNATURE,
            input_example=pd.DataFrame({"image": [_example()]}),
            pip_requirements=requirements,
        )
    return str(mlflow.register_model(logged.model_uri, name, tags=tags).version)


def publish(tables: Any) -> str | None:
    """Register the champion that the sealed test has seen as NAME@champion; 'NAME version N', or None without a store.

    Raises UserError where the test is sealed, or the champion's checkpoint is missing or not the one that was scored.
    """
    from analysis import mlflow_store
    from analysis.tables import sealed
    from study.contract import Tag
    from trainables.runtime.durable import sha256
    from trainables.runtime.errors import UserError

    if not (tables.layout.evaluation / sealed.DONE).exists():
        raise UserError(
            f"{tables.name}: the sealed test has scored no champion; end the study, then python -m analysis.report"
        )
    document, _ = sealed.stored(tables.layout.evaluation)
    key = document["champion"]
    frozen = next(entry for entry in document["list"]["entries"] if entry["name"] == key)
    folder, weights = tables.layout.root / frozen["checkpoint"], frozen["weights_sha256"]
    checkpoint.verify(folder)
    if sha256(folder / checkpoint.WEIGHTS) != weights:
        raise UserError(f"{folder}: these are not the weights that the sealed test scored; restore the checkpoint")
    name, tags = tables.name, {Tag.KEY: key, Tag.STUDY: tables.name, Tag.WEIGHTS: weights}
    made = mlflow_store.register(tables, name, key, weights, lambda run_id: log(folder.resolve(), run_id, name, tags))
    return None if made is None else f"{name} version {made}"


def _example() -> bytes:
    """A small grey gradient as PNG."""
    out = io.BytesIO()
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (48, 1))
    Image.fromarray(np.repeat(ramp[:, :, None], 3, axis=2)).save(out, format="PNG")
    return out.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m analysis.served_model STUDY`."""
    from analysis import mlflow_store, runs
    from study.contract import masked
    from trainables.runtime import cli

    purpose = "Register a study's champion as an MLflow model with alias champion."
    arguments = cli.parser("analysis.served_model", purpose, "python -m analysis.served_model rooms")
    arguments.add_argument("study", metavar="STUDY", help="a study's name or its results folder")

    def body(args: argparse.Namespace) -> Any:
        tables = runs.load(args.study)
        registered = publish(tables)
        said = f"{registered}, alias champion" if registered else "the study has no tracking store (tracking.uri: null)"
        print(f"registered: {said}" if registered else f"nothing registered: {said}")
        uri = f"models:/{tables.name}@champion" if registered else None
        store = mlflow_store.tracking_uri(tables)
        return {"study": tables.name, "model": uri, "tracking_uri": None if store is None else masked(store)}

    return cli.run(arguments, body, None if argv is None else list(argv))


if __name__ == "__main__":
    sys.exit(main())
else:
    mlflow.models.set_model(DepthOfPicture())
