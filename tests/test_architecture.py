"""What commands load before they start. Which package imports which is held by import-linter, in `make lint`."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mmflowers"

LIGHT = (
    "utils.errors",
    "cli.parser",
    "cli.process",
    "utils.terminal",
    "utils.files",
    "utils.downloads",
    "preparation.prepare",
    "rendered.photos",
    "datasets.folder",
    "checks.run",
    "inference.inputs",
    "inference.output",
    "demo.serve",
    "evaluation.history",
    "visualization.figures",
    "visualization.report",
)


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


def test_the_drawing_of_the_imports_is_up_to_date() -> None:
    script = runpy.run_path(str(PACKAGE.parent / "docs" / "images" / "architecture.py"))
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = page.partition(script["BEGIN"])[2].partition(script["END"])[0]
    assert drawn == script["drawing"](), "python docs/images/architecture.py writes it"


def test_the_drawing_has_every_package_and_no_arrow_that_follows_from_others() -> None:
    script = runpy.run_path(str(PACKAGE.parent / "docs" / "images" / "architecture.py"))
    arrows = [tuple(line.split(" --> ")) for line in script["drawing"]().splitlines() if "-->" in line]
    arrows = [(package.strip(), other) for package, other in arrows]
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages <= {name for arrow in arrows for name in arrow}
    shown = {package: {other for one, other in arrows if one == package} for arrow in arrows for package in arrow}
    for package, other in arrows:
        rest = {**shown, package: shown[package] - {other}}
        assert other not in script["reachable"](package, rest)
    imports = script["package_imports"]()
    assert all(script["reachable"](package, shown) == script["reachable"](package, imports) for package in packages)
