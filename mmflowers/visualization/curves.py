"""Training curves of a run as one image."""

from __future__ import annotations

from pathlib import Path

from mmflowers.evaluation.history import read_history


def draw_curves(work_dir: Path) -> Path:
    """Draw ``curves.png`` in ``work_dir`` from its logs and return the path of the image."""
    from mmflowers.visualization.figures import curves_figure, save_png

    path = work_dir / "curves.png"
    save_png(curves_figure({work_dir.name: read_history(work_dir)}), path)
    return path
