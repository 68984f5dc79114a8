"""Pictures that tests make."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def photo(seed: int = 0, size: tuple[int, int] = (64, 48), grain: float = 0.1) -> Image.Image:
    """A picture with structure at all scales, as photos have it.

    Args:
        seed: Of its content.
        size: (width, height) in pixels.
        grain: Share of noise, 0 to 1.
    """
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    return Image.blend(coarse, fine, grain)


def encode(image: Image.Image, format_: str = "JPEG", **options) -> bytes:
    """The bytes of an image file."""
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()
