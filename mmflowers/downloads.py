"""Downloads that go on where they were interrupted, are verified, and only then get their name."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit

from mmflowers.errors import InputError
from mmflowers.files import file_sha256

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
ATTEMPTS = 4  # an address, each going on where the one before broke off
PAUSE_S = 1.0  # before the second attempt; twice that before the third, and so on
SLOW_WINDOW_S, SLOW_BYTES_PER_S = 60.0, 1024  # a server that drips never runs into the read timeout
MAX_BYTES = 64 << 30  # where the size isn't known beforehand
CHUNK_BYTES = 1 << 17
MAX_PHOTO_BYTES, PHOTO_S = 64 << 20, 60.0  # of a single photo
RETRIED_STATUSES = {408, 429, 500, 502, 503, 504}


class _Failed(Exception):
    """This address won't give the file."""


class _Interrupted(Exception):
    """This address may give the rest when asked again."""


def fetch(
    urls: Sequence[str],
    *,
    sha256: str,
    folder: Path,
    size: int | None = None,
    hint: str = "check the address, or download the file by other means and give it with --source",
    cached_as: str | None = None,
    limit: int = MAX_BYTES,
    wait: bool = False,
) -> Path:
    """Return a local file with the given hash: from ``folder`` if it is there, else from the first address that has it.

    What arrives is kept in a ``.part`` file that a later call continues (HTTP Range). Because the hash decides, plain
    http is as good as https.

    Args:
        urls: http or https addresses of the same file, tried in order.
        sha256: 64 lower-case hex digits, or the first of them; empty where nothing is known, and then any file in the
            cache is taken and no download is continued.
        folder: The cache; made if missing.
        size: In bytes, where it is known: a wrong size is then seen before the download.
        hint: What the user can do when nothing helps.
        cached_as: The name in the cache; default one that begins with the hash.
        limit: The most bytes that are taken.
        wait: Whether to wait for another process that is just downloading the file.

    Raises:
        InputError: In one line, when no address gives the file or (without ``wait``) another process is just
            downloading it.
    """
    name = file_name(urls[0])
    target = folder / (cached_as or f"{sha256[:16]}-{name}")
    while True:
        if is_cached(target, sha256):
            return target
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part = (folder / f"{target.name}.part").open("a+b")
        except OSError as error:
            raise InputError(f"can't write to the download cache {folder} ({error.strerror})") from error
        if _lock(part):
            break
        part.close()
        if not wait:
            raise InputError(f"another process is just downloading {name}", "run again when it is done")
        time.sleep(PAUSE_S)

    reasons = []
    with part:
        for url in urls:
            try:
                _download(url, part, sha256, size, limit)
                break
            except _Failed as failed:
                reasons.append(f"{urlsplit(url).scheme}://{urlsplit(url).hostname}: {_one_line(str(failed))}")
        os.fsync(part.fileno())
        received = _size(part)
        if len(reasons) < len(urls):
            if os.name == "nt":
                part.close()  # there an open file can't be renamed
            Path(part.name).replace(target)  # while it is locked: who waits for it must not take it for a part
            return target
    if received == 0 or not sha256:
        Path(part.name).unlink()
    if target.is_file():
        reasons.append(f"{target} hasn't the sha256 {sha256}")
    raise InputError(f"{name} can't be downloaded ({'; '.join(dict.fromkeys(reasons))})", hint)


def is_cached(path: Path, sha256: str) -> bool:
    """Whether a file is there whose sha256 begins with these hex digits, of which there may be none."""
    return path.is_file() and (not sha256 or file_sha256(path).startswith(sha256))


