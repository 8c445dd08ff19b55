"""How figures leave: inline SVG that the page's policy allows, CSV that no spreadsheet runs, pictures in metres."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure as Canvas

from analysis.page import html, pictures, style
from analysis.page.section import Figure


def lines(canvas: Canvas, data: pd.DataFrame) -> None:
    axes = canvas.add_subplot()
    axes.plot(data["x"], data["y"], label="a $x^{ <b>name</b>")
    axes.set_yscale("log")
    axes.legend()


FRAME = pd.DataFrame({"x": [1, 2, 3], "y": [1e-6, 1e-3, 10.0]})


def test_inline_svg_has_no_style_and_keeps_names_as_text() -> None:
    made = html.picture(Figure("name", "title", 'alt "quoted" <x>', "caption", lines, FRAME))
    element = str(made.picture)
    assert " style=" not in element and "<style" not in element and "<script" not in element
    assert "a $x^{ &lt;b&gt;name&lt;/b&gt;" in element
    assert "mathdefault" not in element
    assert "&quot;quoted&quot; &lt;x&gt;" in element
    assert "var(--c0)" in element and style.BLUE not in element
    ET.fromstring(f"<div xmlns:xlink='http://www.w3.org/1999/xlink'>{element}</div>")
    ET.fromstring(made.files["name.svg"])
    ids = re.findall(r' id="([^"]+)"', element)
    assert len(ids) == len(set(ids))
    assert pd.read_csv(io.BytesIO(made.files["name.csv"]))["y"].tolist() == FRAME["y"].tolist()


def test_a_name_that_looks_like_an_attribute_is_not_rewritten() -> None:
    name = f'a style="fill:red" fill="{style.BLUE}"'

    def titled(canvas: Canvas, data: pd.DataFrame) -> None:
        canvas.add_subplot().set_title(name)

    element = str(html.picture(Figure("name", "title", "alt", "caption", titled, FRAME)).picture)
    assert f">{name}</text>" in element


@pytest.mark.parametrize("value", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_formula_in_a_csv_is_defused(value: str) -> None:
    text = style.csv_text(pd.DataFrame({value: [value, "x"], "n": [-1.5, 2.0]}))
    back = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    assert back.iloc[0, 0] == "'" + value and back.columns[0] == "'" + value
    assert back["n"].tolist() == ["-1.5", "2.0"]


def test_thinning_keeps_extremes_and_ends() -> None:
    values = np.random.default_rng(3).standard_normal(5000)
    values[1234], values[4321] = 40.0, -40.0
    kept = style.thinned(values, 300)
    assert {0, 1234, 4321, 4999} <= set(kept.tolist()) and len(kept) <= 302
    assert (np.diff(kept) > 0).all()


def test_depth_rows_share_a_scale_in_metres_and_grey_their_holes() -> None:
    truth = np.linspace(1, 5, 48 * 64, dtype=np.float32).reshape(48, 64)
    truth[:10, :10] = 0
    rgb = np.zeros((48, 64, 3), np.uint8)
    row = pictures.Row("scene/1.jpg", rgb, truth, (("prediction", np.full((48, 64), 2.0, np.float32)),))
    figure = pictures.depth_rows([row], name="rows", title="t", alt="a", caption="c")
    with style.style("rows"):
        canvas = style.drawn(figure)
    pictured = [image for axes in canvas.axes for image in axes.get_images() if axes.get_title() or axes.get_xlabel()]
    shown = {axes.get_xlabel(): axes.get_images()[0] for axes in canvas.axes if axes.get_xlabel() and axes.get_images()}
    assert pictured and list(shown) == ["rgb", "truth, m", "prediction, m", "|error|, m"]
    assert shown["truth, m"].get_clim() == shown["prediction, m"].get_clim()
    assert shown["truth, m"].get_array().mask[:10, :10].all()
    valid = truth > 0
    assert figure.data["rmse_m (prediction)"][0] == pytest.approx(np.sqrt(np.mean((2 - truth[valid]) ** 2)), rel=1e-5)
    assert figure.data["hole_share"][0] == pytest.approx(100 / (48 * 64))
