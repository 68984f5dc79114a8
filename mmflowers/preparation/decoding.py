"""Decode one photo under limits of memory and time, and convert it to upright 8-bit RGB."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, features
from PIL.JpegImagePlugin import JpegImageFile

from mmflowers.preparation.agreement import opencv_deep
from mmflowers.preparation.damage import (
    MAX_PIXELS_PER_BYTE,
    Damaged,
    check_png,
    check_tail,
    decode_jpeg,
    decoding_bytes,
)
from mmflowers.preparation.formats import OTHERS, is_raw_tiff, other_format, raw, refusal

MAX_PIXELS = 100_000_000  # more is a decompression bomb or no photo to train on; known from the header
MAX_JPEG_PIXELS = 256_000_000  # of phones with 108 and 200 megapixels: decoded at half the size or less
MAX_DECODING_BYTES = 900_000_000  # of memory for one photo, its file included: a process stays below 1 GB
MAX_BYTES = 1 << 29  # a larger file is hashed, but never read into memory as a whole
BAND_PIXELS = 1_000_000  # an image is converted in bands of this size
MIN_SIDE = 16  # pixels
MAX_COMMENTS = 1000  # of a GIF: joining them takes Pillow a time that grows with the square of their number

# Nothing else but these and formats.OTHERS is tried, whatever plugins Pillow has.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
JPEG_MAGIC, PNG_MAGIC = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
BITS_PER_SAMPLE = 258  # TIFF tag
DEEP_BYTES = 24  # of memory for a pixel: OpenCV's 8, and 4 for each of Pillow's images
ORIENTATION = 0x0112  # EXIF tag; 1 is upright, and values other than these are ignored
ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # not ImageOps.exif_transpose: that rewrites the EXIF as well, and fails on a corrupt one
_FEATURES = {"AVIF": "avif", "JPEG 2000": "jpg_2000"}  # of Pillow, that a plugin needs
HASH_SIDE = 32  # pixels of the reduced image that the perceptual hash is made of, as in imagehash.phash


class Refused(Exception):
    """A file can't be a photo of a dataset. The message is the reason in ``files.csv``.

    Attributes:
        size: Width and height in pixels, (0, 0) if they aren't known.
    """

    def __init__(self, reason: str, size: tuple[int, int] = (0, 0)) -> None:
        super().__init__(reason)
        self.size = size


def decode(data: bytes, extension: str = "") -> tuple[Image.Image | None, str]:
    """Decode a photo's bytes with the limits of ``inspection.examine``, to the pixels that the preparation writes.

    Args:
        data: The whole file.
        extension: Of its name, with the dot, if it has one: camera raw is recognised by it.

    Returns:
        The upright 8-bit RGB image and an empty reason; or None and the reason why there is none.
    """
    try:
        image = open_image(data, extension=extension)
        with refusing_damage(image.size):
            decoded, _ = spread(decode_fully(image, data), data)
            return convert(decoded, find_rotation(image), close=True), ""
    except Refused as refused:
        return None, str(refused)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB, transparent parts over white, rotated according to its EXIF orientation."""
    image.load()  # before getexif(), which loads a PNG: a failure would pass for a corrupt EXIF
    return convert(image, find_rotation(image))


