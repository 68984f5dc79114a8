"""Harm on purpose: mutated images, archives, configs, lists and checkpoints, edits of what is counted, and kills.

Every input ends in a verdict or an InputError in one line each: no traceback, nothing over 5 seconds of work, no
process over 1 GB, nothing of the surroundings changed. `make fuzz` runs all of it; `tests/test_fuzz.py` a small slice.

A config is Python code, and MMEngine runs it: here the shipped ones are damaged as an editor or a bad disk damages
them. That a config written to do harm does none isn't promised, nor that one with an endless loop ends.

examples:
  python tests/fuzz.py
  python tests/fuzz.py --seed 7 --images 20000 --archives 0 --configs 0 --lists 0 --checkpoints 0 --counts 0 --kills 0
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import hashlib
import io
import json
import lzma
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mmflowers.cli.parser import Parser
from mmflowers.utils.errors import InputError

ROOT = Path(__file__).parent.parent
NUMBERS = {
    "images": 2000,
    "archives": 400,
    "configs": 300,
    "lists": 400,
    "checkpoints": 600,
    "counts": 300,
    "kills": 200,
}
MOST_SECONDS, MOST_MB = 5.0, 1000  # of the processor; of one process
HANG_SECONDS = 300  # of the clock, for one input: other work may take most of the processor
BATCH = 20  # images of one dataset: a batch within 5 seconds has no image over them
SIDES = (0, 1, 15, 16, 255, 4000, 9990, 10_001, 65_535, 2**31 - 1, 2**32 - 1)  # what headers say


class Row(NamedTuple):
    """One line of the table: how many inputs there were, and the slowest and largest of them."""

    kind: str
    number: int
    refused: int
    accepted: int
    seconds: float
    megabytes: float
    note: str = ""


class Case(NamedTuple):
    """One input (or a batch): ``act`` is timed; ``check`` says what must hold afterwards.

    ``check`` gets the InputError that ``act`` ended in, or None, and returns how many inputs were refused and accepted
    and, maybe, words to count.
    """

    act: Callable[[], object]
    check: Callable[[InputError | None], tuple]


# ------------------------------------------------------------------------------------------------------- mutations


def mutated(data: bytes, rng: random.Random, others: list[bytes] = ()) -> bytes:
    """Damage bytes as disks, networks and enemies do, once to three times."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        size = len(data)
        at, length = rng.randrange(size + 1), rng.choice((1, 4, 64, size // 8 + 1))
        head, block, tail = data[:at], data[at : at + length], data[at + length :]
        other = rng.choice(others) if others else data
        number = rng.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1))
        early = rng.randrange(64)
        flipped = bytearray(data)
        for _ in range(rng.randrange(20) if data else 0):
            flipped[rng.randrange(size)] ^= 1 << rng.randrange(8)
        data = rng.choice(
            (
                head,
                head + tail,
                head + block + block + tail,
                head + rng.randbytes(length) + tail,
                head + bytes(length) + tail,
                bytes(flipped),
                data[:early] + number.to_bytes(4, rng.choice(("big", "little"))) + data[early + 4 :],
                head + other[at:],
                data + other[at:],
            )
        )
    return data


