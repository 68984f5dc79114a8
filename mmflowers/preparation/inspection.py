"""Inspect every file of a source: read it once, hash it, decode it fully, decide on it, and write what is needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
from PIL import Image

from mmflowers.preparation.agreement import check_jpeg, digest, is_usual_png, opencv_digest
from mmflowers.preparation.damage import reduction
from mmflowers.preparation.decoding import (
    HASH_SIDE,
    MAX_BYTES,
    MAX_PIXELS,
    Refused,
    convert,
    decode_fully,
    encode,
    find_rotation,
    has_deep_colour,
    is_deep,
    is_transparent,
    open_image,
    refusing_damage,
    spread,
)
from mmflowers.preparation.features import LONG_SIDE, describe
from mmflowers.preparation.formats import refusal
from mmflowers.preparation.journal import Inspection, Journal
from mmflowers.preparation.records import Record, Source, SourceFile
from mmflowers.preparation.workers import Workers
from mmflowers.utils.errors import InputError
from mmflowers.utils.files import hash_stream, open_regular
from mmflowers.utils.terminal import progress

EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
}  # of the formats whose bytes can be kept: all that OpenCV and Pillow read alike
THUMBNAIL_SIDE = 16
FLAT = 2.0  # standard deviation in grey levels: below it the hash is that of noise
# The 8 lowest frequencies of a 32-point DCT-II. With it the hash equals imagehash.phash of the same 32 × 32 image (a
# test says so), without the third of a second that its import of scipy costs at the start of every process.
_DCT = np.cos(np.pi / (2 * HASH_SIDE) * np.outer(np.arange(8), 2 * np.arange(HASH_SIDE) + 1))


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
    """Inspect every file of the source by itself; ``duplicates.resolve`` compares them.

    Args:
        source: Never written to.
        workers: Number of processes.
        content: Folder that gets what the dataset needs, each file named by its own sha256; None: nothing is written.
        keep_copies: Whether files whose bytes are kept go there too (not needed if they will be linked).
        resize: Short side in pixels that larger images are scaled down to; None: as they are.
        journal: Findings of an interrupted run are taken from it, and new ones are written to it.
        context: The multiprocessing context.

    Returns:
        A record for every file, in the source's order.

    Raises:
        InputError: ``content`` can't be written.
    """
    records = [_record(file) for file in source.files]
    pending = [record for record in records if record.verdict != "dropped"]
    task = partial(_task, root=str(source.root), content=content, keep_copies=keep_copies, resize=resize)
    jobs = ((record.path, journal.take(record.path) if journal else None) for record in pending)
    crashed = partial(_crashed, root=str(source.root))
    with Workers(task, jobs, workers=workers, crashed=crashed, context=context) as results:
        for number, found in progress(results, total=len(pending), what="inspecting"):
            record = pending[number]
            for name, value in found._asdict().items():
                if name != "mtime_ns":
                    setattr(record, name, value)
            if journal:
                journal.add(record.path, found)
    return records


def hash_files(source: Source, *, workers: int) -> Iterator[tuple[str, str]]:
    """Yield ``(path, sha256)`` of the files to inspect in any order; the sha256 of an unreadable file is empty."""
    paths = [record.path for record in map(_record, source.files) if record.verdict != "dropped"]
    task = partial(_hash_task, root=str(source.root))
    with Workers(task, paths, workers=workers, crashed=task) as results:
        for index, digest in progress(results, total=len(paths), what="comparing"):
            yield paths[index], digest


def inspect_file(
    path: str, *, content: Path | None = None, keep_copies: bool = True, resize: int | None = None
) -> Inspection:
    """Inspect one file and put what the dataset needs of it into ``content``; see ``inspect``.

    Whatever is wrong with the file is a verdict, never an exception.
    """
    extension = os.path.splitext(path)[1]  # noqa: PTH122
    try:
        data, known = _read(path)
    except OSError as error:
        return Inspection(reason=f"unreadable ({error.strerror or type(error).__name__})")
    if data is None:
        return known._replace(reason=refusal(b"", extension) or "absurdly large file")
    found, converted = examine(data, extension, resize=resize)
    found = found._replace(size=known.size, mtime_ns=known.mtime_ns, sha256=known.sha256)
    if found.verdict == "dropped":
        return found
    found = found._replace(written_sha256=hashlib.sha256(converted).hexdigest() if converted else known.sha256)
    if content and (converted or keep_copies):
        _write(content / found.written_sha256, converted or data)
    return found


def examine(data: bytes, extension: str, *, resize: int | None = None) -> tuple[Inspection, bytes | None]:
    """Inspect the bytes of a file.

    Args:
        data: The whole file.
        extension: Of its name, with the dot, in any case.
        resize: See ``inspect``.

    Returns:
        The findings without size and digests, and the bytes of the converted image (None unless converted).
    """
    try:
        image = open_image(data, resize, extension)
        with refusing_damage(image.size):
            found = _examine_image(image, data, extension, resize)
        if found is None:
            image = open_image(data, resize, extension)
            with refusing_damage(image.size):
                found = _examine_image(image, data, extension, resize, unlike=True)
        assert found is not None
        return found
    except Refused as refused:
        width, height = refused.size
        return Inspection(width=width, height=height, reason=str(refused)), None


def perceptual_hash(image: Image.Image) -> tuple[int | None, bytes]:
    """Hash what an image looks like, so that a rescaled or recompressed copy is a few bits away.

    The 64 bits of imagehash.phash (signs of the 8 × 8 lowest DCT coefficients against their median), made of an image
    that is first reduced by a whole factor to about twice the size, by the JPEG decoder already where it can: a
    fraction of the cost of resampling it all, and on average 0.8 of the 64 bits away from imagehash's own (on the
    2,848 photos of the five flowers).

    Returns:
        The hash, and 16 × 16 grey values as bytes; (None, b"") for a flat image.
    """
    small = _reduce(image).convert("L").resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BILINEAR)
    grey = np.frombuffer(small.tobytes(), dtype=np.uint8).reshape(HASH_SIDE, HASH_SIDE).astype(np.float64)
    values = grey.ravel()
    if values @ values / values.size - (values.sum() / values.size) ** 2 < FLAT**2:
        return None, b""
    low = _DCT @ grey @ _DCT.T
    ordered = np.sort(low, axis=None)  # np.std and np.median cost as much as all the rest here
    bits = np.packbits(low > (ordered[31] + ordered[32]) / 2)
    return int.from_bytes(bits.tobytes(), "big"), small.reduce(HASH_SIDE // THUMBNAIL_SIDE).tobytes()


def _reduce(image: Image.Image) -> Image.Image:
    factor = max(1, min(image.size) // (2 * HASH_SIDE))
    return image.reduce(factor) if factor > 1 else image


def _examine_image(
    image: Image.Image, data: bytes, extension: str, resize: int | None, *, unlike: bool = False
) -> tuple[Inspection, bytes | None] | None:
    """Examine an opened image; return None if its bytes could stay, but OpenCV decodes them to other pixels.

    Args:
        image: As ``open_image`` returns it.
        data: The whole file.
        extension: Of its name.
        resize: See ``inspect``.
        unlike: Whether that is already known.
    """
    format_, size = image.format or "", image.size
    # Before getexif(), which loads a PNG, its failure would pass for a corrupt EXIF and a second load() do nothing.
    decoded = decode_fully(image, data) if format_ == "PNG" else None
    changes = _changes(image, data)
    is_clear, is_usual = check_jpeg(data) if format_ == "JPEG" else (True, format_ == "PNG" and is_usual_png(data))
    if not is_clear and not changes:
        changes.append("unclear EXIF orientation")
    if unlike:
        changes.append("decoded differently by OpenCV")
    shrink = resize / min(size) if resize is not None and min(size) > resize else None
    is_compared = not (is_usual or changes or shrink)
    # Decoding to grey at a fraction of the size walks through every coefficient of the file, chroma included, so
    # it finds whatever a full decoding finds; it leaves out the colours and most of the inverse DCT, two thirds of
    # the time. What is left is enough for the perceptual hash.
    if decoded is None:
        decoded = decode_fully(image, data, small=not (changes or shrink or is_compared))
    if changes:
        decoded, bits = spread(decoded, data)
        if bits < 16:
            changes[changes.index("16-bit")] = f"16-bit with {bits} bits in use"
        rotation = find_rotation(image)  # asked again: Pillow turns a TIFF by itself while loading it
        decoded = convert(decoded, rotation, close=True)
        if decoded is not image:
            image.close()
        format_ = "JPEG" if format_ in ("JPEG", "MPO") else "PNG"
        size = decoded.size
    reduced = _reduce(decoded)
    phash, thumbnail = perceptual_hash(reduced)
    # Enlarged, small images are smooth blobs that resemble each other: comparing them would take hours, for nothing.
    features = describe(reduced) if max(size) >= LONG_SIDE else b""
    if is_compared:
        digests = {digest(one) for one in ([image] if decoded is image else [image, decoded])}
        image.close()  # a WebP's decoders take the memory that is allowed to one of them
        decoded.close()
        if digests != {opencv_digest(data)}:
            return None
    if shrink:
        changes.append("resized")
        scaled = round(size[0] * shrink), round(size[1] * shrink)
        decoded = decoded.resize(scaled, Image.Resampling.LANCZOS)
        format_ = "JPEG"
    has_right_name = extension.lower() in EXTENSIONS[format_]
    reasons = changes or ([] if has_right_name else [f"{format_} named {extension or 'without extension'}"])
    found = Inspection(
        width=size[0],
        height=size[1],
        verdict="converted" if changes else "kept",
        reason="; ".join(reasons),
        extension=extension if has_right_name else EXTENSIONS[format_][0],
        phash=phash,
        thumbnail=thumbnail,
        features=features,
    )
    return found, encode(decoded, format_) if changes else None


def _changes(image: Image.Image, data: bytes) -> list[str]:
    """Return why the bytes can't stay: readers would see different pixels, or couldn't read them at all."""
    changes, format_ = [], image.format or ""
    if format_ not in EXTENSIONS:
        several = getattr(image, "is_animated", False)
        changes.append(f"{format_}, first of several images" if several else format_)
    if (factor := reduction(image)) > 1:
        changes.append(f"over {MAX_PIXELS // 1_000_000} megapixels, decoded at 1/{factor} of the size")
    if find_rotation(image) is not None:
        changes.append("EXIF-rotated")
    if is_deep(image) or has_deep_colour(image, data):
        changes.append("16-bit")
    elif is_transparent(image):
        changes.append("transparent")
    elif image.mode not in ("RGB", "L"):
        changes.append({"P": "palette", "1": "black and white"}.get(image.mode, image.mode))
    return changes


def _record(file: SourceFile) -> Record:
    refusal = file.refusal or (None if file.class_name else "outside every class folder")
    record = Record(file.path, file.class_name, file.split, refusal)
    if refusal:
        record.drop(refusal)
    return record


def _task(
    job: tuple[str, bytes | None], *, root: str, content: Path | None, keep_copies: bool, resize: int | None
) -> Inspection:
    name, line = job
    path = os.path.join(root, name)  # noqa: PTH118  pathlib costs as much as hashing here
    found = line and _still_valid(path, line, content, keep_copies)
    return found or inspect_file(path, content=content, keep_copies=keep_copies, resize=resize)


def _still_valid(path: str, line: bytes, content: Path | None, keep_copies: bool) -> Inspection | None:
    """Return a finding of the journal if neither the file nor what was written for it has changed since."""
    try:
        found = Inspection.from_line(line)
        now = Path(path).stat()
        if (now.st_size, now.st_mtime_ns) != (found.size, found.mtime_ns):
            return None
        needed = found.verdict == "converted" or (found.verdict == "kept" and keep_copies)
        if content and needed and _read(content / found.written_sha256)[1].sha256 != found.written_sha256:
            return None
    except (OSError, ValueError, TypeError):
        return None
    return found


def _crashed(job: tuple[str, bytes | None], *, root: str) -> Inspection:
    path = os.path.join(root, job[0])  # noqa: PTH118
    return _read(path, keep=False)[1]._replace(reason="crashes the decoder")


def _hash_task(name: str, *, root: str) -> str:
    try:
        return _read(os.path.join(root, name), keep=False)[1].sha256  # noqa: PTH118
    except OSError:
        return ""


def _read(path: str | Path, *, keep: bool = True) -> tuple[bytes | None, Inspection]:
    """Read a file once: its bytes (None if not wanted or too large), and its size, mtime and hash."""
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        data = file.read() if keep and status.st_size <= MAX_BYTES else None
        if data is None:
            digest, size = hash_stream(file)
        else:
            digest, size = hashlib.sha256(data).hexdigest(), len(data)
    return data, Inspection(size=size, mtime_ns=status.st_mtime_ns, sha256=digest)


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        hint = "free disk space, or choose another --out"
        raise InputError(f"can't write {path.parent}: {error.strerror}", hint) from None
