"""Contact sheet: several unscaled images per photo, one photo per row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmflowers.visualization.figures import INK, MUTED

GAP, MARGIN = 8, 24  # pixels
LARGE, SMALL = 20, 14  # font sizes in pixels
LABELS = 240  # width of the labels at the left, in pixels
ELLIPSIS = "…"


class Row(NamedTuple):
    """One photo of a sheet.

    Attributes:
        title: Class name.
        subtitle: File name.
        images: uint8 RGB arrays of shape (height, width, 3), one per column.
    """

    title: str
    subtitle: str
    images: Sequence[np.ndarray]


def contact_sheet(columns: Sequence[tuple[str, str]], rows: Sequence[Row]) -> Image.Image:
    """Arrange images in a table, without scaling them.

    Args:
        columns: Title and subtitle of each column.
        rows: At least one.
    """
    widths = [max(row.images[index].shape[1] for row in rows) for index in range(len(columns))]
    heights = [max(image.shape[0] for image in row.images) for row in rows]
    head = LARGE + SMALL + 3 * GAP
    width = 2 * MARGIN + LABELS + sum(widths) + GAP * len(columns)
    height = 2 * MARGIN + head + sum(heights) + GAP * (len(rows) - 1)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    lefts = [MARGIN + LABELS + GAP + sum(widths[:index]) + GAP * index for index in range(len(columns))]
    for left, room, (title, subtitle) in zip(lefts, widths, columns, strict=True):
        _write(draw, (left + room / 2, MARGIN), title, subtitle, room, centred=True)
    top = MARGIN + head
    for row, room in zip(rows, heights, strict=True):
        _write(draw, (MARGIN, top + room / 2 - LARGE), row.title, row.subtitle, LABELS)
        for left, column, image in zip(lefts, widths, row.images, strict=True):
            place = left + (column - image.shape[1]) // 2, top + (room - image.shape[0]) // 2
            sheet.paste(Image.fromarray(image), place)
        top += room + GAP
    return sheet


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    title: str,
    subtitle: str,
    room: int,
    *,
    centred: bool = False,
) -> None:
    x, y = place
    for text, size, colour in ((title, LARGE, INK), (subtitle, SMALL, MUTED)):
        font = _font(size)
        if font.getlength(text) > room:
            while text and font.getlength(text + ELLIPSIS) > room:
                text = text[:-1]
            text += ELLIPSIS
        draw.text((x, y), text, fill=colour, font=font, anchor="ma" if centred else "la")
        y += size + GAP


def _font(pixels: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's font, which has Latin, Greek and Cyrillic letters; Pillow's has only Latin ones."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), pixels)
