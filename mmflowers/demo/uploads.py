"""Photos that browsers have sent to the demo page, each held for its session until it is answered."""

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
MAX_MEGABYTES = 32  # of a photo; phones and cameras stay below
MAX_PHOTOS = 12  # answered at once
MAX_FILES = 4 * MAX_PHOTOS  # in one upload; those beyond MAX_PHOTOS aren't kept
MAX_BODY = MAX_PHOTOS * MAX_MEGABYTES * MEGABYTE + MEGABYTE  # of an upload, with its part headers
MAX_RECEIVING = 4  # uploads at the same time
MAX_OF_SESSION, MAX_HELD = 4 * MAX_PHOTOS, 10 * MAX_PHOTOS  # photos that wait; each keeps a file open
MAX_AGE = 600  # seconds until a photo that nobody asked about is deleted
GRACE, SLOWEST = 30, 64 << 10  # a body may take 30 s, and 1 s more for every 64 KiB of it that has arrived
BUSY = "Too many photos are waiting for their answer. Try again in a minute."


class Upload:
    """A photo that waits for its answer.

    Its bytes lie in a temporary file without a name: no path leads to it, and nothing of it is left when the process
    ends, however it ends.

    Args:
        session: The browser session that sent it.
        name: What the browser calls the file. It is shown, and never names a file here.
        file: Its bytes.
    """

    def __init__(self, session: str, name: str, file: IO[bytes]) -> None:
        self.session, self.name = session, _clean(name)
        self._file, self._lock = file, threading.Lock()

    @property
    def gone(self) -> bool:
        """Whether it is answered or deleted."""
        return self._file.closed

    def chunks(self) -> Iterator[bytes]:
        """Read it piece by piece; this ends early where the photo is answered meanwhile."""
        place = 0
        while data := self._read(place, 1 << 16):
            place += len(data)
            yield data

    def take(self) -> bytes | None:
        """Read all of it and delete it; None where it is gone."""
        data = self._read(0)
        self.delete()
        return data

    def delete(self) -> None:
        """Free its disk space."""
        with self._lock:
            self._file.close()

    def _read(self, place: int, size: int = -1) -> bytes | None:
        with self._lock:
            if self._file.closed:
                return None
            self._file.seek(place)
            return self._file.read(size)


class Uploads:
    """All photos that wait for their answer.

    A photo is named by 128 random bits, and only in the session that sent it: a session that learns the name of
    another's photo can't do anything with it.
    """

    def __init__(self) -> None:
        self._held: dict[str, Upload] = {}  # oldest first
        self._receiving = 0

    async def receive(self, session: str, headers: Headers, body: AsyncGenerator[bytes, None]) -> list[str]:
        """Receive a ``multipart/form-data`` body and hold its photos.

        Args:
            session: The browser session that sends it.
            headers: Of the request.
            body: Its pieces, see ``read_body``.

        Returns:
            A name for each file, in their order. Those beyond ``MAX_PHOTOS`` name nothing.

        Raises:
            HTTPException: It is refused, and nothing of it is kept; the detail is a sentence for the browser.
        """
        self._held = {name: upload for name, upload in self._held.items() if not upload.gone}
        if self._receiving >= MAX_RECEIVING or len(self._held) + MAX_PHOTOS > MAX_HELD:
            raise HTTPException(503, BUSY)
        self._receiving += 1
        try:
            form = await _Parser(headers, body, max_files=MAX_FILES, max_fields=0).parse()
        except (MultiPartException, KeyError):  # KeyError: there is no Content-Type
            raise HTTPException(400, f"This isn't an upload of 1 to {MAX_FILES} files.") from None
        except OSError:
            raise HTTPException(507, "The server has no room for these photos.") from None
        finally:
            self._receiving -= 1
        files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
        refused = None
        if not files:
            refused = HTTPException(400, "There is no file in the upload.")
        elif any((file.size or 0) > MAX_MEGABYTES * MEGABYTE for file in files):
            refused = HTTPException(413, f"A photo may have {MAX_MEGABYTES} MB.")
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
        """The session's photo of that name; None where there is none."""
        upload = self._held.get(name)
        return upload if upload and upload.session == session and not upload.gone else None


async def read_body(receive: Receive, limit: int) -> AsyncGenerator[bytes, None]:
    """Read a request's body piece by piece, for as long as it keeps to size and pace.

    Args:
        receive: Of the request.
        limit: Bytes, counted as they arrive; what the request says of its length isn't relied on.

    Raises:
        HTTPException: It is larger, or slower than ``GRACE`` and ``SLOWEST``.
        ClientDisconnect: The browser has gone.
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
            raise HTTPException(413, f"This is more than {limit:,} bytes.")
        yield message.get("body", b"")
        more = message.get("more_body", False)


class _Parser(MultiPartParser):
    spool_max_size = SLOWEST  # a larger file goes to the disk at once: a hundred waiting photos shall fit the memory


def _clean(name: str) -> str:
    """The last part of a path of any system, without control and format characters, of at most 200 characters."""
    last = name.replace("\\", "/").rpartition("/")[2]
    printable = "".join(character for character in last if not unicodedata.category(character).startswith("C"))
    return printable.strip()[:200] or "photo"
