"""Thumbnails as data URIs for HTML pages. Doesn't import torch."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def photo_uri(path: Path, side: int) -> str | None:
    """Return a JPEG thumbnail of a photo as a data URI; None if the photo can't be read.

    Args:
        path: Of the photo.
        side: Maximum length of the longer side in pixels.
    """
    from PIL import Image, ImageOps

    from mmflowers.preparation.decoding import FORMATS, MAX_PIXELS
    from mmflowers.utils.files import open_regular

    try:
        # Only the formats that the preparation reads: Pillow would run Ghostscript for an EPS.
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            image.draft("RGB", (2 * side, 2 * side))
            return as_uri(ImageOps.exif_transpose(image).convert("RGB"), side)
    except Exception:  # Pillow's decoders raise any exception; one damaged photo must not stop the page
        return None


def as_uri(picture: Image, side: int) -> str:
    """Resize an RGB image in place to at most ``side`` pixels and return it as a JPEG data URI."""
    buffer = io.BytesIO()
    picture.thumbnail((side, side))
    picture.save(buffer, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
