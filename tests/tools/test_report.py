"""tools/report.py as a process."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import run_tool
from PIL import Image


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
    for fact in (
        "--weights none",
        "10 photos of the val split",
        "ResNet 18",
        "rendered flowers",
        "best val top-1",
        "tools/train.py",
    ):
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


@pytest.mark.slow
def test_on_request_it_shows_grad_cam_overlays(tested: Path) -> None:
    pages = []
    for options in ((), ("--cam",)):
        result = run_tool("report.py", tested, "--out", "page.html", *options, cwd=tested.parents[1])
        assert result.returncode == 0, result.stderr
        assert len(result.stdout.splitlines()) == 1
        pages.append((tested.parents[1] / "page.html").read_text(encoding="utf-8"))
    assert [page.count("Grad-CAM of") for page in pages] == [0, 10]
    overlays = re.findall(r'<img src="data:image/jpeg;base64,([^"]*)" alt="Grad-CAM of', pages[1])
    for overlay in overlays:
        with Image.open(io.BytesIO(base64.b64decode(overlay))) as picture:
            assert picture.size == (48, 48)  # what the network saw: the config's pixels
            assert np.ptp(np.asarray(picture).astype(int), axis=(0, 1)).max() > 60
