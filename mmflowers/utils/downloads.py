"""Download files with resumption after interruptions, checksum verification and a cache."""

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import quote, unquote, urlsplit

from mmflowers.utils.errors import InputError
from mmflowers.utils.files import file_sha256, locked
from mmflowers.utils.terminal import on_terminal, open_bar

TIMEOUT_S = 15.0  # to connect, and between two pieces of data; pip's default
ATTEMPTS = 4  # per address; each resumes where the one before stopped
PAUSE_S = 1.0  # before the second attempt, twice as long before the third, and so on
SLOW_WINDOW_S, SLOW_BYTES_PER_S = 60.0, 1024  # a very slow server never triggers the timeout
PRINTED_EVERY_S = 10.0  # the progress, if stderr isn't a terminal
MAX_BYTES = 64 << 30  # limit if the size isn't known beforehand
CHUNK_BYTES = 1 << 17
MAX_PHOTO_BYTES, PHOTO_S = 64 << 20, 60.0  # limits for a single photo
RETRIED_STATUSES = {408, 429, 500, 502, 503, 504}


class _Failed(Exception):
    """The file can't be downloaded from this address."""


class _Interrupted(_Failed):
    """The download was interrupted; another attempt may succeed."""


class _NothingFollows(_Failed):
    """The server has no bytes after those that were received."""


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
    """Return a local file with the given hash: from the cache ``folder``, or from the first address that has it.

    Received data is kept in a ``.part`` file, and a later call resumes the download (HTTP Range). With a
    ``sha256``, http is as safe as https.

    Args:
        urls: http or https addresses of the same file, tried in order.
        sha256: 64 lower-case hex digits, or the first of them. If it is empty, any file in the cache is accepted and no
            download is resumed.
        folder: The cache; created if missing.
        size: In bytes, if known: a wrong size is then detected before the download.
        hint: What the user can do if all addresses fail.
        cached_as: The file name in the cache; the default begins with the hash.
        limit: The maximum size in bytes.
        wait: Whether to wait for another process that is downloading the file.

    Raises:
        InputError: No address provides the file, or (without ``wait``) another process is downloading it.
    """
    name = file_name(urls[0])
    target = folder / (cached_as or f"{sha256[:16]}-{name}")
    if is_cached(target, sha256):
        return target
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = locked(
                folder / f".{target.name}.lock",
                timeout=-1 if wait else 0,
                busy=lambda: InputError(f"another process is downloading {name}", "run again when it is done"),
            )
            held.enter_context(lock)
            if is_cached(target, sha256):  # another process has downloaded it since the first look
                return target
            part = target.with_name(f"{target.name}.part")
            file = held.enter_context(part.open("a+b"))
        except OSError as error:
            raise InputError(f"can't write to the download cache {folder} ({error.strerror})") from error
        reasons = []
        for url in urls:
            try:
                _download(url, file, sha256, size, limit)
            except _Failed as failed:
                reasons.append(f"{urlsplit(url).scheme}://{urlsplit(url).hostname}: {_one_line(str(failed))}")
            else:
                os.fsync(file.fileno())
                file.close()  # Windows can't rename an open file
                return part.replace(target)
        is_empty = _size(file) == 0
        file.close()
        if is_empty or not sha256:
            part.unlink()
    if target.is_file():
        reasons.append(f"{target} doesn't have the sha256 {sha256}")
    raise InputError(f"{name} can't be downloaded ({'; '.join(dict.fromkeys(reasons))})", hint)


def is_cached(path: Path, sha256: str) -> bool:
    """Return whether the file exists and its sha256 begins with these hex digits; "" matches any."""
    return path.is_file() and (not sha256 or file_sha256(path).startswith(sha256))


