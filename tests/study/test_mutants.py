"""Mutants of a study's file: each is a study that can be planned, or is refused in one sentence. Never a traceback."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from study import plan as planning
from tests.study.test_config import TEXT, plan_of
from trainables.runtime.errors import UserError

NASTY = (
    "null", "true", "-1", "0", "1e400", ".nan", "-.inf", "1_000", "0x10", "''", "[]", "{}", "[[]]", "[1, [2, [3]]]",
    "{a: {b: {c: 1}}}", "*anchor", "&anchor x", "<<: *anchor", "!!python/object/apply:os.system [id]", "!!binary x",
    "2026-11-21", "12:30:45", "no", "~", "'%s'", '"\\x00"', "\u202edcba", "99999999999999999999999999", "|", "- 1",
)  # fmt: skip


def mutant(random: random.Random) -> str:
    """One to three changes of a good study: a value, a key, a line, a character or the whole."""
    lines = TEXT.splitlines()
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(lines))
        line, kind = lines[place], random.randrange(9)
        if kind == 0:
            lines[place] = re.sub(r"(: )[^,{}\[\]]+", lambda m: m[1] + random.choice(NASTY), line, count=1)
        elif kind == 1:
            spots = list(re.finditer(r"[\w.]+(?=[:,}\]])", line))
            if spots:
                spot = random.choice(spots)
                lines[place] = line[: spot.start()] + random.choice(NASTY) + line[spot.end() :]
        elif kind == 2:
            del lines[place]
        elif kind == 3:
            lines.insert(place, random.choice(lines))
        elif kind == 4:
            cut = random.randrange(len(line) + 1)
            lines[place] = line[:cut] + random.choice("\t:{}[]&*!|>'\"#%@`,\x07\ufeff é") + line[cut:]
        elif kind == 5:
            lines[place] = line.replace("  ", "\t", 1) if "  " in line else " " + line
        elif kind == 6:
            depth = random.choice((5, 50, 3000))
            lines[place] = f"{line.split(':')[0]}: {'[' * depth}{']' * depth}"
        elif kind == 7:
            lines[place] = line[: random.randrange(len(line) + 1)]
        else:
            lines[0] = "\ufeff" + lines[0]
        lines = lines or [""]
    return "\n".join(lines) + random.choice(("\n", "", "\n---\nname: second\n", "\n...\n"))


@pytest.mark.parametrize("count", [100, pytest.param(5000, marks=pytest.mark.slow)])
def test_mutants_are_planned_or_refused_in_one_sentence(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(planning, "check_parts", lambda where, config: None)
    refused = 0
    for one in range(seed, seed + count):
        text = mutant(random.Random(one))
        try:
            plan_of(tmp_path, text)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and 10 < len(str(error)) < 600, f"seed {one}: {error}"
            assert "study.yaml" in str(error) or "recipe" in str(error), f"seed {one}: {error}"
        except Exception as error:
            raise AssertionError(f"seed {one}: {type(error).__name__} for\n{text[:2000]}") from error
    assert count / 2 < refused < count  # some mutants are studies
