"""Model that MLflow serves: an image in, its depth in metres out; models from code, no pickle (house rule 2).

MLflow runs this file itself to load the model, so its top imports only MLflow and `trainables`, which travels with it.

    python -m analysis.served_model STUDY          registers the champion with alias `champion`
    mlflow models serve -m models:/NAME@champion --env-manager local
    {"dataframe_records": [{"image": "<base64 of a PNG or JPEG>"}]}   ->   {"predictions": [{"depth_m": [[...]]}]}

`dataframe_split`, `inputs` and `instances` are understood, too. A picture is a file's content as base64 text (URL-safe,
or as a data URL, or {"b64": ...}, as well), as bytes from Python, or pixels: rows of [r, g, b], 0 to 255. Anything else
is answered with status 400 and one sentence that names its row.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array
from numpy.typing import NDArray
from PIL import Image

import trainables
from trainables.data.photos import MAX_PIXELS, decode_picture
from trainables.runtime.errors import UserError
from trainables.trained import load_model
from trainables.training import checkpoint

NEEDS = ("mlflow", "torch", "torchvision", "numpy", "pandas", "pillow", "safetensors", "pydantic", "pyyaml", "h5py",
         "kornia", "timm", "psutil")  # fmt: skip
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "image")]),  # as binary, MLflow would drop what is no base64 and decode on
    outputs=Schema([ColSpec(Array(Array(DataType.double)), "depth_m")]),
)


FORMS = "send a PNG or JPEG file's content as base64 text, or pixels as rows of [r, g, b] from 0 to 255"


class DepthOfPicture(mlflow.pyfunc.PythonModel):
    """A trained checkpoint behind MLflow's interface, with the same pictures in and depth out as trainables.predict."""

    def load_context(self, context: Any) -> None:
        """Load the checkpoint artifact, hash-checked."""
        self.model = load_model(context.artifacts["checkpoint"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Depth in metres, rows of columns, for each picture in column `image`. Raises MlflowException (400)."""
        pictures = []
        for row, value in enumerate(model_input["image"]):  # all, before one is predicted
            try:
                pictures.append(picture_of(value, f"row {row}"))
            except UserError as error:
                raise MlflowException.invalid_parameter_value(str(error)) from None
        depths = [self.model.predict(rgb).astype(np.float64).tolist() for rgb in pictures]
        return pd.DataFrame({"depth_m": depths})


def picture_of(value: Any, name: str) -> NDArray[np.uint8]:
    """The RGB picture, uint8 (H, W, 3), of a request's value; `name` stands in messages. Raises UserError."""
    if isinstance(value, dict) and value.keys() == {"b64"}:  # how TensorFlow Serving writes bytes
        value = value["b64"]
    if isinstance(value, str):
        value = _from_base64(value, name)
    if isinstance(value, bytes):
        return decode_picture(value, name)
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise UserError(f"{name}: a {type(value).__name__} is no picture; {FORMS}")
    try:
        pixels = np.array(value.tolist() if isinstance(value, np.ndarray) else value)
    except ValueError:
        raise UserError(f"{name}: the pixels are no rectangle; {FORMS}") from None
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UserError(f"{name}: pixels of shape {pixels.shape} are no picture; {FORMS}")
    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        raise UserError(f"{name}: more than {MAX_PIXELS:,} pixels; give a smaller picture")
    if pixels.dtype.kind == "U":  # MLflow makes text of the numbers under `inputs`
        with contextlib.suppress(ValueError, OverflowError):
            pixels = pixels.astype(np.int64)
    if pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
        raise UserError(f"{name}: pixels must be whole numbers from 0 to 255; {FORMS}")
    return pixels.astype(np.uint8)


def _from_base64(text: str, name: str) -> bytes:
    """The content of base64 text in either alphabet, with or without padding and line breaks, or of a data URL."""
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise UserError(f"{name}: the data URL is not base64; {FORMS}")
    plain = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:
        raise UserError(f"{name}: the text is not base64; {FORMS}") from None


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
            input_example=pd.DataFrame({"image": [base64.b64encode(_example()).decode()]}),
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
