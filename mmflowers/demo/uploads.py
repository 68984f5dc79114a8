"""Photos uploaded to the demo page, kept for their session until they are predicted."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
import unicodedata
from collections.abc import AsyncGenerator, Iterator
from typing import IO

import anyio
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Receive

MEGABYTE = 1 << 20
MAX_MEGABYTES = 32  # per photo; photos of phones and cameras are smaller
MAX_PHOTOS = 12  # per request
MAX_FILES = 4 * MAX_PHOTOS  # in one upload; those beyond MAX_PHOTOS aren't kept
MAX_BODY = MAX_PHOTOS * MAX_MEGABYTES * MEGABYTE + MEGABYTE  # bytes of an upload with its part headers
MAX_RECEIVING = 4  # simultaneous uploads
MAX_OF_SESSION, MAX_HELD = 4 * MAX_PHOTOS, 10 * MAX_PHOTOS  # waiting photos, each with an open file
MAX_AGE = 600  # seconds until a photo that wasn't predicted is deleted
GRACE, SLOWEST = 30, 64 << 10  # time limit of a body: 30 s, and 1 s for every 64 KiB that has arrived
BUSY = "Too many photos are waiting. Try again in a minute."


class Upload:
    """A photo that waits for its prediction.

    Its bytes are in a temporary file without a name. No path leads to it, and the system deletes it when the process
    ends, even after a crash.

    Args:
        session: The browser session that uploaded it.
        name: The browser's name of the file. It is shown, but never used as a path.
        file: Contains the bytes.
    """

    def __init__(self, session: str, name: str, file: IO[bytes]) -> None:
        self.session, self.name = session, _clean(name)
        self._file, self._lock = file, threading.Lock()

    @property
    def gone(self) -> bool:
        """Whether the photo was predicted or deleted."""
        return self._file.closed

    def chunks(self) -> Iterator[bytes]:
        """Read the photo in pieces; this ends early if the photo is deleted meanwhile."""
        place = 0
        while data := self._read(place, 1 << 16):
            place += len(data)
            yield data

    def take(self) -> bytes | None:
        """Return the bytes of the photo and delete it; None if it is already deleted."""
        data = self._read(0)
        self.delete()
        return data

    def delete(self) -> None:
        """Delete the photo."""
        with self._lock:
            self._file.close()

    def _read(self, place: int, size: int = -1) -> bytes | None:
        with self._lock:
            if self._file.closed:
                return None
            self._file.seek(place)
            return self._file.read(size)


class Uploads:
    """All photos that wait for their prediction.

    The name of a photo is 128 random bits and is valid only in the session that uploaded it: another session that
    learns the name can't use it.
    """

    def __init__(self) -> None:
        self._held: dict[str, Upload] = {}  # oldest first
        self._receiving = 0

    async def receive(self, session: str, headers: Headers, body: AsyncGenerator[bytes, None]) -> list[str]:
        """Receive a ``multipart/form-data`` body and keep its photos.

        Args:
            session: The browser session that uploads it.
            headers: Of the request.
            body: Pieces of the body, see ``read_body``.

        Returns:
            One name per file, in order. Names of files beyond ``MAX_PHOTOS`` have no photo.

        Raises:
            HTTPException: The upload is refused and nothing is kept; the detail is a sentence for the browser.
        """
        self._held = {name: upload for name, upload in self._held.items() if not upload.gone}
        if self._receiving >= MAX_RECEIVING or len(self._held) + MAX_PHOTOS > MAX_HELD:
            raise HTTPException(503, BUSY)
        self._receiving += 1
        try:
            form = await _Parser(headers, body, max_files=MAX_FILES, max_fields=0).parse()
        except (MultiPartException, KeyError):  # KeyError: no Content-Type
            raise HTTPException(400, f"This isn't an upload of 1 to {MAX_FILES} files.") from None
        except OSError:
            raise HTTPException(507, "The server has no disk space for these photos.") from None
        finally:
            self._receiving -= 1
        files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
        refused = None
        if not files:
            refused = HTTPException(400, "The upload contains no file.")
        elif any((file.size or 0) > MAX_MEGABYTES * MEGABYTE for file in files):
            refused = HTTPException(413, f"A photo may have at most {MAX_MEGABYTES} MB.")
        for file in files[0 if refused else MAX_PHOTOS :]:
            file.file.close()
        if refused:
            raise refused
        names = [secrets.token_urlsafe(16) for _ in files]
        for name, file in zip(names[:MAX_PHOTOS], files, strict=False):
            self._held[name] = upload = Upload(session, file.filename or "", file.file)
            asyncio.get_running_loop().call_later(MAX_AGE, upload.delete)
        mine = [upload for upload in self._held.values() if upload.session == session]
        for upload in mine[:-MAX_OF_SESSION]:
            upload.delete()
        return names

    def find(self, session: str, name: str) -> Upload | None:
        """Return the session's photo of a name; None if there is none."""
        upload = self._held.get(name)
        return upload if upload and upload.session == session and not upload.gone else None


async def read_body(receive: Receive, limit: int) -> AsyncGenerator[bytes, None]:
    """Yield the pieces of a request's body, with limits on its size and duration.

    Args:
        receive: Of the request.
        limit: Maximum number of bytes. The received bytes are counted, whatever the Content-Length header says.

    Raises:
        HTTPException: The body is larger, or slower than ``GRACE`` and ``SLOWEST`` allow.
        ClientDisconnect: The browser has disconnected.
    """
    start, size, more = time.monotonic(), 0, True
    while more:
        left = start + GRACE + size / SLOWEST - time.monotonic()
        try:
            with anyio.fail_after(max(0, left)):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "The upload was too slow.") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        size += len(message.get("body", b""))
        if size > limit:
            raise HTTPException(413, f"The request is larger than {limit:,} bytes.")
        yield message.get("body", b"")
        more = message.get("more_body", False)


class _Parser(MultiPartParser):
    spool_max_size = SLOWEST  # larger files go to the disk at once, to save memory with a hundred waiting photos


def _clean(name: str) -> str:
    """Return the last part of a path of any system, without control and format characters, at most 200 characters."""
    last = name.replace("\\", "/").rpartition("/")[2]
    printable = "".join(character for character in last if not unicodedata.category(character).startswith("C"))
    return printable.strip()[:200] or "photo"
