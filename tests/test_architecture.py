"""The doors of the house (docs/architecture.md): which room may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mmflowers"

# Beside errors, commands and files, which every room may use.
DOORS = {
    "preparation": set(),
    "datasets": {"preparation"},
    "models": set(),
    "evaluation": set(),
    "visualization": {"evaluation", "datasets", "preparation"},
    "checks": {"engine", "datasets", "preparation"},
    "deploy": {"engine", "datasets", "models", "preparation", "evaluation", "visualization"},
    "engine": {"datasets", "models", "evaluation", "visualization"},
}
LIGHT = (
    "errors",
    "commands",
    "files",
    "preparation.prepare",
    "preparation.rendered",
    "datasets.folder",
    "checks.run",
    "deploy.inputs",
    "deploy.output",
    "deploy.demo",
    "evaluation.history",
    "visualization.curves",
    "visualization.report",
)


def rooms() -> set[str]:
    return {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(node.module)
    return found


def test_every_room_has_its_doors() -> None:
    assert rooms() == set(DOORS)


@pytest.mark.parametrize("room", DOORS)
def test_a_room_uses_its_own_doors_only(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        others = {name.split(".")[1] for name in imports(path) if name.startswith("mmflowers.")}
        assert others <= {room, "errors", "commands", "files"} | DOORS[room], path
        assert not {name.split(".")[0] for name in imports(path)} & {"tools", "benchmarks"}, path


def test_no_two_rooms_import_each_other() -> None:
    assert not [(one, other) for one in DOORS for other in DOORS[one] if one in DOORS[other]]


@pytest.mark.parametrize("module", LIGHT)
def test_what_commands_load_before_they_start_is_free_of_torch(module: str) -> None:
    code = f"import sys, mmflowers.{module}; sys.exit(any(name in sys.modules for name in ('torch', 'mmengine')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "tool",
    [f"tools/{path.name}" for path in sorted((PACKAGE.parent / "tools").glob("*.py"))] + ["benchmarks/benchmark.py"],
)
def test_help_of_every_command_has_examples_and_loads_nothing_heavy(tool: str) -> None:
    code = (
        "import runpy, sys, atexit\n"
        "atexit.register(lambda: print('HEAVY', sorted({'torch', 'numpy', 'PIL', 'mmengine'} & set(sys.modules))))\n"
        f"sys.argv = [{tool!r}, '--help']\n"
        f"runpy.run_path({str(PACKAGE.parent / tool)!r}, run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "HEAVY []" in result.stdout
    assert f"examples:\n  python {tool}" in result.stdout
