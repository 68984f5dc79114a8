"""Photos as small pictures in the text of a page. No torch."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def photo_uri(path: Path, side: int) -> str | None:
    """A small JPEG of the photo as a data URI; None where there is no photo to be read any more.

    Args:
        path: Of the photo.
        side: The longer side in pixels, at most.
    """
    from PIL import Image, ImageOps

    from mmflowers.preparation.inspection import FORMATS, MAX_PIXELS, open_regular

    try:
        # The formats that the preparation reads and no others: Pillow would run Ghostscript for an EPS.
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            image.draft("RGB", (2 * side, 2 * side))
            return as_uri(ImageOps.exif_transpose(image).convert("RGB"), side)
    except Exception:  # Pillow's decoders raise of every kind; one damaged photo doesn't cost the page
        return None


def as_uri(picture: Image, side: int) -> str:
    """An RGB image, scaled down in its place to ``side`` pixels, as a JPEG in a data URI."""
    buffer = io.BytesIO()
    picture.thumbnail((side, side))
    picture.save(buffer, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
