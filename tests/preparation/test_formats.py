"""Formats and odd files: after the preparation, every reader sees the same pixels, and the right ones."""

import importlib.util
import io
import re
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
from mmcv.transforms import LoadImageFromFile
from pictures import encode, photo
from PIL import Image, ImageCms

from mmflowers.preparation import decoding, inspection
from mmflowers.preparation.decoding import decode
from mmflowers.preparation.formats import OTHERS
from mmflowers.preparation.inspection import examine, inspect_file
from mmflowers.preparation.options import PrepareOptions
from mmflowers.preparation.prepare import prepare
from mmflowers.utils.errors import InputError, Problem

TOOLS = Path(__file__).parents[2] / "tools"
PHOTO = photo(3, (80, 48))
GREY = PHOTO.convert("L")
RGB = np.asarray(PHOTO)
LOSSY = 12  # mean of the differences that a JPEG of the grainy photo may have, in grey levels


@pytest.fixture(scope="module")
def train_torch():
    spec = importlib.util.spec_from_file_location("train_torch_script", TOOLS / "train_torch.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def over_white(image: Image.Image) -> np.ndarray:
    image = image.convert("RGBA")
    return rgb(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image))


def with_alpha(mode: str) -> Image.Image:
    image = PHOTO.convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[decoding.ORIENTATION] = orientation
    return made


def upright(orientation: int) -> np.ndarray:
    rotation = decoding.ROTATIONS.get(orientation)
    return RGB if rotation is None else rgb(PHOTO.transpose(rotation))


# PNG


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels: np.ndarray, *, interlaced: bool = False, extra: bytes = b"") -> bytes:
    """A PNG of uint8 or uint16 pixels of shape (H, W, 1 to 4)."""
    height, width, channels = pixels.shape
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b""
    for top, left, down, right in passes if interlaced else [(0, 0, 1, 1)]:
        for row in pixels[top::down, left::right]:
            rows += b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes()
    colours = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colours, 0, 0, interlaced)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def deep(bits: int, image: Image.Image = PHOTO) -> np.ndarray:
    """The photo's values on a scale of so many bits, from 0 to the highest value, in 16."""
    values = np.asarray(image).astype(np.float64)
    values = (values - values.min()) / (values.max() - values.min())
    made = np.round(values * ((1 << bits) - 1)).astype(np.uint16)
    return made if made.ndim == 3 else made[..., None]


