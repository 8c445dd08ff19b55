"""The rules of the house that a machine can check: who imports what, and that the map of files is up to date."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("study", "trainables", "analysis")
ALLOWED = {
    "ray": {"study/", "trainables/ray_trainable.py"},
    "mlflow": {"study/tracking.py", "analysis/mlflow_store.py", "analysis/served_model.py"},
    "optuna": {"study/", "analysis/runs.py", "analysis/importance.py"},
}


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, anywhere in it, as a dotted name ('from study import contract': study.contract)."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"relative import in {path}"


def breaches(room: str, name: str, imported: list[str]) -> Iterator[str]:
    """Imports of one file that go through a wall."""
    for module in imported:
        top = module.split(".")[0]
        if top.startswith("relative"):
            yield module
        if room == "trainables" and top in ("study", "analysis"):
            yield f"{name} imports {module}"
        if room == "study" and top == "analysis":
            yield f"{name} imports {module}"
        if room == "analysis" and top == "study" and not module.startswith("study.contract"):
            yield f"{name} imports {module}"
        if top in ALLOWED and not any(name.startswith(place) for place in ALLOWED[top]):
            yield f"{name} imports {module}"


def test_nobody_imports_through_a_wall() -> None:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 40
    found = []
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        found += list(breaches(name.split("/")[0], name, list(imports(path))))
    assert not found


@pytest.mark.parametrize(
    ("room", "name", "module"),
    [
        ("trainables", "trainables/training/trainer.py", "study.contract"),
        ("analysis", "analysis/report.py", "study.ledger.Ledger"),
        ("study", "study/run.py", "analysis.report"),
        ("trainables", "trainables/training/trainer.py", "ray.tune"),
        ("analysis", "analysis/report.py", "mlflow"),
        ("trainables", "trainables/train.py", "optuna.trial"),
    ],
)
def test_the_check_sees_each_kind_of_breach(room: str, name: str, module: str) -> None:
    assert list(breaches(room, name, [module]))


# Optuna's (no public way), Python's own, ours; and the words that `densedepth` passes on to a command.
PRIVATE = {"frozen._trial_id": 1, "os._exit": 2, "stack._file": 1, "sys.argv = ...": 1}


def private_names(path: Path) -> Iterator[str]:
    """Names with a leading underscore of anything but the object itself, and attributes of modules that are set."""
    tree = ast.parse(path.read_text(), str(path))
    modules = {alias.asname or alias.name.split(".")[0]
               for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from (f"import {name}" for name in names if name.startswith("_") and not name.endswith("__"))
        elif isinstance(node, ast.Import):
            yield from (f"import {a.name}" for a in node.names if "._" in a.name)
        elif isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            owner = whole.rpartition(".")[0]
            if node.attr.startswith("_") and not node.attr.endswith("__") and owner not in ("self", "cls"):
                yield whole
            if isinstance(node.ctx, ast.Store) and owner in modules:
                yield f"{whole} = ..."
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr") and len(node.args) > 1:
            name = node.args[1]
            if isinstance(name, ast.Constant) and str(name.value).startswith("_"):
                yield ast.unparse(node)


def test_only_the_public_face_of_a_library_is_used() -> None:
    found = Counter(name for room in ROOMS for path in (ROOT / room).rglob("*.py") for name in private_names(path))
    assert found == PRIVATE


def test_the_check_sees_each_kind_of_private_name(tmp_path: Path) -> None:
    lines = ["from ray._private import worker", "import mlflow.tracking._service", "from lib import _secret",
             "storage._studies[0]", "import ray", "ray.get = print", "getattr(ray, '_x')"]  # fmt: skip
    (tmp_path / "file.py").write_text("\n".join([*lines, "self._own = ray.get(ray.__version__)"]))
    assert len(list(private_names(tmp_path / "file.py"))) == 6


def test_contract_and_registry_are_standard_library_only() -> None:
    light = ("study/contract.py", "trainables/settings/registry.py", "trainables/evaluation/protocols.py")
    found = {name for path in light for name in imports(ROOT / path)}
    outside = {m for m in found if m.split(".")[0] not in sys.stdlib_module_names}
    assert {m.rpartition(".")[0] for m in outside} == {"trainables.settings.registry"}


def test_settings_are_checked_without_torch() -> None:
    code = """
import sys
from pathlib import Path
from study import plan, run
from study.config import load_study
from study.search.space import read_space
from trainables.settings.config import flat
study = load_study(Path("study.yaml"), [])
read_space(study, flat(plan._search_config(study, {})))
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def settings_in_modules(source: str) -> Iterator[str]:
    """Classes of nn.Module whose __init__ takes a group of settings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "nn.Module" for base in node.bases):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    given = [
                        ast.unparse(a.annotation)
                        for a in ast.walk(method.args)
                        if isinstance(a, ast.arg) and a.annotation
                    ]
                    yield from (f"{node.name}({name})" for name in given if "Config" in name)


def test_network_modules_take_plain_arguments() -> None:
    bad = "class A(nn.Module):\n    def __init__(self, n: int, *, config: ModelConfig | None) -> None: ..."
    assert list(settings_in_modules(bad)) == ["A(ModelConfig | None)"]
    assert not [
        found for path in (ROOT / "trainables").rglob("*.py") for found in settings_in_modules(path.read_text())
    ]


def test_the_map_of_files_is_up_to_date() -> None:
    if subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=False).returncode != 0:
        pytest.skip("not a git checkout: the list of files is not known")
    source = runpy.run_path(str(ROOT / "docs" / "make_map.py"))
    assert (ROOT / "docs" / "MAP.md").read_text() == source["written"](), "run python docs/make_map.py"


def test_the_table_of_protocols_is_the_registrys() -> None:
    source = runpy.run_path(str(ROOT / "docs" / "make_protocols.py"))
    page = (ROOT / "docs" / "which-number.md").read_text()
    assert page == source["written"](), "run python docs/make_protocols.py"
    assert page.count("| `") >= len(source["PROTOCOLS"])
