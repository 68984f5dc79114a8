"""Small files that ask for much memory or time: photos under 1 GB for a process, archives by what they weigh."""

import io
import os
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import pytest
from pictures import encode
from PIL import Image

from mmflowers.preparation import archives
from mmflowers.preparation.damage import MAX_PIXELS_PER_BYTE
from mmflowers.preparation.decoding import MAX_COMMENTS, decode
from mmflowers.preparation.inspection import examine
from mmflowers.utils.errors import InputError

SECONDS = 5  # of the processor


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, colours: int, depth: int = 8) -> bytes:
    """A PNG of equal rows, small as they repeat what stands in them."""
    length = width * depth // 8 * {0: 1, 2: 3, 6: 4}[colours]
    row = b"\0" + (os.urandom(256) * (length // 256 + 1))[:length]
    packer = zlib.compressobj(1)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"eXIf", turned().tobytes()[6:]) + chunk(b"IDAT", pixels)
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def webp_of_34_bytes(width: int, height: int) -> bytes:
    """Lossless, one colour: a header, and codes of no bits for everything else."""
    bits = (width - 1) | (height - 1) << 14
    body = b"\x2f" + struct.pack("<I", bits) + bytes.fromhex("88880000")
    body += bytes(len(body) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def tiff(tags: list[tuple[int, int]], content: bytes, following: int = 0) -> bytes:
    """A TIFF with these tags, its content at offset 8, and so many empty directories after the first."""
    at = 8 + len(content)
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<I", at) + content + struct.pack("<H", len(tags)) + rows
    for number in range(following):
        data += struct.pack("<I", len(data) + 4) + struct.pack("<HHHII", 1, 256, 4, 1, number + 1)
    return data + struct.pack("<I", 0)


GREY = [(256, 64), (257, 64), (258, 8), (262, 1), (277, 1)]  # 64 × 64 pixels of 8 bits


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(16383, 6000), (4000, 3000), (16383, 16383)])
def test_a_webp_of_a_few_bytes_is_dropped_by_its_header(width, height):
    data = webp_of_34_bytes(width, height)
    assert len(data) <= 34
    start = time.thread_time()
    found, _ = examine(data, ".webp")
    assert found.verdict == "dropped"
    assert found.reason.split(" (")[0] in ("absurdly large", "damaged")
    assert decode(data) == (None, found.reason)
    assert time.thread_time() - start < SECONDS


def test_a_file_too_small_for_its_pixels_is_dropped_and_says_so():
    data = encode(Image.new("RGB", (3000, 3000), "red"), "WEBP", lossless=True)
    assert len(data) * MAX_PIXELS_PER_BYTE < 9_000_000
    assert examine(data, ".webp")[0].reason == f"damaged ({len(data)} bytes can't be 3000 × 3000 pixels)"


# What the formats take at the most that is let through. Flat but for one part, so that they are small and quick to
# make; 60 bytes a row and more, so that they aren't too small for their pixels.
def largest(kind: str) -> bytes:
    sides = {
        "webp": 7490,
        "webp alpha": 7400,
        "cmyk": 8600,
        "jpeg": 9900,
        "tiff float": 8500,
        "avif": 7490,
        "jpeg 2000": 6700,
        "jpeg of 200 megapixels": 14_130,
    }
    side = sides.get(kind, 9900)
    patch = Image.effect_noise((700, 700), 60)
    mode = {"cmyk": "CMYK", "webp alpha": "RGBA", "tiff float": "F"}.get(kind, "RGB")
    if kind.startswith("png"):
        return png(side, side, *{"png": (2, 8), "png alpha": (6, 8), "png 16": (6, 16)}[kind])
    image = Image.new(mode, (side, side))
    image.paste(patch.convert(mode) if mode != "RGBA" else patch.convert("RGBA"), (99, 99))
    options = {
        "jpeg": ("JPEG", dict(progressive=True, subsampling=0, exif=turned())),
        "cmyk": ("JPEG", dict(progressive=True, exif=turned())),
        "webp": ("WEBP", dict(method=0, exif=turned())),
        "webp alpha": ("WEBP", dict(lossless=True, method=0, quality=0)),
        "tiff float": ("TIFF", dict(compression="tiff_adobe_deflate", exif=turned())),
        "gif": ("GIF", {}),
        "avif": ("AVIF", dict(speed=10)),
        "jpeg 2000": ("JPEG2000", dict(quality_layers=[100])),
        "jpeg of 200 megapixels": ("JPEG", dict(exif=turned())),
    }
    format_, chosen = options[kind]
    return encode(image.convert("L") if kind == "gif" else image, format_, **chosen)