def fetch_photo(url: str, *, limit: int = MAX_PHOTO_BYTES, seconds: float = PHOTO_S) -> bytes:
    """Return the bytes that an address sends, if they can be those of an image; nothing is kept.

    Raises:
        InputError: In one line: no answer, an error page, more than ``limit`` bytes, or not done within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    data = bytearray()
    try:
        with _opener().open(_asked_for(url), timeout=CONNECT_TIMEOUT_S) as response:
            kind = response.headers.get_content_type() if "Content-Type" in response.headers else "image/"
            if not kind.startswith("image/") and kind not in ("application/octet-stream", "binary/octet-stream"):
                raise _Failed(f"it sends {kind}, not an image")
            length = response.headers.get("Content-Length", "")
            total = int(length) if re.fullmatch(r"\d{1,18}", length) else None
            while (total or 0) <= limit >= len(data) and (chunk := response.read1(CHUNK_BYTES)):
                data += chunk
                if time.monotonic() > deadline:
                    raise _Failed(f"it takes more than {seconds:.0f} s")
            if max(len(data), total or 0) > limit:
                raise _Failed(f"it sends more than {limit:,} bytes")
            if total is not None and len(data) < total:
                raise _Failed(f"the connection broke after {len(data):,} of {total:,} bytes")
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(_one_line(f"answers {error.code} {error.reason}")) from error
    except TimeoutError as error:
        raise InputError("no answer in time") from error
    except (_Failed, OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no address at all
        reason = getattr(error, "reason", error)
        raise InputError(_one_line(str(getattr(reason, "strerror", None) or reason or type(error).__name__))) from error
    return bytes(data)


def file_name(url: str) -> str:
    """Return the last part of an address, safe as the name of a file."""
    return re.sub(r"[^\w.+-]", "_", unquote(urlsplit(url).path).rpartition("/")[2]).lstrip(".")[-100:] or "download"


def looks_like_html(head: bytes) -> bool:
    """Whether the first bytes are those of a web page: what login and error pages send in place of a file."""
    return (
        head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html", b"<head", b"<!--"))
    )


def _download(url: str, part: BinaryIO, sha256: str, size: int | None, most: int) -> None:
    """Complete ``part`` from one address, or raise _Failed; what arrived stays in it unless it is wrong."""
    reason = ""
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE_S * attempt)
        if not sha256:
            part.truncate(0)  # nothing would tell that two versions were mixed
        start = _size(part)
        if size is None or start != size:
            try:
                start = _request(url, part, start, size, most)
            except _Interrupted as interrupted:
                reason = str(interrupted)
                continue
        part.flush()
        digest = file_sha256(part.name)
        if digest.startswith(sha256):
            return
        part.truncate(0)
        reason = f"what it sends has the sha256 {digest}, expected is {sha256}"
        if start == 0:
            break
        # Two files may have been mixed, the older part being from another version: once more from the beginning.
    raise _Failed(reason)


def _request(url: str, part: BinaryIO, start: int, size: int | None, most: int) -> int:
    """Append what is missing after ``start`` bytes; return where the answer really began (0: a whole new file)."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        response = _opener().open(_asked_for(url, headers), timeout=CONNECT_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:
            return start  # nothing comes after what is there: the hash tells whether it is the file
        raise (_Interrupted if error.code in RETRIED_STATUSES else _Failed)(
            f"answers {error.code} {error.reason}"
        ) from error
    except TimeoutError as error:
        raise _Failed("no answer in time") from error
    except urllib.error.URLError as error:
        raise _Failed(f"no connection, {getattr(error.reason, 'strerror', None) or error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"the connection broke, {error or type(error).__name__}") from error

    with response:
        if response.status == 206:
            said = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
            if said is None or int(said[1]) != start:
                part.truncate(0)
                raise _Interrupted("it sends another range than the one asked for")
            total = None if said[2] == "*" else int(said[2])
        else:  # a server that doesn't know ranges sends all of it
            start = 0
            length = response.headers.get("Content-Length", "")
            total = int(length) if re.fullmatch(r"\d{1,18}", length) else None
        if total is not None and total != (size or total):
            raise _Failed(f"it announces {total:,} bytes, expected are {size:,}" + _page(response, start))
        limit = total or size or most
        if limit > most:
            raise _Failed(f"it announces {limit:,} bytes, more than is ever taken ({most:,})")
        received = start
        try:
            for chunk in _chunks(response, total or size or 0, received, Path(urlsplit(url).path).name):
                if received == 0 and looks_like_html(chunk):
                    raise _Failed("it sends a web page in place of the file")
                if received == start:
                    part.truncate(start)  # only now: a page of a captive portal must not cost what was there
                received += len(chunk)
                if received > limit:
                    part.truncate(0)
                    raise _Failed(f"it sends more than the {limit:,} bytes that it may")
                part.write(chunk)
        except (OSError, http.client.HTTPException) as error:
            reason = "too little came for too long" if isinstance(error, TimeoutError) else "the connection broke"
            raise _Interrupted(f"{reason} after {received:,} bytes") from error
        finally:
            part.flush()
        expected = total or size
        if expected is not None and received < expected:
            raise _Interrupted(f"the connection broke after {received:,} of {expected:,} bytes")
    return start


def _asked_for(url: str, headers: Mapping[str, str] | None = None) -> urllib.request.Request:
    headers = {"User-Agent": "mmflowers", "Accept-Encoding": "identity", **(headers or {})}
    return urllib.request.Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers=headers)