def tree(folder: Path, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Every path below a folder with its kind, size and sha256; ``without`` names top-level entries to leave out."""
    found = {}
    for top, folders, files in os.walk(folder):
        if Path(top) == folder:
            folders[:] = [name for name in folders if name not in without]
            files = [name for name in files if name not in without]
        for name in [*folders, *files]:
            path = Path(top, name)
            key = os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
            if path.is_symlink():
                found[key] = f"link to {path.readlink()}"
            elif path.is_file():
                found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[key] = "folder" if path.is_dir() else "special"
    return found


# ---------------------------------------------------------------------------------------------------------- images


def png(width: int, height: int, depth: int, colour: int) -> bytes:
    """A whole PNG of zeros, small however large it is said to be; depth and colour type as in its specification."""
    row = b"\0" + bytes((width * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * depth + 7) // 8)
    packer = zlib.compressobj(1)
    pixels = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    palette = [(b"PLTE", bytes(6)), (b"tRNS", b"\0")] if colour == 3 else []
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return _png_of([(b"IHDR", header), *palette, (b"IDAT", pixels), (b"IEND", b"")])


def _png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in chunks:
        parts.append(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    return b"".join(parts)


def png_mended(data: bytes) -> bytes:
    """Put the right checksums into a damaged PNG, so that the damage reaches the decoder."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return _png_of(chunks)


def lying(data: bytes, rng: random.Random) -> bytes:
    """Let the header of an image say another size."""
    width, height = rng.choice(SIDES), rng.choice(SIDES)
    out = bytearray(data)
    if data.startswith(b"\x89PNG"):
        out[16:24] = struct.pack(">II", width, height)
        return png_mended(bytes(out))
    if data.startswith(b"GIF"):
        out[6:10] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
        at = data.find(b",", 13)
        if rng.random() < 0.5 and at > 0:
            out[at + 5 : at + 9] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    elif data.startswith(b"BM"):
        out[18:26] = struct.pack("<II", width, height)
    elif data.startswith(b"RIFF"):
        out[24:30] = (width & 0xFFFFFF).to_bytes(3, "little") + (height & 0xFFFFFF).to_bytes(3, "little")
    elif data.startswith(b"II*\0"):
        at = int.from_bytes(data[4:8], "little")
        for entry in range(at + 2, min(at + 2 + 12 * int.from_bytes(data[at : at + 2], "little"), len(data) - 12), 12):
            tag = int.from_bytes(data[entry : entry + 2], "little")
            if tag in (256, 257) or (tag in (258, 273, 277, 278, 279) and rng.random() < 0.2):
                out[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, (width, height)[tag & 1])
    else:
        for marker in (b"\xff\xc0", b"\xff\xc2"):
            at = data.find(marker)
            if at > 0:
                out[at + 5 : at + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    return bytes(out)


def seed_images() -> dict[str, list[bytes]]:
    """Rendered flowers in every supported form, by extension."""
    from PIL import Image

    from mmflowers.rendered.photos import KINDS, render_flower

    found: dict[str, list[bytes]] = {}
    for kind in KINDS[:2]:
        photo = render_flower(kind, 1, (64, 48))
        exif = Image.Exif()
        exif[0x0112] = 6
        frames = [photo.rotate(angle) for angle in (90, 180)]
        forms: list[tuple[str, str, Image.Image, dict]] = [
            ("jpg", "JPEG", photo, {}),
            ("jpg", "JPEG", photo, {"progressive": True, "subsampling": 0}),
            ("jpg", "JPEG", photo, {"exif": exif}),
            ("jpg", "JPEG", photo.convert("L"), {"restart_marker_blocks": 2}),
            ("jpeg", "JPEG", photo.convert("CMYK"), {}),
            ("jpg", "MPO", photo, {"save_all": True, "append_images": frames}),
            ("png", "PNG", photo, {}),
            ("png", "PNG", photo.convert("RGBA"), {}),
            ("png", "PNG", photo.convert("P"), {"transparency": 3}),
            ("png", "PNG", photo.convert("1"), {}),
            ("png", "PNG", photo.convert("I").convert("I;16"), {"exif": exif}),
            ("png", "PNG", photo, {"save_all": True, "append_images": frames}),
            ("webp", "WEBP", photo, {}),
            ("webp", "WEBP", photo.convert("RGBA"), {"lossless": True, "exif": exif}),
            ("webp", "WEBP", photo, {"save_all": True, "append_images": frames}),
            ("bmp", "BMP", photo, {}),
            ("bmp", "BMP", photo.convert("P"), {}),
            ("gif", "GIF", photo, {}),
            ("gif", "GIF", photo, {"save_all": True, "append_images": frames}),
            ("tif", "TIFF", photo, {}),
            ("tif", "TIFF", photo, {"compression": "tiff_lzw"}),
            ("tif", "TIFF", photo, {"compression": "tiff_adobe_deflate", "exif": exif}),
            ("tiff", "TIFF", photo, {"compression": "jpeg"}),
            ("tiff", "TIFF", photo.convert("1"), {"compression": "group4"}),
            ("tiff", "TIFF", photo.convert("F"), {}),
            ("tiff", "TIFF", photo.convert("RGBA"), {"save_all": True, "append_images": frames}),
        ]
        for extension, format_, image, options in forms:
            out = io.BytesIO()
            if "append_images" in options:  # copies: a saved image keeps the options of its last encoder
                options["append_images"] = [frame.copy() for frame in frames]
            image.copy().save(out, format_, **options)
            found.setdefault(extension, []).append(out.getvalue())
    return found


def images(number: int, rng: random.Random, place: Path) -> Iterator[Case]:
    """Folders of mutated photos through the whole preparation; the largest that are admitted through the inspection."""
    from mmflowers.preparation.inspection import inspect_file
    from mmflowers.preparation.options import PrepareOptions
    from mmflowers.preparation.prepare import prepare
    from mmflowers.preparation.writing import Target, is_whole
    from mmflowers.rendered.photos import KINDS, render_flowers

    seeds = seed_images()
    everything = [data for several in seeds.values() for data in several]
    # A side of 9,990 pixels: just below the limit, and less than a megabyte each.
    kinds = ((8, 2), (8, 3), (8, 6), (16, 0), (16, 6), (1, 0), (16, 4)) if number >= 100 else ()
    large = [png(9990, 9990, *kind) for kind in kinds]
    render_flowers(place / "good", 6, short_side=64, kinds=KINDS[:2])

    def one() -> tuple[str, bytes]:
        extension = rng.choice(list(seeds))
        data = rng.choice(seeds[extension])
        data = rng.choice((lambda d: mutated(d, rng, everything), lambda d: lying(d, rng)))(data)
        if data.startswith(b"\x89PNG") and rng.random() < 0.7:
            with contextlib.suppress(struct.error):
                data = png_mended(data)
        if rng.random() < 0.1:
            extension = rng.choice([*seeds, "txt", "JPG", "heic", "svg"])
        return extension, data

    for at, data in enumerate(large):  # one by one: what is timed is a photo, not the contact sheet too
        (place / "large").mkdir(exist_ok=True)
        (place / f"{at}.png").write_bytes(data)

        def judged(at=at) -> None:
            found = inspect_file(str(place / f"{at}.png"), content=place / "large")
            assert found.verdict in ("kept", "converted"), found

        yield Case(judged, lambda error: (0, 1))
    shutil.rmtree(place / "large", ignore_errors=True)
    done = len(large)
    while done < number:
        shutil.rmtree(place / "source", ignore_errors=True)
        shutil.copytree(place / "good", place / "source")
        batch = [one() for _ in range(min(BATCH, number - done))]
        names = []
        for at, (extension, data) in enumerate(batch):
            names.append(f"{KINDS[at % 2]}/{done + at} mutated.{extension}")
            (place / "source" / names[-1]).write_bytes(data)
        done += len(batch)
        options = {"duplicates": rng.choice(("drop", "keep")), "resize": rng.choice((None, None, 20))}
        before = tree(place, ("out",))

        def check(error, names=names, before=before) -> tuple[int, int]:
            assert error is None, error
            assert tree(place, ("out",)) == before, "something outside of the dataset changed"
            out = place / "out"
            assert is_whole(out, Target(out).metadata(), workers=1)
            with (out / "files.csv").open(newline="", encoding="utf-8") as file:
                rows = {row["path"]: row for row in csv.DictReader(file)}
            sources = {name.removeprefix("source/"): sha for name, sha in before.items() if name.startswith("source/")}
            assert {path: row["sha256"] for path, row in rows.items()} == {
                name: sha for name, sha in sources.items() if sha != "folder"
            }
            verdicts = Counter(rows[name]["verdict"] for name in names)
            assert set(verdicts) <= {"kept", "converted", "dropped"}
            for name in names:
                if rows[name]["verdict"] != "dropped" and rows[name]["target"]:
                    _readable_by_all(out / rows[name]["target"], name)
            return verdicts["dropped"], len(names) - verdicts["dropped"]

        yield Case(
            lambda options=options: prepare(
                PrepareOptions(out="out", source="source", workers=2, force=True, **options)
            ),
            check,
        )


def _readable_by_all(path: Path, name: str) -> None:
    """What is in a dataset must be readable by whoever trains on it: Pillow and OpenCV."""
    import cv2
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > 20_000_000:  # decoding it here would be this process's own gigabyte
                return
            image.convert("RGB")
    except Exception as error:
        raise AssertionError(f"{name} is in the dataset, and Pillow can't read it: {error!r}") from error
    found = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None, f"{name} is in the dataset, and OpenCV can't read it"
    assert found.shape[:2] == (height, width), f"{name}: OpenCV sees {found.shape[:2]}, Pillow {(height, width)}"


# -------------------------------------------------------------------------------------------------------- archives

BAD_NAMES = (
    *(
        "../escaped",
        "a/../../escaped",
        "/escaped",
        "C:\\escaped",
        "..\\escaped",
        "a/./b",
        "",
        ".",
        "a\0b",
        "con",
        "a\nb",
    ),
    *("x" * 300, "d/" * 600 + "x", "a\nb", "\udcff", "a/b", "a", "A", "ä", "a\u0308", "__MACOSX/x", "~/x", "a//b"),
)


def archive(rng: random.Random, secret: Path) -> bytes:
    """An archive of odd members, as no tool would write it."""
    out = io.BytesIO()
    names = [*(rng.choice(BAD_NAMES) for _ in range(rng.randrange(3))), *(f"c/{at}.jpg" for at in range(3))]
    rng.shuffle(names)
    if rng.random() < 0.4:
        with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as made:
            for name in names:
                info = zipfile.ZipInfo("x")
                info.filename = name.encode("utf-8", "replace").decode()
                info.compress_type = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
                if rng.random() < 0.1:
                    info.external_attr = rng.choice((0o120777, 0o060600, 0o010600)) << 16
                size = 70 << 20 if rng.random() < 0.02 else 500
                made.writestr(info, str(secret) if info.external_attr else bytes(size))
        data = bytearray(out.getvalue())
        for signature, at in ((b"PK\1\2", 20), (b"PK\3\4", 18)):  # sizes that lie
            if rng.random() < 0.3 and (start := data.find(signature)) >= 0:
                sizes = [rng.choice((0, 10, 500, 2**31, 2**32 - 1)) for _ in range(2)]
                data[start + at : start + at + 8] = struct.pack("<II", *sizes)
        return bytes(data)
    form = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    for name in names:
        info = tarfile.TarInfo(name)
        info.type = rng.choices((b"0", b"1", b"2", b"3", b"5", b"6", b"S", b"g", b"x", b"L"), (40, *[1] * 9))[0]
        info.linkname = rng.choice((str(secret), "../escaped", "c/0.jpg", "/")) if info.type in b"12" else ""
        data = rng.randbytes(500)
        info.size = rng.choice((500, 500, 500, 0, 10**6, 2**33, 8**11 - 1))
        with contextlib.suppress(ValueError, UnicodeError):  # USTAR has no place for every name
            out.write(info.tobuf(form, "utf-8", "surrogateescape"))
            out.write(data + bytes(-len(data) % 512))
    if rng.random() < 0.8:
        out.write(bytes(1024))
    pack = rng.choice((bytes, gzip.compress, bz2.compress, lzma.compress))
    bomb = pack(bytes(4 << 20)) * rng.choice((1, 20, 1000)) if pack is not bytes and rng.random() < 0.1 else b""
    return pack(out.getvalue()) + bomb  # all three formats may be strung together


def archives(number: int, rng: random.Random, place: Path) -> Iterator[Case]:
    """Mutated and hostile archives through ``unpack``."""
    from mmflowers.preparation.archives import MAX_RATIO, RATIO_FREE_BYTES, unpack

    os.sync = lambda: None  # hundreds of them would measure the disk
    photo = seed_images()["jpg"][0]
    seeds = []
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode) as made:
            for name in ("daisy/1.jpg", f"daisy/{'long ' * 40}.jpg", "rose/ü.jpg"):
                info = tarfile.TarInfo(name)
                info.size = len(photo)
                made.addfile(info, io.BytesIO(photo))
        seeds.append(out.getvalue())
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", compression) as made:
            for name in ("daisy/1.jpg", "daisy/2.jpg", "rose/ü.jpg"):
                made.writestr(name, photo)
        seeds.append(out.getvalue())

    def one() -> bytes:
        if rng.random() < 0.5:
            data = archive(rng, place / "secret")
            return data if rng.random() < 0.6 or len(data) > 1 << 20 else mutated(data, rng)
        data = rng.choice(seeds)
        if rng.random() < 0.3:  # damage below an intact compression
            return rng.choice((gzip.compress, bz2.compress, lzma.compress))(mutated(seeds[0], rng))
        return mutated(data, rng, seeds)

    (place / "secret").write_text("not yours")
    for _ in range(number):
        shutil.rmtree(place / "staging", ignore_errors=True)
        (place / "a").write_bytes(one())
        before = tree(place, ("staging",))

        def check(error, before=before) -> tuple[int, int]:
            assert tree(place, ("staging",)) == before, "something outside of the staging folder changed"
            if error is not None:
                assert not (place / "staging").exists() or not list((place / "staging").iterdir())
                return 1, 0
            found = tree(place / "staging")
            assert not any(what.startswith(("link", "special")) for what in found.values()), found
            sizes = [path.stat().st_size for path in (place / "staging").rglob("*")]
            assert sum(sizes) <= max(RATIO_FREE_BYTES, MAX_RATIO * (place / "a").stat().st_size) + 4096 * len(sizes)
            return 0, 1

        yield Case(lambda: unpack(place / "a", place / "staging", sha256="0" * 64), check)


# --------------------------------------------------------------------------------------------------------- configs


def configs(number: int, rng: random.Random, place: Path) -> Iterator[Case]:
    """Damaged copies of the shipped configs, read and fitted to a dataset folder as a training does it."""
    from mmflowers.engine import configuration, options

    shutil.copytree(ROOT / "configs", place / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    sources = {path.name: path.read_bytes() for path in (place / "configs").glob("*.py")}
    bases = {path: path.read_bytes() for path in (place / "configs" / "_base_").rglob("*.py")}
    words = (
        b"None",
        b"0",
        b"-1",
        b"1e400",
        b"''",
        b"[]",
        b"{}",
        b"dict()",
        b"_base_",
        b"(",
        b"'x'",
        b"lambda: 0",
        b"nan",
    )
    path = place / "configs" / "mutated.py"

    def damaged(text: bytes) -> bytes:
        choice = rng.random()
        if choice < 0.3:
            return mutated(text, rng, list(sources.values()))
        lines = text.splitlines(keepends=True)
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        if choice < 0.4:
            del lines[at]
        elif choice < 0.5:
            lines[at], lines[other] = lines[other], lines[at]
        else:  # another value
            before, sign, _ = lines[at].partition(b"=")
            lines[at] = before + sign + rng.choice(words) + rng.choice((b"\n", b",\n"))
        return b"".join(lines)

    def act() -> None:
        config = configuration.load_config(path)
        configuration.set_data_root(config, "flower_dataset")
        options.fit_to_laptop(config)
        configuration.merge_options(config, ["train_cfg.max_epochs=2"])
        configuration.disable_idle_workers(config)
        configuration.test_on(config, "val")
        configuration.data_root(config)
        configuration.set_classes(config, 5)

    for _ in range(number):
        for base, text in bases.items():
            base.write_bytes(text)
        path.write_bytes(rng.choice(list(sources.values())))
        victim = rng.choice([path, path, *bases])
        victim.write_bytes(damaged(victim.read_bytes()))
        before = tree(place)

        def check(error, before=before) -> tuple[int, int]:
            shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
            assert tree(place) == before
            return (1, 0) if error else (0, 1)

        yield Case(act, check)


# ----------------------------------------------------------------------------------------------------------- lists


def lists(number: int, rng: random.Random, place: Path) -> Iterator[Case]:
    """Damaged lists: of a dataset folder, and given to the preparation."""
    from mmflowers.datasets.folder import read_dataset_folder
    from mmflowers.preparation.lists import assign_splits, find_lists
    from mmflowers.preparation.records import SourceFile

    classes = ["daisy", "red rose", "Tulpe ü"]
    whole, files = {"classes.txt": "\n".join(classes)}, []
    for split in ("train", "val"):
        lines = []
        for label, name in enumerate(classes):
            (place / split / name).mkdir(parents=True)
            for at in range(4):
                (place / split / name / f"{split} {at}.jpg").write_text(f"{split} {name} {at}")
                lines.append(f"{split}/{name}/{split} {at}.jpg {label}")
                files.append((lines[-1].rpartition(" ")[0], name))
        whole[f"{split}.txt"] = "\n".join(lines)
    odd = [
        "\0",
        "9" * 5000,
        "²",
        "٣",
        "-1",
        "1e9",
        "../../x.jpg 0",
        "/etc/passwd 0",
        "\ufeff",
        "a" * 5000 + " 0",
        "x\\y 1",
    ]
    odd += [
        "\u2028",
        " " * 5000,
        "./train/daisy/train 0.jpg 0",
        "train/daisy/train 0.jpg\t0",
        "\x1b[2J 0",
        "con 0",
        "0",
    ]
    odd += ["train/dai\0sy/x.jpg 0", "train/" + "n" * 300 + "/x.jpg 0", "train/daisy/train 0.jpg " + "9" * 5000]

    def damaged(text: str) -> bytes:
        lines = text.split("\n")
        for _ in range(rng.choice((0, 1, 2, 5))):
            at = rng.randrange(len(lines))
            lines[at : at + rng.randrange(2)] = rng.choice(
                ([rng.choice(odd)], [lines[at] + rng.choice(odd)], [], [rng.choice(lines)], [lines[at][::-1]])
            )
            lines = lines or [""]
        data = rng.choice(("\n", "\n", "\r\n", "\r")).join(lines).encode(rng.choice(("utf-8", "utf-8-sig", "utf-16")))
        return mutated(data, rng) if rng.random() < 0.3 else data

    for at in range(number):
        for name, text in whole.items():
            (place / name).write_bytes(text.encode())
        for name in rng.sample(list(whole), rng.choice((1, 1, 2, 3))):
            (place / name).write_bytes(damaged(whole[name]))
        before = tree(place)

        def check(error, before=before) -> tuple[int, int]:
            assert tree(place) == before
            return (1, 0) if error else (0, 1)

        if at % 2:
            yield Case(lambda: read_dataset_folder(place), check)
        else:
            source = [SourceFile(path, name) for path, name in files]
            yield Case(lambda source=source: assign_splits(source, find_lists(place)), check)


# ----------------------------------------------------------------------------------------------------- checkpoints

CALLS = (
    *("os system", "posix system", "os mkdir", "os remove", "builtins exec", "builtins eval", "builtins open"),
    *(
        "builtins getattr",
        "builtins __import__",
        "__builtin__ getattr",
        "subprocess Popen",
        "pickle loads",
        "shutil rmtree",
    ),
    *("pathlib Path.touch", "torch load", "torch._utils _rebuild_tensor_v2", "torch storage.UntypedStorage"),
    *("numpy._core.multiarray _reconstruct", "numpy._core.multiarray scalar", "numpy dtype", "numpy ndarray"),
    *("mmengine.logging.history_buffer HistoryBuffer", "collections OrderedDict", "functools partial", "torch Size"),
)


def random_pickle(rng: random.Random, canary: Path) -> bytes:
    """Opcodes at random: names that run something, arguments that would make the canary appear, and their call."""
    touch = f"touch '{canary}'"
    arguments = (touch, str(canary), f"open({str(canary)!r}, 'w')", "w", "system", "os", "min", "f8", "__class__")

    def text(word: str) -> bytes:
        return b"X" + struct.pack("<I", len(word.encode())) + word.encode()

    def name() -> bytes:
        module, function = rng.choice(CALLS).split()
        if rng.random() < 0.5:
            return f"c{module}\n{function}\n".encode()
        return text(module) + text(function) + b"\x93"

    def value(depth: int = 0) -> bytes:
        inner = [value(depth + 1) for _ in range(rng.randrange(3))] if depth < 3 else []
        choice = rng.randrange(12)
        if choice < 4:
            return name() + b"(" + (b"".join(inner) or text(rng.choice(arguments))) + b"tR"
        if choice == 4:
            module, function = rng.choice(CALLS).split()
            return b"(" + text(rng.choice(arguments)) + f"i{module}\n{function}\n".encode()
        if choice == 5:
            return b"(" + name() + text(rng.choice(arguments)) + b"o"
        if choice == 6:
            return name() + b"(" + text(rng.choice(arguments)) + b"t\x81" + b"}" + text("x") + text(touch) + b"sb"
        if choice == 7:
            return b"(" + b"".join(inner) + b"l"
        if choice == 8:
            return b"}" + text("state_dict") + (inner or [b"N"])[0] + b"s"
        if choice == 9:
            return rng.choice(
                (b"N", b"K\x07", b"J\xff\xff\xff\x7f", b"G" + rng.randbytes(8), b"\x8a\x03abc", b"]", b")")
            )
        if choice == 10:
            return text(rng.choice(arguments)) + b"q\x00"
        return text(rng.choice(arguments)) + b"Q"  # a persistent id: torch looks for a storage

    data = b"\x80\x02}" + text("state_dict") + value() + b"s" + text("meta") + value() + b"s."
    return mutated(data, rng) if rng.random() < 0.3 else data


def checkpoints(number: int, rng: random.Random, place: Path) -> Iterator[Case]:
    """Damaged and hostile checkpoints through the one function that reads any."""
    import numpy as np
    import torch
    from mmengine.logging import HistoryBuffer
    from safetensors.torch import save

    from mmflowers.weights.loading import load_checkpoint_file

    tensors = {"backbone.w": torch.randn(3, 5), "head.b": torch.arange(4).half(), "n": torch.tensor(3)}
    hub = {"loss": HistoryBuffer([0.5, 0.25], [1, 1])}
    meta = {"epoch": 3, "eta": np.float64(0.5), "dataset_meta": {"classes": ("a", "b"), "palette": np.arange(3)}}
    checkpoint = {"state_dict": tensors, "message_hub": hub, "meta": meta, "optimizer": {"state": {}, "lr": 0.1}}
    seeds = {"zip": io.BytesIO(), "legacy": io.BytesIO()}
    for form, out in seeds.items():
        torch.save(checkpoint, out, _use_new_zipfile_serialization=form == "zip")
    whole = {form: out.getvalue() for form, out in seeds.items()}
    canary = place / "canary"

    def zipped(change: Callable[[bytes], bytes], only: str = ".pkl") -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole["zip"])) as old, zipfile.ZipFile(out, "w") as new:
            for info in old.infolist():
                data = old.read(info)
                new.writestr(info.filename, change(data) if only in info.filename else data)
        return out.getvalue()

    def one() -> tuple[str, bytes]:
        choice = rng.randrange(8)
        if choice == 0:
            return "x.pth", mutated(whole["zip"], rng, list(whole.values()))
        if choice == 1:
            return "x.pth", mutated(whole["legacy"], rng, list(whole.values()))
        if choice == 2:  # with the archive's checksums right
            only = rng.choice((".pkl", ".pkl", "data/", "byteorder", "version"))
            return "x.pth", zipped(lambda data: mutated(data, rng), only)
        if choice == 3:
            return "x.safetensors", mutated(save(tensors), rng)
        if choice == 4:
            return "x.pth", zipped(lambda data: random_pickle(rng, canary))
        if choice == 5:
            return "x.pth", random_pickle(rng, canary)
        if choice == 6:  # torch's old form: magic number, version, system, then the object
            head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
            return "x.pth", head + random_pickle(rng, canary) + pickle.dumps([], 2)
        words = json.dumps({"w": {"dtype": "F32", "shape": [rng.choice(SIDES)] * 2, "data_offsets": [0, 4]}}).encode()
        size = rng.choice((len(words), 0, 2**31, 2**63, 2**64 - 1))
        return "x.safetensors", struct.pack("<Q", size) + words + bytes(4)

    for _ in range(number):
        for path in place.iterdir():
            path.unlink()
        name, data = one()
        (place / name).write_bytes(data)
        before = tree(place)

        def check(error, before=before) -> tuple[int, int]:
            assert not canary.exists(), "code of the checkpoint ran"
            assert tree(place) == before
            return (1, 0) if error else (0, 1)

        yield Case(lambda name=name: load_checkpoint_file(place / name), check)


