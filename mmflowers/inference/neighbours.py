"""Find the training photos whose features are most similar to those of a photo; features are cached in the work dir."""

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
from mmflowers.inference.classifier import FlowerClassifier, require_classes
from mmflowers.inference.inputs import Input
from mmflowers.inference.photos import PhotoDataset, read_batches
from mmflowers.utils.errors import InputError
from mmflowers.utils.files import file_sha256, replacing
from mmflowers.utils.terminal import progress

CACHE = "train_features.npz"  # in the work dir
BATCH = 32


class Neighbour(NamedTuple):
    """A training photo near another photo.

    Attributes:
        path: Of the training photo.
        class_name: Of its label.
        similarity: Cosine similarity between its features and those of the other photo.
    """

    path: Path
    class_name: str
    similarity: float


class TrainingPhotos:
    """The photos of the train list with their features.

    Args:
        folder: The dataset folder with its train list.
        images: Paths in the list of the n photos that could be read.
        features: Their features with unit length, float32 of shape (n, features).
    """

    def __init__(self, folder: DatasetFolder, images: list[str], features: np.ndarray) -> None:
        labels = dict(folder.samples["train"])
        self._root, self._features = folder.root, features
        self._photos = [(image, folder.classes[labels[image]]) for image in images]

    def __len__(self) -> int:
        return len(self._photos)

    def nearest(self, features: np.ndarray, count: int) -> list[Neighbour]:
        """Return the nearest training photos, the nearest first; photos that no longer exist are left out.

        Args:
            features: Of the photo to compare with, float32 of shape (features,).
            count: Maximum number of training photos.
        """
        similarities = self._features @ _normalise(features)
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
    """Read a run's training photos with their features; features that ``train_features.npz`` lacks are computed.

    The cache is valid for the content of one checkpoint, its config and each photo. If it can't be written, a message
    on stderr says so, and the features are computed again at the next start.

    Args:
        classifier: Of the run.
        work_dir: Of the run.
        root: Its dataset folder. Missing and damaged photos are left out.
        workers: Number of processes that decode.

    Raises:
        InputError: The dataset folder has errors, other classes than the run, or no readable photo.
    """
    folder = read_dataset_folder(root, splits=("train",), files_may_be_gone=True)
    require_classes(folder, classifier.classes)
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
        raise InputError(f"{root} has no readable training photo", "prepare the dataset folder again")
    matrix = np.stack([features[image] for image in images])
    if computed or len(known) > len(images):
        _write_cache(work_dir / CACHE, network, [numbers[image] for image in images], matrix)
    return TrainingPhotos(folder, images, matrix.astype(np.float32))


def _compute(classifier: FlowerClassifier, root: Path, images: list[str], workers: int):
    """Yield ``(image, features)`` of readable photos; float16 changes a cosine similarity by less than 0.001."""
    inputs = (Input(image, str(root / image)) for image in images)
    batches = read_batches(inputs, PhotoDataset(classifier.pipeline), batch_size=BATCH, workers=workers)
    total = math.ceil(len(images) / BATCH)
    for batch in progress(batches, total=total, what=f"batches of {BATCH} training photos") if images else ():
        names = [input_.name for input_ in batch.inputs if not input_.reason]
        if batch.pixels is not None:
            yield from zip(names, _normalise(classifier.features(batch.pixels)).astype(np.float16), strict=True)


def _normalise(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), np.finfo(np.float32).tiny)


def _network(work_dir: Path) -> str:
    """Return a digest of the checkpoint and the config, which determine the features of a photo."""
    files = [default_checkpoint(work_dir), *sorted(work_dir.glob("*.py"))]
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()


def _read_cache(path: Path, network: str) -> dict[int, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as cache:
            if str(cache["network"]) == network:
                return dict(zip(cache["photos"].tolist(), cache["features"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # missing or damaged
        pass
    return {}


def _write_cache(path: Path, network: str, photos: list[int], features: np.ndarray) -> None:
    try:
        with replacing(path, sync=False) as file:
            np.savez(file, network=network, photos=np.array(photos, dtype=np.int64), features=features)
    except OSError as error:
        print(f"the features can't be cached: {path}: {error.strerror}", file=sys.stderr)
