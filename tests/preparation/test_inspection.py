import hashlib
import io
import multiprocessing
import os
import random
import signal
import struct
import warnings
import zlib
from pathlib import Path

import imagehash
import numpy as np
import pytest
from pictures import encode, photo
from PIL import Image

from mmflowers.preparation import decoding, inspection, workers
from mmflowers.preparation.decoding import decode
from mmflowers.preparation.inspection import examine, inspect, inspect_file, perceptual_hash
from mmflowers.preparation.journal import Journal
from mmflowers.preparation.records import Record, Source, SourceFile


def walk(root: Path) -> Source:
    paths = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))
    return Source(root, [SourceFile(path, path.split("/")[0]) for path in paths])


@pytest.mark.parametrize(
    ("format_", "extension", "mode"),
    [
        ("JPEG", ".jpg", "RGB"),
        ("JPEG", ".JPEG", "L"),
        ("PNG", ".png", "RGB"),
        ("PNG", ".png", "L"),
        ("WEBP", ".webp", "RGB"),
        ("BMP", ".bmp", "RGB"),
    ],
)
def test_plain_photos_are_kept_byte_for_byte(format_, extension, mode, tmp_path):
    path = tmp_path / f"x{extension}"
    path.write_bytes(encode(photo().convert(mode), format_))
    (tmp_path / "content").mkdir()
    found = inspect_file(str(path), content=tmp_path / "content")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.verdict, found.reason, found.extension) == ("kept", "", extension)
    assert (found.width, found.height, found.size) == (64, 48, path.stat().st_size)
    assert found.sha256 == found.written_sha256 == digest
    assert (tmp_path / "content" / digest).read_bytes() == path.read_bytes()


def test_an_rgb_coded_jpeg_is_kept():
    found, converted = examine(encode(photo(), quality=90, keep_rgb=True), ".jpg")
    assert (found.verdict, converted) == ("kept", None)


def test_a_progressive_jpeg_is_kept():
    assert examine(encode(photo(), progressive=True), ".jpg")[0].verdict == "kept"


def over_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")


def test_transparent_parts_become_white_and_nothing_else_changes():
    image = photo()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    found, converted = examine(encode(image, "PNG"), ".png")
    assert (found.verdict, found.reason, found.extension) == ("converted", "transparent", ".png")
    written = Image.open(io.BytesIO(converted))
    assert written.mode == "RGB"
    assert written.tobytes() == over_white(image).tobytes()


def test_a_palette_with_a_transparent_colour_becomes_rgb_over_white():
    image = Image.new("P", (32, 32), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 16, 32))
    found, converted = examine(encode(image, "PNG", transparency=0), ".png")
    assert (found.verdict, found.reason) == ("converted", "transparent")
    written = Image.open(io.BytesIO(converted))
    assert (written.getpixel((2, 2)), written.getpixel((30, 2))) == ((255, 255, 255), (0, 0, 255))


def test_cmyk_becomes_rgb_jpeg_of_the_same_colours():
    image = Image.new("CMYK", (40, 40), (0, 255, 255, 0))
    found, converted = examine(encode(image), ".jpg")
    assert (found.verdict, found.reason, found.extension) == ("converted", "CMYK", ".jpg")
    written = Image.open(io.BytesIO(converted))
    assert (written.format, written.mode) == ("JPEG", "RGB")
    assert np.abs(np.subtract(written.getpixel((20, 20)), image.convert("RGB").getpixel((20, 20)))).max() <= 3


def test_sixteen_bits_are_scaled_not_cut_off():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    found, converted = examine(encode(Image.fromarray(ramp), "PNG"), ".png")
    assert (found.verdict, found.reason) == ("converted", "16-bit")
    written = np.asarray(Image.open(io.BytesIO(converted)))
    assert written.shape == (64, 64, 3)
    assert np.array_equal(written[..., 0], np.round(ramp / 257))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("format_", ["JPEG", "TIFF"])
