"""Find damage that decoders ignore without an exception, and bound the memory of a decoding before it starts."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import simplejpeg  # libjpeg-turbo with its warnings; Pillow has the same decoder and discards them
from PIL import Image

# After these libjpeg continues with grey or with the pixels of another place. Other warnings (an unknown JFIF version,
# a corrupt ICC profile) leave the pixels as they are.
_DAMAGE = (
    "Corrupt JPEG data: premature end",
    "Corrupt JPEG data: bad Huffman code",
    "Corrupt JPEG data: bad arithmetic code",
    "Corrupt JPEG data: found marker",
    "Inconsistent progression sequence",
)
_LEFT_OVER = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0x(d9)?")
_READ_AHEAD = 8  # bytes in libjpeg's bit buffer: of what follows the image so many aren't called extraneous

MAX_SCANS = 100  # of a progressive JPEG; encoders write 3 to 20. Each one is a pass over the whole image.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither a stuffed byte nor a restart marker
_TEM, _DHT, _SOI, _EOI, _SOS = 0x01, 0xC4, 0xD8, 0xD9, 0xDA
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1, 0xC9), (0xC2, 0xCA)
_ZEROS = bytes(64)

MAX_PIXELS_PER_BYTE = 10_000  # of a file; a flat colour reaches 4,000 in GIF, a photo 100
MID_GREY = (127, 129)  # libjpeg fills blocks without data with 128


class Damaged(Exception):
    """A file decodes, but not to its original pixels. The message is the reason in ``files.csv``."""


class _Scan(NamedTuple):
    unsent: int  # a bit for each coefficient that the scans up to this one haven't sent in full
    of_zeros: list[int]  # the symbol that a code of zeros stands for in each of its tables (DC's alone, or AC's)
    parameters: int  # offset of Ss, Se, Ah and Al
    start: int  # offset of the entropy-coded data


def decode_jpeg(data: bytes, image: Image.Image, *, scale: int | None = None) -> Image.Image | None:
    """Decode a JPEG; treat those of libjpeg's warnings as errors that mean damage.

    Args:
        data: The whole file. What follows the first image's end doesn't matter.
        image: The same, opened by Pillow.
        scale: 1, 2, 4 or 8 for a grey image of 1 / ``scale`` of the size; None for the image as it is. The whole file
            is decoded either way.

    Returns:
        The image, equal to Pillow's. None if this decoder doesn't support the mode or the coding.

    Raises:
        Damaged: Pixels are missing or wrong.
    """
    _check_scans(data)
    colours = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}[image.mode]
    if scale and colours == "RGB":
        colours = "GRAY"
    # The decoder takes the smallest scale that isn't below these.
    width, height = (-(-side // (scale or 1)) for side in image.size)
    pixels = _strictly(data, colorspace=colours, min_width=width, min_height=height)
    if pixels is None or colours == "CMYK":  # it may be stored inverted, which Pillow handles
        return None
    return Image.fromarray(pixels if colours == "RGB" else pixels[..., 0])


def _strictly(data: bytes, **options: str | int) -> np.ndarray | None:
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, strict=True, **options)
        return pixels
    except ValueError as error:
        warning = str(error)
    if warning.startswith("Invalid SOS parameters"):  # some phones write them wrong; later warnings matter
        mended = bytearray(data)
        for scan in _scans(data):
            mended[scan.parameters : scan.parameters + 3] = b"\x00\x3f\x00"
        if mended != data:
            return _strictly(bytes(mended), **options)
    if warning.startswith("Premature end"):
        raise Damaged("truncated")
    left_over = _LEFT_OVER.match(warning)
    if warning.startswith(_DAMAGE) or (left_over and not _is_padding(left_over, data)):
        raise Damaged(f"damaged ({warning[0].lower()}{warning[1:]})")
    return None  # a harmless warning, or an error that Pillow's decoder has as well


def _is_padding(left_over: re.Match[str], data: bytes) -> bool:
    """Return whether the bytes left over before the end marker are one byte repeated from the end of the image on.

    Some cameras pad a sector like this. If a part of the image was overwritten with such bytes, the decoder used some
    of them as image data, and there are more of them than it left over.
    """
    if left_over[2] is None:
        return False
    last = max(scan.start for scan in _scans(data))
    rest = data[last : _end(data, last)]
    row = len(rest) - len(rest.rstrip(rest[-1:]))
    return 0 <= row - int(left_over[1]) <= _READ_AHEAD


def _check_scans(data: bytes) -> None:
    """Raise ``Damaged`` for what libjpeg doesn't warn of: missing scans, and zeros that decode to something."""
    scan = None
    for number, scan in enumerate(_scans(data), start=1):
        if number > MAX_SCANS:
            raise Damaged(f"damaged (over {MAX_SCANS} scans)")
        # A row of zeros is a flat part of the image if their code ends a block. If it stands for a coefficient
        # (its size is in the lower four bits), it means blocks full of the same one, or a long even slope of DC, which
        # no encoder finds in a photo.
        if any(symbol & 15 for symbol in scan.of_zeros):
            zeros = data.find(_ZEROS, scan.start)
            # Those at the end may be padding, which libjpeg warns of.
            if zeros >= 0 and data[zeros : _end(data, scan.start)].strip(b"\0"):
                raise Damaged("damaged (zeros in place of image data)")
        if number == 1 and not scan.unsent:  # the usual file; libjpeg reads no second scan then
            return
    if scan is not None and scan.unsent:
        raise Damaged("truncated (scans are missing)")


