"""Count how many damaged photos the preparation detects, and how many intact photos it drops by mistake.

Every damaged photo is made in memory from a random photo of the folder; Pillow can still read many of them. Damage
that doesn't visibly change the decoded pixels is harmless and counted separately. Prints Markdown tables.

examples:
  python benchmarks/damage.py --photos flower_photos
  python benchmarks/damage.py --photos flower_photos --number 100 --kinds zeros random
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mmflowers.cli.parser import Parser, existing_folder
from mmflowers.cli.process import run
from mmflowers.preparation.inspection import examine
from mmflowers.utils.errors import InputError
from mmflowers.utils.terminal import progress

VISIBLE_LEVELS = 16  # of 256: a pixel that differs by more is wrong
VISIBLE_SHARE = 0.001  # of the pixels: with a smaller share of wrong pixels the damage is harmless
EOI = b"\xff\xd9"
MARKER = re.compile(rb"\xff[^\x00\xff]")

Draw = Callable[[], bytes]  # returns the bytes of another photo of the folder


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--photos", type=existing_folder, required=True, metavar="DIR", help="folder with JPEGs, searched recursively"
    )
    parser.add_argument("--number", type=int, default=1000, help="damaged photos of each kind (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the damage (default: 0)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default: 2)")
    parser.add_argument(
        "--kinds", nargs="+", metavar="WORD", help="test only kinds with one of these words in their name"
    )
    run(partial(benchmark, parser.parse_args()))


def benchmark(args: argparse.Namespace) -> None:
    """Damage photos, examine them and print the tables."""
    paths = sorted(path for path in args.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise InputError(f"{args.photos} has no JPEG", "give a folder with photos, in folders of any depth")

    def wanted(kinds: dict) -> list[str]:
        return [kind for kind in kinds if not args.kinds or any(word in kind for word in args.kinds)]

    jobs = [(kind, number) for kind in wanted(DAMAGES) for number in range(args.number)]
    counts: dict[str, Counter] = {kind: Counter() for kind, _ in jobs}
    with multiprocessing.Pool(args.workers, _start, (paths, args.seed)) as pool:
        for kind, outcome in progress(pool.imap(_damage, jobs, 8), total=len(jobs), what="damages"):
            counts[kind][outcome] += 1
        columns = [f"damage, {args.number:,} of each kind", "visible", "found", "share", "found by Pillow"]
        if counts:
            print("|", " | ".join([*columns, "harmless", "dropped"]), "|")
            print("| :-- | --: | --: | --: | --: | --: | --: |")
        for kind, count in counts.items():
            found, raised = count["found"] + count["raises"], count["raises"]
            visible, harmless = found + count["missed"], count["harmless"] + count["harmless, dropped"]
            share = f"{100 * found / visible:.1f} %" if visible else "–"
            numbers = [visible, found, share, raised, harmless, count["harmless, dropped"]]
            print(f"| {kind} |", " | ".join(f"{number:,}" if number != share else share for number in numbers), "|")

        jobs = [("as they are", number) for number in range(len(paths))]
        jobs += [(kind, number) for kind in wanted(GOOD) for number in range(args.number)]
        drops: dict[str, list[str]] = {kind: [] for kind, _ in jobs}
        for kind, reason in progress(pool.imap(_good, jobs, 8), total=len(jobs), what="good photos"):
            drops[kind].append(reason)
    print("\n| good photos | number | dropped | why |\n| :-- | --: | --: | :-- |")
    for kind, reasons in drops.items():
        why = Counter(filter(None, reasons))
        print(f"| {kind} | {len(reasons):,} | {sum(why.values())} | {', '.join(why)} |")


# ------------------------------------------------------------------------------------------------------- in a worker

_paths: list[Path] = []
_seed = 0


def _start(paths: list[Path], seed: int) -> None:
    global _paths, _seed
    _paths, _seed = paths, seed
    warnings.simplefilter("ignore")  # Pillow's, about EXIF and other metadata


def _damage(job: tuple[str, int]) -> tuple[str, str]:
    kind, number = job
    make, change = DAMAGES[kind]
    rng = random.Random(f"{_seed} {kind} {number}")

    def draw() -> bytes:
        return rng.choice(_paths).read_bytes()

    good = make(draw(), rng)
    damaged = change(good, rng, draw)
    dropped = examine(damaged, ".jpg")[0].verdict == "dropped"
    try:
        pixels = _pixels(damaged)
    except Exception:  # whatever Pillow's decoders raise
        return kind, "raises" if dropped else "missed"
    original = _pixels(good)
    if pixels.shape == original.shape:
        wrong = np.abs(pixels.astype(np.int16) - original).max(axis=2) > VISIBLE_LEVELS
        if wrong.mean() < VISIBLE_SHARE:
            return kind, "harmless, dropped" if dropped else "harmless"
    return kind, "found" if dropped else "missed"


def _good(job: tuple[str, int]) -> tuple[str, str]:
    kind, number = job
    if kind == "as they are":
        data = _paths[number].read_bytes()
    else:
        rng = random.Random(f"{_seed} {kind} {number}")
        data = GOOD[kind](rng.choice(_paths).read_bytes(), rng)
    found, _ = examine(data, ".jpg")
    return kind, found.reason if found.verdict == "dropped" else ""


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


# ------------------------------------------------------------------------------------------------- the photos, whole


def _as_it_is(data: bytes, rng: random.Random) -> bytes:
    return data


def _saved(format_: str, **options) -> Callable[[bytes, random.Random], bytes]:
    def make(data: bytes, rng: random.Random) -> bytes:
        out = io.BytesIO()
        chosen = {name: rng.choice(value) if isinstance(value, tuple) else value for name, value in options.items()}
        _opened(data).save(out, format_, **chosen)
        return out.getvalue()

    return make


def _opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def _varied(data: bytes, rng: random.Random) -> bytes:
    """Save a photo as a JPEG with random options."""
    image = _opened(data).convert(rng.choice(("RGB", "RGB", "RGB", "L", "CMYK")))
    options = {"quality": rng.choice((1, 10, 30, 50, 75, 90, 95, 100)), "subsampling": rng.choice((0, 1, 2))}
    options |= {name: rng.random() < 0.5 for name in ("progressive", "optimize")}
    for name, value in (
        ("restart_marker_blocks", rng.randrange(1, 99)),
        ("restart_marker_rows", 1),
        ("comment", rng.randbytes(rng.randrange(2000))),
        ("icc_profile", rng.randbytes(rng.randrange(1, 200_000))),
        ("exif", b"Exif\0\0" + _saved("JPEG", quality=50)(data, rng)[:60000]),  # like an EXIF thumbnail
    ):
        if rng.random() < 0.2:
            options[name] = value
    try:
        return _encoded(image, options)
    except OSError:  # Pillow's buffer for these two is too small for some photos at a high quality
        return _encoded(image, options | {"progressive": False, "optimize": False})


def _encoded(image: Image.Image, options: dict) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def _followed(data: bytes, rng: random.Random) -> bytes:
    """Append what cameras and programs append: zeros, proprietary data, another photo."""
    return data + rng.choice((bytes(4096), rng.randbytes(5000), data, b"\n"))


def _padded(data: bytes, rng: random.Random) -> bytes:
    """Insert padding between image data and end marker, as some cameras do."""
    assert data.endswith(EOI)
    return data[:-2] + rng.choice((b"\0", b"\xff")) * rng.choice((1, 2, 16, 512 - len(data) % 512)) + EOI


GOOD = {
    "saved as JPEG in any way": _varied,
    "with bytes after the end": _followed,
    "with padding before the end marker": lambda data, rng: _padded(_varied(data, rng), rng),
    "saved as MPO": _saved("MPO"),
    "saved as PNG": _saved("PNG", compress_level=(0, 1, 6)),
    "saved as WebP": _saved("WEBP", quality=(20, 80, 100)),
    "saved as GIF": _saved("GIF"),
    "saved as BMP": _saved("BMP"),
    "saved as TIFF": _saved("TIFF", compression=("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")),
}


# ---------------------------------------------------------------------------------------------------------- damages


def _scan(data: bytes) -> int:
    """Return the offset of a JPEG's entropy-coded data."""
    at = 2
    while data[at + 1] != 0xDA:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _body(data: bytes) -> tuple[int, int]:
    """Return the start and end offset of a file's pixel data."""
    return (_scan(data), len(data) - 2) if data.startswith(b"\xff\xd8") else (len(data) // 20 + 64, len(data) - 12)


def _cut(tail: bytes) -> Callable:
    def change(data: bytes, rng: random.Random, draw: Draw) -> bytes:
        return data[: rng.randrange(*_body(data))] + tail

    return change


def _cut_and_followed(data: bytes, rng: random.Random, draw: Draw) -> bytes:
    return _cut(draw())(data, rng, draw)


def _overwritten(size: int, what: str) -> Callable:
    def change(data: bytes, rng: random.Random, draw: Draw) -> bytes:
        first, last = _body(data)
        length = min(size, (last - first) // 2)
        at = rng.randrange(first, last - length)
        if what == "another photo":
            block = b""
            while len(block) < length:
                other = draw()
                start = rng.randrange(_scan(other), len(other))
                block = other[start : start + length]
        else:
            block = {"zeros": bytes, "0xff": lambda length: b"\xff" * length, "random": rng.randbytes}[what](length)
        return data[:at] + block + data[at + length :]

    return change


def _left_out(data: bytes, rng: random.Random, draw: Draw) -> bytes:
    first, last = _body(data)
    at = rng.randrange(first, last - 4096) if last - first > 4096 else first
    return data[:at] + data[at + 4096 :] if last - first > 4096 else data[:at] + data[(at + last) // 2 :]


def _enlarged(data: bytes, rng: random.Random, draw: Draw) -> bytes:
    at = 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    sides = [int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")]
    for index in rng.choice(((0,), (1,), (0, 1))):
        sides[index] = rng.choice((sides[index] + 16, sides[index] + 100, 2 * sides[index], 4000, 9900))
    return data[: at + 5] + b"".join(side.to_bytes(2, "big") for side in sides) + data[at + 9 :]


def _without_restarts(data: bytes, rng: random.Random, draw: Draw) -> bytes:
    """Remove one restart marker, or everything between two of them."""
    at = [found.start() for found in MARKER.finditer(data, _scan(data)) if 0xD0 <= data[found.start() + 1] <= 0xD7]
    first = rng.randrange(len(at) - 1)
    last = rng.choice((first, rng.randrange(first, len(at))))
    return data[: at[first]] + data[at[last] + (2 if last == first else 0) :]


def _without_scans(data: bytes, rng: random.Random, draw: Draw) -> bytes:
    scans = [found.start() for found in MARKER.finditer(data, _scan(data)) if data[found.start() + 1] == 0xDA]
    return data[: rng.choice(scans)] + EOI


def _saved_again(format_: str) -> Callable:
    def change(data: bytes, rng: random.Random, draw: Draw) -> bytes:
        return _saved(format_)(_cut(EOI)(data, rng, draw), rng)

    return change


def _shorter_riff(data: bytes, rng: random.Random, draw: Draw) -> bytes:
    """Truncate a WebP and correct the sizes in its two headers."""
    data = data[: 2 * (rng.randrange(*_body(data)) // 2)]
    size = (len(data) - 8).to_bytes(4, "little")
    return data[:4] + size + data[8:16] + (len(data) - 20).to_bytes(4, "little") + data[20:]


def _shorter_png(data: bytes, rng: random.Random, draw: Draw) -> bytes:
    """Cut a PNG's image data within its first IDAT chunk, and correct the chunk's length and checksum."""
    import zlib

    at = data.index(b"IDAT")
    end = rng.randrange(at + 20, at + 4 + int.from_bytes(data[at - 4 : at], "big"))
    chunk = data[at:end]
    body = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return data[: at - 4] + body + data[data.rindex(b"IEND") - 4 :]


def _zeros_to_the_end(data: bytes, rng: random.Random, draw: Draw) -> bytes:
    at = rng.randrange(*_body(data))
    return data[:at] + bytes(len(data) - at)


BASELINE, PROGRESSIVE = _as_it_is, _saved("JPEG", quality=90, progressive=True)
OPTIMISED = _saved("JPEG", quality=(50, 75, 90), optimize=True)
RESTARTS = _saved("JPEG", quality=90, restart_marker_rows=1)
SIZES = {"512 B": 512, "4 KB": 4096, "64 KB": 65536}
DAMAGES = {
    "cut, end marker appended": (BASELINE, _cut(EOI)),
    "cut, another photo appended": (BASELINE, _cut_and_followed),
    "larger size in the header": (BASELINE, _enlarged),
    **{
        f"{size} of {what}": (BASELINE, _overwritten(number, what))
        for what in ("zeros", "0xff", "random", "another photo")
        for size, number in SIZES.items()
    },
    "4 KB left out": (BASELINE, _left_out),
    "restart markers lost": (RESTARTS, _without_restarts),
    "optimised, 512 B of zeros": (OPTIMISED, _overwritten(512, "zeros")),
    "progressive, last scans left out": (PROGRESSIVE, _without_scans),
    "progressive, cut, end marker appended": (PROGRESSIVE, _cut(EOI)),
    **{f"progressive, {size} of zeros": (PROGRESSIVE, _overwritten(number, "zeros")) for size, number in SIZES.items()},
    "cut and saved again as JPEG": (BASELINE, _saved_again("JPEG")),
    "cut and saved again as PNG": (BASELINE, _saved_again("PNG")),
    "PNG, image data shortened": (_saved("PNG", compress_level=1), _shorter_png),
    "PNG, 512 B of zeros": (_saved("PNG", compress_level=1), _overwritten(512, "zeros")),
    "WebP, cut, sizes in its headers right": (_saved("WEBP"), _shorter_riff),
    "WebP, 512 B of zeros": (_saved("WEBP"), _overwritten(512, "zeros")),
    "GIF, cut, trailer appended": (_saved("GIF"), _cut(b"\0;")),
    "GIF, 512 B of zeros": (_saved("GIF"), _overwritten(512, "zeros")),
    "BMP, zeros to the end": (_saved("BMP"), _zeros_to_the_end),
    "TIFF, zeros to the end": (_saved("TIFF"), _zeros_to_the_end),
    "TIFF (LZW), zeros to the end": (_saved("TIFF", compression="tiff_lzw"), _zeros_to_the_end),
}


if __name__ == "__main__":
    main()
