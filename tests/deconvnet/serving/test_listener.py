"""The HTTP server in front: what slow, silent, huge and broken clients can do to it, over real connections."""

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from deconvnet.serving import limits
from deconvnet.serving.app import ServingApp
from deconvnet.serving.http import Answer
from deconvnet.serving.limits import Limits
from deconvnet.serving.listener import Connection, listen_at, run_http_server
from infra.errors import UserError
from tests.deconvnet.serving.asgi import PNG, Predictors, loaded

MIB = 2**20
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HALF_A_HEADER = b"POST / HTTP/1.1\r\nHost: x\r\n"
MOMENT = 0.05
"""Seconds that the server waits for a client where this time must run out. Elsewhere it waits for minutes."""


@contextmanager
def server(seconds: float = 600, max_connections: int = 100, **found: float) -> Iterator[int]:
    """A server without a model, which answers at once; yields its port."""
    predictors = Predictors()
    predictors.open.set()
    app = ServingApp(predictors, loaded(1), Limits(**{"max_bytes": MIB, **found}))  # type: ignore[arg-type]
    with run_http_server(app, "127.0.0.1", 0, seconds=seconds, max_connections=max_connections, grace_seconds=5) as port:
        yield port


def expire_after(event: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server wait only a moment for a client from the time when this method of its connection is called."""
    before = getattr(Connection, event)

    def called(self: Any, *given: Any) -> None:
        self.seconds = MOMENT
        before(self, *given)

    monkeypatch.setattr(Connection, event, called)


def connect(port: int, data: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), 30)
    client.sendall(data)
    return client


def received(client: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    with closing(client):
        found = b""
        try:
            while chunk := client.recv(65536):
                found += chunk
        except ConnectionResetError:
            pass
        return found


def get(port: int, path: str = "/healthz") -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        client.request("GET", path)
        return client.getresponse().status


def post(port: int, body: bytes | Iterator[bytes], **headers: str) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        client.request("POST", "/", body, headers)
        reply = client.getresponse()
        return reply.status, reply.read()


def test_images_are_answered_with_and_without_a_declared_length_and_on_one_connection() -> None:
    with server() as port:
        assert post(port, b"photo") == (200, PNG) == post(port, iter([b"pho", b"to"]))
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:
            for _ in range(3):
                client.request("POST", "/", b"photo")
                assert client.getresponse().read() == PNG


@pytest.mark.parametrize("sent", [b"", HALF_A_HEADER])
def test_connections_that_wait_with_their_first_header_are_closed(sent: bytes) -> None:
    with server(seconds=MOMENT) as port:
        assert received(connect(port, sent)) == b""


@pytest.mark.parametrize("sent", [b"", HALF_A_HEADER])
def test_connections_that_wait_with_the_header_of_another_request_are_closed(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    expire_after("on_response_complete", monkeypatch)
    with server() as port:
        found = received(connect(port, REQUEST + sent))
        assert found.startswith(b"HTTP/1.1 200") and found.count(b"HTTP/1.1") == 1 and get(port) == 200


def test_an_answer_may_take_longer_than_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Predictors):
        async def predict(self, *given: Any) -> Answer:
            await asyncio.sleep(5 * MOMENT)
            return await super().predict(*given)

    def receive(self: Any, data: bytes) -> None:
        if self in self.waiting:  # with its header, for which a moment is left, though it may have been long on its way
            self.seconds = MOMENT
            self._restart_timer()
        data_received(self, data)

    data_received = Connection.data_received
    monkeypatch.setattr(Connection, "data_received", receive)
    predictors = Slow()
    predictors.open.set()
    with run_http_server(ServingApp(predictors, loaded(1), Limits()), "127.0.0.1", 0, seconds=600) as port:
        assert post(port, b"photo") == (200, PNG)


def test_a_header_without_end_is_refused() -> None:
    with server() as port:
        client = connect(port, b"GET / HTTP/1.1\r\nx: ")
        client.sendall(b"x" * 40_000)
        assert received(client)[:12] in (b"HTTP/1.1 400", b"") and get(port) == 200


def test_connections_that_send_nothing_keep_nobody_out() -> None:
    with server(max_connections=5) as port:
        silent = [connect(port) for _ in range(30)]
        assert get(port) == 200
        assert received(silent[0]) == b"", "the oldest was closed"
        for client in silent:
            client.close()


def test_half_a_body_ends_in_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(limits, "_LINGER_SECONDS", 0.05)
    with server() as port:
        found = received(connect(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"))
        assert found.startswith(b"HTTP/1.1 408") and b"connection: close" in found


@pytest.mark.parametrize("declared", [True, False])
def test_a_client_that_sends_too_much_before_it_reads_still_gets_the_reply(declared: bool) -> None:
    body = b"x" * (MIB + MIB // 2)
    with server() as port:
        status, text = post(port, body if declared else iter([body[: MIB // 2]] * 3))
        assert status == 413 and b"larger than 1 MiB" in text


def test_a_huge_body_is_cut_off() -> None:
    sent = 0
    with server() as port, closing(connect(port, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")) as client:
        chunk = b"100000\r\n" + bytes(MIB) + b"\r\n"
        with pytest.raises(OSError):
            while sent < 100 * MIB:
                client.sendall(chunk)
                sent += MIB
        assert sent < 30 * MIB and get(port) == 200


def test_a_client_that_asks_whether_to_send_a_body_that_is_too_large_is_told_not_to() -> None:
    header = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\nExpect: 100-continue\r\n\r\n"
    with server() as port, closing(connect(port, header)) as client:
        assert client.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_client_that_does_not_take_its_reply_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for many pages on one connection, and reads none."""
    expire_after("pause_writing", monkeypatch)
    with server() as port:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        with closing(client), pytest.raises(ConnectionError):
            client.settimeout(30)
            while True:
                client.sendall(REQUEST * 100)
        assert get(port) == 200


def test_a_client_that_takes_nothing_more_of_a_reply_whose_end_is_not_yet_sent_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expire_after("pause_writing", monkeypatch)
    gone = threading.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        left = asyncio.create_task(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not left.done():
            await send({"type": "http.response.body", "body": bytes(MIB), "more_body": True})
            await asyncio.sleep(0)
        gone.set()

    with run_http_server(endless, "127.0.0.1", 0, seconds=600) as port, closing(connect(port, REQUEST)):
        assert gone.wait(30)


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="this system has no such limit")
def test_the_system_takes_only_little_of_a_reply_so_that_it_is_seen_what_a_client_takes() -> None:
    with closing(listen_at("127.0.0.1", 0)) as listener, closing(connect(listener.getsockname()[1])):
        server, _ = listener.accept()
        with closing(server):
            assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 2**14


def test_a_system_that_refuses_this_limit_is_listened_at_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def setsockopt(self, level: int, option: int, value: Any) -> None:  # type: ignore[override]
            if level == socket.IPPROTO_TCP:
                raise OSError(92, "Protocol not available")
            super().setsockopt(level, option, value)

    monkeypatch.setattr(socket, "socket", Refusing)
    with closing(listen_at("127.0.0.1", 0)) as listener:
        assert isinstance(listener, Refusing) and listener.getsockname()[1]


def test_requests_that_have_arrived_are_answered_when_the_server_stops() -> None:
    predictors, found = Predictors(), []
    app = ServingApp(predictors, loaded(1), Limits())
    with run_http_server(app, "127.0.0.1", 0) as port:
        client = threading.Thread(target=lambda: found.append(post(port, b"photo")))
        client.start()
        deadline = time.monotonic() + 30
        while not predictors.calls and time.monotonic() < deadline:
            time.sleep(0.001)
        threading.Timer(0.05, predictors.open.set).start()
    assert app.routes.in_flight == 0, "the replicas, which may be removed now, would still be predicting"
    client.join(30)
    assert found == [(200, PNG)]


def test_a_server_that_is_started_again_listens_at_its_port_at_once() -> None:
    """The system keeps connections that a server has closed for a minute."""
    with closing(listen_at("127.0.0.1", 0)) as listener, closing(connect(port := listener.getsockname()[1])) as client:
        listener.accept()[0].close()
        assert client.recv(1) == b""
    listen_at("127.0.0.1", port).close()


def test_a_port_in_use_is_a_user_error() -> None:
    with (
        server() as port,
        pytest.raises(UserError, match=f"can't listen at 127.0.0.1:{port}: "),
        run_http_server(None, "127.0.0.1", port),
    ):
        pytest.fail("it listens")
