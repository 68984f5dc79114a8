"""Result files: written whole or not at all, disk errors in one line, CSV cells that no spreadsheet runs, locks.

Imports nothing heavy; every room may use it.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import itertools
import os
import re
import socket
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from mmflowers.errors import InputError

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})  # never a wrong path
REFUSALS = DISK_ERRORS | {errno.EACCES, errno.EPERM}  # by the disk or its owner

LOCK, HOLDER = ".training.lock", ".training.txt"  # in a work dir

_ROOM, _RIGHTS = "free disk space", "check who may write there"
_HINTS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EIO: "check the disk",
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOENT: "make its folder first",
    errno.ENOTDIR: "name a folder where the path has a file",
    errno.EISDIR: "name a file",
    errno.ENAMETOOLONG: "give it a shorter name",
}


@contextmanager
def explained(
    path: str | Path, *, elsewhere: str = "write to another place", only: Collection[int] = ()
) -> Iterator[None]:
    """Turn an ``OSError`` into an ``InputError`` that names the file, what the disk said and what to do.

    Args:
        path: What is written.
        elsewhere: How the user chooses another place, such as "choose another --out".
        only: Where other code runs too: the values of ``errno`` to explain, such as ``REFUSALS``. The line then names
            the file that the error names.

    Raises:
        InputError: In place of the ``OSError``.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (only and error.errno not in only):
            raise
        named = error.filename if only and isinstance(error.filename, str) else path
        hint = _HINTS.get(error.errno)
        what = f"can't write {named}: {error.strerror or error}"
        raise InputError(what, f"{hint}, or {elsewhere}" if hint else elsewhere) from error


