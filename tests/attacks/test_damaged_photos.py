"""Photos that decode without an exception, but not to what the camera wrote, and odd ones that are good."""

import io
import random
import re
import zlib
from functools import partial

import pytest
from pictures import encode
from pictures import photo as picture
from PIL import Image

from mmflowers.preparation.damage import MAX_SCANS
from mmflowers.preparation.decoding import decode
from mmflowers.preparation.inspection import examine

EOI = b"\xff\xd9"
TRIES = 8  # of a kind, each at a place and in a photo of its own
photo = partial(picture, size=(320, 240), grain=0.15)


def segment(data: bytes, *markers: int) -> int:
    """Offset of a JPEG's first segment of these kinds."""
    at = 2
    while data[at + 1] not in markers:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at


def scan(data: bytes) -> int:
    """Offset of a JPEG's entropy-coded data."""
    at = segment(data, 0xDA)
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def place(data: bytes, rng: random.Random, length: int = 0) -> int:
    first, last = (scan(data), len(data) - 2) if data.startswith(b"\xff\xd8") else (200, len(data) - 20)
    return rng.randrange(first, last - length)


def block(fill, length: int):
    def change(data: bytes, rng: random.Random) -> bytes:
        at = place(data, rng, length)
        return data[:at] + fill(length, rng) + data[at + length :]

    return change


def zeros(length: int, rng: random.Random) -> bytes:
    return bytes(length)


def ones(length: int, rng: random.Random) -> bytes:
    return b"\xff" * length


def noise(length: int, rng: random.Random) -> bytes:
    return rng.randbytes(length)


def other(length: int, rng: random.Random) -> bytes:
    data = encode(photo(99), quality=95)
    at = place(data, rng, length)
    return data[at : at + length]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: place(data, rng, len(data) // 20)] + EOI


def enlarged(data: bytes, rng: random.Random) -> bytes:
    at = segment(data, 0xC0, 0xC2)
    width, height = rng.choice(((320, 256), (336, 240), (400, 300), (640, 480), (1000, 240)))
    return data[: at + 5] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 9 :]


def lost_restart(data: bytes, rng: random.Random) -> bytes:
    at = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", data) if found.start() > scan(data)]
    first = rng.randrange(len(at) - 1)
    return data[: at[first]] + data[rng.choice((at[first] + 2, at[first + 1])) :]


def lost_scans(data: bytes, rng: random.Random) -> bytes:
    starts = [found.start() for found in re.finditer(rb"\xff\xda", data)]
    return data[: rng.choice(starts[1:])] + EOI


def saved_again(format_: str):
    def change(data: bytes, rng: random.Random) -> bytes:
        return encode(Image.open(io.BytesIO(cut(data, rng))), format_)

    return change


def from_the_web(data: bytes, rng: random.Random) -> bytes:
    """A JPEG with its two halves from two photos, as a cache that mixes up its files makes it."""
    second = encode(photo(77), quality=75)
    return data[: place(data, rng)] + second[place(second, rng) :]


JPEGS = {
    "cut, end marker appended": cut,
    "cut, a photo appended": lambda data, rng: cut(data, rng)[:-2] + encode(photo(5)),
    "a larger size in the header": enlarged,
    "a sector of zeros": block(zeros, 512),
    "4 KB of zeros": block(zeros, 4096),
    "half of it zeros": block(zeros, 20000),
    "a sector of ones": block(ones, 512),
    "a sector of noise": block(noise, 512),
    "4 KB of noise": block(noise, 4096),
    "4 KB of another photo": block(other, 4096),
    "half of it another photo": block(other, 16000),
    "two photos' halves": from_the_web,
    "a piece left out": lambda data, rng: (lambda at: data[:at] + data[at + 700 :])(place(data, rng, 1000)),
}
ENCODINGS = {
    "baseline": dict(quality=95),
    "optimised": dict(quality=90, optimize=True),
    "restarts": dict(quality=95, restart_marker_blocks=50),
    "progressive": dict(quality=97, progressive=True),
    "grey": dict(quality=98),
    "CMYK": dict(quality=90),
}


def reason(data: bytes, extension: str = ".jpg") -> str:
    """Why a photo is dropped, empty if it isn't; the prediction has to say the same."""
    found, _ = examine(data, extension)
    image, said = decode(data)
    assert (found.reason if found.verdict == "dropped" else "") == said
    assert (image is None) == bool(said)
    assert len(said) < 90
    assert "\n" not in said
    return said


