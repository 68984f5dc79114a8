"""The dataset folder on disk: built in a hidden folder beside it, synced, then exchanged as a whole."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import io
import json
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from mmflowers.preparation.inspection import hash_files
from mmflowers.preparation.records import SPLITS, Record, Source, SourceFile
from mmflowers.preparation.splitting import encoded, shown
from mmflowers.utils.errors import InputError, some
from mmflowers.utils.files import REFUSALS, file_sha256, locked, sync_folder, write_rows

FORMAT, FORMAT_VERSION = "mmflowers dataset", 3  # 3: turned, mirrored, cropped and framed copies are in a group
LISTS = tuple(f"{name}.txt" for name in SPLITS)
WRITTEN = (*SPLITS, *LISTS, "classes.txt", "files.csv", "DATA_CARD.md", "contact_sheet.jpg", "dataset.json")
CARRIED_OVER = ("README.md", ".gitignore", ".gitkeep")  # the folder's own page, in the project and in yours
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")
FINDINGS = ("sha256", "size", "width", "height", "verdict", "reason")  # columns of files.csv, fields of ``Record``
DISK_RESERVE = 64 << 20  # bytes for lists, tables and what else happens on the disk meanwhile
LOCK_TIMEOUT_S = 3.0  # the workers of a killed run hold its lock for a moment longer
SHEET_CLASSES, SHEET_PHOTOS, SHEET_SIDE = 40, 8, 112  # of the contact sheet: rows, photos a row, pixels

WRITING = REFUSALS | {errno.ENOTDIR, errno.ENAMETOOLONG}  # errors of the disk and of --out; any other is a bug
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS


class Target:
    """The place of a dataset folder, with the hidden folders of a run beside it.

    Attributes:
        out: The dataset folder, links resolved.
        incomplete: Hidden folder beside it with everything of an unfinished run.
        dataset: The new dataset folder in ``incomplete``.
        content: Folder in ``incomplete`` of files named by their sha256.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.expanduser().resolve()
        self.incomplete = self.out.with_name(f".{self.out.name}.incomplete")
        self.dataset = self.incomplete / "dataset"
        self.content = self.incomplete / "content"
        self._old = self.incomplete / "old"

    def metadata(self) -> dict[str, Any]:
        """Return the content of the existing ``dataset.json``; empty if there is none of ours."""
        try:
            metadata = json.loads((self.out / "dataset.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return metadata if isinstance(metadata, dict) and metadata.get("format") == FORMAT else {}

    def check(self, *, force: bool) -> None:
        """Raise an error if ``out`` isn't a dataset folder that the preparation wrote.

        Raises:
            InputError: if ``out`` is a file, or a folder that holds anything else; with ``force`` only if it is the
                current folder, the home folder or one above them.
        """
        if not self.out.exists():
            return
        if not self.out.is_dir():
            raise InputError(f"{self.out} is a file", "give another folder with --out")
        expected = {*CARRIED_OVER, *LITTER, *(WRITTEN if self.metadata() else ())}
        others = sorted({path.name for path in self.out.iterdir()} - expected)
        if not others:
            return
        if not force:
            what = f"{self.out} has files that prepare_flowers did not write: {some(map(shown, others))}"
            raise InputError(what, "give another folder with --out; --force would delete all of it")
        if any(self.out in (home, *home.parents) for home in (Path.cwd(), Path.home().resolve())):
            what = f"{self.out} is or contains the current folder or your home folder"
            raise InputError(what, "give another folder with --out")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock this target for one run at a time, and finish the exchange of folders that a killed run has begun.

        Raises:
            InputError: Another run holds the lock.
        """
        path = self.out.with_name(f".{self.out.name}.lock")
        busy = InputError(f"another run is writing {self.out.name} (it holds {path})", "wait until it has ended")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with locked(path, timeout=LOCK_TIMEOUT_S, busy=lambda: busy):
            if self._old.exists():  # killed between the two renames of ``_exchange``
                if self.out.exists():
                    shutil.rmtree(self._old)
                else:
                    self._old.rename(self.out)
            yield

    def start(self) -> None:
        """Create the folders of a run; keep what an interrupted run has inspected."""
        if self.dataset.exists():
            shutil.rmtree(self.dataset)
        self.content.mkdir(parents=True, exist_ok=True)
        self.dataset.mkdir()

    def sync_early(self) -> None:
        """Start to sync what is written so far, in a thread, so that ``finish`` has less to wait for."""
        threading.Thread(target=_sync, args=(self.incomplete,), daemon=True).start()

    def finish(self) -> None:
        """Sync the new dataset and exchange it with the old one, atomically if the operating system supports it."""
        if self.out.exists():
            for name in CARRIED_OVER:
                if (self.out / name).exists():
                    shutil.copy2(self.out / name, self.dataset / name)
        _sync(self.dataset)
        if self.out.exists():
            _exchange(self.dataset, self.out, self._old)
        else:
            self.dataset.rename(self.out)
        sync_folder(self.out.parent)
        self.clear()

    def clear(self) -> None:
        """Delete everything of this run except the dataset."""
        if self.incomplete.exists():
            shutil.rmtree(self.incomplete)


def require_space(folder: Path, needed: int) -> None:
    """Raise an error if the disk has too little room.

    Args:
        folder: Any path on that disk; it needn't exist yet.
        needed: Bytes.

    Raises:
        InputError: with both figures.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed + DISK_RESERVE:
        what = f"{folder} has {free / 1e6:,.0f} MB free, {(needed + DISK_RESERVE) / 1e6:,.0f} MB are needed"
        raise InputError(what, "free some space, choose another --out, or use --link hardlink or --resize")


def place_photos(records: Iterable[Record], source: Path, target: Target, *, link: str) -> list[str]:
    """Move, link or copy every photo to its place in the new dataset.

    Args:
        records: Those with a ``target`` are placed.
        source: The source's root.
        target: Its ``content`` holds what is to be copied or was converted.
        link: "copy", "hardlink" or "symlink": how photos whose bytes are kept get there.

    Returns:
        A line for the user if hard links weren't possible.
    """
    placed = [(record, record.target) for record in records if record.target]
    notes: list[str] = []
    for folder in sorted({place.rpartition("/")[0] for _, place in placed}):
        (target.dataset / folder).mkdir(parents=True)
    uses = Counter(record.written_sha256 for record, _ in placed)
    for record, place in placed:
        if uses[record.written_sha256] == 1 and (link == "copy" or record.verdict == "converted"):
            os.rename(f"{target.content}/{record.written_sha256}", f"{target.dataset}/{place}")  # noqa: PTH104
            continue
        path, original = target.dataset / place, source / record.path
        if link == "symlink" and record.verdict == "kept":
            path.symlink_to(original.resolve())
            continue
        if link == "hardlink" and record.verdict == "kept":
            try:
                os.link(original.resolve(), path)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                    raise
                notes = [f"hard links aren't possible here ({error.strerror}): photos were copied"]
                shutil.copyfile(original, path)
            continue
        uses[record.written_sha256] -= 1  # identical files that all stay: the last one is moved
        shutil.copyfile(target.content / record.written_sha256, path)
    return notes


def write_tables(records: list[Record], classes: list[str], target: Target) -> None:
    """Write the lists, ``classes.txt`` and ``files.csv``."""
    labels = {name: label for label, name in enumerate(classes)}
    for name in SPLITS:
        photos = sorted(record.target for record in records if record.target and record.split == name)
        if photos:
            lines = (f"{photo} {labels[photo.split('/')[1]]}\n" for photo in photos)
            (target.dataset / f"{name}.txt").write_bytes("".join(lines).encode())
    (target.dataset / "classes.txt").write_bytes("".join(f"{name}\n" for name in classes).encode())
    with (target.dataset / "files.csv").open("w", encoding="utf-8", newline="") as file:
        write_rows(file, [["path", "class", "split", *FINDINGS, "duplicate_of", "group", "target"]])
        write_rows(file, map(_row, records))


def _row(record: Record) -> list[str | int]:
    source = (shown(record.path), shown(record.class_name or ""), record.split or "")
    findings = (getattr(record, name) for name in FINDINGS)
    return [*source, *findings, shown(record.duplicate_of), record.group or "", record.target or ""]


def write_contact_sheet(records: Iterable[Record], classes: list[str], target: Target) -> None:
    """Draw a few training photos of each class into ``contact_sheet.jpg``: those with the smallest sha256."""
    rows: dict[str, list[str]] = {name: [] for name in classes[:SHEET_CLASSES]}
    for record in sorted(records, key=lambda record: (record.sha256, record.path)):
        if record.target and record.split == "train":
            row = rows.get(record.target.split("/")[1])
            if row is not None and len(row) < SHEET_PHOTOS:
                row.append(record.target)
    gap, caption = 4, 18
    size = (SHEET_PHOTOS * (SHEET_SIDE + gap) + gap, len(rows) * (SHEET_SIDE + caption + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    with ThreadPoolExecutor() as pool:  # decoders release the GIL
        photos = pool.map(_square, [target.dataset / photo for row in rows.values() for photo in row])
    for y, (name, row) in enumerate(rows.items()):
        top = gap + y * (SHEET_SIDE + caption + gap)
        try:
            draw.text((gap, top + 2), name, "black", font)
        except UnicodeEncodeError:  # Pillow without FreeType writes Latin-1 only
            draw.text((gap, top + 2), name.encode("ascii", "replace").decode(), "black", font)
        for x in range(len(row)):
            sheet.paste(next(photos), (gap + x * (SHEET_SIDE + gap), top + caption))
    out = io.BytesIO()  # Pillow's own errors don't name the error of the disk
    sheet.save(out, "JPEG", quality=85)
    (target.dataset / "contact_sheet.jpg").write_bytes(out.getvalue())


def _square(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.draft("RGB", (SHEET_SIDE, SHEET_SIDE))
        return ImageOps.fit(image, (SHEET_SIDE, SHEET_SIDE)).convert("RGB")


def write_metadata(metadata: dict[str, Any], records: Iterable[Record], target: Target) -> None:
    """Write ``dataset.json``, the last file: with the digest of all the others."""
    files = [(record.target, record.written_sha256) for record in records if record.target]
    for path in sorted(target.dataset.iterdir()):
        if path.is_file():
            files.append((path.name, file_sha256(path)))
    metadata = {"format": FORMAT, "format_version": FORMAT_VERSION, **metadata}
    metadata["digests"] = {**metadata["digests"], "dataset": digest(files)}
    text = json.dumps(metadata, indent=2, sort_keys=True, ensure_ascii=False)
    (target.dataset / "dataset.json").write_bytes(f"{text}\n".encode())


def is_whole(out: Path, metadata: dict[str, Any], *, workers: int) -> bool:
    """Return whether the dataset folder has exactly the files and bytes that were written into it."""
    names = [name for name in WRITTEN if name != "dataset.json" and (out / name).is_file()]
    for name in SPLITS:
        for folder, _, files in os.walk(out / name):
            names += [(Path(folder) / file).relative_to(out).as_posix() for file in files if file not in LITTER]
    written = Source(out, [SourceFile(name, "any") for name in names])
    return bool(digest(hash_files(written, workers=workers)) == metadata.get("digests", {}).get("dataset"))


def digest(files: Iterable[tuple[str, str]]) -> str:
    """Return the digest of a set of files: the sha256 of what ``sha256sum`` prints for them, sorted by path.

    Args:
        files: ``(path, sha256)``; any order.
    """
    lines = sorted((encoded(path), sha256) for path, sha256 in files)
    return hashlib.sha256(b"".join(b"%s  %s\n" % (sha256.encode(), path) for path, sha256 in lines)).hexdigest()


def _exchange(new: Path, out: Path, old: Path) -> None:
    """Exchange ``new`` and ``out``: a reader always finds the old folder or the new one.

    If the operating system or the file system can't exchange two names, they are renamed one after the other; a kill
    in between leaves no ``out`` until the next run restores the old one.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        names = os.fsencode(new), os.fsencode(out)
        if sys.platform == "darwin":
            failed = libc.renamex_np(*names, ctypes.c_uint(_EXCHANGE))
        else:
            here = ctypes.c_int(-100)  # AT_FDCWD
            failed = libc.renameat2(here, names[0], here, names[1], ctypes.c_uint(_EXCHANGE))
    except (AttributeError, OSError, TypeError):  # no such function; no C library to ask (Windows)
        failed = True
    if failed:
        out.rename(old)
        new.rename(out)


def _sync(folder: Path) -> None:
    """Sync everything written so far with one call for the file system, instead of one for each of 100,000 files."""
    if sys.platform == "linux":
        fd = os.open(folder, os.O_RDONLY)
        try:
            if ctypes.CDLL(None).syncfs(fd) == 0:
                return
        except AttributeError:
            pass
        finally:
            os.close(fd)
    if hasattr(os, "sync"):
        os.sync()