PEAK = """
import sys
from pathlib import Path
from mmflowers.preparation.decoding import decode
from mmflowers.preparation.inspection import examine
data = Path(sys.argv[1]).read_bytes()
found, reason = examine(data, ".jpg")[0], decode(data)[1]
status = Path("/proc/self/status").read_text()  # getrusage would give that of the process that started this one
print(status.split("VmHWM:")[1].split()[0], found.verdict, found.reason, reason, sep="|")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak memory of a single program")
@pytest.mark.parametrize(
    "kind",
    [
        *("jpeg", "cmyk", "webp", "webp alpha", "png", "png alpha", "png 16", "tiff float", "gif", "avif", "jpeg 2000"),
        "jpeg of 200 megapixels",
    ],
)
def test_the_largest_photo_of_each_format_stays_below_1_gb(kind, tmp_path):
    (tmp_path / "photo").write_bytes(largest(kind))
    command = [sys.executable, "-W", "ignore", "-c", PEAK, str(tmp_path / "photo")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    peak, verdict, _, reason = said.strip("\n").split("|")
    assert (verdict, reason) == ("converted" if kind != "webp alpha" else verdict, "")
    assert 250_000 < int(peak) < 1_000_000, f"{kind}: {peak} kB"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("layout", ["tiles", "strips"])
@pytest.mark.parametrize("compression", [1, 5, 8])
def test_a_tiff_with_tiles_beyond_the_image_is_dropped_before_they_are_allocated(layout, compression):
    content = zlib.compress(bytes(1000))
    side = 40_000
    where = [(322, side), (323, side), (324, 8), (325, len(content))]
    if layout == "strips":
        where = [(273, 8), (278, 2**31 - 1), (279, len(content))]
    tags = sorted([*GREY, (259, compression), *where])
    found, _ = examine(tiff(tags, content), ".tif")
    assert found.verdict == "dropped"
    if layout == "tiles":
        assert found.reason == "absurdly large"


def many_chunks() -> bytes:
    data = encode(Image.effect_noise((64, 64), 50), "PNG")
    return data[:33] + chunk(b"teXt", b"a\0b") * 100_000 + data[33:]


def many_comments() -> bytes:
    data = encode(Image.effect_noise((64, 64), 50), "GIF")
    start = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    return data[:start] + b"!\xfe\x01a\0" * 400_000 + data[start:]


def many_frames() -> bytes:
    data = encode(Image.effect_noise((64, 64), 50), "GIF")
    return data[:-1] + (b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2D\1\0") * 100_000 + b";"


def many_segments() -> bytes:
    data = encode(Image.effect_noise((64, 64), 50), "JPEG")
    return data[:2] + b"\xff\xfe\0\2" * 250_000 + data[2:]


def many_scans() -> bytes:
    data = encode(Image.new("L", (4000, 4000), 99), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * 5000 + b"\xff\xd9"


def many_directories() -> bytes:
    tags = sorted([*GREY, (259, 1), (273, 8), (278, 64), (279, 4096)])
    return tiff(tags, os.urandom(4096), following=50_000)


@pytest.mark.parametrize(
    ("make", "verdict"),
    [
        (many_chunks, "kept"),
        (many_comments, "dropped"),
        (many_frames, "dropped"),
        (many_segments, "kept"),
        (many_scans, "dropped"),
        (many_directories, "converted"),
    ],
)
def test_a_header_without_end_costs_no_time_without_end(make, verdict):
    data = make()
    assert len(data) < 3_000_000
    start = time.thread_time()
    found, _ = examine(data, ".jpg")
    assert time.thread_time() - start < SECONDS
    assert found.verdict == verdict, found


def test_comments_are_no_reason_to_drop_a_gif():
    data = encode(Image.effect_noise((64, 64), 50), "GIF")
    start = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    data = data[:start] + b"!\xfe\x01a\0" * (MAX_COMMENTS - 100) + data[start:]
    assert examine(data, ".gif")[0].verdict == "converted"


def make_zip(path: Path, names: list[str], size: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, os.urandom(size))
    return path


def make_tar(path: Path, names: list[str], size: int = 0) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = size
            archive.addfile(info, io.BytesIO(os.urandom(size)))
    return path


KINDS = {
    "in one folder": lambda number: [f"daisy/{index}.jpg" for index in range(number)],
    "each in a folder of its own": lambda number: [f"{index}/a.jpg" for index in range(number)],
    "folders": lambda number: [f"{index}/" for index in range(number)],
    "with one name": lambda number: ["daisy/a.jpg"] * number,
    "with names that are refused": lambda number: [f"../{index}" for index in range(number)],
    "few, deep down": lambda number: [f"{index}/" + "d/" * 400 + "a.jpg" for index in range(number // 40)],
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_of_many_empty_members_is_refused(kind, make, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE_MEMBERS", 500)
    path = make(tmp_path / "many", KINDS[kind](4000))
    start = time.thread_time()
    with pytest.raises(InputError) as caught:
        archives.unpack(path, tmp_path / "staging", sha256="0" * 64)
    assert time.thread_time() - start < SECONDS
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 400
    assert "files and folders that are plausible for its size" in said or "holds members" in said or "paths" in said
    assert not list((tmp_path / "staging").iterdir())


def test_a_zip_of_60000_empty_members_is_refused_before_one_is_written(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "many.zip", [f"daisy/{index}.jpg" for index in range(60_000)])
    monkeypatch.setattr(archives, "_write", lambda *_: pytest.fail("it was written"))
    start = time.thread_time()
    with pytest.raises(InputError, match=r"more than the [\d,]+ files and folders"):
        archives.unpack(path, tmp_path / "staging", sha256="0" * 64)
    assert time.thread_time() - start < SECONDS


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_an_archive_of_many_small_photos_is_unpacked(make, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE_MEMBERS", 10)
    names = [f"{'daisy' if index % 2 else 'rose'}/{index}.jpg" for index in range(600)]
    folder = archives.unpack(make(tmp_path / "many", names, 400), tmp_path / "staging", sha256="0" * 64)
    assert sum(1 for _ in folder.rglob("*.jpg")) == 600


def test_a_refusal_of_many_members_holds_none_of_their_long_names(tmp_path):
    """Names of megabytes cost a compressed tar nothing."""
    import tracemalloc

    with tarfile.open(tmp_path / "names.tgz", "w:gz", compresslevel=1) as archive:
        for index in range(20):
            archive.addfile(tarfile.TarInfo(f"{index}/" + "a/" * 1_000_000 + "x.jpg"))
    tracemalloc.start()
    with pytest.raises(InputError, match="too long"):
        archives.unpack(tmp_path / "names.tgz", tmp_path / "staging", sha256="0" * 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000