# ----------------------------------------------------------------------------------------------------------- kills


def kills(number: int, rng: random.Random, place: Path) -> Iterator[Case]:
    """SIGKILL for tools/prepare_flowers.py at random instants: the old dataset or the new one, whole."""
    from mmflowers.preparation.writing import Target, is_whole
    from mmflowers.rendered.photos import KINDS, render_flowers

    render_flowers(place / "source", 8, short_side=64, kinds=KINDS[:2])
    for at, (extension, several) in enumerate(seed_images().items()):
        (place / "source" / KINDS[at % 2] / f"form {at}.{extension}").write_bytes(several[0])
    (place / "source" / KINDS[0] / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    source, out, incomplete = tree(place / "source"), place / "data", place / ".data.incomplete"
    seconds, datasets = [], {}

    def run(seed: int, out: str = "data") -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "tools" / "prepare_flowers.py"), "--source", "source", "--out", out]
        command += ["--seed", str(seed), "--workers", "2"]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=place, start_new_session=True, **pipes)

    def finished(seed: int, out: str = "data") -> None:
        start = time.perf_counter()
        process = run(seed, out)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
        seconds.append(time.perf_counter() - start)

    # Each from nothing, under the name that they have later: the data card says it.
    for seed in (1, 0):
        shutil.rmtree(out, ignore_errors=True)
        finished(seed)
        datasets[seed] = tree(out)
    assert datasets[0] != datasets[1]

    for at in range(number):
        old, new = at % 2, 1 - at % 2
        found = {}

        def act(new=new, found=found) -> None:
            process = run(new)
            if rng.random() < 0.6:
                time.sleep(rng.uniform(0, 1.05 * min(seconds)))
            else:  # around the exchange, which takes less than a thousandth of the run
                while process.poll() is None and not (incomplete / "dataset" / "dataset.json").exists():
                    time.sleep(0.0005)
                time.sleep(rng.uniform(0, 0.05))
            found["running"] = process.poll() is None
            found["begun"] = incomplete.exists()
            with contextlib.suppress(ProcessLookupError):
                if rng.random() < 0.5:
                    os.killpg(process.pid, signal.SIGKILL)
                else:  # the workers find out by themselves
                    os.kill(process.pid, signal.SIGKILL)
            process.communicate()

        def check(error, old=old, new=new, found=found) -> tuple[int, int]:
            now = tree(out)
            assert now in (datasets[old], datasets[new]), "neither the old nor the new dataset"
            assert is_whole(out, Target(out).metadata(), workers=1)
            finished(new)
            assert tree(out) == datasets[new], "the rerun gave other bytes"
            assert tree(place / "source") == source
            assert {path.name for path in place.iterdir()} == {"data", "source"}, "litter"
            states = ("over before" * (not found["running"]), "work left" * (found["running"] and found["begun"]))
            return (1, 0, *states) if now == datasets[old] else (0, 1, *states)

        yield Case(act, check)