@pytest.mark.parametrize("kind", JPEGS)
def test_a_damaged_jpeg_is_dropped_however_it_was_encoded(kind):
    for number, (encoding, options) in enumerate(ENCODINGS.items()):
        for seed in range(TRIES // 2):
            mode = {"grey": "L", "CMYK": "CMYK"}.get(encoding, "RGB")
            good = encode(photo(seed).convert(mode), **options)
            assert reason(good) == ""
            damaged = JPEGS[kind](good, random.Random(10 * seed + number))
            assert reason(damaged), (encoding, seed)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lost_restart, dict(restart_marker_rows=1), "damaged (corrupt JPEG data"),
        (lost_scans, dict(progressive=True), "truncated (scans are missing)"),
        (saved_again("JPEG"), {}, "truncated (grey at the end)"),
        (saved_again("PNG"), {}, "truncated (grey at the end)"),
        (saved_again("BMP"), {}, "truncated (grey at the end)"),
        (block(zeros, 512), {}, "damaged (zeros in place of image data)"),
        (cut, {}, "damaged (corrupt JPEG data: premature end of data segment)"),
        (lambda data, rng: data[:-2], {}, "truncated"),
    ],
)
def test_the_reason_names_the_damage(change, options, said):
    for seed in range(TRIES):
        assert reason(change(encode(photo(seed), **options), random.Random(seed))).startswith(said), seed


def test_a_jpeg_without_all_scans_of_its_colours_is_dropped():
    """Not progressive, a scan for each component: without the last ones a colour is missing."""
    grey = encode(photo().convert("L"), quality=80)
    frame, start = segment(grey, 0xC0), scan(grey)
    components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    header = grey[:frame] + b"\xff\xc0\0\x11" + grey[frame + 4 : frame + 9] + b"\3" + components
    header += grey[frame + 13 : start - 10]
    scans = [b"\xff\xda\0\x08\1" + bytes((number, 0, 0, 63, 0)) + grey[start:-2] for number in (1, 2, 3)]
    assert reason(header + b"".join(scans) + EOI) == ""
    assert reason(header + b"".join(scans[:2]) + EOI) == "truncated (scans are missing)"


