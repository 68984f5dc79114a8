"""Simulate a camera: blur, colour of the light, exposure, vignette, noise."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter


def photograph(rng: Generator, image: Image.Image) -> Image.Image:
    """Apply the effects of light, lens and sensor to a picture; return RGB of the same size."""
    short = min(image.size)
    blur = rng.choice([0.0, rng.uniform(0.0, 0.003), rng.uniform(0.003, 0.007)], p=[0.4, 0.42, 0.18]) * short
    if blur > 0.2:
        image = image.filter(ImageFilter.GaussianBlur(float(blur)))
    warmth, tint = rng.normal(0, 0.08), rng.normal(0, 0.03)
    gains = np.array([1 + warmth, 1 + tint, 1 - warmth]) * math.exp(rng.normal(0, 0.17))
    contrast, saturation = rng.normal(1, 0.13), float(np.clip(rng.normal(0.95, 0.16), 0.45, 1.4))
    # all of it is linear in a pixel's colour: grey + (colour - grey) * saturation, then contrast around 118
    mixing = contrast * (saturation * np.eye(3) + (1 - saturation) / 3) * gains
    matrix = np.column_stack([mixing, np.full(3, 118 * (1 - contrast))])
    image = image.convert("RGB", tuple(matrix.ravel().tolist()))

    width, height = image.size
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    vignette = np.float32(max(0.0, rng.normal(0.12, 0.12)))
    shade = 1 - vignette * (x * x + y * y) + np.float32(rng.normal(0, 0.1)) * x + np.float32(rng.normal(0, 0.08)) * y
    pixels = np.asarray(image) * shade[..., None]
    # bytes are ten times cheaper to draw than normal deviates, and nobody sees the difference in a sensor's noise
    noise = min(rng.gamma(1.5, 2.0), 14.0) / 74  # 74: standard deviation of a byte
    colour_grain = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    grey_grain = rng.integers(0, 256, (height, width, 1), dtype=np.uint8)
    # dtype said: older versions of numpy would take float16, which is slow
    pixels += np.multiply(colour_grain, 0.5 * noise, dtype=np.float32)
    pixels += np.multiply(grey_grain, noise, dtype=np.float32) - np.float32(1.5 * 127.5 * noise)
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))
