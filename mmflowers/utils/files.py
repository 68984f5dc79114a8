"""Files: atomic writes, locks, hashes, one-line disk errors, CSV cells safe from formula injection.

Has no slow imports; every package of the project may use it.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import itertools
import os
import re
import shutil
import socket
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import IO, Any, BinaryIO

from mmflowers.utils.errors import InputError

# Problems of the disk, never of the path; REFUSALS: or of permissions.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
REFUSALS = DISK_ERRORS | {errno.EACCES, errno.EPERM}

LOCK, HOLDER = ".training.lock", ".training.txt"  # in a work dir

_ROOM, _RIGHTS = "free disk space", "check the write permissions"
_HINTS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EIO: "check the disk",
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOENT: "create its folder first",
    errno.ENOTDIR: "choose a path in which every parent is a folder",
    errno.EISDIR: "give the path of a file",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def explained(
    path: str | Path, *, elsewhere: str = "write to another place", only: Collection[int] = ()
) -> Iterator[None]:
    """Turn an ``OSError`` into an ``InputError`` that names the file, the system's message and what to do.

    Args:
        path: The file or folder that is written.
        elsewhere: How the user chooses another place, such as "choose another --out".
        only: The values of ``errno`` to turn into an ``InputError``, such as ``REFUSALS``, if other code runs in the
            block too. The message then names the file of the ``OSError``.

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
    """A file that is written under a hidden temporary name in the same folder and renamed by ``commit``.

    Until then an existing file is unchanged. It must be writable, and its mode and owner are kept. A symbolic link is
    followed, and its target is replaced. FIFOs, devices and this process's own stdout and stderr can't be replaced and
    are written to directly.

    Args:
        path: The file to write.
        text: Whether ``file`` takes text, as UTF-8 without newline translation, instead of bytes.
        errors: The handling of encoding errors, as in ``open``.
        sync: Whether ``commit`` waits until the content is on the disk (fsync), so that a power failure can't leave an
            empty file. Not needed for files that are quickly written again.

    Attributes:
        file: The open file to write to.

    Raises:
        OSError: From each method, as the operating system reports it.
    """

    def __init__(self, path: str | Path, *, text: bool = False, errors: str = "strict", sync: bool = True) -> None:
        self.path, self._sync = Path(path), sync
        self._target = Path(os.path.realpath(path))
        self._partial: Path | None = None
        before = None
        with contextlib.suppress(FileNotFoundError):
            before = os.stat(path)  # noqa: PTH116  # works for a link in /dev/fd too, whose target isn't a real path
        stream = before and _open_stream(path, before)
        if stream is None:
            if before:
                # Raises for a folder or a write-protected file, as `open` does.
                os.close(os.open(self._target, os.O_WRONLY))
            # 58 characters fit in any encoding. `.*.pth.partial` matches the files that a killed process left.
            self._partial = self._target.with_name(f".{os.urandom(4).hex()}.{self._target.name[-58:]}.partial")
            stream = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
            if before:
                # Fails for a file of another user, on Windows and on file systems without owners.
                with contextlib.suppress(OSError, AttributeError):
                    os.chown(self._partial, before.st_uid, before.st_gid)
                with contextlib.suppress(OSError):
                    self._partial.chmod(stat.S_IMODE(before.st_mode))
        how: dict[str, Any] = {"encoding": "utf-8", "newline": "", "errors": errors} if text else {}
        self.file: IO[Any] = os.fdopen(stream, "w" if text else "wb", **how)

    def commit(self) -> None:
        """Rename the file to its final name, replacing an existing file."""
        self._finish()
        if self._partial:
            self._partial.replace(self._target)

    def discard(self) -> None:
        """Delete the temporary file."""
        with contextlib.suppress(OSError):
            self.file.close()
        if self._partial:
            with contextlib.suppress(OSError):
                self._partial.unlink()

    def keep(self) -> Path:
        """Keep what was written as ``<name>.partial<extension>`` in the same folder, numbered if that name exists.

        Returns:
            The new path; for a FIFO or device, the original path.
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
    """Return a descriptor for something that can't be replaced; None for a regular file or a folder."""
    for own in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(status, os.fstat(own)):
                return os.dup(own)  # shares its file offset, and works for a socket
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        return None
    return os.open(path, os.O_WRONLY)