# ---------------------------------------------------------------------------------------------------------- counts


def counts(number: int, rng: random.Random, place: Path) -> Iterator[Case]:
    """Edits of a dataset folder and of its loaders, against an oracle that knows which photos are counted."""
    from counting import draws

    yield from draws(number, rng, place)


# ------------------------------------------------------------------------------------------------------------ runs

Kind = Callable[[int, random.Random, Path], Iterator[Case]]
KINDS: dict[str, Kind] = {
    kind.__name__: kind for kind in (images, archives, configs, lists, checkpoints, counts, kills)
}


def run(kind: Kind, number: int, seed: int) -> Row:
    """Run one kind in a process of its own, in a folder of its own.

    Raises:
        AssertionError: A promise is broken; it says which input did it, and the folder with that input stays.
    """
    place = Path(tempfile.mkdtemp(prefix=f"mmflowers-fuzz-{kind.__name__}-"))
    context = multiprocessing.get_context("spawn")  # so that each kind has its memory for itself
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, kind, number, seed, place))
    process.start()
    theirs.close()
    said: object = None
    try:
        while not isinstance(said, (Row, str)):
            said = ours.recv() if ours.poll(HANG_SECONDS) else f"no end after {HANG_SECONDS} seconds"
    except EOFError:
        process.join()
        said = f"the process died ({process.exitcode})"
    finally:
        process.kill()
        process.join()
    if isinstance(said, Row) and said.megabytes >= MOST_MB:
        said = f"{said.megabytes:.0f} MB"
    assert isinstance(said, Row), f"{kind.__name__}, seed {seed}: {said}\nthe input is in {place}"
    shutil.rmtree(place)
    return said


