"""The house: imports form one straight chain, heavy libraries stay in their rooms, files stay small."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Where the command line meets the executor, inside the commands that need it.
_MEET = (
    *("cli.py", "run_command.py", "calibrate_command.py", "verify_command.py", "verify_runs.py"),
    "torch_commands.py",
)
PACKAGES = ("simulator", "planner", "executor")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAY_IMPORT = {
    "simulator": {"simulator"},
    "planner": {"planner", "simulator"},
    "executor": {"executor", "planner", "simulator"},
}
ONLY_IN = {"pulp": "planner", "highspy": "planner", "torch": "executor"}
NOT_FOR_PLANNING = {"scipy", "torch", "transformers"}
#: Loaded inside the functions that draw, write tables or start workers.
SLOW = {"matplotlib", "plotly", "pandas", "pyarrow", "joblib", "ray", "dask", "distributed"}


def imports(tree: ast.AST) -> Iterator[str]:
    """List the top packages that a syntax tree imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_the_chain(path: Path) -> None:
    """No module imports a package above its own, and heavy libraries are imported in one package only."""
    package = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[package] | ({"executor"} if path.name in _MEET else set())
    for name in imports(ast.parse(path.read_text())):
        assert name not in PACKAGES or name in allowed, f"{path} imports {name}"
        assert ONLY_IN.get(name, package) == package, f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_planning_needs_is_light(path: Path) -> None:
    """Simulator and planner import nothing that planning does not need."""
    if path.relative_to(ROOT).parts[0] != "executor":
        tree = ast.parse(path.read_text())
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert not set(imports(tree)) & NOT_FOR_PLANNING
        assert not set(imports(top)) & SLOW


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_importing_a_module_does_nothing(path: Path) -> None:
    """The top level of a module holds definitions, constants and imports, but no statements that act."""
    for node in ast.parse(path.read_text()).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guarded = isinstance(node, ast.If) and any(
            name in ast.dump(node.test) for name in ("__name__", "TYPE_CHECKING")
        )
        definition = isinstance(
            node,
            ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign,
        )
        assert docstring or guarded or definition, f"{path}:{node.lineno} acts when imported"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_of_one_purpose(path: Path) -> None:
    """No file is so long that it must have two purposes."""
    assert len(path.read_text().splitlines()) <= 300


def test_the_walk_finds_the_project() -> None:
    """The tests above look at every package, so none of them passes on an empty list."""
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)
    assert len(FILES) > 40
    assert sys.version_info >= (3, 11)
