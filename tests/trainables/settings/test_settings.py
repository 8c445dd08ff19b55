"""Settings: YAML as this project reads it, recipes that inherit, overrides by path, refusals that name file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.runtime.errors import UserError
from trainables.settings.config import YOUNGER, TrialConfig, as_dict, flat, stored_config
from trainables.settings.recipe import load_recipe
from trainables.settings.yamlfile import parse_value, parse_yaml, read_yaml


def test_yaml_scalars() -> None:
    text = "a: 1e-5\nb: no\nc: 3\nd: 0.5\ne: null\nf: true\ng: '1'\nh: 2026-11-21\ni: .5\nj: -1.5E3\nk: on\nl: 1_000\n"
    assert parse_yaml(text, "x").value == {
        "a": 1e-5, "b": "no", "c": 3, "d": 0.5, "e": None, "f": True, "g": "1", "h": "2026-11-21", "i": 0.5,
        "j": -1500.0, "k": "on", "l": 1000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", r"x:4: the key b\.c is given twice"),
        ("a: &anchor 1\nb: *anchor\n", "x:1: anchors and aliases"),
        ("a: !!python/object/apply:os.system [echo]\n", "x:1: the tag"),
        ("a: [1, 2\n", "x:2 is not valid YAML"),
        ("a:\n\t- 1\n", "x:2 is not valid YAML"),
        ("- 1\n", "x must be a mapping"),
        ("", "x must be a mapping of settings, not an empty file"),
        ("a: 1\n---\nb: 2\n", "is not valid YAML"),
        ("a: " + "[" * 50 + "]" * 50, "nested deeper"),
        ("? [1, 2]\n: 3\n", "a key must be a word"),
    ],
)
def test_yaml_refusals_name_the_line(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_yaml(text, "x")


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"a\.yaml is not UTF-8"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(UserError, match=r"b\.yaml cannot be read"):
        read_yaml(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(tmp_path / "c.yaml").value == {"a": 1}


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_in_one_sentence(text: str) -> None:
    try:
        parse_value(text, "x")
    except UserError as error:
        assert str(error).startswith("x")
        assert "\n" not in str(error).strip()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"optim.learning": 1}, r"no setting optim\.learning.*under optim: name, lr"),
        ({"optim.lrr": 1.0}, r"did you mean lr\?"),
        ({"optim.lr.deep": 1}, r"optim\.lr is a value"),
        ({"optim.lr": -1.0}, r"optim\.lr: input should be greater than 0, not -1"),
        ({"optim.lr": "fast"}, r"optim\.lr: .*number"),
        ({"optim.lr": True}, r"optim\.lr"),
        ({"batch_size": 2.5}, r"batch_size"),
        ({"input": [10, 640]}, r"input\.0: .*32"),
        ({"loss.deth": 1.0}, r"loss\.deth: unknown loss term deth \(did you mean depth\?\); write depth, mse"),
        ({"loss": {"depth": 0.0}}, "at least one term needs a weight above 0"),
        ({"model.encoder": None}, r"model\.encoder must name an encoder"),
        ({"target.min_depth_m": 20.0}, "must be below max_depth_m"),
        ({"model.skips.s4": "pool"}, r"model\.skips\.s4: .*post_pool"),
        ({"data.subset_seed": -1}, r"data\.subset_seed: input should be greater than or equal to 0, not -1"),
        ({"data.validation.seed": -1}, r"data\.validation\.seed: input should be greater than or equal to 0"),
        ({"data.rooms.seed": -1}, r"data\.rooms\.seed: input should be greater than or equal to 0"),
        ({"data.rooms.defects": {"burnt": 3}}, r"data\.rooms\.defects"),
    ],
)
def test_wrong_settings_are_refused_with_their_key(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_recipe("densedepth", overrides)


def test_recipes_inherit_and_overrides_move_nothing_else() -> None:
    (base,) = load_recipe("densedepth")
    (half,) = load_recipe("densedepth_half")
    moved = {"recipe", "model.width", "model.activation_between", "augment.channel_swap"}
    assert {k for k, v in flat(half).items() if flat(base)[k] != v} == moved
    (other,) = load_recipe("densedepth", {"optim.lr": 2e-4, "loss.depth": 0.2})
    assert {k for k, v in flat(other).items() if flat(base)[k] != v} == {"optim.lr", "loss.depth"}
    with pytest.raises(UserError, match=r"no recipe densdepth \(did you mean densedepth\?\)"):
        load_recipe("densdepth")
    with pytest.raises(UserError, match="no recipe"):
        load_recipe("../recipes/densedepth")


def test_a_config_survives_json() -> None:
    (config,) = load_recipe("densedepth")
    assert TrialConfig.model_validate(config.model_dump()) == config
    assert as_dict(config)["input"] == [480, 640]


def test_settings_that_were_stored_before_the_youngest_ones_are_read() -> None:
    config = load_recipe("densedepth")[0]
    stored = {key: value for key, value in as_dict(config).items() if key not in YOUNGER}
    assert len(stored) < len(as_dict(config))
    assert stored_config(json.dumps(stored)) == stored_config(config.model_dump_json()) == config
    with pytest.raises(UserError, match=r"was written by another version .*\(it has no budget_images\)"):
        stored_config(json.dumps({key: value for key, value in stored.items() if key != "budget_images"}))
