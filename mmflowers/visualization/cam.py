"""Class activation maps drawn over their photos."""

from __future__ import annotations

import numpy as np

OPACITY = 0.5


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