def _page(response: http.client.HTTPResponse, start: int) -> str:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return "; it is a web page" if start == 0 and looks_like_html(response.read1(512)) else ""
    return ""


def _chunks(response: http.client.HTTPResponse, total: int, done: int, name: str) -> Iterator[bytes]:
    """Yield what arrives as it arrives, show how far it is on stderr, and give up on a server that only drips."""
    from tqdm import tqdm

    shown = marked = time.monotonic()
    since_mark = 0
    terminal = sys.stderr.isatty()
    with tqdm(
        total=total or None, initial=done, desc=name, unit="B", unit_scale=True, disable=not terminal, leave=False
    ) as bar:
        while chunk := response.read1(CHUNK_BYTES):
            yield chunk
            bar.update(len(chunk))
            done += len(chunk)
            since_mark += len(chunk)
            now = time.monotonic()
            if now - marked >= SLOW_WINDOW_S:
                if since_mark < SLOW_BYTES_PER_S * (now - marked):
                    raise TimeoutError
                marked, since_mark = now, 0
            if not terminal and now - shown >= 10.0:
                shown = now
                of = f" of {total / 1e6:.0f}" if total else ""
                print(f"downloading {name}: {done / 1e6:.0f}{of} MB", file=sys.stderr, flush=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme not in ("http", "https"):  # the base class lets ftp pass
            raise _Failed(f"it redirects to {urlsplit(newurl).scheme}:, which isn't http(s)")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _PatientOnceConnected:
    """A connection with one timeout for the handshake and a longer one for the answer; urllib knows only one."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READ_TIMEOUT_S)


class _HTTPConnection(_PatientOnceConnected, http.client.HTTPConnection):
    pass


class _HTTPSConnection(_PatientOnceConnected, http.client.HTTPSConnection):
    pass


class _HTTP(urllib.request.HTTPHandler):
    def http_open(self, req):
        return self.do_open(_HTTPConnection, req)


class _HTTPS(urllib.request.HTTPSHandler):
    def https_open(self, req):
        context = ssl.create_default_context()
        with contextlib.suppress(ImportError):  # some Pythons find no authorities of the system's
            import certifi

            context.load_verify_locations(certifi.where())
        return self.do_open(_HTTPSConnection, req, context=context)


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener that speaks http and https only; urllib's default one also opens file: and ftp:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _HTTP(),
        _HTTPS(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _lock(part: BinaryIO) -> bool:
    """Lock a part file; False if another process has it. Windows has no flock, there the hash alone guards."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The other may have finished in between: the lock is then on a file that has another name by now.
        return os.path.samestat(os.fstat(part.fileno()), Path(part.name).stat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:  # a file system without locks: the hash alone guards
        return True


def _one_line(text: str) -> str:
    """Whatever a server sent as its reason, harmless on a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))[:300]


def _size(part: BinaryIO) -> int:
    return part.seek(0, os.SEEK_END)
