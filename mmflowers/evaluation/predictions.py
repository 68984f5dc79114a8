"""Predictions of a test: the data class, reading and writing CSV files, precision and recall per class."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmflowers.utils.errors import InputError
from mmflowers.utils.files import read_csv, write_csv

COLUMNS = ["image", "label", "predicted"]  # followed by one score column per class


@dataclass(frozen=True, slots=True)
class Predictions:
    """The predictions of one model on one split.

    Attributes:
        images: Paths of the n photos, as in the list of the dataset folder.
        labels: True labels, int64 of shape (n,).
        scores: Probabilities, float32 of shape (n, classes).
        classes: Class names, indexed by label.
    """

    images: list[str]
    labels: np.ndarray
    scores: np.ndarray
    classes: list[str]

    @property
    def predicted(self) -> np.ndarray:
        """Predicted labels: the class with the largest score, int64 of shape (n,)."""
        return np.asarray(self.scores.argmax(axis=1))

    @property
    def correct(self) -> int:
        """Number of correct predictions."""
        return int((self.predicted == self.labels).sum())


def write_predictions(predictions: Predictions, path: Path) -> None:
    """Write a CSV with the columns image, label and predicted (class names), and one score column per class.

    Raises:
        InputError: The disk is full, read-only or broken. An existing file is then unchanged.
    """
    classes = predictions.classes
    rows: list[list[str]] = [[*COLUMNS, *(f"score_{name}" for name in classes)]]
    for image, label, predicted, scores in zip(
        predictions.images, predictions.labels, predictions.predicted, predictions.scores, strict=True
    ):
        rows.append(
            [image, classes[label], classes[predicted], *(f"{score:.9g}" for score in scores)]
        )  # 9 digits give the same float32 when read
    write_csv(path, rows, elsewhere="choose another --work-dir")


def read_predictions(path: Path) -> Predictions:
    """Read a file written by ``write_predictions``.

    Raises:
        InputError: The file can't be read or has another format.
    """
    try:
        header, *rows = read_csv(path)
        if header[:3] != COLUMNS or not rows:
            raise ValueError(f"columns {header[:3]}, {len(rows)} rows")
        classes = [name.removeprefix("score_") for name in header[3:]]
        index = {name: label for label, name in enumerate(classes)}
        return Predictions(
            images=[row[0] for row in rows],
            labels=np.array([index[row[1]] for row in rows], dtype=np.int64),
            scores=np.array([row[3:] for row in rows], dtype=np.float32).reshape(len(rows), len(classes)),
            classes=classes,
        )
    except (OSError, ValueError, KeyError, IndexError, csv.Error) as error:
        raise InputError(
            f"{path} can't be read as predictions: {error!r}", "tools/test.py writes predictions_<split>.csv"
        ) from error


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Count the photos of each true class (row) and predicted class (column), int64 of shape (classes, classes)."""
    matrix = np.zeros((len(predictions.classes),) * 2, dtype=np.int64)
    np.add.at(matrix, (predictions.labels, predictions.predicted), 1)
    return matrix


def per_class_table(predictions: Predictions) -> list[tuple[str, float, float, float, int]]:
    """Return name, precision, recall, F1 (in 0…1, as in scikit-learn) and number of photos of each class."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        predictions.labels, predictions.predicted, labels=range(len(predictions.classes)), zero_division=0.0
    )
    return [
        (name, float(precision), float(recall), float(f1), int(support))
        for name, precision, recall, f1, support in zip(predictions.classes, *columns, strict=True)
    ]


def format_per_class(predictions: Predictions) -> str:
    """Format precision, recall and F1 as a text table, one row per class."""
    width = max(len("class"), *map(len, predictions.classes))
    lines = [f"{'class':<{width}}  precision  recall      F1  photos"]
    lines += [
        f"{name:<{width}}  {precision:8.2%}  {recall:7.2%} {f1:7.2%}  {support:6d}"
        for name, precision, recall, f1, support in per_class_table(predictions)
    ]
    return "\n".join(lines)


def format_top1(correct: int, total: int) -> str:
    """Format a top-1 accuracy: ``top-1 95.98 % (549/572)``."""
    return f"top-1 {100 * correct / max(total, 1):.2f} % ({correct}/{total})"


def gather(samples: Sequence[dict[str, Any]], data_root: str | Path, classes: Sequence[str]) -> Predictions:
    """Convert the samples of ``CollectPredictions``; the paths become relative to the dataset folder."""
    root = Path(data_root)
    return Predictions(
        images=[Path(sample["image"]).relative_to(root).as_posix() for sample in samples],
        labels=np.array([sample["label"] for sample in samples], dtype=np.int64),
        scores=np.stack([sample["scores"] for sample in samples]).astype(np.float32),
        classes=list(classes),
    )
