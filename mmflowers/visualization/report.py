"""Write the self-contained HTML report of one or several runs, with figures and tables as files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmflowers.datasets.card import DataCard, read_card
from mmflowers.datasets.folder import read_dataset_folder
from mmflowers.datasets.identity import photos_digest
from mmflowers.evaluation.calibration import calibrate
from mmflowers.evaluation.history import History, read_history
from mmflowers.evaluation.metadata import RunFacts, find_dataset, read_facts, tested_on
from mmflowers.evaluation.predictions import Predictions, per_class_table
from mmflowers.evaluation.statistics import SIGNIFICANT, compare, wilson_interval
from mmflowers.evaluation.tested import TestedPredictions, default_checkpoint, read_tested, require_same_photos
from mmflowers.utils.errors import InputError, Problem
from mmflowers.utils.files import explained, write_csv, write_text
from mmflowers.version import __version__
from mmflowers.visualization.pages import environment
from mmflowers.visualization.thumbnails import as_uri, photo_uri

if TYPE_CHECKING:
    from PIL.Image import Image

GALLERY = 24  # photos in each gallery
SMALL, LARGE = 160, 320  # longer side of a thumbnail in a cell and in a gallery, in pixels
MAX_PHOTOS, MAX_BYTES = 2500, 10_000_000  # limits of the thumbnails in matrix cells: number, and characters in the page
COPIES = 50  # duplicates that the page names
ELSEWHERE = "choose another --out"


@dataclass(frozen=True)
class Run:
    """The data of one run in the report."""

    name: str
    work_dir: Path
    tested: TestedPredictions
    facts: RunFacts
    history: History | None

    @property
    def predictions(self) -> Predictions:
        return self.tested.predictions


def write_report(
    work_dirs: Sequence[Path],
    out: Path | None = None,
    *,
    data: Path | None = None,
    split: str = "val",
    bins: int = 15,
    classifier: Any = None,
) -> Path:
    """Write the report of the first run; the others are compared with it in a table and in the curves.

    Args:
        work_dirs: Of tested runs; the others are compared with the first.
        out: The HTML file, default ``report/report.html`` in the first work dir. PNG and CSV files go next to it.
        data: The dataset folder; default the one that the first run was tested on.
        split: The split of the predictions.
        bins: Number of calibration bins.
        classifier: An ``mmflowers.FlowerClassifier`` of the first run, to add Grad-CAM overlays of the predicted class
            to the galleries.

    Returns:
        The path of the HTML file.

    Raises:
        InputError: A run wasn't tested, its predictions are of other photos than the first run's, the dataset folder is
            missing, Grad-CAM doesn't support the network, or the disk is full, read-only or broken.
    """
    runs = _read_runs(work_dirs, split)
    first = runs[0]
    root = find_dataset(first.work_dir, tested_on(first.work_dir), data)
    _check_against_list(first, root, split)
    paths = [root / image for image in first.predictions.images]
    known = first.tested.photos_sha256
    if known and photos_digest(paths, first.predictions.labels.tolist()) != known:
        first.tested.notes.append("of other photos than the dataset folder holds now: some have changed since the test")
    out = out or first.work_dir / "report" / "report.html"
    with explained(out.parent, elsewhere=ELSEWHERE):
        out.parent.mkdir(parents=True, exist_ok=True)

    compared = [_compared(run, first) for run in runs]
    figures = _draw(runs, out.parent, bins)
    _write_tables(runs, compared, out.parent, bins)
    page = _render(
        runs=runs,
        run=first,
        compared=compared,
        split=split,
        card=_data_facts(read_card(root), root),
        figures=figures,
        calibration=calibrate(first.predictions, bins),
        with_cam=classifier is not None,
        classes=per_class_table(first.predictions),
        **_photos(first.predictions, root, classifier),
    )
    write_text(out, page, elsewhere=ELSEWHERE)
    return out


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Count the photos of each true class (row) and predicted class (column), int64 of shape (classes, classes)."""
    matrix = np.zeros((len(predictions.classes),) * 2, dtype=np.int64)
    np.add.at(matrix, (predictions.labels, predictions.predicted), 1)
    return matrix


def _read_runs(work_dirs: Sequence[Path], split: str) -> list[Run]:
    problems: list[Problem] = []
    runs: list[Run] = []
    twice = {name for name, count in Counter(folder.resolve().name for folder in work_dirs).items() if count > 1}
    for folder in work_dirs:
        path = folder / f"predictions_{split}.csv"
        if not path.is_file():
            option = "" if split == "val" else f" --split {split}"
            hint = f"run first: python tools/test.py {default_checkpoint(folder)}{option}"
            problems.append(Problem(f"{folder} has no {path.name}", hint))
            continue
        try:
            name = str(folder) if folder.resolve().name in twice else folder.resolve().name
            history = read_history(folder) if any(folder.glob("*/vis_data/scalars.json")) else None
            tested = read_tested(path, folder)
            if runs:
                require_same_photos(path, runs[0].tested.photos_sha256, tested.photos_sha256)
            runs.append(Run(name, folder, tested, read_facts(folder), history))
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(problems=problems)
    return runs