def test_a_progressive_jpeg_of_endless_scans_is_dropped_unread():
    data = encode(photo(size=(64, 64)), progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert reason(data[:-2] + last * MAX_SCANS + EOI) == f"damaged (over {MAX_SCANS} scans)"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_header_of_a_large_photo_over_the_data_of_a_small_one_is_dropped():
    data = encode(photo(size=(64, 64)))
    at = segment(data, 0xC0)
    for side in (100, 1000, 9900):
        assert reason(data[: at + 5] + 2 * side.to_bytes(2, "big") + data[at + 9 :]).startswith("damaged (")


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def flipped_png(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(data) * 3 // 4] ^= 4
    return bytes(changed)


def shortened_png(data: bytes) -> bytes:
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    return data[: at - 4] + chunk(b"IDAT", data[at + 4 : at + 4 + length // 2]) + chunk(b"IEND", b"")


def shortened_webp(data: bytes) -> bytes:
    data = data[: len(data) // 4 * 2]
    sizes = [(len(data) - left).to_bytes(4, "little") for left in (8, 20)]
    return data[:4] + sizes[0] + data[8:16] + sizes[1] + data[20:]


@pytest.mark.parametrize(
    ("format_", "options", "change"),
    [
        ("PNG", {}, flipped_png),
        ("PNG", {"compress_level": 0}, flipped_png),
        ("PNG", {}, shortened_png),
        ("WEBP", {}, shortened_webp),
        ("WEBP", {"lossless": True}, shortened_webp),
        ("GIF", {}, lambda data: data[: len(data) // 2] + b"\0;"),
        ("BMP", {}, lambda data: data[: len(data) // 2] + bytes(len(data) // 2)),
        ("TIFF", {}, lambda data: data[: len(data) // 2] + bytes(len(data) // 2)),
        ("TIFF", {"compression": "tiff_lzw"}, lambda data: data[: len(data) // 2] + bytes(len(data) // 2)),
        ("TIFF", {"compression": "jpeg"}, lambda data: data[: len(data) // 2] + bytes(len(data) // 2)),
    ],
)
def test_other_formats_with_a_missing_end_are_dropped(format_, options, change):
    good = encode(photo(3, size=(301, 203)), format_, **options)
    assert reason(good) == ""
    assert reason(change(good))


GOOD = {
    **ENCODINGS,
    "quality 1": dict(quality=1),
    "quality 100, all colours": dict(quality=100, subsampling=0),
    "half the colours": dict(subsampling=1),
    "RGB": dict(keep_rgb=True),
    "a restart for each block": dict(restart_marker_blocks=1),
    "progressive with restarts": dict(progressive=True, restart_marker_rows=1),
    "a profile": dict(icc_profile=random.Random(0).randbytes(100_000)),
    "a comment": dict(comment=b"\xff\xd9\xff\xda" * 1000),
    "a thumbnail": dict(exif=b"Exif\0\0" + encode(photo(4, size=(160, 120)), quality=50)),
    "corrupt EXIF": dict(exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken"),
}
ADDED = {
    "nothing": lambda data: data,
    "zeros": lambda data: data + bytes(5000),
    "noise": lambda data: data + random.Random(1).randbytes(5000),
    "a photo": lambda data: data + encode(photo(6)),
    "half a photo": lambda data: data + encode(photo(6))[:3000],
    "padding to a sector": lambda data: data[:-2] + bytes(510 - len(data) % 512) + EOI,
    "padding of ones": lambda data: data[:-2] + b"\xff" * 100 + EOI,
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("encoding", GOOD)
def test_a_good_jpeg_is_kept_whatever_its_encoding_and_what_a_camera_adds(encoding, added):
    mode = {"grey": "L", "CMYK": "CMYK"}.get(encoding, "RGB")
    whole = encode(photo(1).convert(mode), **GOOD[encoding])
    data = ADDED[added](whole)
    assert reason(data) == ""
    expected = Image.open(io.BytesIO(whole)).convert("RGB")
    assert decode(data)[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("colour", ["white", "black", (128, 128, 128), "red"])
def test_flat_parts_of_a_good_photo_are_no_damage(colour, optimize, progressive):
    """Flat blocks are the shortest codes, which may be zeros, and their mid-grey is the decoder's for missing data."""
    canvas = Image.new("RGB", (700, 500), colour)
    canvas.paste(photo(2, size=(300, 200)), (250, 150))
    options = dict(optimize=optimize, progressive=progressive)
    assert reason(encode(canvas, **options)) == ""
    assert reason(encode(canvas.convert("L"), **options)) == ""
    for format_ in ("PNG", "BMP", "TIFF", "GIF", "WEBP"):
        assert reason(encode(canvas, format_)) == ""


@pytest.mark.parametrize("format_", ["BMP", "TIFF"])
def test_a_picture_that_is_black_below_or_above_is_no_damage(format_):
    for top, bottom in ((40, 0), (0, 40), (40, 40)):
        image = photo(2)
        image.paste("black", (0, 0, 320, top))
        image.paste("black", (0, 240 - bottom, 320, 240))
        assert reason(encode(image, format_)) == ""
    round_ = Image.new("RGB", (320, 240))
    round_.paste(photo(2), (0, 0), Image.radial_gradient("L").resize((320, 240)).point(lambda value: 255 - value))
    assert reason(encode(round_, format_)) == ""


def test_slopes_are_no_damage():
    for image in (Image.linear_gradient("L"), Image.linear_gradient("L").rotate(90), Image.radial_gradient("L")):
        for size in ((256, 256), (3000, 300)):
            for progressive in (False, True):
                assert reason(encode(image.resize(size), progressive=progressive, optimize=True)) == ""


def test_warnings_of_no_weight_do_not_hide_those_of_weight():
    """Some phones write wrong parameters into the scan's header: a warning for each of their photos."""
    data = encode(photo())
    at = scan(data)
    odd = data[: at - 3] + b"\0\0\0" + data[at:]
    assert reason(odd) == ""
    assert decode(odd)[0].tobytes() == Image.open(io.BytesIO(data)).tobytes()
    assert reason(odd[: at + 3000] + EOI).startswith("damaged (corrupt JPEG data")
    assert reason(data[:11] + b"\2" + data[12:]) == ""  # of JFIF's version 2


def test_a_png_is_not_dropped_for_the_checksum_of_a_comment():
    data = encode(photo(), "PNG")
    comment = bytearray(chunk(b"tEXt", b"Comment\0a flower"))
    comment[-1] ^= 1
    assert reason(data[:-12] + comment + data[-12:]) == ""


def test_the_first_image_of_an_mpo_is_judged_alone():
    data = encode(photo(1), "MPO", save_all=True, append_images=[photo(2)])
    assert reason(data) == ""
    assert reason(data[: len(data) * 3 // 4] + EOI) == ""  # what is taken is whole
    second = data.index(b"\xff\xd8\xff", 10)
    at = scan(data)
    assert reason(data[:at] + bytes(second - at - 2) + data[second - 2 :])
