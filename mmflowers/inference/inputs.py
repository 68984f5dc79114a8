"""What is to be predicted: files, folders, globs, archives, addresses and a camera, one after the other. No torch."""

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

from mmflowers.utils.errors import InputError, Problem

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"}
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
SORTED = 10_000  # a folder of fewer entries is walked by name; a larger one as it comes, held in memory nowhere
STDIN = "-"


class Input(NamedTuple):
    """One photo to predict, not read yet.

    Attributes:
        name: What the user calls it.
        source: The path of a file, an http(s) address, the photo's encoded bytes, an RGB array (uint8, H × W × 3) or a
            PIL image; None where there is none.
        reason: Why there is none.
    """

    name: str
    source: str | bytes | np.ndarray | Image.Image | None
    reason: str = ""

    @property
    def is_own_file(self) -> bool:
        """Whether the photo is a file of the user's, neither unpacked nor downloaded."""
        return isinstance(self.source, str) and self.source == self.name and not is_url(self.source)


class Passed:
    """Counts the files of folders and archives that were passed over, not having an image's extension."""

    count = 0


def is_url(text: str) -> bool:
    """Whether this is an http(s) address."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def require_inputs(arguments: Iterable[str]) -> None:
    """Refuse arguments of which not a single one names anything; where some do, the others get a row each.

    Raises:
        InputError: With every argument.
    """
    arguments = list(arguments)
    if not any(map(_is_there, arguments)):
        hint = "give files, folders, quoted globs, archives or addresses"
        raise InputError(problems=[Problem(f"there is no {text}", hint) for text in arguments or ["input"]])


def find_inputs(
    arguments: Iterable[str], *, staging: Path, passed: Passed | None = None, leave_out: Collection[Path] = ()
) -> Iterator[Input]:
    """Yield every photo that the arguments name, as late as possible: nothing but an archive's content is kept.

    Folders are walked recursively (links to folders aren't followed), hidden files and files without an image's
    extension passed over. What can't be had is yielded with the reason.

    Args:
        arguments: Files, folders, globs, archives, http(s) addresses; ``-`` stands for a list of these on stdin.
        staging: Where archives are unpacked; it has to stay until their photos are read.
        passed: Counts what was passed over.
        leave_out: Folders not to enter, the results' own.
    """
    passed = passed or Passed()
    left_out = {os.path.realpath(path) for path in leave_out}
    for argument in arguments:
        if argument == STDIN:
            for line in sys.stdin.buffer:
                if text := os.fsdecode(line.rstrip(b"\r\n")):
                    yield from _named(text, staging, passed, left_out)
        else:
            yield from _named(argument, staging, passed, left_out)


def camera_frames(device: int | str = 0) -> Iterator[Input]:
    """Yield what a camera sees, frame by frame, until it is gone.

    Args:
        device: Number of a camera, or the path of a video.

    Raises:
        InputError: There is none.
    """
    import cv2

    with contextlib.suppress(AttributeError):  # of OpenCV 5; it has much to say on a camera that isn't there
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    capture = cv2.VideoCapture(device)
    try:
        if not capture.isOpened():
            raise InputError(f"there is no camera {device}", "plug one in, or give another number: --camera 1")
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


def _named(text: str, staging: Path, passed: Passed, left_out: set[str]) -> Iterator[Input]:
    if "\0" in text:  # in no path; some functions of the system would raise
        yield Input(text, None, "no such file")
        return
    # Plain strings, not pathlib: a name is to come back letter by letter.
    path = os.path.expanduser(text)  # noqa: PTH111
    if is_url(text):
        yield Input(text, text)
    elif os.path.isdir(path):  # noqa: PTH112
        yield from _walk(path, passed, left_out)
    elif path.lower().endswith(ARCHIVES) and os.path.isfile(path):  # noqa: PTH113
        yield from _unpacked(path, staging, passed)
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
            elif "**" not in path:  # which gives the files of every folder itself
                yield from _walk(match, passed, left_out)
    else:
        yield Input(text, None, "no such file")


def _walk(folder: str, passed: Passed, left_out: set[str]) -> Iterator[Input]:
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
                        passed.count += 1
        except OSError as error:
            yield Input(folder, None, f"a folder that can't be read ({error.strerror})")
        folders += reversed(below)


def _unpacked(path: str, staging: Path, passed: Passed) -> Iterator[Input]:
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
    for found in _walk(folder, passed, set()):
        yield found._replace(name=path + found.name.removeprefix(folder))
