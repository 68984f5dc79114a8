"""Access control of the demo page: an ASGI filter in front of gradio that passes only the requests of the page itself.

Gradio has about fifty routes and accepts paths and addresses of files from any caller, which it then opens, copies or
downloads. The gate blocks this:

- It has a list of the requests that the page makes. All others are refused, including those of future gradio versions.
- Only pages of this server may make them (``Host``, ``Origin``, ``Referer``, ``Sec-Fetch-Site``).
- It receives the uploads itself, see ``uploads``. Gradio never gets a file, a path or an address: the request for a
  prediction is rebuilt without its data, and the photos are passed in ``request.state``.
- A browser session is a signed cookie. Names chosen by a browser are hashed together with it before gradio gets them,
  so that no session can name anything of another.
- Gradio's error messages aren't sent; the browser gets the status and a sentence.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import socket
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmflowers.demo.uploads import BUSY, MAX_BODY, MAX_PHOTOS, Uploads, read_body

LOOPBACK = ("localhost", "127.0.0.1", "::1")
UPLOAD, JOIN, DATA = OF_A_SESSION = ("/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/queue/data")
MAX_MESSAGE = 256 << 10  # bytes of the request for a prediction
AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
ASSET = re.compile(r"/(?:theme\.css|favicon\.ico|(?:assets|static)(?:/(?!\.)[\w.@-]+)+)", re.ASCII)
PHOTO = re.compile(r"/gradio_api/file=([\w-]+)", re.ASCII)
# The request headers that gradio gets. Others, such as X-Forwarded-Host, would change addresses in its page.
PASSED = (b"host", b"accept", b"accept-encoding", b"accept-language", b"if-none-match", b"if-modified-since")
HEADERS = {
    # The browser loads nothing from other servers, whatever gradio's page contains.
    "Content-Security-Policy": "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;"
    " style-src 'self' 'unsafe-inline'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # not no-referrer: browsers then send `Origin: null` with the page's own posts
    "X-Content-Type-Options": "nosniff",
}
SHOWN = {"Content-Disposition": "attachment", "Cache-Control": "no-store"}  # of an uploaded photo
NOTHING = "There is nothing at this address."


def served_names(host: str, more: Iterable[str] = ()) -> frozenset[str]:
    """Return the host names that requests for the page may contain.

    Args:
        host: Address or name that the server listens on.
        more: Further names, such as that of a proxy.
    """
    names = {*LOOPBACK, host, *more}
    if host not in LOOPBACK:
        names |= {socket.gethostname(), f"{socket.gethostname()}.local", socket.getfqdn()}
    return frozenset(map(_normal, names))


class Gate:
    """An ASGI application that passes the requests of gradio's page to gradio and refuses all others.

    Args:
        app: Gradio's application.
        events: The numbers of the gradio events that predict photos.
        names: Allowed host names, see ``served_names``. The address at which a request arrives is always allowed.
            Ports aren't compared with the server's, because tunnels change them.
        port: The port that the server listens on. It is part of the cookie's name, because browsers keep one set of
            cookies for all ports of a machine.
    """

    def __init__(self, app: ASGIApp, events: Collection[int], names: frozenset[str], port: int) -> None:
        self.app, self.uploads = app, Uploads()
        self._events, self._names = frozenset(events), names
        self._cookie, self._key = f"mmflowers-{port}", secrets.token_bytes(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            response = await self._respond(scope, receive)
        except HTTPException as refused:
            response = _refusal(scope, refused.status_code, refused.detail)
        except ClientDisconnect:
            return
        await response(scope, receive, send_with_headers)

    async def _respond(self, scope: Scope, receive: Receive) -> ASGIApp:
        headers, path = Headers(scope=scope), scope["path"]
        self._check_caller(scope, headers)
        session = self._session(headers)
        photo = PHOTO.fullmatch(path)
        match "GET" if scope["method"] == "HEAD" else scope["method"], path:
            case "GET", "/":
                return self._page(scope, session)
            case "GET", _ if ASSET.fullmatch(path):
                return _Forward(self.app)
            case "GET", "/gradio_api/upload_progress":  # the page waits for this event
                return Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")
            case _ if session is None:
                if path in OF_A_SESSION:
                    raise HTTPException(403, "Load the page again: the server doesn't know this browser session.")
            case "POST", _ if path == UPLOAD:
                return JSONResponse(await self.uploads.receive(session, headers, read_body(receive, MAX_BODY)))
            case "GET", _ if photo and (upload := self.uploads.find(session, photo[1])):
                return StreamingResponse(upload.chunks(), headers=SHOWN, media_type="application/octet-stream")
            case "POST", _ if path == JOIN:
                return self._join(session, b"".join([piece async for piece in read_body(receive, MAX_MESSAGE)]))
            case "GET", _ if path == DATA:
                chosen = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[-1]
                return _Forward(self.app, query=f"session_hash={self._sign(session, chosen)}")
        raise HTTPException(404, NOTHING)

    def _check_caller(self, scope: Scope, headers: Headers) -> None:
        """Refuse requests of other sites' pages, and of sites whose name resolves to this server (DNS rebinding)."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _host_name(hosts[0]) not in self._names | _arrived_at(scope):
            what = "The page isn't served under this name. Allow it with --allow-host of tools/demo.py."
            raise HTTPException(403, what)
        # Any site may link to the page; all other requests must come from the page.
        linked = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        referers = [] if linked else map(_origin, headers.getlist("referer"))
        foreign = {*headers.getlist("origin"), *referers} - {f"{scheme}://{hosts[0]}" for scheme in ("http", "https")}
        if foreign or not (linked or headers.get("sec-fetch-site", "none") in ("same-origin", "none")):
            raise HTTPException(403, "Only the page itself may make this request.")

    def _page(self, scope: Scope, session: str | None) -> ASGIApp:
        added = {"Cache-Control": "no-store"}
        if session is None:
            token = secrets.token_hex(16)
            secure = "; Secure" if scope["scheme"] == "https" else ""
            value = f"{self._cookie}={token}.{self._sign(token)}"
            added["Set-Cookie"] = f"{value}; Path=/; HttpOnly; SameSite=Strict{secure}"
        return _Forward(self.app, headers=added)

    def _join(self, session: str, body: bytes) -> ASGIApp:
        """Forward a request for a prediction: the photos are passed in ``request.state``, and gradio gets no data."""
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            message = None
        match message:
            case {"session_hash": str(chosen), "fn_index": int(event), "data": [list() | dict() as files]}:
                files = files if isinstance(files, list) else [files]
            case _:
                raise HTTPException(400, "This isn't a request to predict photos.")
        if event not in self._events:
            raise HTTPException(404, NOTHING)
        names = [file.get("path") if isinstance(file, dict) else None for file in files]
        photos = [self.uploads.find(session, name) if isinstance(name, str) else None for name in names[:MAX_PHOTOS]]
        if not photos or None in photos:
            raise HTTPException(404, "A photo was deleted. Send it again.")
        rebuilt = {"session_hash": self._sign(session, chosen), "fn_index": int(event), "data": [None]}
        state = {"photos": photos, "left_out": len(names) - len(photos)}
        return _Forward(self.app, body=json.dumps(rebuilt).encode(), state=state)

    def _session(self, headers: Headers) -> str | None:
        """Return the browser session of the cookie; None without a cookie that this server has signed."""
        for cookie in "; ".join(headers.getlist("cookie")).split("; "):
            name, _, value = cookie.partition("=")
            token, _, signature = value.partition(".")
            if name == self._cookie and hmac.compare_digest(signature.encode(), self._sign(token).encode()):
                return token
        return None

    def _sign(self, *parts: str) -> str:
        """Sign a session, or derive from it and a name chosen by its browser a name that no other session can know."""
        return hmac.new(self._key, json.dumps(parts).encode(), hashlib.sha256).hexdigest()[:32]


