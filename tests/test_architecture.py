"""What commands load before they start. Which package imports which is held by import-linter, in `make lint`."""

from __future__ import annotations

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
    "visualization.curves",
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