def test_exif_rotated_photos_are_turned_upright(orientation, format_):
    upright = Image.new("RGB", (60, 40), "white")
    upright.paste("red", (0, 0, 30, 20))  # the top left quarter
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)  # turning left undoes turning right
    stored = upright.transpose(decoding.ROTATIONS[undo])
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    options = {"quality": 95, "subsampling": 0} if format_ == "JPEG" else {}
    found, converted = examine(encode(stored, format_, exif=exif, **options), f".{format_.lower()}")
    assert (found.verdict, found.width, found.height) == ("converted", 60, 40)
    assert "EXIF-rotated" in found.reason
    written = Image.open(io.BytesIO(converted))
    assert written.size == (60, 40)
    assert written.getexif().get(decoding.ORIENTATION, 1) == 1
    assert np.abs(np.subtract(np.asarray(written, int), np.asarray(upright, int))).max() <= 40  # JPEG rings at the edge
    assert written.getpixel((5, 5))[2] < 40 < 200 < written.getpixel((55, 35))[2]


def test_corrupt_exif_is_neither_a_reason_to_drop_nor_a_warning():
    data = encode(photo(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="PIL")  # silenced in the workers, where it happens
        assert examine(data, ".jpg")[0].verdict == "kept"


@pytest.mark.parametrize(("format_", "extension"), [("TIFF", ".tif"), ("GIF", ".gif")])
def test_formats_that_opencv_does_not_read_alike_become_png(format_, extension):
    found, converted = examine(encode(photo(), format_), extension)
    assert (found.verdict, found.extension) == ("converted", ".png")
    assert format_ in found.reason
    assert Image.open(io.BytesIO(converted)).format == "PNG"


def test_the_first_image_of_an_mpo_is_taken():
    data = encode(photo(1), "MPO", save_all=True, append_images=[photo(2)])
    found, converted = examine(data, ".jpg")
    assert (found.verdict, found.reason, found.extension) == ("converted", "MPO, first of several images", ".jpg")
    assert np.abs(np.asarray(Image.open(io.BytesIO(converted)), int) - np.asarray(photo(1), int)).mean() < 12


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_animations_are_dropped(format_):
    data = encode(photo(1), format_, save_all=True, append_images=[photo(2), photo(3)])
    found, converted = examine(data, f".{format_.lower()}")
    assert (found.verdict, found.reason, converted) == ("dropped", "animated", None)


def test_a_wrong_extension_is_corrected_and_the_bytes_stay():
    found, converted = examine(encode(photo()), ".png")
    assert (found.verdict, found.reason, found.extension, converted) == ("kept", "JPEG named .png", ".jpg", None)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"just some text, called x.jpg", "not an image"),
        (b"\xff\xd8\xff", "damaged"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "not an image"),  # Pillow would start Ghostscript
    ],
)
def test_what_is_no_image_is_dropped_with_its_reason(data, reason):
    assert examine(data, ".jpg")[0][5:7] == ("dropped", reason)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_truncated_files_are_dropped(format_):
    data = encode(photo(size=(200, 150)), format_)
    for share in (0.3, 0.6, 0.97):
        found, _ = examine(data[: int(len(data) * share)], f".{format_.lower()}")
        assert found.verdict == "dropped", (format_, share, found)


def test_a_png_that_breaks_where_its_exif_is_looked_for_is_dropped():
    header = b"IHDR" + struct.pack(">II", 63, 48)
    header += (whole := encode(photo(), "PNG"))[24:29]
    data = whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:]
    found, _ = examine(data, ".png")
    assert (found.verdict, found.reason.split()[0]) == ("dropped", "damaged")


