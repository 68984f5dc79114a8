import hashlib
import http.server
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from mmflowers.utils import downloads
from mmflowers.utils.downloads import fetch, file_name
from mmflowers.utils.errors import InputError

DATA = os.urandom(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """A real server on loopback, whose manners a test sets.

    Attributes:
        data: What it serves at every path.
        breaks: How many bytes of a body each answer in turn sends before the connection is cut; afterwards all.
        ranges: Whether it knows Range.
        length: Whether it announces a Content-Length.
        status: What it answers instead of 200 or 206, first answers first.
        location: Where it redirects to, if anywhere.
        pause_s: How long it waits in the middle of a body.
        asked: The Range header of each request, None where there was none.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.breaks, self.ranges, self.length = DATA, [], True, True
        self.status, self.location, self.pause_s, self.asked = [], None, 0.0, []
        self.content_range = None
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/a/photos%20of%20mine.tgz?key=secret"

    def handle_error(self, request, client_address) -> None:
        pass  # clients that hang up are part of the tests


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if server.location:
            self.send_response(302)
            self.send_header("Location", server.location)
            self.end_headers()
            return
        if server.status:
            self.send_error(server.status.pop(0))
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        if start >= len(server.data):
            self.send_error(416)
            return
        body = server.data[start:]
        self.send_response(206 if start else 200)
        if start:
            real = f"bytes {start}-{len(server.data) - 1}/{len(server.data)}"
            self.send_header("Content-Range", server.content_range or real)
        if server.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.breaks:
            body = body[: server.breaks.pop(0)]
        self.wfile.write(body[: len(body) // 2])
        if server.pause_s:
            self.wfile.flush()
            server.stopped.wait(server.pause_s)
        self.wfile.write(body[len(body) // 2 :])

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.stopped.set()
    server.shutdown()
    server.server_close()
    thread.join()


def failure(*urls: str, folder: Path, sha256: str = SHA256, size: int | None = None) -> str:
    with pytest.raises(InputError) as caught:
        fetch(urls, sha256=sha256, folder=folder, size=size, hint="the way on")
    (problem,) = caught.value.problems
    assert problem.hint == "the way on"
    assert problem.what.isprintable()
    assert "secret" not in problem.what
    return problem.what


def part_of(folder: Path, data: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    part = folder / f"{SHA256[:16]}-photos_of_mine.tgz.part"
    part.write_bytes(data)
    return part


def test_a_file_is_fetched_once_and_then_taken_from_the_cache(server, tmp_path):
    path = fetch([server.url], sha256=SHA256, folder=tmp_path / "new", size=len(DATA))
    assert path.read_bytes() == DATA
    assert fetch([server.url], sha256=SHA256, folder=tmp_path / "new") == path
    assert server.asked == [None]
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_cached_file_that_was_damaged_is_fetched_anew(server, tmp_path):
    path = fetch([server.url], sha256=SHA256, folder=tmp_path)
    path.write_bytes(DATA[:-1] + b"?")
    assert fetch([server.url], sha256=SHA256, folder=tmp_path).read_bytes() == DATA


@pytest.mark.parametrize(("length", "size"), [(True, None), (True, len(DATA)), (False, len(DATA))])
def test_a_connection_that_breaks_is_taken_up_where_it_broke(server, tmp_path, length, size):
    server.breaks, server.length = [100_000, 150_000], length
    assert fetch([server.url], sha256=SHA256, folder=tmp_path, size=size).read_bytes() == DATA
    assert server.asked == [None, "bytes=100000-", "bytes=250000-"]


def test_a_download_that_was_given_up_is_continued_by_the_next_call(server, tmp_path):
    server.breaks = [10_000] * downloads.ATTEMPTS
    assert "40,000 of 300,000 bytes" in failure(server.url, folder=tmp_path)
    assert fetch([server.url], sha256=SHA256, folder=tmp_path).read_bytes() == DATA
    assert server.asked[-1] == "bytes=40000-"


def test_a_part_left_by_a_killed_process_is_continued_and_a_whole_one_needs_no_network(server, tmp_path):
    part_of(tmp_path, DATA[:123])
    path = fetch([server.url], sha256=SHA256, folder=tmp_path)
    assert server.asked == ["bytes=123-"]

    path.rename(f"{path}.part")
    assert fetch([server.url], sha256=SHA256, folder=tmp_path, size=len(DATA)).read_bytes() == DATA
    assert len(server.asked) == 1

    path.rename(f"{path}.part")  # without the size the server is asked, and has nothing more
    assert fetch([server.url], sha256=SHA256, folder=tmp_path).read_bytes() == DATA
    assert server.asked[-1] == f"bytes={len(DATA)}-"


def test_a_server_without_ranges_sends_all_of_it_again(server, tmp_path):
    server.ranges, server.breaks = False, [200_000]
    assert fetch([server.url], sha256=SHA256, folder=tmp_path).read_bytes() == DATA
    assert server.asked == [None, "bytes=200000-"]


def test_a_part_of_another_version_is_thrown_away(server, tmp_path):
    part_of(tmp_path, b"older" * 100)
    assert fetch([server.url], sha256=SHA256, folder=tmp_path).read_bytes() == DATA
    part_of(tmp_path / "longer", b"older" * 100_000)
    assert fetch([server.url], sha256=SHA256, folder=tmp_path / "longer").read_bytes() == DATA


def test_an_answer_with_another_range_than_asked_for_is_not_appended(server, tmp_path):
    part_of(tmp_path, DATA[:1000])
    server.content_range = f"bytes 0-{len(DATA) - 1}/{len(DATA)}"
    assert fetch([server.url], sha256=SHA256, folder=tmp_path).read_bytes() == DATA


def test_a_wrong_hash_is_said_and_nothing_of_it_is_left(server, tmp_path):
    said = failure(server.url, folder=tmp_path, sha256="0" * 64)
    assert SHA256 in said
    assert "0" * 64 in said
    assert not list(tmp_path.iterdir())


def test_a_body_cut_short_without_any_announced_size_is_a_wrong_hash(server, tmp_path):
    server.length, server.breaks = False, [100_000]
    assert "sha256" in failure(server.url, folder=tmp_path)


def test_a_wrong_size_is_seen_before_the_download(server, tmp_path):
    assert "announces 300,000 bytes, expected 5" in failure(server.url, folder=tmp_path, size=5)
    assert not list(tmp_path.iterdir())


def test_more_than_the_known_size_is_never_taken(server, tmp_path):
    server.length = False
    assert "more than the 1,000 bytes" in failure(server.url, folder=tmp_path, size=1000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [len(DATA), None])
def test_a_web_page_in_place_of_the_file_is_called_so_and_costs_no_part(server, tmp_path, size):
    server.data = b"\n<!DOCTYPE html><html><title>Log in</title>" + bytes(500)
    server.ranges = False
    part = part_of(tmp_path, DATA[:1000])
    assert "web page" in failure(server.url, folder=tmp_path, size=size)
    assert part.read_bytes() == DATA[:1000]


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_a_redirect_to_another_scheme_is_refused(server, tmp_path, location):
    server.location = location
    assert re.search(r"Redirection to url|unknown url type: ftp", failure(server.url, folder=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_redirect_to_another_http_address_is_followed_and_a_circle_is_not(server, tmp_path):
    other = Server()
    threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
    server.location = other.url
    assert fetch([server.url], sha256=SHA256, folder=tmp_path).read_bytes() == DATA
    other.shutdown()
    other.server_close()
    server.location = server.url
    assert "infinite loop" in failure(server.url, folder=tmp_path / "circle")


def test_a_missing_page_is_not_asked_for_again_but_a_busy_server_is(server, tmp_path):
    server.status = [404]
    assert "answers 404" in failure(server.url, folder=tmp_path)
    assert len(server.asked) == 1
    server.status = [503, 429]
    assert fetch([server.url], sha256=SHA256, folder=tmp_path).read_bytes() == DATA


def test_the_next_address_is_tried_when_one_fails(server, tmp_path):
    assert fetch([refusing_url(), server.url], sha256=SHA256, folder=tmp_path).read_bytes() == DATA


def refusing_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/photos.tgz"


def test_no_connection_is_one_line_with_the_way_on_and_leaves_nothing(server, tmp_path):
    said = failure(refusing_url(), refusing_url(), folder=tmp_path)
    assert "no connection" in said
    assert not list(tmp_path.iterdir())


def test_a_server_that_falls_silent_is_given_up_and_what_came_is_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    server.pause_s = 60
    assert "the transfer was too slow after 150,000 bytes" in failure(server.url, folder=tmp_path)
    assert next(tmp_path.iterdir()).read_bytes() == DATA[:150_000]


def test_a_server_that_only_drips_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "SLOW_WINDOW_S", 0.05)
    monkeypatch.setattr(downloads, "SLOW_BYTES_PER_S", 1 << 40)
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    server.pause_s = 0.2
    assert "the transfer was too slow" in failure(server.url, folder=tmp_path)


def test_a_server_that_never_answers_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/photos.tgz"
        assert "no answer in time" in failure(url, folder=tmp_path)


def test_what_is_no_http_server_is_given_up(server, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as strange:

        def greet() -> None:
            for _ in range(downloads.ATTEMPTS):
                connection, _ = strange.accept()
                with connection:
                    connection.sendall(b"220 wel\x1b[31mcome\r\n")

        threading.Thread(target=greet, daemon=True).start()
        assert "broke" in failure(f"http://127.0.0.1:{strange.getsockname()[1]}/photos.tgz", folder=tmp_path)


def test_a_second_process_on_the_same_file_is_refused(server, tmp_path):
    with (
        FileLock(tmp_path / f".{SHA256[:16]}-photos_of_mine.tgz.lock"),
        pytest.raises(InputError, match="another proc"),
    ):
        fetch([server.url], sha256=SHA256, folder=tmp_path)
    assert server.asked == []


@pytest.mark.parametrize("sha256", [SHA256, SHA256[:8], ""], ids=["sha256", "prefix", "unknown"])
def test_processes_that_want_the_same_file_wait_for_the_first_and_take_its_file(server, tmp_path, sha256):
    server.pause_s = 0.3
    found = []
    wanted = dict(sha256=sha256, folder=tmp_path, cached_as="x.pth", wait=True)
    threads = [threading.Thread(target=lambda: found.append(fetch([server.url], **wanted))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "x.pth"] * 4 and found[0].read_bytes() == DATA
    assert server.asked == [None] and [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_a_file_that_another_process_completes_just_before_the_lock_is_taken(server, tmp_path):
    fetched = threading.Event()
    wanted = dict(sha256=SHA256, folder=tmp_path, cached_as="x.pth", wait=True)
    thread = threading.Thread(target=lambda: fetch([server.url], **wanted) and fetched.set())
    with FileLock(tmp_path / ".x.pth.lock"):
        thread.start()
        assert not fetched.wait(0.2)
        (tmp_path / "x.pth").write_bytes(DATA)
    thread.join()
    assert fetched.is_set() and server.asked == []
    assert {path.name for path in tmp_path.iterdir()} - {".x.pth.lock"} == {"x.pth"}


def test_what_came_of_a_file_of_unknown_hash_is_not_continued(server, tmp_path):
    server.breaks = [100_000]
    (tmp_path / "x.pth.part").write_bytes(b"of another version")
    assert fetch([server.url], sha256="", folder=tmp_path, cached_as="x.pth").read_bytes() == DATA
    assert server.asked == [None, None]


def test_a_cache_that_cannot_be_written_is_bad_input(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't write to the download cache"):
        fetch([server.url], sha256=SHA256, folder=tmp_path / "file")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://a.b/c/flower_photos.tgz", "flower_photos.tgz"),
        ("https://a.b/c/d.zip?x=../../y", "d.zip"),
        ("https://a.b/%2e%2e%2fx.zip", "x.zip"),
        ("https://a.b/..%5Cx.zip", "_x.zip"),
        ("https://a.b/...", "download"),
        ("https://a.b", "download"),
    ],
)
def test_the_name_in_the_cache_is_harmless(url, name):
    assert file_name(url) == name