def shallow(values: np.ndarray, bits: int) -> np.ndarray:
    """The right 8-bit RGB of such values."""
    return np.round(values * (255 / ((1 << bits) - 1))).astype(np.uint8).repeat(3 // values.shape[2], 2)


# BMP


def bmp(bits: int, pixels: bytes, *, compression: int = 0, after: bytes = b"", height: int = 48) -> bytes:
    start = 14 + 40 + len(after)
    header = struct.pack("<IiiHHIIiiII", 40, 80, height, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + after + pixels


def five_bits() -> tuple[bytes, np.ndarray]:
    """A BMP of 5 bits a channel, and its pixels on the scale of 8."""
    fives = (RGB >> 3).astype(np.uint16)
    packed = (fives[..., 0] << 10 | fives[..., 1] << 5 | fives[..., 2]).astype("<u2")
    return packed[::-1].tobytes(), np.round(fives * (255 / 31)).astype(np.uint8)


def run_lengths() -> bytes:
    rows = (b"".join(b"\1" + bytes([value]) for value in row) for row in np.asarray(GREY)[::-1])
    palette = b"".join(bytes([value] * 3 + [0]) for value in range(256))
    return bmp(8, b"\0\0".join(rows) + b"\0\1", compression=1, after=palette)


BGRX = np.dstack([RGB[..., ::-1], np.zeros((48, 80), np.uint8)])
MASKS_OF_8 = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
MASKS_565 = struct.pack("<III", 0xF800, 0x7E0, 0x1F)


# TIFF


def tiff(layout: str) -> bytes:
    """Uncompressed RGB: tiles of 32 × 16, or a strip for each channel."""
    if layout == "tiles":
        padded = np.pad(RGB, ((0, 0), (0, 16), (0, 0)))
        parts = [padded[y : y + 16, x : x + 32].tobytes() for y in range(0, 48, 16) for x in range(0, 96, 32)]
        own = {322: (32,), 323: (16,)}
        offsets, counts = 324, 325
    else:
        parts = [RGB[..., channel].tobytes() for channel in range(3)]
        own = {278: (48,), 284: (2,)}
        offsets, counts = 273, 279
    tags = {256: (80,), 257: (48,), 258: (8, 8, 8), 259: (1,), 262: (2,), 277: (3,), **own}
    at, starts = 8, []
    for part in parts:
        starts.append(at)
        at += len(part)
    tags |= {offsets: tuple(starts), counts: tuple(map(len, parts))}
    entries, values, following = b"", b"", at + 2 + 12 * len(tags) + 4
    for tag, numbers in sorted(tags.items()):
        place = numbers[0]
        if len(numbers) > 1:
            place = following + len(values)
            values += struct.pack(f"<{len(numbers)}I", *numbers)
        entries += struct.pack("<HHII", tag, 4, len(numbers), place)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", at) + b"".join(parts) + directory + values


# JPEG


def segment(data: bytes, marker: int, content: bytes) -> bytes:
    """A JPEG with another segment at its begin."""
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + data[2:]


def with_orientations(*entries: tuple[int, int, int], order: str = "<") -> bytes:
    """A JPEG whose EXIF has these orientations: type, count, value."""
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    for type_, count, value in entries:
        block += struct.pack(f"{order}HHI", decoding.ORIENTATION, type_, count)
        block += struct.pack(f"{order}HH" if type_ == 3 else f"{order}I", *([value, 0] if type_ == 3 else [value]))
    return segment(encode(PHOTO, quality=95), 0xE1, b"Exif\0\0" + block + bytes(4))


CMYK = encode(PHOTO.convert("CMYK"), quality=95)
ADOBE = CMYK.index(b"\xff\xee")
WITHOUT_ADOBE = CMYK[:ADOBE] + CMYK[ADOBE + 16 :]
YCCK = CMYK[: ADOBE + 15] + b"\2" + CMYK[ADOBE + 16 :]


def mpo() -> bytes:
    return encode(PHOTO, "MPO", save_all=True, append_images=[photo(9, (80, 48))], quality=95)


DARK = photo(4, (80, 48)).point(lambda value: value // 8)

# Name → file, its right pixels (None where only the equality of all readers is known), the mean difference allowed.
CORPUS = {
    "jpeg": (encode(PHOTO, quality=95), RGB, LOSSY),
    "jpeg, progressive": (encode(PHOTO, quality=95, progressive=True), RGB, LOSSY),
    "jpeg, grey": (encode(GREY, quality=95), rgb(GREY), LOSSY),
    "jpeg, RGB-coded": (encode(PHOTO, quality=95, keep_rgb=True), RGB, LOSSY),
    "jpeg, 4:1:1": (encode(PHOTO, quality=95, subsampling="4:1:1"), RGB, 3 * LOSSY),
    "jpeg, restart markers": (encode(PHOTO, quality=95, restart_marker_rows=1), RGB, LOSSY),
    "jpeg, CMYK": (CMYK, rgb(PHOTO.convert("CMYK")), LOSSY),
    "jpeg, CMYK without Adobe's marker": (WITHOUT_ADOBE, None, 0),
    "jpeg, YCCK": (YCCK, None, 0),
    "jpeg, ICC profile": (
        encode(PHOTO, quality=95, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()),
        RGB,
        LOSSY,
    ),
    "mpo": (mpo(), RGB, LOSSY),
    **{
        f"jpeg, orientation {number}, {order}": (with_orientations((3, 1, number), order=order), upright(number), LOSSY)
        for number in range(1, 9)
        for order in "<>"
    },
    # What isn't as EXIF wants it is ignored, as browsers do. Pillow reads numbers of any length and a first of several.
    "jpeg, orientation of type BYTE": (with_orientations((1, 1, 6)), RGB, LOSSY),
    "jpeg, orientation of type UNDEFINED": (with_orientations((7, 1, 6)), RGB, LOSSY),
    "jpeg, orientation of type LONG": (with_orientations((4, 1, 6)), upright(6), LOSSY),
    "jpeg, orientation 0": (with_orientations((3, 1, 0)), RGB, LOSSY),
    "jpeg, orientation 9": (with_orientations((3, 1, 9)), RGB, LOSSY),
    "jpeg, orientation 262": (with_orientations((3, 1, 262)), RGB, LOSSY),
    "jpeg, no orientation": (with_orientations((3, 0, 6)), RGB, LOSSY),
    "jpeg, two orientations in one tag": (with_orientations((3, 2, 6)), upright(6), LOSSY),
    "jpeg, orientation tag twice": (with_orientations((3, 1, 1), (3, 1, 6)), upright(6), LOSSY),
    "jpeg, orientation tag twice, upright last": (with_orientations((3, 1, 6), (3, 1, 1)), RGB, LOSSY),
    "jpeg, two EXIF blocks": (
        segment(with_orientations((3, 1, 1)), 0xE1, with_orientations((3, 1, 6))[6:40]),
        None,
        0,
    ),
    "png": (encode(PHOTO, "PNG"), RGB, 0),
    "png, interlaced": (png(RGB, interlaced=True), RGB, 0),
    "png, black and white": (encode(PHOTO.convert("1"), "PNG"), rgb(PHOTO.convert("1")), 0),
    "png, grey": (encode(GREY, "PNG"), rgb(GREY), 0),
    "png, grey and alpha": (encode(with_alpha("LA"), "PNG"), over_white(with_alpha("LA")), 0),
    "png, palette": (encode(PHOTO.convert("P"), "PNG"), rgb(PHOTO.convert("P")), 0),
    "png, RGBA": (encode(with_alpha("RGBA"), "PNG"), over_white(with_alpha("RGBA")), 0),
    "png, turned by EXIF": (encode(PHOTO, "PNG", exif=exif(6)), upright(6), 0),
    "png, EXIF of ImageMagick": (
        png(RGB, extra=chunk(b"tEXt", b"Raw profile type exif\0\nexif\n      32\n" + exif(6).tobytes().hex().encode())),
        None,
        0,
    ),
    "png, gamma": (png(RGB, extra=chunk(b"gAMA", struct.pack(">I", 100_000))), RGB, 0),
    "png, significant bits": (png(RGB, extra=chunk(b"sBIT", b"\5\5\5")), RGB, 0),
    "png, 16-bit grey": (png(deep(16, GREY)), shallow(deep(16, GREY), 16), 0),
    "png, 16-bit RGB": (png(deep(16)), shallow(deep(16), 16), 1),
    "png, 16-bit RGBA": (png(np.dstack([deep(16), np.full((48, 80, 1), 65535, "u2")])), shallow(deep(16), 16), 1),
    **{
        f"png, {bits} bits of grey in 16": (png(deep(bits, GREY)), shallow(deep(bits, GREY), bits), 0)
        for bits in (10, 12, 14)
    },
    **{f"png, {bits} bits of RGB in 16": (png(deep(bits)), shallow(deep(bits), bits), 0) for bits in (8, 10, 12, 14)},
    "png, 12 bits of RGBA in 16": (
        png(np.dstack([deep(12), np.full((48, 80, 1), 65535, "u2")])),
        shallow(deep(12), 12),
        0,
    ),
    "png, 12 bits of grey and alpha in 16": (
        png(np.dstack([deep(12, GREY), np.full((48, 80, 1), 65535, "u2")])),
        shallow(deep(12, GREY), 12),
        0,
    ),
    "gif": (encode(PHOTO, "GIF"), rgb(Image.open(io.BytesIO(encode(PHOTO, "GIF")))), 0),
    "webp": (encode(PHOTO, "WEBP", quality=95), RGB, 2 * LOSSY),
    "webp, lossless": (encode(PHOTO, "WEBP", lossless=True), RGB, 0),
    "webp, RGBA": (encode(with_alpha("RGBA"), "WEBP", lossless=True, exact=True), over_white(with_alpha("RGBA")), 0),
    "webp, turned by EXIF": (encode(PHOTO, "WEBP", lossless=True, exif=exif(3)), upright(3), 0),
    "bmp": (encode(PHOTO, "BMP"), RGB, 0),
    "bmp, grey": (encode(GREY, "BMP"), rgb(GREY), 0),
    "bmp, palette": (encode(PHOTO.convert("P"), "BMP"), rgb(PHOTO.convert("P")), 0),
    "bmp, run lengths": (run_lengths(), rgb(GREY), 0),
    "bmp, 16-bit": (bmp(16, five_bits()[0]), five_bits()[1], 1),
    "bmp, 16-bit with fields": (
        bmp(16, five_bits()[0], compression=3, after=struct.pack("<III", 0x7C00, 0x3E0, 0x1F)),
        five_bits()[1],
        1,
    ),
    "bmp, 16-bit with fields 565": (bmp(16, five_bits()[0], compression=3, after=MASKS_565), None, 0),
    "bmp, 32-bit": (bmp(32, BGRX[::-1].tobytes()), RGB, 0),
    "bmp, 32-bit with fields": (bmp(32, BGRX[::-1].tobytes(), compression=3, after=MASKS_OF_8), RGB, 0),
    "bmp, from the top": (bmp(32, BGRX.tobytes(), height=-48), RGB, 0),
    "tiff": (encode(PHOTO, "TIFF"), RGB, 0),
    **{
        f"tiff, {compression}": (encode(PHOTO, "TIFF", compression=compression), RGB, 0)
        for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits")
    },
    "tiff, JPEG inside": (encode(PHOTO, "TIFF", compression="jpeg", quality=95), RGB, 2 * LOSSY),
    "tiff, black and white (fax)": (
        encode(PHOTO.convert("1"), "TIFF", compression="group4"),
        rgb(PHOTO.convert("1")),
        0,
    ),
    "tiff, big": (encode(PHOTO, "TIFF", big_tiff=True), RGB, 0),
    "tiff, tiles": (tiff("tiles"), RGB, 0),
    "tiff, planes": (tiff("planes"), RGB, 0),
    "tiff, turned": (encode(PHOTO, "TIFF", exif=exif(8)), upright(8), 0),
    "tiff, CMYK": (encode(PHOTO.convert("CMYK"), "TIFF"), rgb(PHOTO.convert("CMYK")), 0),
    "tiff, palette": (encode(PHOTO.convert("P"), "TIFF"), rgb(PHOTO.convert("P")), 0),
    "tiff, 16-bit grey": (encode(Image.fromarray(deep(16, GREY)[..., 0]), "TIFF"), shallow(deep(16, GREY), 16), 0),
    "tiff, 12 bits of grey in 16": (
        encode(Image.fromarray(deep(12, GREY)[..., 0]), "TIFF"),
        shallow(deep(12, GREY), 12),
        0,
    ),
    "tiff, 12 bits of grey in 16, big-endian": (
        encode(Image.fromarray(deep(12, GREY)[..., 0].astype(">u2")), "TIFF"),
        shallow(deep(12, GREY), 12),
        0,
    ),
    "tiff, 12 bits of RGB in 16": (
        cv2.imencode(".tif", np.ascontiguousarray(deep(12)[..., ::-1]))[1].tobytes(),
        shallow(deep(12), 12),
        0,
    ),
    "tiff, floats from 0 to 1": (
        encode(Image.fromarray((deep(16, GREY)[..., 0] / 65535).astype(np.float32)), "TIFF"),
        shallow(deep(16, GREY), 16),
        0,
    ),
    "avif": (encode(PHOTO, "AVIF", quality=100, subsampling="4:4:4"), RGB, LOSSY),
    "avif, turned": (encode(PHOTO, "AVIF", quality=100, subsampling="4:4:4", exif=exif(6)), upright(6), LOSSY),
    "jpeg 2000": (encode(PHOTO, "JPEG2000"), RGB, 0),
    "jpeg 2000, code stream": (encode(PHOTO, "JPEG2000", no_jp2=True), RGB, 0),
    "ppm": (encode(PHOTO, "PPM"), RGB, 0),
    "pgm": (encode(GREY, "PPM"), rgb(GREY), 0),
    "pbm": (encode(PHOTO.convert("1"), "PPM"), rgb(PHOTO.convert("1")), 0),
    "pgm, 12 bits": (b"P5 80 48 4095\n" + deep(12, GREY).astype(">u2").tobytes(), shallow(deep(12, GREY), 12), 0),
    "tga": (encode(PHOTO, "TGA"), RGB, 0),
    "tga, run lengths": (encode(PHOTO, "TGA", compression="tga_rle"), RGB, 0),
    "tga, RGBA": (encode(with_alpha("RGBA"), "TGA"), over_white(with_alpha("RGBA")), 0),
}


@pytest.mark.filterwarnings("ignore:Metadata Warning")
@pytest.mark.parametrize("kind", CORPUS)
def test_all_readers_see_the_same_and_right_pixels(kind, tmp_path, train_torch):
    data, right, tolerance = CORPUS[kind]
    (tmp_path / "odd").write_bytes(data)
    found = inspect_file(str(tmp_path / "odd"), content=tmp_path)
    assert found.verdict in ("kept", "converted"), found.reason
    written = tmp_path / found.written_sha256
    trained = LoadImageFromFile()({"img_path": str(written)})["img"][..., ::-1]
    predicted, reason = decode(written.read_bytes())
    assert reason == ""
    assert np.array_equal(trained, np.asarray(predicted))
    assert np.array_equal(trained, np.asarray(train_torch.read_image(written)))
    # The file itself is predicted with the pixels that were written, or that were written as JPEG.
    original = np.asarray(decode(data)[0])
    assert original.shape == trained.shape == (found.height, found.width, 3)
    lossy = written.read_bytes().startswith(decoding.JPEG_MAGIC) and found.verdict == "converted"
    assert np.abs(original.astype(int) - trained).mean() <= (4 if lossy else 0)
    if right is not None:
        assert trained.shape == right.shape
        difference = np.abs(trained.astype(int) - right)
        assert difference.mean() <= tolerance


@pytest.mark.parametrize(("bits", "grey"), [(bits, grey) for bits in (10, 12, 14) for grey in (True, False)])
def test_fewer_bits_than_the_container_has_are_named_in_the_reason(bits, grey):
    found, _ = examine(png(deep(bits, GREY if grey else PHOTO)), ".png")
    assert found.reason == f"16-bit with {bits} bits in use"


@pytest.mark.parametrize("layout", ["RGB", "LA"])
def test_without_memory_for_all_bits_the_upper_ones_are_spread(layout, monkeypatch):
    values = deep(14) if layout == "RGB" else np.dstack([deep(14, GREY), np.full((48, 80, 1), 65535, "u2")])
    monkeypatch.setattr(decoding, "DEEP_BYTES", 1 << 30)
    spread, reason = decode(png(values))
    assert reason == ""
    right = shallow(deep(14), 14) if layout == "RGB" else shallow(deep(14, GREY), 14)
    assert np.abs(np.asarray(spread).astype(int) - right).max() <= 4  # six bits


def test_a_dark_photo_of_8_bits_stays_dark():
    found, converted = examine(encode(DARK, "PNG"), ".png")
    assert (found.verdict, converted) == ("kept", None)


# Files that are named


def media(brand: bytes, *compatible: bytes) -> bytes:
    """The begin of an ISO media file: HEIC, AVIF, MP4 …"""
    box = b"ftyp" + brand + bytes(4) + b"".join(compatible)
    return struct.pack(">I", len(box) + 4) + box + bytes(100)


def raw_tiff(*tags: tuple[int, int]) -> bytes:
    """A TIFF of 64 × 64 grey pixels with further tags, as a camera's raw file has for its preview."""
    own = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 64, 279: 4096, **dict(tags)}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(own.items()))
    return (
        b"II*\0" + struct.pack("<I", 8 + 4096) + bytes(range(256)) * 16 + struct.pack("<H", len(own)) + rows + bytes(4)
    )


NAMED = {
    "photo.jxl": (b"\xff\x0a" + bytes(100), "JPEG XL file: convert it with djxl photo.jxl photo.png"),
    "box.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "JPEG XL file: convert it with djxl photo.jxl photo.png"),
    "x.CR2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(100), "camera raw (CR2): export it as JPEG"),
    "x.cr3": (media(b"crx "), "camera raw (CR3): export it as JPEG"),
    "x.raf": (b"FUJIFILMCCD-RAW 0201" + bytes(100), "camera raw (RAF): export it as JPEG"),
    "x.nef": (raw_tiff((254, 1), (330, 8)), "camera raw (NEF): export it as JPEG"),
    "x.dng": (raw_tiff((50706, 0x401)), "camera raw (DNG): export it as JPEG"),
    "x.arw": (raw_tiff(), "camera raw (ARW): export it as JPEG"),
    "x.pef": (b"no bytes that anyone knows", "camera raw (PEF): export it as JPEG"),
    "named.tif": (raw_tiff((254, 1), (330, 8)), "camera raw: export it as JPEG"),
    "dng.jpg": (raw_tiff((50706, 0x401)), "camera raw: export it as JPEG"),
    "x.mp4": (media(b"isom"), "a video (MP4), not a photo"),
    "IMG_1.MOV": (media(b"qt  "), "a video (MOV), not a photo"),
    "old.mov": (b"\0\0\0\x08wide" + bytes(100), "a video (MOV), not a photo"),
    "x.avi": (b"RIFF\x10\0\0\0AVI LIST" + bytes(100), "a video (AVI), not a photo"),
    "x.mkv": (b"\x1a\x45\xdf\xa3" + bytes(100), "a video (MKV), not a photo"),
    "x.mts": (bytes(100), "a video (MTS), not a photo"),
    "film.jpg": (media(b"mp42"), "a video, not a photo"),
    "broken.avif": (media(b"avif"), "damaged"),
    "broken.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "damaged"),
    "no.tga": (b"\0\0\2" + bytes(13) + b"\x18" + bytes(100), "not an image"),
    "icon.ico": (b"\0\0\1\0\1\0" + bytes(100), "not an image"),
    "P5.txt": (b"P5 is a mode of a camera", "damaged"),
    "fields.bmp": (
        bmp(32, bytes(80 * 48 * 4), compression=3, after=struct.pack("<III", 0x3FF00000, 0xFFC00, 0x3FF)),
        "unsupported BMP bitfields layout: save it as PNG",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_cannot_be_read_is_named_as_what_it_is(name):
    data, reason = NAMED[name]
    found, _ = examine(data, Path(name).suffix)
    assert (found.verdict, found.reason) == ("dropped", reason)
    assert decode(data, Path(name).suffix) == (None, reason)


@pytest.fixture
def without_pillow_heif(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)


@pytest.mark.parametrize(
    "data", [media(b"heic", b"mif1"), media(b"mif1", b"heic"), media(b"hevc")], ids=["heic", "mif1", "hevc"]
)
def test_an_iphone_photo_says_what_to_install(data, without_pillow_heif):
    said = "HEIC file (iPhone): pip install pillow-heif, or export it as JPEG"
    assert examine(data, ".heic")[0].reason == said
    assert decode(data) == (None, said)


@pytest.mark.parametrize("orientation", [1, 6])
def test_an_iphone_photo_is_converted(orientation):
    pillow_heif.register_heif_opener()
    data = encode(PHOTO, "HEIF", quality=-1, chroma=444, matrix_coefficients=0, exif=exif(orientation).tobytes())
    found, converted = examine(data, ".heic")
    assert (found.verdict, found.extension) == ("converted", ".png")
    assert found.reason.startswith("HEIF")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(converted))), upright(orientation))
    assert np.array_equal(np.asarray(decode(data)[0]), upright(orientation))


