"""Find the photos to predict: files, folders, globs, archives, addresses and camera frames. Doesn't import torch."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mmflowers.preparation.formats import EXTENSIONS
from mmflowers.utils.errors import InputError, Problem

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
SORTED = 10_000  # folders with fewer entries are sorted by name; larger ones aren't, so that memory doesn't grow
STDIN = "-"


class Input(NamedTuple):
    """One photo to predict, before it is read.

    Attributes:
        name: Its name in the output.
        source: The path of a file, an http(s) address, the photo's encoded bytes, an RGB array (uint8, H × W × 3) or a
            PIL image; None if there is no photo.
        reason: Why there is no photo.
    """

    name: str
    source: str | bytes | np.ndarray | Image.Image | None
    reason: str = ""

    @property
    def is_own_file(self) -> bool:
        """Whether the photo is a file of the user, neither unpacked nor downloaded."""
        return isinstance(self.source, str) and self.source == self.name and not is_url(self.source)


class Skipped:
    """Count of the files in folders and archives that were skipped, because they lack the extension of an image."""

    count = 0


def is_url(text: str) -> bool:
    """Return whether a text is an http(s) address."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def require_inputs(arguments: Iterable[str]) -> None:
    """Raise an error if none of the arguments exists. If only some don't exist, each of them gets a row with a reason.

    Raises:
        InputError: None exists; the message names every argument.
    """
    arguments = list(arguments)
    if not any(map(_is_there, arguments)):
        hint = "give files, folders, quoted globs, archives or addresses"
        raise InputError(problems=[Problem(f"there is no {text}", hint) for text in arguments or ["input"]])


def find_inputs(
    arguments: Iterable[str], *, staging: Path, skipped: Skipped | None = None, leave_out: Collection[Path] = ()
) -> Iterator[Input]:
    """Yield every photo of the arguments lazily; nothing but the content of an archive is kept.

    Folders are walked recursively without following links to folders. Hidden files and files without the extension of
    an image are skipped. An argument without a photo is yielded with the reason.

    Args:
        arguments: Files, folders, globs, archives, http(s) addresses; ``-`` reads a list of these from stdin.
        staging: The folder that archives are unpacked into; it must exist until their photos are read.
        skipped: Its ``count`` is increased by the number of skipped files.
        leave_out: Folders that aren't entered, such as those of the results.
    """
    skipped = skipped or Skipped()
    left_out = {os.path.realpath(path) for path in leave_out}
    for argument in arguments:
        if argument == STDIN:
            for line in sys.stdin.buffer:
                if text := os.fsdecode(line.rstrip(b"\r\n")):
                    yield from _expand(text, staging, skipped, left_out)
        else:
            yield from _expand(argument, staging, skipped, left_out)


def camera_frames(device: int | str = 0) -> Iterator[Input]:
    """Yield the frames of a camera until it stops.

    Args:
        device: Number of a camera, or the path of a video.

    Raises:
        InputError: The camera can't be opened.
    """
    import cv2

    with contextlib.suppress(AttributeError):  # OpenCV 5 logs several lines about a missing camera
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    capture = cv2.VideoCapture(device)
    try:
        if not capture.isOpened():
            raise InputError(f"there is no camera {device}", "connect one, or give another number: --camera 1")
        for number in itertools.count(1):
            there, frame = capture.read()
            if not there:
                return
            yield Input(f"camera {device} frame {number}", frame[..., ::-1].copy())
    finally:
        capture.release()


def _is_there(text: str) -> bool:
    if text == STDIN or is_url(text) or os.path.lexists(os.path.expanduser(text)):  # noqa: PTH111
        return True
    return glob.has_magic(text) and next(glob.iglob(text, recursive=True), None) is not None  # noqa: PTH207


def _expand(text: str, staging: Path, skipped: Skipped, left_out: set[str]) -> Iterator[Input]:
    if "\0" in text:  # never in a path; some system functions would raise
        yield Input(text, None, "no such file")
        return
    # Strings instead of pathlib, which would normalise names that the output must repeat unchanged.
    path = os.path.expanduser(text)  # noqa: PTH111
    if is_url(text):
        yield Input(text, text)
    elif os.path.isdir(path):  # noqa: PTH112
        yield from _walk(path, skipped, left_out)
    elif path.lower().endswith(ARCHIVES) and os.path.isfile(path):  # noqa: PTH113
        yield from _unpack(path, staging, skipped)
    elif os.path.lexists(path):
        yield Input(path, path)
    elif glob.has_magic(path):
        matches = glob.iglob(path, recursive=True)  # noqa: PTH207
        first = next(matches, None)
        if first is None:
            yield Input(text, None, "matches no file")
            return
        for match in itertools.chain((first,), matches):
            if not os.path.isdir(match):  # noqa: PTH112
                if not left_out or not left_out & set(map(str, Path(os.path.realpath(match)).parents)):
                    yield Input(match, match)
            elif "**" not in path:  # "**" itself matches the files of every folder
                yield from _walk(match, skipped, left_out)
    else:
        yield Input(text, None, "no such file")


def _walk(folder: str, skipped: Skipped, left_out: set[str]) -> Iterator[Input]:
    folders = [folder]
    while folders:
        folder = folders.pop()
        below = []
        try:
            with os.scandir(folder) as entries:
                first = sorted(itertools.islice(entries, SORTED), key=lambda entry: entry.name)
                some = first if len(first) < SORTED else itertools.chain(first, entries)
                for entry in some:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if not left_out or os.path.realpath(entry.path) not in left_out:
                            below.append(entry.path)
                    elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:  # noqa: PTH122
                        yield Input(entry.path, entry.path)
                    else:
                        skipped.count += 1
        except OSError as error:
            yield Input(folder, None, f"a folder that can't be read ({error.strerror})")
        folders += reversed(below)


def _unpack(path: str, staging: Path, skipped: Skipped) -> Iterator[Input]:
    from mmflowers.preparation.archives import unpack
    from mmflowers.utils.files import file_sha256

    try:
        folder = str(unpack(Path(path), staging, sha256=file_sha256(path)))
    except InputError as error:
        yield from (Input(path, None, problem.what) for problem in error.problems)
        return
    except OSError as error:
        yield Input(path, None, f"unreadable ({error.strerror})")
        return
    for found in _walk(folder, skipped, set()):
        yield found._replace(name=path + found.name.removeprefix(folder))
