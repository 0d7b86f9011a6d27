"""Downloads from a real HTTP server on this machine: resumed, broken off, wrong."""

import errno
import hashlib
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from deconvnet.datasets import fetch as module
from deconvnet.datasets.fetch import fetch
from infra.errors import UserError
from tests.servers import error_of_silence
from tests.waiting import wait_until

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SUM = "md5:" + hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at every address.

    Attributes:
        breaks: number of connections that stop halfway.
        ranges: whether it can resume a download.
        status: status that it answers; 200 serves CONTENT.
        busy: number of requests that it answers with 429 (too many requests).
        requested: the Range header of each request so far.
        gate: once it is set, the second half of the file is sent.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.breaks = 0
        self.ranges = True
        self.status = 200
        self.busy = 0
        self.requested: list[str | None] = []
        self.gate = threading.Event()
        self.gate.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, requested = self.server, self.headers.get("Range")
        server.requested.append(requested)
        start = int(requested.removeprefix("bytes=").rstrip("-")) if requested and server.ranges else 0
        if server.status != 200 or server.busy:
            self.send_error(429 if server.busy else server.status)
            server.busy = max(0, server.busy - 1)
            return
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        body = CONTENT[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body[: len(body) // 2])
        server.gate.wait(20)
        self.wfile.write(body[len(body) // 2 :])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.005})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_a_file_is_downloaded_verified_and_kept(server, tmp_path):
    target = tmp_path / "new" / "file.bin"
    assert fetch(server.url, target, SUM) == target
    assert target.read_bytes() == CONTENT
    fetch(server.url, target, SUM)
    assert len(server.requested) == 1 and [p.name for p in target.parent.iterdir()] == ["file.bin"]


def test_a_sha256_prefix_is_enough(server, tmp_path):
    fetch(server.url, tmp_path / "f", "sha256:" + hashlib.sha256(CONTENT).hexdigest()[:8])


def test_broken_connections_are_resumed(server, tmp_path):
    server.breaks = 2
    fetch(server.url, tmp_path / "f", SUM, pause=0.01)
    half = len(CONTENT) // 2
    assert server.requested == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_what_was_received_is_kept_if_the_connection_keeps_breaking(server, tmp_path):
    server.breaks = 99
    with pytest.raises(UserError, match=r"broke off.*resumes from there"):
        fetch(server.url, tmp_path / "f", SUM, pause=0.001)
    assert not (tmp_path / "f").exists()
    server.breaks = 0
    fetch(server.url, tmp_path / "f", SUM)
    assert server.requested[-1] is not None and (tmp_path / "f").read_bytes() == CONTENT


def test_a_server_that_can_not_resume_sends_the_file_again(server, tmp_path):
    server.ranges, server.breaks = False, 1
    fetch(server.url, tmp_path / "f", SUM, pause=0.01)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_complete_part_is_only_verified_and_one_too_long_is_downloaded_again(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "f", SUM)
    (tmp_path / "g.part").write_bytes(CONTENT + b"more")
    fetch(server.url, tmp_path / "g", SUM, pause=0.01)
    assert (tmp_path / "f").read_bytes() == (tmp_path / "g").read_bytes() == CONTENT


def test_two_runs_do_not_write_to_one_file(server, tmp_path):
    server.gate.clear()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(fetch, server.url, tmp_path / "f", SUM)
        wait_until(lambda: bool(server.requested), 60, description="the first run has sent a request")
        with pytest.raises(UserError, match=r"another run is downloading to .*f\.part: wait until it has ended"):
            fetch(server.url, tmp_path / "f", SUM)
        server.gate.set()
        assert first.result() == tmp_path / "f" and (tmp_path / "f").read_bytes() == CONTENT
    assert len(server.requested) == 1 and [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_file_with_a_wrong_checksum_is_deleted(server, tmp_path):
    with pytest.raises(UserError, match="does not have the checksum"):
        fetch(server.url, tmp_path / "f", "md5:" + "0" * 32)
    assert not list(tmp_path.iterdir())


def test_an_existing_file_with_another_checksum_is_not_touched(server, tmp_path):
    (tmp_path / "f").write_bytes(b"mine")
    with pytest.raises(UserError, match="exists and its checksum is not"):
        fetch(server.url, tmp_path / "f", SUM)
    assert (tmp_path / "f").read_bytes() == b"mine"


def test_errors_name_their_reason(server, tmp_path, monkeypatch):
    server.status = 404
    with pytest.raises(UserError, match="404"):
        fetch(server.url, tmp_path / "f", SUM)
    assert len(server.requested) == 1  # not tried again
    server.status = 503
    with pytest.raises(UserError, match="Service Unavailable"):
        fetch(server.url, tmp_path / "f", SUM, pause=0.001)
    with pytest.raises(UserError, match=r"must begin with http:// or https://"):
        fetch("file:///etc/passwd", tmp_path / "f", SUM)
    with pytest.raises(UserError, match="can't be downloaded"):
        fetch("http://127.0.0.1:9/f", tmp_path / "f", SUM, pause=0.001)
    with pytest.raises(UserError, match="must be written"):
        server.status = 200
        fetch(server.url, tmp_path / "f", "crc:12345678")


def test_a_server_that_is_busy_is_asked_again(server, tmp_path):
    server.busy = 2
    fetch(server.url, tmp_path / "f", SUM, pause=0.001)
    assert len(server.requested) == 3 and (tmp_path / "f").read_bytes() == CONTENT


def test_a_server_that_falls_silent_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "_TIMEOUT", 0.05)
    error = error_of_silence(lambda url: fetch(url, tmp_path / "f", SUM, pause=0.001))
    assert "can't be downloaded (timed out)" in str(error)


def test_a_disk_that_fills_up_during_the_download_ends_it_at_once(tmp_path, monkeypatch):
    calls = []

    def full(url, part):
        calls.append(url)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_download_rest", full)
    with pytest.raises(UserError, match=r"f\.part can't be written: No space left"):
        fetch("http://127.0.0.1:9/f", tmp_path / "f", SUM, pause=0.001)
    assert len(calls) == 1


def test_a_full_disk_is_noticed_before_the_download(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="make room"):
        fetch(server.url, tmp_path / "f", SUM)
    assert not list(tmp_path.glob("f*"))