def test_an_avif_without_a_decoder_says_what_to_install(monkeypatch):
    data = encode(PHOTO, "AVIF")
    monkeypatch.setattr(decoding.features, "check", lambda name: name != "avif")
    assert examine(data, ".avif")[0].reason == "AVIF file: pip install 'pillow>=11.3', or export it as JPEG"


@pytest.mark.parametrize("given", [True, False], ids=["given split", "drawn split"])
def test_formats_are_what_is_wrong_not_the_classes(given, tmp_path, without_pillow_heif, capsys):
    for index in range(6):
        split = ("val" if index % 3 == 0 else "train") if given else ""
        for class_name in ("daisy", "rose"):
            folder = tmp_path / "photos" / split / class_name
            folder.mkdir(parents=True, exist_ok=True)
            as_heic = class_name == "rose" and index
            name, data = (f"{index}.heic", media(b"heic")) if as_heic else (f"{index}.jpg", encode(photo(index)))
            (folder / name).write_bytes(data)
        (tmp_path / "photos" / split / "rose" / f"{index}.dng").write_bytes(raw_tiff())
    (tmp_path / "photos" / ("val" if given else "") / "rose" / "0.jpg").unlink()
    options = PrepareOptions(
        source=str(tmp_path / "photos"), out=str(tmp_path / "out"), split="keep" if given else None, workers=1
    )
    with pytest.raises(InputError) as caught:
        prepare(options)
    problems = caught.value.problems
    assert problems[:2] == [
        Problem("5 × HEIC file (iPhone) can't be read", "pip install pillow-heif, or export it as JPEG"),
        Problem("6 × camera raw (DNG) can't be read", "export it as JPEG"),
    ]
    assert len(problems) > 2
    assert not any(problem.hint for problem in problems[2:])