def _scans(data: bytes) -> Iterator[_Scan]:
    """Yield the scans of a JPEG's first image up to the first malformed one (the decoder reports that)."""
    tables: dict[int, int] = {}  # Huffman table (16 + number for AC) → the symbol of its first code, one of zeros
    components: list[int] = []
    unsent = 0
    progressive = False
    at = 2
    while (found := _MARKER.search(data, at)) is not None:
        marker, body = data[found.start() + 1], found.start() + 4
        if marker in (_TEM, _SOI):
            at = body - 2
            continue
        if marker == _EOI:
            return
        at = max(body, body - 2 + int.from_bytes(data[body - 2 : body], "big"))
        segment = data[body:at]
        try:
            if marker == _DHT:
                while segment:
                    count = sum(segment[1:17])
                    if count:
                        tables[segment[0]] = segment[17]
                    segment = segment[17 + count :]
            elif marker in _SEQUENTIAL or marker in _PROGRESSIVE:
                progressive = marker in _PROGRESSIVE
                components = list(segment[6 : 6 + 3 * segment[5] : 3])
                unsent = (1 << 64 * len(components)) - 1
            elif marker == _SOS:
                count = segment[0]
                parameters = 1 + 2 * count
                first, last, bits = segment[parameters : parameters + 3] if progressive else (0, 63, 0)
                if not bits & 15:  # else a later scan brings the lowest bits
                    sent = (2 << last) - (1 << first)
                    for place in map(components.index, segment[1:parameters:2]):
                        unsent &= ~(sent << 64 * place)
                tables_in_use = segment[2 : parameters + 1 : 2]
                if last - first >= 4:
                    used = {16 + (table & 15) for table in tables_in_use}
                elif first == 0 and not bits >> 4:  # DC; to refine it takes bits without codes
                    used = {table >> 4 for table in tables_in_use}
                else:  # a slope has the same coefficient in every block
                    used = set()
                yield _Scan(unsent, [tables.get(table, 0) for table in used], body + parameters, at)
                at = _end(data, at)
        except (IndexError, ValueError):
            return


def _end(data: bytes, start: int) -> int:
    """Return the offset of the marker that ends the entropy-coded data."""
    found = _MARKER.search(data, start)
    return found.start() if found else len(data)


