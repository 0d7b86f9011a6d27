"""Servers for tests: S3, a proxy that makes it unreliable, and one that is silent."""

import http.client
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra.deploy.local import servers
from infra.deploy.local.process import HOST, free_ports
from infra.deploy.local.servers import S3
from infra.errors import UserError

ACCESS_KEY, SECRET_KEY = "deconvnet-test", "not-a-secret-5f0c"


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """Run SeaweedFS's S3 server with a fixed key and no buckets while the block runs; its data is in `folder`."""
    with servers.s3_server(folder, ACCESS_KEY, SECRET_KEY) as server:
        yield server


def is_listening(port: int) -> bool:
    """Return whether a server on this machine accepts connections at a TCP port."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def error_of_silence(use: Callable[[str], object]) -> UserError:
    """The error of a function that is given the URL of a server that accepts connections and never answers."""
    with ThreadPoolExecutor(1) as pool, socket.create_server((HOST, 0)) as server:  # its end would end a wait without timeout
        error = pool.submit(use, f"http://{HOST}:{server.getsockname()[1]}/file").exception(timeout=60)
    assert isinstance(error, UserError)
    return error


Answer = tuple[int, list[tuple[str, str]], bytes]
"""An HTTP answer: status, headers, body."""

SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message>'
    b"<RequestId>test</RequestId></Error>"
)


class FlakyProxy(S3):
    """An HTTP/1.1 proxy in front of an S3 server that fails on demand: `with FlakyProxy(s3.url) as proxy`; use it as the server.

    `away()` stops the proxy and `back()` starts it again at the same address.

    Attributes:
        target: URL of the real server.
        fail_one_in: one in so many requests, chosen at random, is answered by 503 SlowDown and not forwarded; 0 for none.
        lose_answers: the next so many requests that change something are carried out but answered by 503.
        cut_answers: the next so many answers with a body end in the middle of it.
        requests: number of requests so far.
        refused: number of requests that were not forwarded.
    """

    def __init__(self, target: str, fail_one_in: int = 0, port: int | None = None) -> None:
        super().__init__(f"http://127.0.0.1:{port or free_ports(1)[0]}", ACCESS_KEY, SECRET_KEY)
        self.target, self.fail_one_in = target, fail_one_in
        self.requests = self.refused = self.lose_answers = self.cut_answers = 0
        self._lock, self._random = threading.Lock(), random.Random(0)
        self._listener: _Listener | None = None

    def __enter__(self) -> "FlakyProxy":
        self.back()
        return self

    def __exit__(self, *_: object) -> None:
        self.away()

    def away(self) -> None:
        """Stop listening and close every connection."""
        if self._listener is not None:
            self._listener.stop()
            self._listener = None

    def back(self) -> None:
        """Start to listen at the proxy's address, unless it does."""
        if self._listener is None:
            self._listener = _Listener(self)
            threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def away_for(self, seconds: float) -> threading.Thread:
        """Stop now and start again after some seconds; returns the timer."""
        self.away()
        timer = threading.Timer(seconds, self.back)
        timer.daemon = True
        timer.start()
        return timer

    def count_and_refuse(self) -> bool:
        """Count a request; True if it is to be refused."""
        with self._lock:
            self.requests += 1
            refused = self.fail_one_in > 0 and self._random.random() < 1 / self.fail_one_in
            self.refused += refused
            return refused

    def loses_answer(self, method: str) -> bool:
        """True if the answer to this request is to be lost."""
        with self._lock:
            lost = self.lose_answers > 0 and method in ("PUT", "POST", "DELETE")
            self.lose_answers -= lost
            return lost

    def cuts_answer(self, method: str, body: bytes) -> bool:
        """True if the answer to this request is to end in the middle of its body."""
        with self._lock:
            cut = self.cut_answers > 0 and method == "GET" and len(body) > 1
            self.cut_answers -= cut
            return cut

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Send a request to the real server, and return the answer's status, headers and body."""
        connection = http.client.HTTPConnection(urlsplit(self.target).netloc, timeout=120)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            hop = ("connection", "expect", "transfer-encoding", "content-length")
            for name, value in headers.items():
                if name.lower() not in hop:
                    connection.putheader(name, value)
            if body or method in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            reply = connection.getresponse()
            content = reply.read()
            length = reply.getheader("Content-Length") if method == "HEAD" else str(len(content))
            kept = [
                (n, v) for n, v in reply.getheaders() if n.lower() not in ("connection", "transfer-encoding", "content-length")
            ]
            if length is not None and reply.status not in (204, 304):
                kept.append(("Content-Length", length))
            return reply.status, kept, content
        finally:
            connection.close()


class _Listener(ThreadingHTTPServer):
    """The proxy's listening socket, from back() to away()."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, proxy: FlakyProxy) -> None:
        self.proxy = proxy
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", urlsplit(proxy.url).port or 0), _Forward)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection and handle it."""
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection and close it."""
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: connections are closed on purpose."""

    def stop(self) -> None:
        """Stop listening and close all connections."""
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Forward(BaseHTTPRequestHandler):
    """One client's connection. The Host header is forwarded unchanged, so that the requests' signatures stay valid."""

    protocol_version = "HTTP/1.1"
    server: _Listener

    def handle_one_request(self) -> None:
        """Forward a request, or fail it as the proxy's attributes ask for."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self._body()
        proxy = self.server.proxy
        answer = None if proxy.count_and_refuse() else proxy.forward(self.command, self.path, dict(self.headers.items()), body)
        if answer is None or proxy.loses_answer(self.command):
            answer = 503, [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN)))], SLOW_DOWN
        status, headers, reply = answer
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if proxy.cuts_answer(self.command, reply):
            reply, self.close_connection = reply[: len(reply) // 2], True
        if self.command != "HEAD":
            self.wfile.write(reply)
        self.wfile.flush()

    def _body(self) -> bytes:
        """The request's body, decoded if it is chunked."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body
