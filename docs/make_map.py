"""Map of the files: `python docs/make_map.py` writes docs/MAP.md from each file's own first sentence."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = (".py", ".yaml", ".j2")
LEFT_OUT = ("tests/", ".", "deploy/")


def first_sentence(path: Path) -> str:
    """A module's docstring up to its first full stop, or a YAML file's first comment line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        said = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    elif path.suffix == ".yaml":
        said = text.splitlines()[0].removeprefix("#")
    else:
        said = text.partition("{#")[2].partition("#}")[0]
    return " ".join(said.split()).partition(". ")[0].rstrip(".")


def written() -> str:
    """The map's text, folder by folder."""
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    listed = [n for n in names if n.endswith(KINDS) and not n.endswith("__init__.py") and not n.startswith(LEFT_OUT)]
    lines = ["# Map of the files", "", "Written by `python docs/make_map.py` from each file's first sentence."]
    folder = None
    for name in sorted(listed, key=lambda n: (str(Path(n).parent), n)):
        if Path(name).parent != folder:
            folder = Path(name).parent
            lines += ["", f"## {folder}" if str(folder) != "." else "## Here", ""]
        lines.append(f"- `{Path(name).name}`: {first_sentence(ROOT / name)}.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "MAP.md").write_text(written(), encoding="utf-8")
    sys.exit(0)