# Phones of 108 and 200 megapixels


def test_a_jpeg_beyond_the_limit_is_decoded_at_half_the_size(monkeypatch):
    for module in (decoding, inspection):
        monkeypatch.setattr(module, "MAX_PIXELS", 40_000)
    wide = photo(5, (301, 201), grain=0.02)
    data = encode(wide, quality=95, exif=exif(6))
    found, converted = examine(data, ".jpg")
    assert found.reason == "over 0 megapixels, decoded at 1/2 of the size; EXIF-rotated"
    assert (found.verdict, found.width, found.height) == ("converted", 101, 151)
    right = rgb(wide.resize((151, 101), Image.Resampling.BOX).transpose(Image.Transpose.ROTATE_270))
    for pixels in (np.asarray(Image.open(io.BytesIO(converted))), np.asarray(decode(data)[0])):
        assert np.abs(pixels.astype(int) - right).mean() < 4
    assert examine(encode(wide, "PNG"), ".png")[0].reason == "absurdly large"
    monkeypatch.setattr(decoding, "MAX_JPEG_PIXELS", 60_000)
    assert examine(data, ".jpg")[0].reason == "absurdly large"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(12_000, 9_000), (16_320, 12_240)])
def test_a_phone_s_108_and_200_megapixels_are_read(width, height):
    grey = Image.new("L", (width, height), 90)
    grey.paste(200, (0, 0, width // 2, height // 2))
    data = encode(grey)
    del grey
    found, converted = examine(data, ".jpg")
    assert found.reason == "over 100 megapixels, decoded at 1/2 of the size"
    assert (found.width, found.height) == (width // 2, height // 2)
    with Image.open(io.BytesIO(converted)) as written:
        assert [written.getpixel((at, 9))[0] for at in (9, width // 2 - 9)] == [200, 90]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_jpeg_bomb_is_refused_by_its_header():
    data = bytearray(encode(PHOTO))
    frame = data.index(b"\xff\xc0")
    for side, reason in ((65_000, "absurdly large"), (14_000, "damaged")):
        data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
        found, _ = examine(bytes(data), ".jpg")
        assert found.reason.split(" (")[0] == reason


# The documentation


@pytest.mark.filterwarnings("ignore:Metadata Warning")
def test_the_table_of_the_documentation_has_the_reasons_that_are_given():
    page = (TOOLS.parent / "docs" / "your-own-photos.md").read_text().split("## Formats")[1]
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")][1:]
    written = {reason for row in rows for reason in re.findall("`([^`]+)`", row[3])}
    files = [(data, ".x") for data, *_ in CORPUS.values()]
    files += [(data, Path(name).suffix) for name, (data, _) in NAMED.items()]
    given = {reason for data, extension in files for reason in examine(data, extension)[0].reason.split("; ")}
    others = {
        "HEIF",
        OTHERS["HEIC"][1],
        "over 100 megapixels, decoded at 1/2 of the size",
        "animated",
    }  # of other tests
    assert written <= given | others
    # Those that aren't there, named by their kind: another camera, another number of bits.
    assert {re.sub(r"\d+ bits|\(.*\)", "", reason) for reason in given - written} <= {
        *(re.sub(r"\d+ bits|\(.*\)", "", reason) for reason in written),
        *("BMP named .x", "JPEG named .x", "PNG named .x", "WEBP named .x", "camera raw: export it as JPEG"),
        *("a video, not a photo", "damaged", "unsupported BMP bitfields layout: save it as PNG"),
    }
    assert {name for name in OTHERS if name not in page} == set()
