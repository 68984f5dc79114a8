"""What there is to say of one photo: classes, where they were seen, look-alikes, confusions; as data and as HTML."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmflowers.evaluation.tested import default_checkpoint, read_tested
from mmflowers.inference.classifier import FlowerClassifier, Prediction
from mmflowers.inference.inputs import Input
from mmflowers.inference.neighbours import TrainingPhotos
from mmflowers.inference.photos import PhotoDataset, read_batches
from mmflowers.preparation.inspection import decode
from mmflowers.utils.errors import InputError
from mmflowers.visualization.cam import explain
from mmflowers.visualization.pages import environment
from mmflowers.visualization.report import confusion_matrix
from mmflowers.visualization.thumbnails import as_uri, photo_uri

TOP = 5  # classes with their probability
NEIGHBOURS = 6
CONFUSED = 4  # classes of a confusion
SIDE, SMALL = 448, 224  # longer side of the photo and of a look-alike, in pixels: twice of what the page gives them
FORMATS = "JPEG, PNG, WebP, BMP, TIFF and GIF photos are read"

_numbers = itertools.count(1)  # tell the answers of a page apart


class Count(NamedTuple):
    """Photos of the val split that belong to a class, or were predicted as it."""

    class_name: str
    photos: int
    share: float
    right: bool


@dataclass(frozen=True)
class Confusion:
    """What a run confuses a class with, on its val split.

    Attributes:
        taken_for_it: What the photos are that it took for the class, most first.
        taken: What it took the photos of the class for, most first.
    """

    taken_for_it: list[Count]
    taken: list[Count]


@dataclass(frozen=True)
class Answer:
    """What the page shows of a photo; pictures are data URIs.

    Attributes:
        name: What the user calls the photo.
        reason: Why it can't be read; nothing else is there then.
        photo: Small.
        prediction: The network's, with the ``TOP`` likeliest classes.
        overlays: For each of these where the network saw it; empty for a network without a map.
        neighbours: Look-alikes among the training photos, each with picture, class_name, similarity, name.
        confusion: Of the likeliest class, where the run was tested.
    """

    name: str
    reason: str = ""
    photo: str = ""
    prediction: Prediction | None = None
    overlays: list[str] = field(default_factory=list)
    neighbours: list[dict[str, Any]] = field(default_factory=list)
    confusion: Confusion | None = None


class Answering:
    """Answers photos with a run, its training photos and its test.

    Args:
        classifier: The run's.
        photos: Its training photos, or why there are none.
        matrix: Its confusion matrix on the val split, or why there is none.
    """

    def __init__(
        self, classifier: FlowerClassifier, photos: TrainingPhotos | InputError, matrix: np.ndarray | InputError
    ) -> None:
        self.classifier, self.photos, self.matrix = classifier, photos, matrix

    def answer(self, name: str, data: bytes) -> Answer:
        """Look at one photo.

        Args:
            name: What the user calls it.
            data: The encoded photo; whatever else it is gets the reason.
        """
        image, reason = decode(data)
        if image is None:
            return Answer(name, reason=reason)
        dataset = PhotoDataset(self.classifier.pipeline)
        (batch,) = read_batches([Input(name, image)], dataset, batch_size=1, workers=0)
        (found,) = self.classifier.judge(batch.inputs, batch.pixels, top_k=TOP)
        if found.label is None or batch.pixels is None:  # the photo can't be read
            return Answer(name, reason=found.reason)
        labels = [self.classifier.classes.index(class_name) for class_name, _ in found.top]
        try:
            seen = explain(self.classifier.model, batch.pixels[0], labels)
            overlays = [as_uri(Image.fromarray(picture), SIDE) for picture in seen]
        except InputError:  # a network that ends in no map
            overlays = []
        return Answer(
            name,
            photo=as_uri(image, SIDE),
            prediction=found,
            overlays=overlays,
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

    def render(self, answers: Iterable[Answer], notice: str = "") -> str:
        """The answers as HTML, below a notice.

        Args:
            answers: In their order.
            notice: A sentence above them.
        """
        return (
            environment("mmflowers.demo")
            .get_template("answers.html.j2")
            .render(
                numbered=[(next(_numbers), answer) for answer in answers],
                notice=notice,
                formats=FORMATS,
                # Only whether: the reasons name folders of this machine.
                no_photos=isinstance(self.photos, InputError),
                no_matrix=isinstance(self.matrix, InputError),
            )
        )


def read_confusion(work_dir: Path, classes: tuple[str, ...]) -> np.ndarray:
    """The confusion matrix of a run on its val split, int64 of shape (classes, classes).

    Raises:
        InputError: It wasn't tested, or with other classes.
    """
    path = work_dir / "predictions_val.csv"
    hint = f"python tools/test.py {default_checkpoint(work_dir)}"
    if not path.is_file():
        raise InputError("the run hasn't been tested on its val split", hint)
    predictions, notes, *_ = read_tested(path, work_dir)
    if notes:
        raise InputError(f"{path.name} is {notes[0]}", hint)
    if tuple(predictions.classes) != classes:
        raise InputError(f"{path.name} is about other classes than the run's", hint)
    return confusion_matrix(predictions)