@contextmanager
def replacing(path: str | Path, *, text: bool = False, sync: bool = True) -> Iterator[IO[Any]]:
    """Write a file atomically: it is renamed at the end of the ``with`` block, and deleted after an exception.

    Args:
        path, text, sync: See ``AtomicFile``.

    Yields:
        The file to write to.

    Raises:
        OSError: As the operating system reports it, with ``path`` as its file; ``explained`` turns it into one line.
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
    """Write a file atomically.

    Args:
        path, sync: See ``AtomicFile``.
        data: The content.
        elsewhere: See ``explained``.

    Raises:
        InputError: The disk is full, read-only or broken, or the path is wrong.
    """
    with explained(path, elsewhere=elsewhere), replacing(path, sync=sync) as file:
        file.write(data)


def write_text(path: str | Path, text: str, *, sync: bool = True, elsewhere: str = "write to another place") -> None:
    """Write UTF-8 text with ``write_bytes``, without newline translation."""
    write_bytes(path, text.encode(), sync=sync, elsewhere=elsewhere)


def write_csv(path: str | Path, rows: Iterable[Iterable[Any]], *, elsewhere: str = "write to another place") -> None:
    """Write a CSV atomically, to be read by ``read_csv``; the first row is the header.

    Raises:
        InputError: See ``write_bytes``.
    """
    text = io.StringIO()
    write_rows(text, rows)
    write_text(path, text.getvalue(), elsewhere=elsewhere)


@contextmanager
def creating(path: Path) -> Iterator[IO[bytes]]:
    """Create a new file; it is deleted after an exception.

    Raises:
        FileExistsError: The file exists.
        OSError: As the operating system reports it.
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


@contextmanager
def creating_folder(folder: Path) -> Iterator[Path]:
    """Fill a new folder under a temporary name: it is renamed at the end of the block, and deleted after an exception.

    What a killed process left under the temporary name is deleted first.

    Yields:
        The folder to fill.

    Raises:
        OSError: As the operating system reports it.
    """
    incomplete = folder.with_name(f"{folder.name}.incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)
    try:
        incomplete.mkdir(parents=True)
        yield incomplete
        incomplete.rename(folder)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)


def file_sha256(path: str | Path) -> str:
    """Return the sha256 of a file's content, as 64 lower-case hex digits."""
    with Path(path).open("rb") as file:
        return hash_stream(file)[0]