def _work(pipe, kind: Kind, number: int, seed: int, place: Path) -> None:
    import traceback

    (place / "here").mkdir()
    (place / "tmp").mkdir()
    os.environ.update(TMPDIR=str(place / "tmp"), HOME=str(place / "tmp"), OMP_NUM_THREADS="1")
    tempfile.tempdir = None
    os.chdir(place / "here")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # progress, and what decoders in C have to say
    refused = accepted = at = 0
    slowest, notes = 0.0, Counter()
    try:
        for at, case in enumerate(kind(number, random.Random(seed), place / "here")):
            error, start = None, _cpu_seconds()
            try:
                case.act()
            except InputError as wrong:
                error = wrong
                for problem in error.problems:
                    assert problem.what.strip() and not set(str(problem)) & set("\n\r"), f"no clear line: {problem!r}"
            seconds = _cpu_seconds() - start
            assert seconds < MOST_SECONDS, f"{seconds:.1f} seconds"
            slowest = max(slowest, seconds)
            no, yes, *states = case.check(error)
            refused, accepted = refused + no, accepted + yes
            notes.update(filter(None, states))
            pipe.send(at)
        note = ", ".join(f"{count} {what}" for what, count in sorted(notes.items()))
        pipe.send(Row(kind.__name__, refused + accepted, refused, accepted, slowest, _peak_mb(), note))
    except BaseException:
        pipe.send(f"input {at}\n{traceback.format_exc()}")


