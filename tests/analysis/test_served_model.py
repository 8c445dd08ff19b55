"""The champion as a registered MLflow model: same depth as trainables.predict, no pickle, served over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from analysis import final_evaluation, mlflow_store, report, runs, selection
from analysis.page import html
from analysis.page.section import Section, Table
from study.contract import EXPERIMENT, Layout, Tag
from tests.analysis.test_final_evaluation import write_study
from trainables.models.depth_model import build_model
from trainables.runtime.errors import UserError
from trainables.settings.config import TrialConfig
from trainables.trained import load_model
from trainables.training import checkpoint

CHAMPION = "confirm-0001"


@pytest.fixture
def registered(tmp_path: Path, tiny_config: Callable[..., TrialConfig], empty_store: Path) -> tuple[Layout, str]:
    """A study whose champion has a run in the store, as study/tracking.py leaves it, and is registered."""
    import mlflow

    from analysis import served_model

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    layout = write_study(tmp_path, tiny_config(), uri)
    tables = runs.load(layout.root)
    assert report.register(tables) is None
    with pytest.raises(UserError, match="the sealed test has scored no champion"):
        served_model.publish(tables)
    final_evaluation.open_once(tables, None)
    with pytest.raises(UserError, match="is not in the tracking store"):
        served_model.publish(tables)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment(EXPERIMENT, artifact_location=(tmp_path / "mlartifacts").as_uri())
    run = client.create_run(experiment, tags={Tag.STUDY: "s", Tag.KEY: CHAMPION})
    client.set_terminated(run.info.run_id, "FINISHED", 1234)
    assert served_model.publish(tables) == "s version 1"
    assert served_model.publish(tables) == "s version 1"  # the same champion is not registered twice
    assert client.get_model_version_by_alias("s", "champion").tags[Tag.KEY] == CHAMPION
    assert client.get_run(run.info.run_id).info.end_time == 1234
    return layout, uri


def picture() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(out, format="PNG")
    return out.getvalue()


def expected(layout: Layout) -> np.ndarray:
    rgb = np.asarray(Image.open(io.BytesIO(picture())))
    return load_model(layout.trial(CHAMPION) / "checkpoints" / "best", "cpu").predict(rgb)


def answers_every_form(model: Any, depth: np.ndarray) -> None:
    """MLflow's four forms of a request, and every way to write a picture."""
    plain, pixels = base64.b64encode(picture()).decode(), np.asarray(Image.open(io.BytesIO(picture()))).tolist()
    ways = {
        "base64": plain,
        "URL-safe": base64.urlsafe_b64encode(picture()).decode().rstrip("="),
        "lines": base64.encodebytes(picture()).decode(),
        "data URL": f"data:image/png;base64,{plain}",
        "TensorFlow's": {"b64": plain},
        "pixels": pixels,
    }
    for value in ways.values():
        check(model, {"dataframe_records": [{"image": value}]}, [depth])
    for value in (ways["URL-safe"], pixels):
        for request in (
            {"dataframe_split": {"columns": ["image"], "data": [[value], [value]]}},
            {"inputs": [value, value]},
            {"inputs": [{"image": value}, {"image": value}]},
            {"inputs": {"image": [value, value]}},
            {"instances": [value, value]},
            {"instances": [{"image": value}, {"image": value}]},
        ):
            check(model, request, [depth, depth])


def check(model: Any, request: dict[str, Any], depths: list[np.ndarray]) -> None:
    from mlflow.pyfunc import scoring_server

    schema = model.metadata.get_input_schema()
    answer = scoring_server.invocations(json.dumps(request), "application/json", model, schema)
    assert answer.status == 200
    for row, depth in zip(json.loads(answer.response)["predictions"], depths, strict=True):
        np.testing.assert_allclose(np.asarray(row["depth_m"]), depth, rtol=1e-6)


def refuses_in_one_sentence(model: Any) -> None:
    """Status 400, the row by its number, and nothing of the server."""
    from mlflow.exceptions import MlflowException

    good = base64.b64encode(picture()).decode()
    for value, says in (
        ("not base64!", "the text is not base64"),
        (base64.b64encode(b"no picture").decode(), "this is not a readable picture"),
        (base64.b64encode(picture()[:200]).decode(), "the picture cannot be read"),
        (base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n{ } loop\n").decode(), "this is not a readable picture"),
        ("data:image/svg+xml,<svg/>", "the data URL is not base64"),
        ("http://127.0.0.1/kitchen.jpg", "the text is not base64"),
        ("/etc/passwd.jpg", "the text is not base64"),
        ("", "this is not a readable picture"),
        (None, "is no picture"),
        (3, "is no picture"),
        ([[[0, 0, 300]]], "whole numbers from 0 to 255"),
        ([[[0.5, 0, 0]]], "whole numbers from 0 to 255"),
        ([[[0, 0, 0]], [[0, 0]]], "no rectangle"),
        ([[1, 2], [3, 4]], "pixels of shape (2, 2)"),
        ([], "pixels of shape (0,)"),
        ({"path": "/etc/passwd"}, "a dict is no picture"),
    ):
        with pytest.raises(MlflowException) as caught:
            check(model, {"dataframe_records": [{"image": good}, {"image": value}]}, [])
        body = caught.value.serialize_as_json()
        assert caught.value.get_http_status_code() == 400
        assert f"row 1: {says}" in json.loads(body)["message"] or ("row 1: " in body and says in body), body
        assert not any(word in body for word in ("Traceback", "stack_trace", ".py", "site-packages", "/tmp"))


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.just("b64") | st.text(), inner),
                    max_leaves=12))  # fmt: skip