class _Forward:
    """Gradio's response to a request that is rebuilt from verified parts.

    Args:
        app: Gradio's application.
        query: Query string that replaces the browser's.
        body: JSON that replaces the browser's body.
        state: Attributes of ``request.state``.
        headers: Headers added to the response.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        query: str = "",
        body: bytes = b"",
        state: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.app, self._query, self._body = app, query.encode(), body
        self._state, self._headers = state or {}, headers or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name in PASSED]
        if self._body:
            headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(self._body))]
        path, state = scope["path"], {**scope.get("state", {}), **self._state}
        rebuilt = {"raw_path": path.encode(), "query_string": self._query, "headers": headers, "state": state}
        waiting, failed = [{"type": "http.request", "body": self._body, "more_body": False}], 0

        async def receive_rebuilt() -> Message:
            return waiting.pop() if waiting else await receive()

        async def send_unless_failed(message: Message) -> None:
            nonlocal failed
            if message["type"] == "http.response.start":
                if message["status"] >= 300 and message["status"] != 304:  # gradio's message isn't sent
                    failed = message["status"]
                MutableHeaders(scope=message).update(self._headers)
            if not failed:
                await send(message)

        try:
            await self.app({**scope, **rebuilt}, receive_rebuilt, send_unless_failed)
        except RuntimeError as error:
            if not isinstance(error.__cause__, HTTPException):
                raise
            # If results are requested that aren't in the queue, gradio starts a stream and then refuses. Starlette
            # turns this into a RuntimeError with a long traceback in the log. The stream has told the browser.
            if not failed:
                await send({"type": "http.response.body"})
        if failed:
            texts = {404: NOTHING, 503: BUSY}
            await _refusal(scope, failed, texts.get(failed, "The server can't process this request."))(
                scope, receive, send
            )


def _refusal(scope: Scope, status: int, text: str) -> Response:
    if scope["path"] == JOIN:  # the page shows this form
        return JSONResponse({"detail": text}, status)
    return PlainTextResponse(text, status)


def _normal(name: str) -> str:
    """Return the normal form of a host name or address."""
    name = name.lower().strip("[]").rstrip(".").partition("%")[0]
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name
    return str(getattr(address, "ipv4_mapped", None) or address)


def _host_name(host: str) -> str | None:
    found = AUTHORITY.fullmatch(host)
    return _normal(found[1]) if found else None


def _arrived_at(scope: Scope) -> set[str]:
    """Return the address of this machine at which a request arrived, if the server knows it."""
    try:
        return {_normal(str(ipaddress.ip_address((scope.get("server") or [""])[0])))}
    except ValueError:
        return set()


def _origin(url: str) -> str:
    """Return scheme, name and port of an address."""
    return "/".join(url.split("/", 3)[:3])
