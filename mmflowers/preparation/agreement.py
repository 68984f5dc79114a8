"""Find files in which OpenCV (MMPretrain's loading) and Pillow see different pixels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # EXIF tag
BAND_PIXELS = 1_000_000  # an image is compared in bands of this size
_SHORT = 3  # the EXIF type of an orientation
_SEGMENT = re.compile(rb"\xff+([^\x00\xff\xd0-\xd8\x01])(..)", re.DOTALL)
_APP1, _APP14, _SOS = 0xE1, 0xEE, 0xDA
_USUAL_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_USUAL_SAMPLING = (b"\x11\x11\x11", b"\x21\x11\x11", b"\x12\x11\x11", b"\x22\x11\x11")


def check_jpeg(data: bytes) -> tuple[bool, bool]:
    """Check the header of a JPEG for what readers take differently.

    Returns:
        Whether its EXIF orientation is clear, and whether it is coded as cameras and programs do, which all builds of
        libjpeg decode alike: Huffman-coded, of 8 bits, and grey or YCbCr with the usual sampling.

        EXIF wants a single orientation of the type SHORT with the count 1 and a value from 1 to 8. Of another type,
        count or value, or of two, some readers ignore what others apply. Only 1 is clear here, because Pillow is
        expected to have found a usual one from 2 to 8 already.
    """
    blocks: list[bytes] = []
    is_usual = False
    for marker, body in _segments(data):
        if marker == _APP1 and body[6:8] in (b"II", b"MM"):  # OpenCV doesn't look at the six bytes before
            blocks.append(body[6:])
        elif marker == _APP14 and body.startswith(b"Adobe") and body[11:12] != b"\1":  # not YCbCr
            return _is_clear(blocks), False
        elif marker in _USUAL_FRAMES and body[:1] == b"\x08":
            sampling, ids = body[7 : 6 + 3 * body[5] : 3], body[6 : 6 + 3 * body[5] : 3]
            is_usual = len(ids) == 1 or (ids == b"\1\2\3" and sampling in _USUAL_SAMPLING)
    return _is_clear(blocks), is_usual


def is_usual_png(data: bytes) -> bool:
    """Return whether a PNG is RGB or grey, of 8 bits, without EXIF: its pixels are then all there is to decode."""
    # ImageMagick writes EXIF as a text.
    return data[24:26] in (b"\x08\0", b"\x08\2") and b"eXIf" not in data and b"Raw profile type" not in data


def digest(image: Image.Image) -> bytes:
    """Return a digest of the size and the pixels of an RGB or grey image, as BGR."""
    width, height = image.size
    rows = max(1, BAND_PIXELS // width)
    found = hashlib.sha256(repr(image.size).encode())
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height))) if rows < height else image
        found.update((band if band.mode == "RGB" else band.convert("RGB")).tobytes("raw", "BGR"))
    return found.digest()


def opencv_digest(data: bytes) -> bytes:
    """Return ``digest`` of what OpenCV decodes, as MMPretrain's ``LoadImageFromFile`` calls it; empty if it can't."""
    import cv2  # late: JPEGs, which most photos are, don't need it

    _silence()
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return b""
    if pixels is None:
        return b""
    height, width = pixels.shape[:2]
    found = hashlib.sha256(repr((width, height)).encode())
    found.update(pixels.data)
    return found.digest()


def opencv_deep(data: bytes) -> np.ndarray | None:
    """Return an image as OpenCV decodes it with all its bits, channels in the order BGR or BGRA; None if it can't."""
    import cv2

    _silence()
    try:
        pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    return pixels


def _silence() -> None:
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a file that it can't read has a reason here


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and body of a JPEG's segments up to the first scan."""
    at = 2
    while (found := _SEGMENT.search(data, at)) is not None:
        marker, length = found[1][0], int.from_bytes(found[2], "big")
        at = max(found.end(), found.end() - 2 + length)
        if marker == _SOS:
            return
        yield marker, data[found.end() : at]


def _is_clear(blocks: list[bytes]) -> bool:
    """Return whether EXIF blocks have no orientation, or a single usual one that says upright."""
    entries = [entry for block in blocks for entry in _orientations(block)]
    return not entries or (len(blocks) == 1 and entries == [(_SHORT, 1, 1)])


def _orientations(block: bytes) -> list[tuple[int, int, int]]:
    """Return type, count and value of every orientation in the first directory of an EXIF block."""
    order: Literal["little", "big"] = "little" if block[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(block[at : at + size], order)

    start = number(4, 4)
    count = number(start, 2)
    entries = range(start + 2, min(start + 2 + 12 * count, len(block)), 12)
    return [(number(at + 2, 2), number(at + 4, 4), number(at + 8, 2)) for at in entries if number(at, 2) == ORIENTATION]
