"""docs/flowers.ipynb: kept without outputs, and run as Jupyter runs it, with fewer photos."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from pages import ROOT

NOTEBOOK = ROOT / "docs" / "flowers.ipynb"


def test_the_notebook_is_valid_and_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert [cell.source for cell in code if "parameters" in cell.metadata.get("tags", ())] == ["photos_per_class = 60"]


@pytest.mark.slow
def test_the_notebook_runs_and_its_mistake_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tools", "configs", "mmflowers"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").mkdir()
    shutil.copy(NOTEBOOK, tmp_path / "docs")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")

    notebook = nbformat.read(tmp_path / "docs" / NOTEBOOK.name, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = "photos_per_class = 10"
    resources = {"metadata": {"path": str(tmp_path / "docs")}}
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources=resources).execute()

    said = ["".join(output.get("text", "") for output in cell.get("outputs", ())) for cell in notebook.cells]
    drawn = [
        cell for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert len(drawn) == 4  # photos, curves, confusion, mistakes
    assert any("top-1 " in text and "/10)" in text for text in said)
    assert "a leak" in said[-2] and "more_" in said[-2] and "1 error," in said[-2], said[-2]
    assert sorted(path.name for path in (tmp_path / "work_dirs" / "notebook").iterdir() if path.is_dir()) == [
        "flowers",
        "leaky",
        "run",
    ]
