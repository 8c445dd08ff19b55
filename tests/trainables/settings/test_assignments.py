"""`--set`: YAML, but text stays text where a setting is text; what could mean two things is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from study.config import StudyConfig, load_study
from trainables.runtime.errors import UserError
from trainables.settings.assignments import QUOTED, annotation_of, parse_assignments
from trainables.settings.config import RoomsConfig, as_dict, flat
from trainables.settings.recipe import load_recipe

TEXT = ("data.root", "data.cache", "model.weights", "start_from", "data.overfit")


def test_values_have_the_type_of_their_setting() -> None:
    assert parse_assignments(["optim.lr=1e-3", "input=[96, 128]", "data.root=null", "model.skips={s1: none}"]) == {
        "optim.lr": 1e-3,
        "input": [96, 128],
        "data.root": None,
        "model.skips": {"s1": "none"},
    }
    assert parse_assignments(["data.exclude=[2018, no, 'a, b']"]) == {"data.exclude": ["2018", "no", "a, b"]}
    assert parse_assignments(["data.exclude=- a\n- 2018"]) == {"data.exclude": ["a", "2018"]}
    assert parse_assignments(["search.objectives= ~"], partial(annotation_of, StudyConfig)) == {
        "search.objectives": None
    }
    assert parse_assignments(["size=[96, 128]"], partial(annotation_of, RoomsConfig)) == {"size": [96, 128]}


def test_every_setting_can_be_assigned_the_value_it_has() -> None:
    """As JSON, which is YAML: alone, and its whole section."""
    config = load_recipe("densedepth")[0]
    sections = {name: value for name, value in as_dict(config).items() if isinstance(value, dict)}
    for path, value in (flat(config) | sections).items():
        word = value if isinstance(value, str) else json.dumps(value)
        assert parse_assignments([f"{path}={word}"]) == {path: value}
        if value is not None:
            assert parse_assignments([f"{path}={json.dumps(value)}"]) == {path: value}


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
@example("/x/set #2")
@example("a: b")
@example("@x")
@example("2018")
@example("1e-5")
@example("[x")
@example("'half")
@example("'a' #b'")
@example("\t% !x & *y | > - ?")
def test_text_stays_text_where_the_setting_is_text(text: str) -> None:
    """From the shell's word to the validated training, at every path that is text."""
    ambiguous = not text.strip() or text.lower() in ("none", "null", "~") or QUOTED.fullmatch(text)
    if ambiguous:
        return
    for path in TEXT:
        assert parse_assignments([f"{path}={text}"]) == {path: text}
    if "\0" in text:
        with pytest.raises(UserError, match=r"data\.root: a path holds no NUL character"):
            load_recipe("densedepth", {"data.root": text})
    elif not text.startswith("~"):
        assert load_recipe("densedepth", {"data.root": text})[0].data.root == text


def test_quotes_around_the_whole_are_yamls() -> None:
    words = ["data.root='/x/it''s'", 'data.cache="\\u00fc #"', "model.weights='null'"]
    assert parse_assignments(words) == {"data.root": "/x/it's", "data.cache": "ü #", "model.weights": "null"}


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("optim.lr", r"--set optim\.lr: write PATH=VALUE"),
        ("=3", "write PATH=VALUE"),
        ("input=[1", "is not valid YAML"),
        ("model.frozen=*", r'--set model\.frozen: write a list, for example \["\*"\], not \*'),
        ("data.exclude=2018", r'write a list, for example \["2018"\], not 2018'),
        ('data.exclude="a/b.jpg"', r'write a list, for example \["a/b\.jpg"\], not a/b'),
        ("data.root=", "the value is empty; write null"),
        ("optim.clip_norm= ", "the value is empty; write null"),
        ("data.root=~", "could be none or your home folder"),
        ("data.cache=None", "could be none or a name; write null for none, or 'None' in quotes"),
        ("data.root=/x/\udcff", "is not UTF-8 text"),
    ],
)
def test_what_could_mean_two_things_is_refused(pair: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_assignments([pair])
    with pytest.raises(UserError, match="is given twice"):
        parse_assignments(["a=1", "a=2"])


@pytest.mark.parametrize("path", TEXT[:4])
def test_the_home_folder_is_expanded(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config: Any = load_recipe("densedepth", parse_assignments([f"{path}=~/x #2"]))[0]
    for part in path.split("."):
        config = getattr(config, part)
    assert config == "/home/someone/x #2"
    assert load_recipe("densedepth", {"data.root": "~nobody-of-that-name/x"})[0].data.root == "~nobody-of-that-name/x"


def test_a_studys_text_is_text_at_each_of_its_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "s.yaml").write_text("name: s\n")
    words = ["data.root=/x #2", "trial.model.weights=a: b", "name=2018", "search.warm_start=~/old #1"]
    words += ["tracking.uri=sqlite:///~/a #b.db", "trial.optim.lr=1e-3", "search.trials=3"]
    config = load_study(tmp_path / "s.yaml", words).config
    assert config.data["root"] == "/x #2"
    assert config.trial == {"model.weights": "a: b", "optim.lr": 1e-3}
    assert (config.name, config.search.trials) == ("2018", 3)
    assert config.search.warm_start == f"{tmp_path}/old #1"
    assert config.tracking.uri == f"sqlite:///{tmp_path}/a #b.db"