@pytest.mark.parametrize("mode", ["RGBA", "P", "I;16", "F"])
def test_a_conversion_band_by_band_gives_what_one_of_the_whole_gives(mode, monkeypatch):
    image = (
        photo().convert("I").point(lambda value: value * 250).convert("I;16")
        if mode == "I;16"
        else photo().convert(mode)
    )
    if mode == "RGBA":
        image.putalpha(photo(1).convert("L"))
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    format_ = "TIFF" if mode == "F" else "PNG"
    data = encode(image, format_, exif=exif, **({"transparency": 7} if mode == "P" else {}))
    found, whole = examine(data, f".{format_.lower()}")
    monkeypatch.setattr(decoding, "BAND_PIXELS", 5 * 64)
    assert examine(data, f".{format_.lower()}") == (found, whole)
    assert found.verdict == "converted"
    assert len(Image.open(io.BytesIO(whole)).getcolors(3072)) > 9


def test_a_small_grey_decoding_finds_all_damage_that_a_full_one_finds():
    rng = random.Random(0)
    clean = [encode(photo(1, (320, 240))), encode(photo(2, (320, 240)), progressive=True)]
    broken = 0
    for _ in range(300):
        data = bytearray(rng.choice(clean))
        if rng.random() < 0.3:
            del data[rng.randrange(20, len(data)) :]
        for _ in range(rng.randrange(3)):
            data[rng.randrange(2, len(data))] = rng.randrange(256)
        found, reason = examine(bytes(data), ".jpg")[0], decode(bytes(data))[1]
        assert (found.reason if found.verdict == "dropped" else "") == reason
        if not reason:  # and a decoder without warnings has no objection either
            Image.open(io.BytesIO(data), formats=["JPEG"]).load()
        broken += bool(reason)
    assert 50 < broken < 250  # both kinds were there


def huge_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_001, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_absurdly_large_image_is_dropped_by_its_header_alone(side):
    assert examine(huge_png(side, side), ".png")[0].reason == "absurdly large"


def test_an_absurdly_tiny_image_is_dropped():
    assert examine(encode(photo(size=(300, 15)), "PNG"), ".png")[0].reason == "absurdly tiny"
    assert examine(encode(photo(size=(300, 16)), "PNG"), ".png")[0].verdict == "kept"


def test_empty_and_unreadable_files_get_a_reason(tmp_path):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    assert inspect_file(str(empty)).reason == "empty"
    assert inspect_file(str(tmp_path / "gone.jpg")).reason.startswith("unreadable")
    assert inspect_file(str(tmp_path)).reason.startswith("unreadable")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    assert inspect_file(str(tmp_path / "x.jpg")).reason == "unreadable (not a regular file)"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_dropped_with_the_reason(tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(encode(photo()))
    path.chmod(0)
    assert inspect_file(str(path)).reason == "unreadable (Permission denied)"


def test_a_huge_file_is_hashed_but_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "MAX_BYTES", 1000)
    path = tmp_path / "film.mov"
    path.write_bytes(b"x" * 1001)
    assert inspect_file(str(path)).reason == "a video (MOV), not a photo"
    path = path.rename(tmp_path / "film.jpg")
    found = inspect_file(str(path))
    assert (found.reason, found.sha256) == ("absurdly large file", hashlib.sha256(b"x" * 1001).hexdigest())


def test_resizing_scales_the_short_side_down_and_never_up():
    found, converted = examine(encode(photo(size=(200, 100))), ".jpg", resize=50)
    written = Image.open(io.BytesIO(converted))
    assert (found.verdict, found.reason, written.size, written.format) == ("converted", "resized", (100, 50), "JPEG")
    assert (found.width, found.height) == (200, 100)
    assert examine(encode(photo(size=(200, 50))), ".jpg", resize=50)[1] is None


def test_the_hash_is_imagehash_s_of_the_same_small_image():
    for seed in range(20):
        small = photo(seed, (32, 32)).convert("L")
        assert perceptual_hash(small)[0] == int(str(imagehash.phash(small)), 16)


def test_the_hash_survives_recompression_and_scaling_and_tells_photos_apart():
    def bits(one: Image.Image, other: Image.Image) -> int:
        return (perceptual_hash(one)[0] ^ perceptual_hash(other)[0]).bit_count()

    for seed in range(10):
        one = photo(seed, (320, 240))
        again = Image.open(io.BytesIO(encode(one.resize((200, 150)), quality=60)))
        assert bits(one, again) <= 6
        assert bits(one, photo(seed + 100, (320, 240))) > 12


