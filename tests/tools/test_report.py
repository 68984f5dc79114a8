"""tools/report.py as a process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import run_tool


@pytest.fixture
def tested(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, tested, in ``<here>/work_dirs/tiny``."""
    run = tmp_path / "work_dirs" / "tiny"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("predictions_*", "report"))
    result = run_tool("test.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    return run


def test_alone_it_reports_on_the_last_run_and_says_where(tested: Path) -> None:
    result = run_tool("report.py", cwd=tested.parents[1])
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("report: work_dirs/tiny/report/report.html (")
    page = (tested / "report" / "report.html").read_text(encoding="utf-8")
    for fact in ("10 photos of the val split", "ResNet 18", "rendered flowers", "best val top-1"):
        assert fact in page
    made = {path.name for path in (tested / "report").iterdir()}
    assert made >= {f"{name}.{form}" for name in ("curves", "confusion", "reliability") for form in ("png", "csv")}

    both = run_tool("report.py", tested, tested, "--out", "two.html", cwd=tested.parents[1])
    assert both.returncode == 0, both.stderr
    assert "no difference" in (tested.parents[1] / "two.html").read_text(encoding="utf-8")


def test_without_a_test_it_says_to_run_one(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("predictions_*", "report"))
    result = run_tool("report.py", run, cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line == f"error: {run} has no predictions_val.csv · hint: run first: python tools/test.py {run / 'best.pth'}"