class AtomicFile:
    """A file that is written under a hidden name beside its own, which it gets by ``commit``.

    Until then what lay there before stays as it is; a permission to write to that is needed, and is kept. A link is
    followed: the file it leads to is replaced. FIFOs, devices and this process's own stdout and stderr can't be
    replaced and are written to directly.

    Args:
        path: Of the file.
        text: ``file`` takes text, as UTF-8 with line ends as they are, instead of bytes.
        errors: How text that can't be encoded is treated, as of ``open``.
        sync: Whether ``commit`` waits until the content is on the disk, so that not even a power cut leaves an empty
            file under the name. Not needed for what takes a moment to make again.

    Attributes:
        file: To write to.

    Raises:
        OSError: From each method, as the disk says it.
    """

    def __init__(self, path: str | Path, *, text: bool = False, errors: str = "strict", sync: bool = True) -> None:
        self.path, self._sync = Path(path), sync
        self._target = Path(os.path.realpath(path))
        self._partial: Path | None = None
        before = None
        with contextlib.suppress(FileNotFoundError):
            before = os.stat(path)  # noqa: PTH116  # of a link in /dev/fd too, whose real path is none
        stream = before and _open_stream(path, before)
        if stream is None:
            if before:
                os.close(os.open(self._target, os.O_WRONLY))  # a folder, write-protected: refused as `open` would
            # As many characters as fit whatever their bytes; `.*.pth.partial` finds those that a kill has left.
            self._partial = self._target.with_name(f".{os.urandom(4).hex()}.{self._target.name[-50:]}.partial")
            stream = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
            if before:
                with contextlib.suppress(OSError, AttributeError):  # another's file; Windows; disks without owners
                    os.chown(self._partial, before.st_uid, before.st_gid)
                with contextlib.suppress(OSError):
                    self._partial.chmod(stat.S_IMODE(before.st_mode))
        how: dict[str, Any] = (
            {"mode": "w", "encoding": "utf-8", "newline": "", "errors": errors} if text else {"mode": "wb"}
        )
        self.file: IO[Any] = open(stream, **how)  # noqa: PTH123, SIM115

    def commit(self) -> None:
        """Put the file in the place of the one that was there."""
        self._finish()
        if self._partial:
            self._partial.replace(self._target)

    def discard(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(OSError):
            self.file.close()
        if self._partial:
            with contextlib.suppress(OSError):
                self._partial.unlink()

    def keep(self) -> Path:
        """Keep what was written as ``<name>.partial<extension>`` beside the file, numbered where that is taken.

        Returns:
            The new name; of a FIFO and the like the file's own.
        """
        self._finish()
        if not self._partial:
            return self.path
        endings = itertools.chain(["partial"], (f"partial_{number}" for number in itertools.count(2)))
        names = (self.path.with_name(f"{self.path.stem}.{ending}{self.path.suffix}") for ending in endings)
        return self._partial.replace(next(name for name in names if not os.path.lexists(name)))

    def _finish(self) -> None:
        self.file.flush()
        if self._partial and self._sync:
            os.fsync(self.file.fileno())
        self.file.close()


def _open_stream(path: str | Path, status: os.stat_result) -> int | None:
    """A descriptor to write to something that can't be replaced; None where it is a file or a folder like others."""
    for own in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(status, os.fstat(own)):
                return os.dup(own)  # shares its place in a file, and works for a socket
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        return None
    return os.open(path, os.O_WRONLY)


@contextmanager
def replacing(path: str | Path, *, text: bool = False, sync: bool = True) -> Iterator[IO[Any]]:
    """Write a file whole or not at all: at the end of the context it gets its name, after any exception it is gone.

    Args:
        path: See ``AtomicFile``, as for ``text`` and ``sync``.

    Yields:
        The file to write to.

    Raises:
        OSError: As the disk says it, naming ``path``; ``explained`` makes a line of it.
    """
    whole = None
    try:
        whole = AtomicFile(path, text=text, sync=sync)
        yield whole.file
        whole.commit()
    except BaseException as error:
        if whole:
            whole.discard()
        if isinstance(error, OSError) and str(error.filename or ".partial").endswith(".partial"):
            error.filename, error.filename2 = str(path), None
        raise


def write_bytes(path: str | Path, data: bytes, *, sync: bool = True, elsewhere: str = "write to another place") -> None:
    """Write a file whole or not at all.

    Args:
        path: See ``AtomicFile``, as for ``sync``.
        data: Its content.
        elsewhere: See ``explained``.

    Raises:
        InputError: The disk is full, read-only or broken, or the path is wrong.
    """
    with explained(path, elsewhere=elsewhere), replacing(path, sync=sync) as file:
        file.write(data)


def write_text(path: str | Path, text: str, *, sync: bool = True, elsewhere: str = "write to another place") -> None:
    """Write UTF-8 with plain line feeds on every system; otherwise as ``write_bytes``."""
    write_bytes(path, text.encode(), sync=sync, elsewhere=elsewhere)


def write_csv(path: str | Path, rows: Iterable[Iterable[Any]], *, elsewhere: str = "write to another place") -> None:
    """Write a CSV that ``read_csv`` reads, whole or not at all; the first row is the header.

    Raises:
        InputError: As of ``write_bytes``.
    """
    text = io.StringIO()
    write_rows(text, rows)
    write_text(path, text.getvalue(), elsewhere=elsewhere)


@contextmanager
def creating(path: Path) -> Iterator[IO[bytes]]:
    """Create a file where none is yet; after any exception it is gone again.

    Raises:
        FileExistsError: One is there.
        OSError: As the disk says it.
    """
    file = path.open("xb")
    try:
        yield file
        file.close()
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        path.unlink(missing_ok=True)
        raise


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file's content, as 64 lower-case hex digits."""
    import pooch

    return pooch.file_hash(str(path), alg="sha256")


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where system and file system can."""
    if os.name == "posix":
        fd = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                os.fsync(fd)
        finally:
            os.close(fd)


# A spreadsheet runs a cell that begins with one of these (owasp.org/www-community/attacks/CSV_Injection), blanks before
# it or not. Where the decimal mark is a comma it also splits rows at semicolons, heedless of quotes within a cell: so
# what follows a semicolon, tab or line end counts as a beginning too.
_FORMULA = r"(?=['\s]*?[=+\-@＝＋－＠\t\r\n])"
_ESCAPE = re.compile(rf"(?<![^;\t\r\n]){_FORMULA}")
_UNESCAPE = re.compile(rf"(?<![^;\t\r\n])'{_FORMULA}")


def escape_cell(text: str) -> str:
    """Put a single quote before whatever a spreadsheet would run as a formula; other text stays as it is."""
    return _ESCAPE.sub("'", text)


def unescape_cell(text: str) -> str:
    """Undo ``escape_cell``, exactly."""
    return _UNESCAPE.sub("", text)


def write_rows(file: IO[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write rows of CSV, text escaped and numbers as they are, into a file opened with ``newline=""``."""
    plain = csv.writer(file, lineterminator="\n")
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        cells = [escape_cell(cell) if isinstance(cell, str) else cell for cell in row]
        # By itself the writer quotes a carriage return only where rows end in one; to the reader it always is an end.
        returns = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        (quoted if returns else plain).writerow(cells)


def read_rows(file: Iterable[str]) -> Iterator[list[str]]:
    """Yield the rows of a CSV, header first, with the text that ``write_rows`` was given.

    Raises:
        csv.Error: It is none.
    """
    for row in csv.reader(file):
        yield [unescape_cell(cell) for cell in row]


def read_csv(path: str | Path) -> list[list[str]]:
    """Read a CSV that ``write_csv`` wrote: its rows, header first.

    Raises:
        OSError, ValueError, csv.Error: It can't be read, or is none.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(read_rows(file))


@contextmanager
def hold_work_dir(work_dir: str | Path) -> Iterator[None]:
    """Hold the lock of a work dir, which one training at a time has; make the folder if it isn't there.

    The operating system releases the lock when the process ends, however it ends. Who holds it is in a file of its own:
    on Windows nobody else can read a locked one. Readers of the work dir need no lock.

    Raises:
        InputError: Another training holds it, which is named; the disk refuses it.
    """
    from filelock import FileLock, Timeout  # not needed by commands that only read

    folder = Path(work_dir)
    lock, holder = FileLock(folder / LOCK), folder / HOLDER
    with explained(folder, elsewhere="choose another --work-dir"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            who = "another process"
            with contextlib.suppress(OSError):  # that has only just begun
                who = holder.read_text(encoding="utf-8").strip()
            what = f"another training writes to {work_dir}: {who}"
            raise InputError(what, "wait until it has ended, or choose another --work-dir") from error
    try:
        since = datetime.now().isoformat(sep=" ", timespec="seconds")
        write_text(holder, f"process {os.getpid()} on {socket.gethostname()} since {since}\n", sync=False)
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink()
        lock.release()
