"""Write the self-contained HTML report of one or several runs, with figures and tables as files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mmflowers.evaluation.report import ReportData, Run, RunRow
from mmflowers.utils.files import explained, write_csv, write_text
from mmflowers.version import __version__
from mmflowers.visualization.pages import environment
from mmflowers.visualization.thumbnails import as_uri, photo_uri

GALLERY = 24  # photos in each gallery
SMALL, LARGE = 160, 320  # longer side of a thumbnail in a cell and in a gallery, in pixels
MAX_PHOTOS, MAX_BYTES = 2500, 10_000_000  # limits of the thumbnails in matrix cells: number, and characters in the page
COPIES = 50  # duplicates that the page names
ELSEWHERE = "choose another --out"

Overlay = Callable[[Path, int], "np.ndarray | None"]


def write_report(report: ReportData, out: Path | None = None, *, overlay: Overlay | None = None) -> Path:
    """Write the report of the first run; the others are compared with it in a table and in the curves.

    Args:
        report: See ``evaluation.report.read_report_data``.
        out: The HTML file, default ``report/report.html`` in the first work dir. PNG and CSV files go next to it.
        overlay: Returns for a photo and a class the Grad-CAM overlay that the galleries show below the photo: RGB,
            uint8 of shape (H, W, 3), or None if the photo can't be read. Default: no overlays.

    Returns:
        The path of the HTML file.

    Raises:
        InputError: ``overlay`` raises it, or the disk is full, read-only or broken.
    """
    out = out or report.runs[0].work_dir / "report" / "report.html"
    with explained(out.parent, elsewhere=ELSEWHERE):
        out.parent.mkdir(parents=True, exist_ok=True)
    figures = _draw(report, out.parent)
    _write_tables(report, out.parent)
    page = (
        environment("mmflowers.visualization")
        .get_template("report.html.j2")
        .render(
            **vars(report),
            run=report.runs[0],
            figures=figures,
            with_cam=overlay is not None,
            max_copies=COPIES,
            version=__version__,
            **_photos(report, overlay),
        )
    )
    write_text(out, page.lstrip(), elsewhere=ELSEWHERE)
    return out


def _draw(report: ReportData, folder: Path) -> dict[str, str]:
    """Write every figure as a PNG; return those of the page as SVG."""
    from markupsafe import Markup

    from mmflowers.visualization.figures import (
        confusion_figure,
        curves_figure,
        inline_svg,
        reliability_figure,
        save_png,
    )

    shown: dict[str, str] = {}
    histories = {run.name: run.history for run in report.runs if run.history}
    if histories:
        curves = curves_figure(histories)
        save_png(curves, folder / "curves.png")
        best = ", ".join(
            f"{name} {history.label} {history.format(history.best[1])} at epoch {history.best[0]}"
            for name, history in histories.items()
            if history.val_epochs
        )
        description = f"Validation metric, training loss and learning rate by epoch. Best: {best or 'not validated'}."
        shown["curves"] = Markup(inline_svg(curves, "curves", description))
    reliability = reliability_figure(report.calibration)
    save_png(reliability, folder / "reliability.png")
    description = "Accuracy and number of photos by confidence; the table has both."
    shown["reliability"] = Markup(inline_svg(reliability, "reliability", description))
    classes = [name for name, *_ in report.per_class]
    save_png(confusion_figure(report.confusion, classes), folder / "confusion.png")
    return shown


def _write_tables(report: ReportData, folder: Path) -> None:
    def write(name: str, header: Sequence[str], rows: Iterable[Iterable]) -> None:
        write_csv(folder / name, [header, *rows], elsewhere=ELSEWHERE)

    classes = [name for name, *_ in report.per_class]
    write("runs.csv", RunRow._fields, report.rows)
    write("per_class.csv", ["class", "precision", "recall", "f1", "photos"], report.per_class)
    confusion = ([name, *counts] for name, counts in zip(classes, report.confusion, strict=True))
    write("confusion.csv", ["true \\ predicted", *classes], confusion)
    bins = report.calibration
    columns = (bins.edges[:-1], bins.edges[1:], bins.counts, bins.confidence, bins.accuracy)
    write("reliability.csv", ["above", "to", "photos", "confidence", "accuracy"], zip(*columns, strict=True))
    write("curves.csv", ["run", "epoch", "loss", "learning_rate", "val_metric", "val_score"], _epochs(report.runs))


def _epochs(runs: Sequence[Run]) -> Iterable[list]:
    for run in runs:
        if history := run.history:
            scores = dict(zip(history.val_epochs, history.scores, strict=True))
            training = dict(zip(history.epochs, zip(history.losses, history.rates, strict=True), strict=True))
            for epoch in sorted(scores.keys() | training.keys()):
                yield [run.name, epoch, *training.get(epoch, ("", "")), history.metric, scores.get(epoch, "")]


def _photos(report: ReportData, overlay: Overlay | None) -> dict[str, Any]:
    """Return the galleries, and the photos of the cells of the confusion matrix, incorrect predictions first."""
    from PIL import Image

    predictions = report.runs[0].predictions
    paths, predicted = [report.root / image for image in predictions.images], predictions.predicted

    def photo(index: int, picture: str | None, explained: np.ndarray | None = None) -> dict[str, Any]:
        true, label = predictions.labels[index], predicted[index]
        return dict(
            image=predictions.images[index],
            true=predictions.classes[true],
            predicted=predictions.classes[label],
            hit=true == label,
            score=float(predictions.scores[index, label]),
            true_score=float(predictions.scores[index, true]),
            picture=picture,
            overlay=None if explained is None else as_uri(Image.fromarray(explained), LARGE),
        )

    def with_overlay(index: int, picture: str | None) -> dict[str, Any]:
        return photo(index, picture, overlay(paths[index], int(predicted[index])) if overlay and picture else None)

    # Threads are enough: Pillow releases the GIL while it decodes, resizes and encodes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def pictures(indices: Sequence[int], side: int) -> Iterable[tuple[int, str | None]]:
            return zip(indices, pool.map(lambda index: photo_uri(paths[index], side), indices), strict=True)

        mistakes, unsure = (
            [with_overlay(*pair) for pair in pictures(chosen[:GALLERY], LARGE)]
            for chosen in (report.mistakes, report.correct)
        )
        cells: dict[tuple[int, int], list] = {}
        size = 0
        for index, picture in pictures([*report.mistakes, *report.correct][:MAX_PHOTOS], SMALL):
            size += len(picture or "")
            if size <= MAX_BYTES:
                cells.setdefault((predictions.labels[index], predicted[index]), []).append(photo(index, picture))
    return dict(gallery=mistakes, unsure=unsure, cells=cells)