def test_any_value_is_a_picture_or_one_sentence(value: Any) -> None:
    from analysis.served_model import picture_of

    try:
        rgb = picture_of(value, "row 7")
    except UserError as error:
        assert str(error).startswith("row 7: ") and "\n" not in str(error)
    else:
        assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3


def test_the_registered_champion_predicts_as_the_command_does(registered: tuple[Layout, str]) -> None:
    import mlflow

    layout, uri = registered
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model("models:/s@champion")
    answers_every_form(model, expected(layout))
    refuses_in_one_sentence(model)
    depth = np.asarray(model.predict(pd.DataFrame({"image": [picture()]}))["depth_m"].iloc[0])
    np.testing.assert_allclose(depth, expected(layout), rtol=1e-6)
    folder = Path(mlflow.artifacts.download_artifacts("models:/s@champion"))
    assert not [p for p in folder.rglob("*") if p.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    assert model.metadata.signature is not None and model.metadata.saved_input_example_info is not None


def test_a_report_registers_what_the_sealed_test_has_seen_and_links_its_run(registered: tuple[Layout, str]) -> None:
    tables = runs.load(registered[0].root)
    assert report.register(tables) == "s version 1"
    ((key, address),) = mlflow_store.run_pages(tables).items()
    assert key == CHAMPION and re.fullmatch(r"http://127\.0\.0\.1:5000/#/experiments/2/runs/[0-9a-f]{32}", address)
    table = Table("t", "T", pd.DataFrame({"key": [CHAMPION, "search-0000"], "n": [1, 2]}))
    cells = [row[0].href for row in html.grid(table, {CHAMPION: address}).rows]
    assert cells == [address, None]
    text = html.render("t", [], [html.part(Section("k", "K", ["a"], (), [table]), {CHAMPION: '"><script>'}, {})], "")
    assert 'href="&#34;&gt;&lt;script&gt;"' in text


def test_what_is_registered_is_what_the_sealed_test_has_seen(
    registered: tuple[Layout, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that would choose another by now changes nothing; other weights under the same key are refused, and, once
    they are scored, are another version.
    """
    import mlflow

    from analysis import served_model

    layout, uri = registered
    tables = runs.load(layout.root)
    chosen = selection.choose(tables)
    assert chosen is not None and chosen.champion == CHAMPION
    monkeypatch.setattr(selection, "choose", lambda _: replace(chosen, champion="confirm-0002"))
    assert served_model.publish(tables) == "s version 1"
    monkeypatch.undo()
    config = checkpoint.read_config(layout.trial(CHAMPION) / "checkpoints" / "best")
    torch.manual_seed(99)
    other = checkpoint.take_snapshot(build_model(config.model, config.target.kind), None, {})
    checkpoint.write_checkpoint(layout.trial(CHAMPION) / "checkpoints" / "best", other, config)
    with pytest.raises(UserError, match="not the weights that the sealed test scored"):
        served_model.publish(tables)
    final_evaluation.open_once(tables, "trained again")
    client = mlflow.MlflowClient(tracking_uri=uri)

    def version(folder: Path, run_id: str, name: str, tags: dict[str, str]) -> str:
        return str(client.create_model_version(name, folder.as_uri(), tags=tags).version)

    monkeypatch.setattr(served_model, "log", version)
    assert served_model.publish(tables) == "s version 2" == served_model.publish(tables)
    assert str(client.get_model_version_by_alias("s", "champion").version) == "2"


@pytest.mark.slow
def test_mlflow_serves_it_over_http(registered: tuple[Layout, str], tmp_path: Path) -> None:
    layout, uri = registered
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/s@champion", "--env-manager", "local"]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": uri,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with (tmp_path / "serve.log").open("w") as log:
        server = subprocess.Popen([*command, "-p", str(port)], env=environment, stdout=log, stderr=log, cwd=tmp_path)
        try:
            body = {"dataframe_records": [{"image": base64.b64encode(picture()).decode()}]}
            answer = ask(f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), time.monotonic() + 120)
        finally:
            server.terminate()
            server.wait(20)
    np.testing.assert_allclose(np.asarray(answer["predictions"][0]["depth_m"]), expected(layout), rtol=1e-6)


def ask(url: str, body: bytes, until: float) -> dict[str, list[dict[str, list[list[float]]]]]:
    while True:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return dict(json.load(response))
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > until:
                raise
            time.sleep(1)