@pytest.mark.parametrize("colour", ["black", "white", (120, 130, 140)])
def test_a_flat_image_has_no_hash(colour):
    assert perceptual_hash(Image.new("RGB", (100, 80), colour)) == (None, b"")


def make_folder(root: Path) -> Source:
    for label, name in enumerate(("daisy", "tulip")):
        (root / name).mkdir(parents=True)
        for index in range(30):
            (root / name / f"{index}.jpg").write_bytes(encode(photo(100 * label + index)))
    (root / "daisy" / "note.jpg").write_text("no image")
    return walk(root)


def test_records_do_not_depend_on_the_number_of_workers_or_the_start_method(tmp_path):
    source = make_folder(tmp_path / "photos")
    source.files.append(SourceFile("stray.jpg", None))
    source.files.append(SourceFile("tulip/.hidden.jpg", "tulip", None, "hidden"))
    one = inspect(source, workers=1)
    assert [record.path for record in one] == [file.path for file in source.files]
    assert (one[-2].reason, one[-1].reason, one[-1].sha256) == ("outside every class folder", "hidden", "")
    assert inspect(source, workers=2) == one
    assert inspect(source, workers=2, context=multiprocessing.get_context("spawn")) == one


def test_an_interrupted_run_is_taken_over_as_far_as_it_still_holds(tmp_path, monkeypatch):
    source = make_folder(tmp_path / "photos")
    content = tmp_path / "content"
    content.mkdir()

    def run() -> list[Record]:
        journal = Journal(tmp_path / "journal", {"resize": None})
        try:
            return inspect(source, workers=1, content=content, journal=journal)
        finally:
            journal.close()

    first = run()
    with (tmp_path / "journal").open("ab") as file:
        file.write(b'["tulip/9.jpg", 12')  # torn by the kill
    (content / first[0].written_sha256).unlink()
    (content / first[1].written_sha256).write_bytes(b"half")
    changed = tmp_path / "photos" / source.files[2].path
    changed.write_bytes(encode(photo(999)))
    os.utime(tmp_path / "photos" / source.files[3].path, ns=(1, 1))
    looked_at = []
    real = inspection.inspect_file
    monkeypatch.setattr(inspection, "Workers", InProcess)
    monkeypatch.setattr(inspection, "inspect_file", lambda path, **k: looked_at.append(path) or real(path, **k))
    second = run()
    assert {Path(path).name for path in looked_at} == {Path(file.path).name for file in source.files[:4]}
    assert second[2].sha256 == hashlib.sha256(changed.read_bytes()).hexdigest()
    assert second[:2] + second[3:] == first[:2] + first[3:]
    for record in second:
        if record.verdict == "kept":
            assert hashlib.sha256((content / record.sha256).read_bytes()).hexdigest() == record.sha256


class InProcess:
    def __init__(self, task, jobs, **_):
        self.task, self.jobs = task, jobs

    def __enter__(self):
        return enumerate(map(self.task, self.jobs))

    def __exit__(self, *_):
        pass


def test_a_journal_made_under_other_settings_is_thrown_away(tmp_path):
    journal = Journal(tmp_path / "journal", {"resize": None})
    journal.add("daisy/x.jpg", inspection.Inspection(size=3))
    journal.close()
    assert Journal(tmp_path / "journal", {"resize": None}).take("daisy/x.jpg")
    assert Journal(tmp_path / "journal", {"resize": 256}).take("daisy/x.jpg") is None


def crash_on_13(number: int) -> int:
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_worker_that_crashes_costs_one_file_not_the_run():
    with workers.Workers(crash_on_13, range(200), workers=2, crashed=lambda number: -number) as results:
        got = dict(results)
    assert got == {number: number * number if number != 13 else -13 for number in range(200)}
