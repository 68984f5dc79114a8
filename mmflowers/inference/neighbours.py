"""The training photos that look most alike to the network: by its own features, kept beside the run."""

from __future__ import annotations

import hashlib
import math
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmflowers.datasets.folder import DatasetFolder, read_dataset_folder
from mmflowers.datasets.identity import content_digests
from mmflowers.evaluation.tested import default_checkpoint
from mmflowers.inference.classifier import FlowerClassifier
from mmflowers.inference.inputs import Input
from mmflowers.inference.photos import PhotoDataset, read_batches
from mmflowers.utils.errors import InputError
from mmflowers.utils.files import file_sha256, replacing
from mmflowers.utils.terminal import progress

CACHE = "train_features.npz"  # in the work dir
BATCH = 32


class Neighbour(NamedTuple):
    """A training photo.

    Attributes:
        path: Of the photo, which was there a moment ago.
        class_name: Its label's.
        similarity: Cosine between its features and those asked for.
    """

    path: Path
    class_name: str
    similarity: float


class TrainingPhotos:
    """The photos of the train list with their features.

    Args:
        folder: The dataset folder, its train list read.
        images: Those photos that could be read, n of them, as the list has them.
        features: Of unit length, float32 of shape (n, features).
    """

    def __init__(self, folder: DatasetFolder, images: list[str], features: np.ndarray) -> None:
        labels = dict(folder.samples["train"])
        self._root, self._features = folder.root, features
        self._photos = [(image, folder.classes[labels[image]]) for image in images]

    def __len__(self) -> int:
        return len(self._photos)

    def nearest(self, features: np.ndarray, count: int) -> list[Neighbour]:
        """The photos nearest to one, the nearest first; those that are gone by now are passed over.

        Args:
            features: Of the one, float32 of shape (features,).
            count: How many at most.
        """
        similarities = self._features @ _unit(features)
        found: list[Neighbour] = []
        for index in np.argsort(-similarities, kind="stable"):
            image, class_name = self._photos[index]
            if len(found) == count:
                break
            if (self._root / image).is_file():
                found.append(Neighbour(self._root / image, class_name, float(similarities[index])))
        return found


def read_training_photos(
    classifier: FlowerClassifier, work_dir: Path, root: Path, *, workers: int = 0
) -> TrainingPhotos:
    """The run's training photos with their features, computed where ``train_features.npz`` doesn't hold them yet.

    What is kept holds for one checkpoint with one config and for each photo, all by their content.
    A folder that can't be written to is said on stderr and costs only time at the next start.

    Args:
        classifier: The run's.
        work_dir: Of the run.
        root: Its dataset folder. Photos that are gone or damaged are left out.
        workers: Processes that decode.

    Raises:
        InputError: The folder isn't in order, has other classes than the run, or no photo that can be read.
    """
    folder = read_dataset_folder(root, splits=("train",), files_may_be_gone=True)
    if tuple(folder.classes) != classifier.classes:
        what = f"{root} has the classes {', '.join(folder.classes)}, the run {', '.join(classifier.classes)}"
        raise InputError(what, "--data names the dataset folder that the run was trained on")
    network = _network(work_dir)
    images = [image for image, _ in folder.samples["train"] if (root / image).is_file()]
    numbers = dict(zip(images, content_digests([root / image for image in images]).tolist(), strict=True))
    known = _read_cache(work_dir / CACHE, network)
    kept = {image: known[number] for image, number in numbers.items() if number in known}
    missing = [image for image in images if image not in kept]
    computed = dict(_compute(classifier, root, missing, workers))
    features = kept | computed
    images = [image for image in images if image in features]
    if not images:
        raise InputError(f"{root} has no training photo that can be read", "prepare the dataset folder again")
    matrix = np.stack([features[image] for image in images])
    if computed or len(known) > len(images):
        _write_cache(work_dir / CACHE, network, [numbers[image] for image in images], matrix)
    return TrainingPhotos(folder, images, matrix.astype(np.float32))


def _compute(classifier: FlowerClassifier, root: Path, images: list[str], workers: int):
    """Yield ``(image, features)`` of those that can be read; float16, which moves a cosine by less than 0.001."""
    inputs = (Input(image, str(root / image)) for image in images)
    batches = read_batches(inputs, PhotoDataset(classifier.pipeline), batch_size=BATCH, workers=workers)
    total = math.ceil(len(images) / BATCH)
    for batch in progress(batches, total=total, what=f"batches of {BATCH} training photos") if images else ():
        names = [input_.name for input_ in batch.inputs if not input_.reason]
        if batch.pixels is not None:
            yield from zip(names, _unit(classifier.features(batch.pixels)).astype(np.float16), strict=True)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), np.finfo(np.float32).tiny)


def _network(work_dir: Path) -> str:
    """A digest of what the features follow from, beside the photos."""
    files = [default_checkpoint(work_dir), *sorted(work_dir.glob("*.py"))]
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()


def _read_cache(path: Path, network: str) -> dict[int, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as cache:
            if str(cache["network"]) == network:
                return dict(zip(cache["photos"].tolist(), cache["features"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # not there, or damaged: as good as none
        pass
    return {}


def _write_cache(path: Path, network: str, photos: list[int], features: np.ndarray) -> None:
    try:
        with replacing(path, sync=False) as file:
            np.savez(file, network=network, photos=np.array(photos, dtype=np.int64), features=features)
    except OSError as error:
        print(f"the features aren't kept: {path}: {error.strerror}", file=sys.stderr)
