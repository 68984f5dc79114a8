"""Grad-CAM: the image regions that a predicted class is based on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmflowers.utils.errors import InputError

OPACITY = 0.5


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


def explain(model: Any, image: Tensor, labels: Sequence[int] | None = None) -> list[np.ndarray]:
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


def overlay(image: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """Blend a map with its photo, in colours from blue (0) through green to red (1).

    Args:
        image: RGB, uint8 of shape (H, W, 3).
        cam: Float of shape (H, W), from 0 to 1.

    Returns:
        RGB, uint8 of shape (H, W, 3).
    """
    import cv2

    colours = cv2.applyColorMap((255 * cam).round().astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    return (image * (1 - OPACITY) + colours * OPACITY).round().astype(np.uint8)