def check_png(data: bytes) -> None:
    """Raise ``Damaged`` for a PNG with image data of a wrong checksum, which Pillow doesn't check."""
    at, whole = 8, memoryview(data)
    while at + 12 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 8 + int.from_bytes(data[at : at + 4], "big")
        if kind == b"IDAT" and zlib.crc32(whole[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise Damaged("damaged (wrong CRC in IDAT)")
        if kind == b"IEND":
            return
        at = end + 4


def check_tail(image: Image.Image, format_: str) -> None:
    """Raise ``Damaged`` for an image that ends in the filling of missing data.

    In any format that is the mid-grey of a decoder: programs write it when they save a truncated JPEG again. In
    formats without compression it is zeros from the middle of a row on, if the row above isn't dark.

    Args:
        image: As it is stored: not turned, at most scaled down.
        format_: Pillow's name of it.
    """
    width, height = image.size
    if image.mode in ("RGB", "L"):
        rows = 0
        while rows < height and _is_mid_grey(image, height - rows - 1):
            rows += 1
        # A picture on a grey ground, or within a grey frame, has the same above.
        if rows >= max(2, height / 50) and not _is_mid_grey(image, 0):
            raise Damaged("truncated (grey at the end)")
    if format_ in ("BMP", "TIFF") and image.mode in ("RGB", "L") and (box := image.getbbox()):
        # The last row with anything in it, the one before, and the last of all: a BMP's are stored upwards.
        row, before, last = (box[1], box[1] + 1, 0) if format_ == "BMP" else (box[3] - 1, box[3] - 2, height - 1)
        if row == last or not 0 <= before < height:
            return
        pixels, above = (np.asarray(image.crop((0, y, width, y + 1))).reshape(width, -1) for y in (row, before))
        above = above[pixels.any(axis=1).nonzero()[0][-1] + 1 :]
        if above.size and above.mean() > 16 and above.any(axis=1).mean() > 0.9:
            raise Damaged("truncated (zeros at the end)")


def _is_mid_grey(image: Image.Image, row: int) -> bool:
    first: Any = image.getpixel((0, row))  # one pixel is enough for most rows
    if not MID_GREY[0] <= (first[0] if image.mode == "RGB" else first) <= MID_GREY[1]:
        return False
    extrema: Any = image.crop((0, row, image.width, row + 1)).getextrema()
    ranges = extrema if image.mode == "RGB" else [extrema]
    return all(MID_GREY[0] <= low and high <= MID_GREY[1] for low, high in ranges)


def decoding_bytes(data: bytes, image: Image.Image, resize: int | None = None) -> int:
    """Bound the memory in bytes that reading, decoding and converting an image takes, by its header alone.

    This is what Pillow and the decoders hold at once, measured for every format (tests/attacks/test_small_files.py).
    """
    width, height = image.size
    pixels = width * height
    each = 8.0  # the image in Pillow's 4 bytes a pixel, and once again, converted or turned
    if image.format in ("JPEG", "MPO"):
        planes, stored = len(image.getbands()), 4 if image.mode != "L" else 1
        coefficients = 0.0
        # If the image has several scans, all coefficients are held, 2 bytes each. (Not counted for few pixels.)
        if pixels * reduction(image) ** 2 > 1 << 24 and any(scan.unsent for scan in itertools.islice(_scans(data), 1)):
            sizes = [across * down for _, across, down, _ in image.layer]  # type: ignore[attr-defined]
            coefficients = 2 * reduction(image) ** 2 * sum(sizes) / max(sizes)
        each = max(each, planes + max(coefficients, stored))
    elif image.format in ("WEBP", "AVIF", "HEIF"):
        each = 16  # two canvases of the decoder, the frame as bytes, the image
    elif image.format == "JPEG2000":
        each = 8 + 4 * len(image.getbands())  # the decoder's 4 bytes for each value
    elif image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        tile = tags.get(322, 0), tags.get(323, 0)  # TileWidth, TileLength: a tile may exceed the image
        if all(isinstance(side, int) for side in tile):
            pixels = max(pixels, tile[0] * tile[1])
    if resize is not None and (shrink := resize / min(width, height)) < 1:
        each = max(each, 4 + 4 * shrink + 4 * shrink**2)  # one direction after the other
    return len(data) + round(pixels * each)


def reduction(image: Image.Image) -> int:
    """Return by which factor a JPEG is decoded smaller than it is stored; see ``Image.draft``."""
    return (getattr(image, "decoderconfig", ()) or (1,))[0]