def _check_against_list(run: Run, root: Path, split: str) -> None:
    """Raise an error if photos or labels of the predictions differ from the list of the dataset folder."""
    folder = read_dataset_folder(root, (split,), files_may_be_gone=True)
    listed = {name: folder.classes[label] for name, label in folder.samples[split]}
    predictions = run.predictions
    given = [predictions.classes[label] for label in predictions.labels]
    relabelled = [
        name for name, label in zip(predictions.images, given, strict=True) if listed.get(name, label) != label
    ]
    counts = {
        f"not in {split}.txt": len(set(predictions.images) - listed.keys()),
        "more than once": len(predictions.images) - len(set(predictions.images)),
        "with another label": len(relabelled),
        "missing": 0 if run.tested.is_partial else len(listed.keys() - set(predictions.images)),
    }
    wrong = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
    if wrong:
        path = run.work_dir / f"predictions_{split}.csv"
        hint = (
            f"test again: python tools/test.py {default_checkpoint(run.work_dir)}, or --data names the folder it was "
            "tested on"
        )
        raise InputError(f"{path} is of other photos than {root / f'{split}.txt'}: {wrong}", hint)


def _compared(run: Run, first: Run) -> dict[str, Any]:
    predictions = run.predictions
    correct, total = predictions.correct, len(predictions.images)
    low, high = wilson_interval(correct, total)
    row = dict(
        run=run.name,
        top1=correct / total,
        correct=correct,
        total=total,
        low=low,
        high=high,
        best_epoch=run.history.best[0] if run.history and run.history.scores else None,
        ece=calibrate(predictions).error,
    )
    if run is first:
        return {**row, "only_this": None, "only_first": None, "p_value": None, "verdict": ""}
    found = compare(predictions, first.predictions)
    better = "better" if found.only_this > found.only_other else "worse"
    verdict = better if found.p_value < SIGNIFICANT else "no difference"
    counts = dict(only_this=found.only_this, only_first=found.only_other, p_value=found.p_value)
    return {**row, **counts, "verdict": verdict}


def _draw(runs: Sequence[Run], folder: Path, bins: int) -> dict[str, str]:
    """Write every figure as a PNG; return those of the page as SVG."""
    from mmflowers.visualization.figures import (
        confusion_figure,
        curves_figure,
        inline_svg,
        reliability_figure,
        save_png,
    )

    predictions = runs[0].predictions
    shown = {}
    histories = {run.name: run.history for run in runs if run.history}
    if histories:
        curves = curves_figure(histories)
        save_png(curves, folder / "curves.png")
        best = ", ".join(
            f"{name} {h.label} {h.told(h.best[1])} at epoch {h.best[0]}"
            for name, h in histories.items()
            if h.val_epochs
        )
        description = f"Validation metric, training loss and learning rate by epoch. Best: {best or 'not validated'}."
        shown["curves"] = inline_svg(curves, "curves", description)
    reliability = reliability_figure(calibrate(predictions, bins))
    save_png(reliability, folder / "reliability.png")
    shown["reliability"] = inline_svg(
        reliability, "reliability", "Share of right predictions and number of photos by confidence; the table has both."
    )
    save_png(confusion_figure(confusion_matrix(predictions), predictions.classes), folder / "confusion.png")
    return shown


def _write_tables(runs: Sequence[Run], compared: list[dict], folder: Path, bins: int) -> None:
    predictions = runs[0].predictions
    calibration = calibrate(predictions, bins)
    _write_csv(folder / "runs.csv", list(compared[0]), (row.values() for row in compared))
    _write_csv(folder / "per_class.csv", ["class", "precision", "recall", "f1", "photos"], per_class_table(predictions))
    _write_csv(
        folder / "confusion.csv",
        ["true \\ predicted", *predictions.classes],
        ([name, *row] for name, row in zip(predictions.classes, confusion_matrix(predictions), strict=True)),
    )
    edges = calibration.edges
    columns = (edges[:-1], edges[1:], calibration.counts, calibration.confidence, calibration.accuracy)
    _write_csv(
        folder / "reliability.csv", ["above", "to", "photos", "confidence", "accuracy"], zip(*columns, strict=True)
    )
    header = ["run", "epoch", "loss", "learning_rate", "val_metric", "val_score"]
    _write_csv(folder / "curves.csv", header, _epochs(runs))