def fetch_photo(url: str, *, limit: int = MAX_PHOTO_BYTES, seconds: float = PHOTO_S) -> bytes:
    """Return the bytes of an image at an address, without storing them in the cache.

    Raises:
        InputError: No response, not an image, more than ``limit`` bytes, or not complete within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    data = bytearray()
    try:
        with _open(url) as response:
            kind = response.headers.get_content_type() if "Content-Type" in response.headers else "image/"
            if not kind.startswith("image/") and kind not in ("application/octet-stream", "binary/octet-stream"):
                raise _Failed(f"it sends {kind}, not an image")
            total = response.length
            while (total or 0) <= limit >= len(data) and (chunk := response.read1(CHUNK_BYTES)):
                data += chunk
                if time.monotonic() > deadline:
                    raise _Failed(f"it takes more than {seconds:.0f} s")
            if max(len(data), total or 0) > limit:
                raise _Failed(f"it sends more than {limit:,} bytes")
            if total is not None and len(data) < total:
                raise _Failed(f"the connection broke after {len(data):,} of {total:,} bytes")
    except (_Failed, OSError, http.client.HTTPException) as error:
        raise InputError(_one_line(str(error) or type(error).__name__)) from error
    return bytes(data)


def file_name(url: str) -> str:
    """Return the last part of an address as a safe file name."""
    return re.sub(r"[^\w.+-]", "_", unquote(urlsplit(url).path).rpartition("/")[2]).lstrip(".")[-100:] or "download"


def looks_like_html(head: bytes) -> bool:
    """Return whether the first bytes are those of a web page, such as a login or error page sent instead of a file."""
    return (
        head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html", b"<head", b"<!--"))
    )


def _download(url: str, part: BinaryIO, sha256: str, size: int | None, limit: int) -> None:
    """Complete ``part`` from one address or raise _Failed; received data is kept unless it is wrong."""
    failed = _Failed()
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE_S * attempt)
        if not sha256:
            part.truncate(0)  # without a hash, a mix of two versions couldn't be detected
        start = _size(part)
        if start != size:
            try:
                start = _receive(url, part, start, size, limit)
            except _NothingFollows:
                pass  # the hash shows whether the file is complete
            except _Interrupted as interrupted:
                failed = interrupted
                continue
        part.flush()
        digest = file_sha256(part.name)
        if digest.startswith(sha256):
            return
        part.truncate(0)
        failed = _Failed(f"the file it sends has the sha256 {digest}, expected {sha256}")
        if start == 0:
            break
        # The older part may be from another version of the file: download it again from the beginning.
    raise failed


def _receive(url: str, part: BinaryIO, start: int, size: int | None, most: int) -> int:
    """Append the data after ``start`` bytes; return where the response really began (0: the whole file)."""
    with _open(url, start) as response:
        total = response.length
        if response.status == 206:
            sent = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
            if sent is None or int(sent[1]) != start:
                part.truncate(0)
                raise _Interrupted("it sends another range than the one asked for")
            total = None if sent[2] == "*" else int(sent[2])
        else:  # a server without range support sends the whole file
            start = 0
        if total is not None and total != (size or total):
            raise _Failed(f"it announces {total:,} bytes, expected {size:,}" + _web_page(response, start))
        expected = total or size
        limit = expected or most
        if limit > most:
            raise _Failed(f"it announces {limit:,} bytes, more than the limit of {most:,}")
        received = start
        try:
            for chunk in _chunks(response, expected, start, Path(urlsplit(url).path).name):
                if received == 0 and looks_like_html(chunk):
                    raise _Failed("it sends a web page in place of the file")
                if received == start:
                    part.truncate(start)  # not earlier: the page of a captive portal must not delete received data
                received += len(chunk)
                if received > limit:
                    part.truncate(0)
                    raise _Failed(f"it sends more than the {limit:,} bytes allowed")
                part.write(chunk)
        except (OSError, http.client.HTTPException) as error:
            reason = "the transfer was too slow" if isinstance(error, TimeoutError) else "the connection broke"
            raise _Interrupted(f"{reason} after {received:,} bytes") from error
        finally:
            part.flush()
        if expected is not None and received < expected:
            raise _Interrupted(f"the connection broke after {received:,} of {expected:,} bytes")
    return start


def _open(url: str, start: int = 0) -> http.client.HTTPResponse:
    """Request a file from byte ``start`` on, over http or https only; urllib's default opener knows file: and ftp: too.

    Raises:
        _Failed: No response with the file, in words for the user.
    """
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):  # some Python builds don't find the system's CA certificates
        import certifi

        context.load_verify_locations(certifi.where())
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    headers = {"User-Agent": "mmflowers", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        request = urllib.request.Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers=headers)
        return cast(http.client.HTTPResponse, opener.open(request, timeout=TIMEOUT_S))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:
            raise _NothingFollows from error
        kind = _Interrupted if error.code in RETRIED_STATUSES else _Failed
        raise kind(f"answers {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise _Failed("no answer in time") from error
    except urllib.error.URLError as error:
        raise _Failed(f"no connection, {getattr(error.reason, 'strerror', None) or error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"the connection broke, {error or type(error).__name__}") from error
    except ValueError as error:
        raise _Failed(f"not an address, {error}") from error


def _web_page(response: http.client.HTTPResponse, start: int) -> str:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return "; it is a web page" if start == 0 and looks_like_html(response.read1(512)) else ""
    return ""


def _chunks(response: http.client.HTTPResponse, total: int | None, done: int, name: str) -> Iterator[bytes]:
    """Yield the data as it arrives, show the progress on stderr, and raise TimeoutError if the server is too slow."""
    printed = marked = time.monotonic()
    since_mark = 0
    terminal = on_terminal()
    with open_bar(total=total, initial=done, desc=name, unit="B", unit_scale=True, disable=not terminal) as bar:
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
            if not terminal and now - printed >= PRINTED_EVERY_S:
                printed = now
                of = f" of {total / 1e6:.0f}" if total else ""
                print(f"downloading {name}: {done / 1e6:.0f}{of} MB", file=sys.stderr, flush=True)


def _one_line(text: str) -> str:
    """Return a server's message as one line without control characters, at most 300 characters."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))[:300]


def _size(part: BinaryIO) -> int:
    return part.seek(0, os.SEEK_END)
