"""Grad-CAM overlays of what is predicted, a picture for each photo."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from torch import Tensor

from mmflowers.inference.classifier import FlowerClassifier, Prediction
from mmflowers.utils.files import creating, explained
from mmflowers.visualization.cam import explain


class Overlays:
    """Draws where the network saw the class that it names, on the pixels that it saw.

    Args:
        folder: Gets ``<name of the photo>.jpg``, numbered where that is taken; made if missing.
        classifier: The one that predicts.
    """

    def __init__(self, folder: Path, classifier: FlowerClassifier) -> None:
        self.folder, self.model = folder, classifier.model

    def draw(self, predictions: Iterable[Prediction], pixels: Tensor | list[Tensor] | None) -> None:
        """Draw a batch.

        Args:
            predictions: Of the batch; those of photos that can't be read are passed over.
            pixels: As ``read_batches`` gives them.

        Raises:
            InputError: The folder can't be written to, or the network has no map to show.
        """
        # One by one: without a crop photos differ in size, and padding is nothing to look at.
        read = (found for found in predictions if not found.reason)
        for found, image in zip(read, () if pixels is None else pixels, strict=True):
            picture = Image.fromarray(explain(self.model, image)[0])
            with explained(self.folder, elsewhere="choose another --cam"):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._save(picture, Path(found.image).stem or "photo")

    def _save(self, picture: Image.Image, stem: str) -> None:
        jpeg = io.BytesIO()  # Pillow's own errors don't say what the disk said
        picture.save(jpeg, "JPEG", quality=90)
        for number in itertools.count(1):
            path = self.folder / (f"{stem}.jpg" if number == 1 else f"{stem}_{number}.jpg")
            try:
                with creating(path) as file:
                    file.write(jpeg.getbuffer())
                return
            except FileExistsError:
                continue