def open_regular(path: str | Path) -> FileIO:
    """Open a file for reading, unbuffered.

    Raises:
        OSError: There is none, or it is a FIFO or the like, for which ``open`` would wait.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return os.fdopen(fd, "rb", buffering=0)
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file")


def hash_stream(file: BinaryIO | FileIO) -> tuple[str, int]:
    """Return the sha256 of everything that a file still has to read, in hex, and the number of bytes."""
    digest, size = hashlib.sha256(), 0
    while block := file.read(1 << 20):
        digest.update(block)
        size += len(block)
    return digest.hexdigest(), size


def cache_root() -> Path:
    """Return the operating system's cache folder for mmflowers, such as ``~/.cache/mmflowers``."""
    from platformdirs import user_cache_path

    return user_cache_path("mmflowers")


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk (fsync), if the operating system and the file system support it."""
    if os.name == "posix":
        fd = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                os.fsync(fd)
        finally:
            os.close(fd)


# A spreadsheet executes a cell that starts with one of these (owasp.org/www-community/attacks/CSV_Injection), even
# after blanks. In locales with a decimal comma it also splits rows at semicolons, ignoring quotes within a cell.
# Therefore the text after a semicolon, tab or line end counts as the start of a cell too.
_FORMULA = r"(?=['\s]*?[=+\-@＝＋－＠\t\r\n])"
_ESCAPE = re.compile(rf"(?<![^;\t\r\n]){_FORMULA}")
_UNESCAPE = re.compile(rf"(?<![^;\t\r\n])'{_FORMULA}")


def escape_cell(text: str) -> str:
    """Put a single quote before anything a spreadsheet would execute as a formula; other text is unchanged."""
    return _ESCAPE.sub("'", text)


def unescape_cell(text: str) -> str:
    """Undo ``escape_cell``, exactly."""
    return _UNESCAPE.sub("", text)


def write_rows(file: IO[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write CSV rows, with escaped text and unescaped numbers, to a file opened with ``newline=""``."""
    plain = csv.writer(file, lineterminator="\n")
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        cells = [escape_cell(cell) if isinstance(cell, str) else cell for cell in row]
        # The writer quotes a carriage return only if rows end with one, but the reader ends a row at any.
        returns = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        (quoted if returns else plain).writerow(cells)


def read_rows(file: Iterable[str]) -> Iterator[list[str]]:
    """Yield the rows of a CSV, header first, with the text as it was given to ``write_rows``.

    Raises:
        csv.Error: The text is not valid CSV.
    """
    for row in csv.reader(file):
        yield [unescape_cell(cell) for cell in row]


def read_csv(path: str | Path) -> list[list[str]]:
    """Read the rows of a CSV written by ``write_csv``, header first.

    Raises:
        OSError, ValueError, csv.Error: The file can't be read or is not valid CSV.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(read_rows(file))


@contextmanager
def locked(path: str | Path, *, timeout: float = 0, busy: Callable[[], Exception] | None = None) -> Iterator[None]:
    """Hold a lock file, and delete it at the end of the ``with`` block.

    The operating system releases the lock when the process ends, even if it is killed.

    Args:
        path: The lock file, in an existing folder.
        timeout: Seconds to wait for another holder; -1 waits without limit.
        busy: Makes the exception to raise if there is still another holder.

    Raises:
        TimeoutError: There is still another holder, and ``busy`` isn't given.
        OSError: The lock file can't be created.
    """
    from filelock import FileLock, Timeout  # imported here, as commands that only read don't need it

    lock = FileLock(path, timeout=timeout)
    try:
        lock.acquire()
    except Timeout:
        if busy is None:
            raise
        raise busy() from None
    try:
        yield
    finally:
        # While the lock is held: those who wait have opened this file, and try again when they lock a deleted one.
        with contextlib.suppress(OSError):  # Windows can't delete an open file, and FileLock deletes it there
            Path(path).unlink()
        lock.release()


@contextmanager
def hold_work_dir(work_dir: str | Path) -> Iterator[None]:
    """Lock a work dir for one training at a time; create the folder if it doesn't exist.

    The holder is named in a separate file, because other processes can't read a locked file on Windows. Readers of the
    work dir need no lock.

    Raises:
        InputError: Another training holds the lock (the message names it), or the folder can't be written to.
    """
    folder = Path(work_dir)
    holder = folder / HOLDER

    def busy() -> InputError:
        who = "another process"
        with contextlib.suppress(OSError):  # the file may not be written yet
            who = holder.read_text(encoding="utf-8").strip()
        hint = "wait until it has ended, or choose another --work-dir"
        return InputError(f"another training writes to {work_dir}: {who}", hint)

    with contextlib.ExitStack() as held:
        with explained(folder, elsewhere="choose another --work-dir"):
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / LOCK, busy=busy))
        since = datetime.now().isoformat(sep=" ", timespec="seconds")
        write_text(holder, f"process {os.getpid()} on {socket.gethostname()} since {since}\n", sync=False)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                holder.unlink()