def open_image(data: bytes, resize: int | None = None, extension: str = "") -> Image.Image:
    """Open an image without decoding it. A JPEG of over ``MAX_PIXELS`` is opened at a fraction of its size.

    Args:
        data: The whole file.
        resize: Short side in pixels that it will be scaled down to.
        extension: Of its name, with the dot, if it has one.

    Raises:
        Refused: Its header is reason enough: no image, too large, too small, animated.
    """
    if not data:
        raise Refused("empty")
    if data.startswith(b"GIF8") and data.count(b"!\xfe") > MAX_COMMENTS + len(data) // 16384:  # by chance, every 65536
        raise Refused("damaged (absurdly many comments)")
    image = _open(data, extension)
    width, height = image.size
    with refusing_damage(image.size):
        if width * height > MAX_PIXELS and image.format in ("JPEG", "MPO"):
            if width * height > MAX_JPEG_PIXELS:
                raise Refused("absurdly large", image.size)
            image.draft(image.mode, (width // 2, height // 2))
        if image.width * image.height > MAX_PIXELS or decoding_bytes(data, image, resize) > MAX_DECODING_BYTES:
            raise Refused("absurdly large", (width, height))
        if min(width, height) < MIN_SIDE:
            raise Refused("absurdly tiny", image.size)
        if width * height > MAX_PIXELS_PER_BYTE * len(data):
            raise Damaged(f"damaged ({len(data)} bytes can't be {width} × {height} pixels)")
        # Not n_frames: counting those of a TIFF takes a time that grows with the square of their number.
        if image.format in ("GIF", "WEBP", "PNG", "AVIF") and getattr(image, "is_animated", False):
            raise Refused("animated", image.size)
        if image.format == "TIFF" and is_raw_tiff(data, image.tag_v2, extension):  # type: ignore[attr-defined]
            raise Refused(raw(extension), image.size)
    return image


def _open(data: bytes, extension: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, above ours
        if data.startswith(JPEG_MAGIC):  # the constructor has no limit; the header is whole, or it weren't that error
            return JpegImageFile(io.BytesIO(data))
        raise Refused("absurdly large") from error
    except Exception as error:  # decoders raise anything on hostile bytes
        if name := other_format(data):
            return _open_other(data, name, extension)
        if data.startswith((JPEG_MAGIC, PNG_MAGIC)):
            reason = "damaged"
        elif str(error).startswith("Unsupported BMP"):
            reason = f"{str(error).lower().replace('bmp', 'BMP')}: save it as PNG"
        else:
            reason = "not an image"
        raise Refused(refusal(data, extension) or reason) from error


def _open_other(data: bytes, name: str, extension: str) -> Image.Image:
    plugin, remedy = OTHERS[name]
    if name == "HEIC":
        with contextlib.suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener(thumbnails=False)
    Image.init()
    if plugin not in Image.OPEN or (name in _FEATURES and not features.check(_FEATURES[name])):
        raise Refused(remedy)
    try:
        return Image.open(io.BytesIO(data), formats=(plugin,))
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise Refused("absurdly large") from error
    except Exception as error:
        # A TGA is only recognised by bytes that other files may have as well.
        raise Refused(refusal(data, extension) or ("not an image" if name == "TGA" else "damaged")) from error


@contextlib.contextmanager
def refusing_damage(size: tuple[int, int]) -> Iterator[None]:
    """Turn whatever a decoder raises on hostile bytes into ``Refused``."""
    try:
        yield
    except (MemoryError, Refused):
        raise
    except Damaged as error:
        raise Refused(str(error), size) from error
    except Exception as error:
        message = str(error)
        if isinstance(error, EOFError) or "truncated" in message.lower():
            raise Refused("truncated", size) from error
        raise Refused(f"damaged ({message})" if message and "0x" not in message else "damaged", size) from error


def decode_fully(image: Image.Image, data: bytes, *, small: bool = False) -> Image.Image:
    """Decode an opened image to its end and raise ``Damaged``, or whatever its decoder raises, if data are missing.

    Args:
        image: As ``open_image`` returns it.
        data: The whole file.
        small: Whether a JPEG may become a grey image of a fraction of its size, at least twice that of the hash's.
    """
    decoded = None
    if image.format in ("JPEG", "MPO"):
        reducible = min(image.size) // (2 * HASH_SIDE)
        scale = max(scale for scale in (1, 2, 4, 8) if scale <= max(1, reducible)) if small else None
        decoded = decode_jpeg(data, image, scale=scale)
    elif image.format == "PNG":
        check_png(data)
    if decoded is None:
        image.load()
        decoded = image
    check_tail(decoded, image.format or "")
    return decoded


def find_rotation(image: Image.Image) -> Image.Transpose | None:
    """Return how an image must be transposed to be upright; None if it is."""
    try:
        return ROTATIONS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a corrupt EXIF says nothing about the orientation
        return None


def is_transparent(image: Image.Image) -> bool:
    """Return whether an image has an alpha channel or a transparent colour."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def is_deep(image: Image.Image) -> bool:
    """Return whether an image has more than 8 bits a channel in Pillow's memory."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def spread(image: Image.Image, data: bytes) -> tuple[Image.Image, int]:
    """Spread the colours of an image whose 16 bits hold fewer, such as a camera's 12, over the whole range.

    Args:
        image: As ``decode_fully`` returns it. Of 16-bit colour, Pillow keeps the upper 8 bits alone.
        data: The whole file.

    Returns:
        The image, and the number of bits that its values need: 8, 10, 12 or 14, or 16 if they need more or it never had
        16. Grey images are returned as they are, because ``convert`` spreads them.
    """
    if is_deep(image):
        low, high = _levels(image)
        return image, 16 if low or image.mode == "F" else _bits(high)
    if not has_deep_colour(image, data):
        return image, 16
    colours = len(image.getbands()) - is_transparent(image)
    ranges: Any = image.getextrema()
    highest = max(high for _, high in (ranges if isinstance(ranges[0], tuple) else [ranges])[:colours])
    if highest >= 1 << 6:
        return image, 16
    alpha = image.convert("RGBA").getchannel("A") if is_transparent(image) else None
    seen = image.convert("RGB")
    width, height = image.size
    pixels, bits = None, _bits(256 * highest + 255)
    if len(data) + DEEP_BYTES * width * height <= MAX_DECODING_BYTES:
        deep = opencv_deep(data)
        if deep is not None and deep.shape == (height, width, 4 if alpha else 3):
            bits = _bits(deep[..., :3].max())
            pixels = _scaled(deep[..., 2::-1], bits, np.asarray(seen))
    if pixels is not None:
        spread_out = Image.fromarray(pixels)
    else:
        factor = 255 / max(1, ((1 << bits) - 1) >> 8)
        spread_out = seen.point(lambda value: round(value * factor))
    if alpha:
        spread_out.putalpha(alpha)
    return spread_out, bits


def _scaled(deep: np.ndarray, bits: int, upper: np.ndarray) -> np.ndarray | None:
    """Scale values of so many bits to 8; None if their upper 8 bits aren't ``upper``: OpenCV turns some files."""
    table = (np.arange(1 << bits) * 255 / ((1 << bits) - 1)).round().astype(np.uint8)
    scaled = np.empty(deep.shape, np.uint8)
    rows = max(1, BAND_PIXELS // deep.shape[1])
    for top in range(0, len(deep), rows):
        band = slice(top, top + rows)
        if not np.array_equal(deep[band] >> 8, upper[band]):
            return None
        scaled[band] = table[deep[band]]
    return scaled


def has_deep_colour(image: Image.Image, data: bytes) -> bool:
    """Return whether a PNG or TIFF stores 16 bits a channel, of which Pillow keeps 8 if it has colours."""
    if image.format == "PNG" or data.startswith(PNG_MAGIC):
        return data[24:25] == b"\x10"
    if data[:4] in (b"II*\0", b"MM\0*"):
        tags = getattr(image, "tag_v2", {})
        return 16 in tuple(tags.get(BITS_PER_SAMPLE, ()))
    return False


def _levels(image: Image.Image) -> tuple[float, float]:
    """Return the values of an image of more than 8 bits that become black and white."""
    bands = (np.asarray(image.crop(box)) for box in _bands(image))
    extremes = [(np.nanmin(band), np.nanmax(band)) for band in bands]
    low, high = float(np.nanmin(extremes)), float(np.nanmax(extremes))
    # If readers agree on no range, the image's own goes from black to white.
    if image.mode == "F" or low < 0 or high > 65535:
        return low, high
    return 0.0, float((1 << _bits(high)) - 1)


def _bits(high: float) -> int:
    """Return the smallest usual number of bits that a value fits into."""
    return next((bits for bits in (8, 10, 12, 14) if high < 1 << bits), 16)


def _bands(image: Image.Image) -> list[tuple[int, int, int, int]]:
    width, height = image.size
    rows = max(1, BAND_PIXELS // width)
    return [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]


def convert(image: Image.Image, rotation: Image.Transpose | None, *, close: bool = False) -> Image.Image:
    """Return a decoded image as 8-bit RGB, transparent parts over white, rotated.

    Args:
        image: The image.
        rotation: See ``find_rotation``.
        close: Whether to free the given image as soon as possible: three copies of the largest ones are over 1 GB.
    """
    if image.mode != "RGB" or "transparency" in image.info:
        converted = _to_rgb(image)
        if close:
            image.close()
        image = converted
    return image if rotation is None else image.transpose(rotation)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB band by band, because the intermediate copies take memory."""
    levels = _levels(image) if is_deep(image) else None
    converted = Image.new("RGB", image.size)
    for box in _bands(image):
        converted.paste(_band_to_rgb(image.crop(box), levels), box)
    return converted


def _band_to_rgb(band: Image.Image, levels: tuple[float, float] | None) -> Image.Image:
    if levels is not None:
        low, high = levels
        values = np.nan_to_num(np.asarray(band, dtype=np.float64), nan=low)
        values = (values - low) * (65535 / ((high - low) or 1))
        band = Image.fromarray(np.round(values / 257).clip(0, 255).astype(np.uint8))
    if is_transparent(band):
        band = band.convert("RGBA")
        band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band)
    return band.convert("RGB")


def encode(image: Image.Image, format_: str) -> bytes:
    """Return an image as a JPEG or PNG without EXIF (it is upright now), colour profile and transparency."""
    out = io.BytesIO()
    image.info = {}
    if format_ == "JPEG":
        image.save(out, "JPEG", quality=95, subsampling=0)
    else:
        image.save(out, "PNG")
    return out.getvalue()
