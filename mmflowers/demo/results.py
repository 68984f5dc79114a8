"""Predict one photo for the page: classes, Grad-CAM overlays, nearest training photos and confusions, also as HTML."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmflowers.evaluation.predictions import confusion_matrix
from mmflowers.evaluation.tested import default_checkpoint, read_tested
from mmflowers.inference.classifier import FlowerClassifier, Prediction
from mmflowers.inference.grad_cam import overlays
from mmflowers.inference.neighbours import TrainingPhotos
from mmflowers.preparation.decoding import decode
from mmflowers.utils.errors import InputError
from mmflowers.visualization.pages import environment
from mmflowers.visualization.thumbnails import as_uri, photo_uri

TOP = 5  # classes shown with their probability
NEIGHBOURS = 6
CONFUSED = 4  # classes shown in a list of confusions
SIDE, SMALL = 448, 224  # longer side of the photo and of a training photo, in pixels: twice the size on the page
FORMATS = "Supported formats: JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, JPEG 2000, PPM and TGA"

_numbers = itertools.count(1)  # unique numbers for the results of a page


class Count(NamedTuple):
    """Number of photos of the val split that belong to a class or were predicted as it."""

    class_name: str
    photos: int
    share: float
    right: bool


@dataclass(frozen=True)
class Confusion:
    """The confusions of a class on the val split of a run, the most frequent first.

    Attributes:
        true: True classes of the photos that were predicted as the class.
        predicted: Predicted classes of the photos of the class.
    """

    true: list[Count]
    predicted: list[Count]


@dataclass(frozen=True)
class Result:
    """What the page shows for a photo; pictures are data URIs.

    Attributes:
        name: File name of the photo.
        reason: Why it can't be read; the other fields are then empty.
        photo: Thumbnail.
        prediction: With the ``TOP`` most probable classes.
        overlays: The Grad-CAM overlay of each of these classes; empty if the network has no feature map.
        neighbours: The nearest training photos, each with picture, class_name, similarity, name.
        confusion: Of the most probable class; None if the run wasn't tested.
    """

    name: str
    reason: str = ""
    photo: str = ""
    prediction: Prediction | None = None
    overlays: list[str] = field(default_factory=list)
    neighbours: list[dict[str, Any]] = field(default_factory=list)
    confusion: Confusion | None = None


class PhotoClassifier:
    """Predict photos with a run, its training photos and its confusion matrix.

    Args:
        classifier: Of the run.
        photos: Its training photos, or the error if there are none.
        matrix: Its confusion matrix on the val split, or the error if there is none.
    """

    def __init__(
        self, classifier: FlowerClassifier, photos: TrainingPhotos | InputError, matrix: np.ndarray | InputError
    ) -> None:
        self.classifier, self.photos, self.matrix = classifier, photos, matrix

    def predict(self, name: str, data: bytes) -> Result:
        """Predict one photo.

        Args:
            name: File name of the photo.
            data: The encoded photo; if it can't be decoded, the result contains the reason.
        """
        image, reason = decode(data, Path(name).suffix)
        if image is None:
            return Result(name, reason=reason)
        batch = self.classifier.read(image, name)
        (found,) = self.classifier.predict_batch(batch, top_k=TOP)
        if found.label is None or batch.pixels is None:  # the photo can't be read
            return Result(name, reason=found.reason)
        labels = [self.classifier.classes.index(class_name) for class_name, _ in found.top]
        try:
            pictures = overlays(self.classifier.model, batch.pixels[0], labels)
        except InputError:  # the network has no feature map
            pictures = []
        return Result(
            name,
            photo=as_uri(image, SIDE),
            prediction=found,
            overlays=[as_uri(Image.fromarray(picture), SIDE) for picture in pictures],
            neighbours=self._neighbours(self.classifier.features(batch.pixels)[0]),
            confusion=self._confusion(found.label),
        )

    def _neighbours(self, features: np.ndarray) -> list[dict[str, Any]]:
        if isinstance(self.photos, InputError):
            return []
        near = self.photos.nearest(features, NEIGHBOURS)
        return [{**found._asdict(), "picture": photo_uri(found.path, SMALL), "name": found.path.name} for found in near]

    def _confusion(self, label: int) -> Confusion | None:
        if isinstance(self.matrix, InputError):
            return None
        return Confusion(self._counts(self.matrix[:, label], label), self._counts(self.matrix[label], label))

    def _counts(self, photos: np.ndarray, label: int) -> list[Count]:
        order = [index for index in np.argsort(-photos, kind="stable")[:CONFUSED] if photos[index]]
        total = photos.sum()
        return [
            Count(self.classifier.classes[index], int(photos[index]), float(photos[index] / total), index == label)
            for index in order
        ]

    def render(self, results: Iterable[Result], notice: str = "") -> str:
        """Return the results as HTML.

        Args:
            results: In the order of the page.
            notice: A sentence above them.
        """
        return (
            environment("mmflowers.demo")
            .get_template("results.html.j2")
            .render(
                numbered=[(next(_numbers), result) for result in results],
                notice=notice,
                formats=FORMATS,
                # Without the reasons, which contain paths of this machine.
                no_photos=isinstance(self.photos, InputError),
                no_matrix=isinstance(self.matrix, InputError),
            )
        )


def read_confusion(work_dir: Path, classes: tuple[str, ...]) -> np.ndarray:
    """Read the confusion matrix of a run on its val split, int64 of shape (classes, classes).

    Raises:
        InputError: The run wasn't tested, or with other classes.
    """
    path = work_dir / "predictions_val.csv"
    hint = f"python tools/test.py {default_checkpoint(work_dir)}"
    if not path.is_file():
        raise InputError("the run hasn't been tested on its val split", hint)
    predictions, notes, *_ = read_tested(path, work_dir)
    if notes:
        raise InputError(f"{path.name} is {notes[0]}", hint)
    if tuple(predictions.classes) != classes:
        raise InputError(f"{path.name} has other classes than the run", hint)
    return confusion_matrix(predictions)
