"""Grad-CAM: the image regions that a predicted class is based on."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmflowers.inference.classifier import FlowerClassifier, Prediction
from mmflowers.utils.errors import InputError
from mmflowers.utils.files import creating, explained
from mmflowers.visualization.cam import overlay


def grad_cam(model: Any, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
    """Compute Grad-CAM maps from the backbone's last feature map.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.
    A channel's weight is the mean gradient of the class's logit over the map. Negative values of the weighted sum are
    set to 0. The map is detached from the graph, so that the gradient is computed only through neck and head.

    Args:
        model: An MMPretrain classifier with backbone, neck and head.
        inputs: Input of the backbone: float of shape (n, 3, H, W), normalised.
        labels: The classes to explain, int64 of shape (n,); default the predicted classes.

    Returns:
        Float32 of shape (n, H, W), from 0 to 1 in each photo; all 0 if no region supports the class.

    Raises:
        InputError: The backbone's output isn't a feature map, as for vision transformers.
    """
    with torch.no_grad():
        stages = model.extract_feat(inputs, stage="backbone")
    features = stages[-1].detach()
    if features.ndim != 4 or features.shape[2] * features.shape[3] < 2:
        raise InputError(
            "Grad-CAM needs a backbone whose output is a feature map", "use a convolutional network with --cam"
        )
    with torch.enable_grad():
        features.requires_grad_()
        maps = (*stages[:-1], features)
        logits = model.head(model.neck(maps) if model.with_neck else maps)
        chosen = logits.argmax(dim=1) if labels is None else labels
        (gradients,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), features)
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    cam = (weights * features.detach()).sum(dim=1, keepdim=True).relu().float()
    cam = F.interpolate(cam, size=inputs.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return cam / cam.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(cam.dtype).tiny)


def overlays(model: Any, image: Tensor, labels: Sequence[int] | None = None) -> list[np.ndarray]:
    """Draw Grad-CAM overlays of one photo for one or several classes.

    Args:
        model: See ``grad_cam``.
        image: The photo after the test pipeline: BGR, uint8 of shape (3, H, W).
        labels: The classes to explain; default the predicted class.

    Returns:
        One image per class: RGB, uint8 of shape (H, W, 3).

    Raises:
        InputError: See ``grad_cam``.
    """
    prepared = model.data_preprocessor({"inputs": image[None]})["inputs"]
    chosen = None
    if labels is not None:
        chosen = torch.tensor(labels, device=prepared.device)
        prepared = prepared.expand(len(labels), -1, -1, -1)
    rgb = image.flip(0).permute(1, 2, 0).numpy()
    maps = grad_cam(model, prepared, chosen).cpu().numpy()
    # The preprocessor pads on the right and at the bottom.
    return [overlay(rgb, cam[: rgb.shape[0], : rgb.shape[1]]) for cam in maps]


def file_overlay(classifier: FlowerClassifier, path: Path, label: int) -> np.ndarray | None:
    """Draw the Grad-CAM overlay of a photo in a file for the class ``label``; None if the photo can't be read.

    Raises:
        InputError: See ``grad_cam``.
    """
    batch = classifier.read(str(path), path.name)
    return None if batch.pixels is None else overlays(classifier.model, batch.pixels[0], [label])[0]


class OverlayFolder:
    """Write Grad-CAM overlays of predicted classes, one JPEG per photo.

    Args:
        folder: Created if missing. The files are called ``<name of the photo>.jpg``, with a number if the name exists.
        classifier: The classifier of the predictions.
    """

    def __init__(self, folder: Path, classifier: FlowerClassifier) -> None:
        self.folder, self.model = folder, classifier.model

    def write(self, predictions: Iterable[Prediction], pixels: Tensor | list[Tensor] | None) -> None:
        """Write the overlays of a batch.

        Args:
            predictions: Of the batch; photos that can't be read have no overlay.
            pixels: From ``read_batches``.

        Raises:
            InputError: The folder can't be written to, or see ``grad_cam``.
        """
        # One by one: without a crop photos differ in size, and overlays must not contain padding.
        read = (found for found in predictions if not found.reason)
        for found, image in zip(read, () if pixels is None else pixels, strict=True):
            picture = Image.fromarray(overlays(self.model, image)[0])
            with explained(self.folder, elsewhere="choose another --cam"):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._save(picture, Path(found.image).stem or "photo")

    def _save(self, picture: Image.Image, stem: str) -> None:
        jpeg = io.BytesIO()  # Pillow's own errors don't contain the system's reason
        picture.save(jpeg, "JPEG", quality=90)
        for number in itertools.count(1):
            path = self.folder / (f"{stem}.jpg" if number == 1 else f"{stem}_{number}.jpg")
            try:
                with creating(path) as file:
                    file.write(jpeg.getbuffer())
                return
            except FileExistsError:
                continue