def _cpu_seconds() -> float:
    """Of this process and the workers it has had: wall time would tell what else the machine does."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _peak_mb() -> float:
    """The most memory that this process or one of its workers has had."""
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(peaks) / (1e6 if sys.platform == "darwin" else 1e6 / 1024)


def table(rows: list[Row]) -> str:
    """As a person reads it."""
    lines = [f"{'kind':<12} {'number':>7} {'refused':>8} {'accepted':>9} {'slowest s':>10} {'peak MB':>8}"]
    for row in rows:
        lines.append(
            f"{row.kind:<12} {row.number:7,} {row.refused:8,} {row.accepted:9,}"
            f" {row.seconds:10.2f} {row.megabytes:8.0f}  {row.note}".rstrip()
        )
    return "\n".join(lines)


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    for kind, number in NUMBERS.items():
        parser.add_argument(f"--{kind}", type=int, default=number, metavar="N", help=f"default: {number}")
    args = parser.parse_args()
    rows, failed = [], False
    for name, kind in KINDS.items():
        if getattr(args, name):
            try:
                rows.append(run(kind, getattr(args, name), args.seed))
            except AssertionError as error:
                failed = True
                print(f"FAILED {error}", file=sys.stderr, flush=True)
    print(f"seed {args.seed}")
    print(table(rows))
    if "kills" in {row.kind for row in rows}:
        print("kills: refused = the old dataset was there, accepted = the new one")
    if "counts" in {row.kind for row in rows}:
        print("counts: accepted = warned or clean; of these some were trained or tested")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