def _epochs(runs: Sequence[Run]) -> Iterable[list]:
    for run in runs:
        if run.history:
            scores = dict(zip(run.history.val_epochs, run.history.scores, strict=True))
            training = dict(
                zip(run.history.epochs, zip(run.history.losses, run.history.rates, strict=True), strict=True)
            )
            for epoch in sorted(scores.keys() | training.keys()):
                yield [run.name, epoch, *training.get(epoch, ("", "")), run.history.metric, scores.get(epoch, "")]


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable]) -> None:
    write_csv(path, [header, *rows], elsewhere=ELSEWHERE)


def _data_facts(card: DataCard, root: Path) -> dict[str, Any]:
    facts = card.facts
    source, options, digests = (facts.get(key) or {} for key in ("source", "options", "digests"))
    counts = facts.get("counts") or {}
    ratios = ", ".join(
        f"{key.removesuffix('_ratio')} {options[key]:g}" for key in ("val_ratio", "test_ratio") if options.get(key)
    )
    split = source.get("split") or f"drawn class by class ({ratios})"
    rows = {
        "dataset folder": root.resolve().name,
        "source": f"{source.get('name', '')} ({source.get('kind', '')})" if source else "",
        "photos": ", ".join(f"{sum(classes.values()):,} {split}" for split, classes in counts.items()),
        "classes": str(len(facts["classes"])) if facts.get("classes") else "",
        "split": split if facts else "",
        "seed of the split": str(options.get("seed", "")) if facts and not source.get("split") else "",
        "digest": digests.get("dataset", "")[:16],
        "prepared by": ", ".join(f"{name} {version}" for name, version in (facts.get("versions") or {}).items()),
    }
    return dict(
        rows={label: text for label, text in rows.items() if text},
        dropped=card.dropped,
        copies=card.copies[:COPIES],
        more_copies=max(len(card.copies) - COPIES, 0),
        known=bool(facts),
    )


def _photos(predictions: Predictions, root: Path, classifier: Any) -> dict[str, Any]:
    """Return the galleries and the confusion matrix with the photos of its cells, incorrect predictions first."""
    predicted, confidence = predictions.predicted, predictions.scores.max(axis=1)
    hit = predicted == predictions.labels
    mistakes = sorted(np.flatnonzero(~hit).tolist(), key=lambda index: -confidence[index])
    hits = sorted(np.flatnonzero(hit).tolist(), key=lambda index: confidence[index])
    everything = [*mistakes, *hits]

    def photo(index: int, picture: str | None, overlay: str | None = None) -> dict[str, Any]:
        true, taken_for = predictions.labels[index], predicted[index]
        return dict(
            image=predictions.images[index],
            true=predictions.classes[true],
            predicted=predictions.classes[taken_for],
            hit=true == taken_for,
            score=float(predictions.scores[index, taken_for]),
            true_score=float(predictions.scores[index, true]),
            picture=picture,
            overlay=overlay,
        )

    def explained(index: int, picture: str | None) -> dict[str, Any]:
        if classifier is None or picture is None:
            return photo(index, picture)
        found = _explain(classifier, root / predictions.images[index], int(predicted[index]))
        return photo(index, picture, as_uri(found, LARGE))

    # Threads are enough: Pillow releases the GIL while it decodes, resizes and encodes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def pictures(indices: Sequence[int], side: int) -> Iterable[str | None]:
            return pool.map(lambda index: photo_uri(root / predictions.images[index], side), indices)

        galleries = [
            [explained(*pair) for pair in zip(chosen, pictures(chosen, LARGE), strict=True)]
            for chosen in (mistakes[:GALLERY], hits[:GALLERY])
        ]
        cells: dict[tuple[int, int], list] = {}
        size = 0
        chosen = everything[:MAX_PHOTOS]
        for index, picture in zip(chosen, pictures(chosen, SMALL), strict=True):
            size += len(picture or "")
            if size <= MAX_BYTES:
                cells.setdefault((predictions.labels[index], predicted[index]), []).append(photo(index, picture))
    return dict(matrix=confusion_matrix(predictions), mistakes=galleries[0], unsure=galleries[1], cells=cells)


def _explain(classifier: Any, path: Path, label: int) -> Image:
    """Return the network's input image with the Grad-CAM overlay of the class ``label``."""
    from PIL import Image, ImageOps

    from mmflowers.visualization.cam import explain

    with Image.open(path) as image:
        rgb = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    # BGR, as loaded by LoadImageFromFile.
    sample = {"img": np.ascontiguousarray(rgb[..., ::-1]), "img_shape": rgb.shape[:2], "ori_shape": rgb.shape[:2]}
    return Image.fromarray(explain(classifier.model, classifier.pipeline(sample)["inputs"], [label])[0])


def _render(**content: Any) -> str:
    from markupsafe import Markup

    content["version"] = __version__
    content["figures"] = {name: Markup(svg) for name, svg in content["figures"].items()}
    return environment("mmflowers.visualization").get_template("report.html.j2").render(content).lstrip()
