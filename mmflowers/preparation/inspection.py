"""What every file of the source is: read once, hashed, fully decoded, judged, and written while it is at hand."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator
from functools import partial
from io import FileIO
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmflowers.preparation.damage import (
    MAX_PIXELS_PER_BYTE,
    Damaged,
    check_png,
    check_tail,
    decode_jpeg,
    decoding_bytes,
)
from mmflowers.preparation.records import Record, Source
from mmflowers.preparation.workers import Workers
from mmflowers.utils.errors import InputError
from mmflowers.utils.terminal import progress

MAX_PIXELS = 100_000_000  # more is a decompression bomb or no photo to train on; judged by the header
MAX_DECODING_BYTES = 900_000_000  # of memory for one photo, its file included: a process stays below 1 GB
BAND_PIXELS = 1_000_000  # of an image that is converted: so much at a time
MIN_SIDE = 16  # pixels
MAX_COMMENTS = 1000  # of a GIF: joining them takes Pillow a time that grows with the square of their number
MAX_BYTES = 1 << 29  # a larger file is hashed, but never read into memory as a whole

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # nothing else is tried, whatever plugins Pillow has
EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
}  # of the formats whose bytes can be kept: all that OpenCV and Pillow read alike
JPEG_MAGIC, PNG_MAGIC = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112  # EXIF tag; 1 is upright, and other values than these are as good as none
ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # not ImageOps.exif_transpose: that rewrites the EXIF as well, and fails on a corrupt one

HASH_SIDE = 32  # pixels of the reduced image the hash is made of, as in imagehash.phash
THUMBNAIL_SIDE = 16
FLAT = 2.0  # standard deviation in grey levels: below it the hash is that of noise
# The 8 lowest frequencies of a 32-point DCT-II. With it the hash equals imagehash.phash of the same 32 × 32 image (a
# test says so), without the third of a second that its import of scipy costs at the start of every process.
_DCT = np.cos(np.pi / (2 * HASH_SIDE) * np.outer(np.arange(8), 2 * np.arange(HASH_SIDE) + 1))


class Inspection(NamedTuple):
    """What an inspection finds out about one file; the fields are those of ``Record``."""

    size: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    width: int = 0
    height: int = 0
    verdict: str = "dropped"
    reason: str = ""
    extension: str = ""
    written_sha256: str = ""
    phash: int | None = None
    thumbnail: bytes = b""


class Journal:
    """The findings of a run that may be interrupted, a JSON line each; the next run takes over those that still hold.

    Args:
        path: Of the file.
        settings: What the findings depend on; a journal made under other settings is thrown away.

    Attributes:
        inherited: Number of findings that an interrupted run has left.
    """

    def __init__(self, path: Path, settings: dict) -> None:
        header = json.dumps(settings, sort_keys=True)
        self._lines: dict[str, bytes] = {}  # raw lines: parsed in the workers, and a third of the memory
        if path.exists():
            with path.open("rb") as file:
                if file.readline().decode("utf-8", "replace").rstrip("\n") == header:
                    for line in file:
                        try:
                            self._lines[json.loads(line)[0]] = line
                        except (ValueError, LookupError, TypeError):
                            continue  # torn by the interruption
        fresh = not self._lines
        self.inherited = len(self._lines)
        self._file = path.open("wb" if fresh else "ab")
        self._file.write(header.encode() + b"\n" if fresh else b"\n")  # ends a torn line

    def take(self, path: str) -> bytes | None:
        return self._lines.pop(path, None)

    def add(self, path: str, found: Inspection) -> None:
        row = [path, *found[:-1], base64.b64encode(found.thumbnail).decode()]
        self._file.write(json.dumps(row).encode() + b"\n")

    def close(self) -> None:
        self._file.close()


def inspect(
    source: Source,
    *,
    workers: int,
    content: Path | None = None,
    keep_copies: bool = True,
    resize: int | None = None,
    journal: Journal | None = None,
    context: BaseContext | None = None,
) -> list[Record]:
    """Inspect every file of the source and judge it by itself (copies are another step's matter).

    Args:
        source: Never written to.
        workers: Number of processes.
        content: Folder that gets what the dataset needs, each file named by its own sha256; None: nothing is written.
        keep_copies: Whether files whose bytes are kept go there too (not needed where they will be linked).
        resize: Short side in pixels that larger images are scaled down to; None: as they are.
        journal: Takes over and takes down findings.
        context: The multiprocessing context.

    Returns:
        A record for every file, in the source's order.

    Raises:
        InputError: if ``content`` can't be written.
    """
    records = [_record(file) for file in source.files]
    jobs = [index for index, record in enumerate(records) if record.verdict != "dropped"]
    task = partial(_task, root=str(source.root), content=content, keep_copies=keep_copies, resize=resize)
    work = ((records[index].path, journal.take(records[index].path) if journal else None) for index in jobs)
    crashed = partial(_crashed, root=str(source.root))
    with Workers(task, work, workers=workers, crashed=crashed, context=context) as results:
        for number, found in progress(results, total=len(jobs), what="inspecting"):
            record = records[jobs[number]]
            for name, value in zip(Inspection._fields, found, strict=True):
                if name != "mtime_ns":
                    setattr(record, name, value)
            if journal:
                journal.add(record.path, found)
    return records


def hash_files(source: Source, *, workers: int) -> Iterator[tuple[str, str]]:
    """Yield ``(path, sha256)`` of the files to inspect, unreadable ones with an empty digest, in no certain order."""
    paths = [record.path for record in map(_record, source.files) if record.verdict != "dropped"]
    task = partial(_hash_task, root=str(source.root))
    with Workers(task, paths, workers=workers, crashed=task) as results:
        for index, digest in progress(results, total=len(paths), what="comparing"):
            yield paths[index], digest


def inspect_file(path: str, *, content: Path | None = None, keep_copies: bool = True, resize: int | None = None):
    """Inspect one file and put what the dataset needs of it into ``content``; see ``inspect``.

    Returns:
        The ``Inspection``. Whatever is wrong with the file is a verdict, never an exception.
    """
    try:
        data, size, mtime_ns, digest = _read(path)
    except OSError as error:
        return Inspection(reason=f"unreadable ({error.strerror or type(error).__name__})")
    known = Inspection(size=size, mtime_ns=mtime_ns, sha256=digest)
    if not size:
        return known._replace(reason="empty")
    if data is None:
        return known._replace(reason="absurdly large file")
    found, converted = examine(data, os.path.splitext(path)[1], resize=resize)  # noqa: PTH122
    found = found._replace(size=size, mtime_ns=mtime_ns, sha256=digest)
    if found.verdict == "dropped":
        return found
    found = found._replace(written_sha256=hashlib.sha256(converted).hexdigest() if converted else digest)
    if content and (converted or keep_copies):
        _write(content / found.written_sha256, converted or data)
    return found


def examine(data: bytes, extension: str, *, resize: int | None = None) -> tuple[Inspection, bytes | None]:
    """Judge the bytes of a file.

    Args:
        data: The whole file, not empty.
        extension: Of its name, with the dot, in any case.
        resize: See ``inspect``.

    Returns:
        The findings without size and digests, and the bytes of the converted image (None unless converted).
    """
    image, refused = _open(data, resize)
    if image is None:
        return refused, None
    (width, height), format_ = image.size, image.format or ""
    try:
        # Before getexif(), which loads a PNG, its failure would pass for a corrupt EXIF and a second load() do nothing.
        upright = _decoded(image, data) if format_ == "PNG" else None
        changes = _changes(image, data)
        shrink = resize is not None and min(width, height) > resize
        # Decoding to grey at a fraction of the size walks through every coefficient of the file, chroma included, so
        # it finds whatever a full decoding finds; it leaves out the colours and most of the inverse DCT, two thirds of
        # the time. What is left is enough for the perceptual hash.
        if upright is None:
            upright = _decoded(image, data, small=not (changes or shrink))
        if changes:
            rotation = _rotation(image)  # asked again: Pillow turns a TIFF by itself while loading it
            upright = _upright(upright, rotation, spent=True)
            if upright is not image:
                image.close()
            format_ = "JPEG" if format_ in ("JPEG", "MPO") else "PNG"
            width, height = upright.size
        phash, thumbnail = perceptual_hash(upright)
        converted = None
        if resize is not None and shrink:
            changes.append("resized")
            scale = resize / min(width, height)
            size = (round(width * scale), round(height * scale))
            upright = upright.resize(size, Image.Resampling.LANCZOS)
            format_ = "JPEG"
        if changes:
            converted = _encode(upright, format_)
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder makes of hostile bytes
        return Inspection(width=width, height=height, reason=_damage(error)), None
    reasons = changes
    known = extension.lower() in EXTENSIONS[format_]
    if not known and not converted:
        reasons = [f"{format_} named {extension or 'without extension'}"]
    found = Inspection(
        width=width,
        height=height,
        verdict="converted" if converted else "kept",
        reason="; ".join(reasons),
        extension=extension if known else EXTENSIONS[format_][0],
        phash=phash,
        thumbnail=thumbnail,
    )
    return found, converted


def decode(data: bytes) -> tuple[Image.Image | None, str]:
    """Decode a photo's bytes, under the limits that ``examine`` judges by and to the pixels that it writes.

    Args:
        data: The whole file.

    Returns:
        The upright 8-bit RGB image and an empty reason; or None and why there is none.
    """
    if not data:
        return None, "empty"
    image, refused = _open(data)
    if image is None:
        return None, refused.reason
    try:
        decoded = _decoded(image, data)
        return _upright(decoded, _rotation(image), spent=True), ""
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder makes of hostile bytes
        return None, _damage(error)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Give an image as 8-bit RGB, transparent parts over white, turned as its EXIF orientation says."""
    image.load()  # before getexif(), as in ``examine``
    return _upright(image, _rotation(image))


def perceptual_hash(image: Image.Image) -> tuple[int | None, bytes]:
    """Hash what an image looks like, so that a rescaled or recompressed copy is a few bits away.

    The 64 bits of imagehash.phash (signs of the 8 × 8 lowest DCT coefficients against their median), made of an image
    that is first reduced by a whole factor to about twice the size, by the JPEG decoder already where it can: a
    fraction of the cost of resampling it all, and on average 0.8 of the 64 bits away from imagehash's own (on the
    2,848 photos of the five flowers).

    Returns:
        The hash, and 16 × 16 grey values as bytes; (None, b"") for a flat image.
    """
    factor = max(1, min(image.size) // (2 * HASH_SIDE))
    small = image.reduce(factor) if factor > 1 else image
    small = small.convert("L").resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BILINEAR)
    grey = np.frombuffer(small.tobytes(), dtype=np.uint8).reshape(HASH_SIDE, HASH_SIDE).astype(np.float64)
    values = grey.ravel()
    if values @ values / values.size - (values.sum() / values.size) ** 2 < FLAT**2:
        return None, b""
    low = _DCT @ grey @ _DCT.T
    ordered = np.sort(low, axis=None)  # np.std and np.median cost as much as all the rest here
    bits = np.packbits(low > (ordered[31] + ordered[32]) / 2)
    return int.from_bytes(bits.tobytes(), "big"), small.reduce(HASH_SIDE // THUMBNAIL_SIDE).tobytes()


def _open(data: bytes, resize: int | None = None) -> tuple[Image.Image | None, Inspection]:
    """Open an image without decoding it; None, and the findings, where its header is reason enough to refuse it."""
    if data.startswith(b"GIF8") and data.count(b"!\xfe") > MAX_COMMENTS + len(data) // 16384:  # by chance, every 65536
        return None, Inspection(reason="damaged (absurdly many comments)")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except MemoryError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, above ours
        return None, Inspection(reason="absurdly large")
    except Exception:  # whatever a decoder makes of hostile bytes
        return None, Inspection(reason="damaged" if data.startswith((JPEG_MAGIC, PNG_MAGIC)) else "not an image")
    width, height = image.size
    found = Inspection(width=width, height=height)
    try:
        if width * height > MAX_PIXELS or decoding_bytes(data, image, resize) > MAX_DECODING_BYTES:
            return None, found._replace(reason="absurdly large")
        if min(width, height) < MIN_SIDE:
            return None, found._replace(reason="absurdly tiny")
        if width * height > MAX_PIXELS_PER_BYTE * len(data):
            return None, found._replace(reason=f"damaged ({len(data)} bytes can't be {width} × {height} pixels)")
        # Not n_frames: counting those of a TIFF takes a time that grows with the square of their number.
        if image.format in ("GIF", "WEBP", "PNG") and getattr(image, "is_animated", False):
            return None, found._replace(reason="animated")
    except MemoryError:
        raise
    except Exception as error:  # as above
        return None, found._replace(reason=_damage(error))
    return image, found


def _decoded(image: Image.Image, data: bytes, *, small: bool = False) -> Image.Image:
    """Decode an opened image to its end and raise ``Damaged``, or whatever its decoder raises, if it isn't whole.

    With ``small``, a JPEG may become a grey image of a fraction of its size, at least twice that of the hash's.
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


def _upright(image: Image.Image, rotation: Image.Transpose | None, *, spent: bool = False) -> Image.Image:
    """Give a decoded image as upright 8-bit RGB; ``spent``: the given one isn't needed any more."""
    if image.mode != "RGB" or "transparency" in image.info:
        plain = _plain(image)
        if spent:
            image.close()  # three copies of the largest images are over 1 GB
        image = plain
    return image if rotation is None else image.transpose(rotation)


def _record(file) -> Record:
    refusal = file.refusal or (None if file.class_name else "outside every class folder")
    record = Record(file.path, file.class_name, file.split, refusal)
    if refusal:
        record.verdict, record.reason = "dropped", refusal
    return record


def _task(job: tuple[str, bytes | None], *, root: str, content: Path | None, keep_copies: bool, resize: int | None):
    name, line = job
    path = os.path.join(root, name)  # noqa: PTH118  pathlib costs as much as hashing here
    return (line and _recall(path, line, content, keep_copies)) or inspect_file(
        path, content=content, keep_copies=keep_copies, resize=resize
    )


def _recall(path: str, line: bytes, content: Path | None, keep_copies: bool) -> Inspection | None:
    """Take a finding over from the journal if neither the file nor what was written for it has changed since."""
    try:
        _, *fields, thumbnail = json.loads(line)
        found = Inspection._make([*fields, base64.b64decode(thumbnail)])
        now = Path(path).stat()
        if (now.st_size, now.st_mtime_ns) != (found.size, found.mtime_ns):
            return None
        needed = found.verdict == "converted" or (found.verdict == "kept" and keep_copies)
        if content and needed and _read(content / found.written_sha256)[3] != found.written_sha256:
            return None
    except (OSError, ValueError, TypeError):
        return None
    return found


def _crashed(job: tuple[str, bytes | None], *, root: str) -> Inspection:
    path = os.path.join(root, job[0])  # noqa: PTH118
    _, size, mtime_ns, digest = _read(path, keep=False)
    return Inspection(size=size, mtime_ns=mtime_ns, sha256=digest, reason="crashes the decoder")


def _hash_task(name: str, *, root: str) -> str:
    try:
        return _read(os.path.join(root, name), keep=False)[3]  # noqa: PTH118
    except OSError:
        return ""


def open_regular(path: str | Path) -> FileIO:
    """Open a file to read, unbuffered.

    Raises:
        OSError: There is none, or it is a FIFO or the like, which isn't waited for.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return os.fdopen(fd, "rb", buffering=0)
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file")


def _read(path: str | Path, *, keep: bool = True) -> tuple[bytes | None, int, int, str]:
    """Read a file once: its bytes (None if not wanted or too large), size, mtime in ns and sha256."""
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        if keep and status.st_size <= MAX_BYTES:
            data = file.read()
            return data, len(data), status.st_mtime_ns, hashlib.sha256(data).hexdigest()
        digest, size = hashlib.sha256(), 0
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
        return None, size, status.st_mtime_ns, digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(data)
    except OSError as error:
        hint = "free some space, or choose another --out"
        raise InputError(f"can't write to {path.parent}: {error.strerror}", hint) from None


def _changes(image: Image.Image, data: bytes) -> list[str]:
    """Say why the bytes can't stay: readers would see different pixels, or not be able to read them at all."""
    changes, format_ = [], image.format or ""
    if format_ not in EXTENSIONS:
        several = getattr(image, "is_animated", False)
        changes.append(f"{format_}, first of several images" if several else format_)
    if _rotation(image) is not None:
        changes.append("EXIF-rotated")
    deep = image.format == "PNG" and data[24:25] == b"\x10"
    if deep or image.mode in ("I", "F") or image.mode.startswith("I;16"):
        changes.append("16-bit")
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        changes.append("transparent")
    elif image.mode not in ("RGB", "L"):
        changes.append({"P": "palette", "1": "black and white"}.get(image.mode, image.mode))
    return changes


def _rotation(image: Image.Image) -> Image.Transpose | None:
    try:
        return ROTATIONS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # corrupt EXIF says nothing about the orientation
        return None


def _plain(image: Image.Image) -> Image.Image:
    """Give the image as 8-bit RGB, transparent parts over white; band by band, as the copies on the way take memory."""
    width, height = image.size
    rows = max(1, BAND_PIXELS // width)
    boxes = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    scale = None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        lows, highs = zip(*(_extremes(image.crop(box)) for box in boxes), strict=True)
        low, high = float(np.nanmin(lows)), float(np.nanmax(highs))
        # Where readers agree on no range, the image's own goes from black to white.
        scale = (low, high) if image.mode == "F" or low < 0 or high > 65535 else (0.0, 65535.0)
    plain = Image.new("RGB", image.size)
    for box in boxes:
        plain.paste(_plain_band(image.crop(box), scale), box)
    return plain


def _extremes(band: Image.Image) -> tuple[float, float]:
    values = np.asarray(band)
    return np.nanmin(values), np.nanmax(values)


def _plain_band(image: Image.Image, scale: tuple[float, float] | None) -> Image.Image:
    if scale is not None:
        low, high = scale
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=low)
        values = (values - low) * (65535 / ((high - low) or 1))
        image = Image.fromarray(np.round(values / 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _encode(image: Image.Image, format_: str) -> bytes:
    out = io.BytesIO()
    image.info = {}  # no profile, no EXIF (it is upright now), no transparency
    if format_ == "JPEG":
        image.save(out, "JPEG", quality=95, subsampling=0)
    else:
        image.save(out, "PNG")
    return out.getvalue()


def _damage(error: Exception) -> str:
    message = str(error)
    if isinstance(error, Damaged):
        return message
    truncated = isinstance(error, EOFError) or "truncated" in message.lower()
    return "truncated" if truncated else f"damaged ({message})" if message and "0x" not in message else "damaged"
