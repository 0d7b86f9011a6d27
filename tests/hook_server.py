"""A web server that takes messages as Slack's webhooks do, or fails as real ones do."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "T0/B0/hush-4711"


class HookServer(ThreadingHTTPServer):
    """The server, on a free port.

    Attributes:
        texts: the messages so far.
        status: status of all replies. None to give none before the server ends.
        location: value of the header Location.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.texts: list[str] = []
        self.status: int | None = 200
        self.location = ""
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        """The webhook's URL, which has a secret."""
        return f"http://127.0.0.1:{self.server_address[1]}/services/{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: HookServer

    def do_POST(self) -> None:
        body: Any = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (
            self.path == f"/services/{SECRET}" and self.headers["Content-Type"] == "application/json" and list(body) == ["text"]
        )
        self.server.texts.append(body["text"])
        if self.server.status is None:
            self.server.ended.wait()
            return
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.end_headers()

    def do_GET(self) -> None:
        """What a POST becomes that is redirected."""
        self.server.texts.append("GET")
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def hook_server() -> Iterator[HookServer]:
    """Run a server while a block runs."""
    server = HookServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
