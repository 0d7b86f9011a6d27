"""Listen for HTTP requests in a thread of this process, with limits on what connections can take.

The web server is uvicorn. It reads a body only as fast as the application takes it, so a large body does not fill the memory. It
has no limit on the time that a client takes to send a request's header or to take a reply. These limits are added here.
"""

import asyncio
import logging
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from infra.errors import UserError

_START_SECONDS = 30.0
_BACKLOG = 1024  # connections that the system accepts before uvicorn does


class Connection(H11Protocol):
    """A connection with a client, which is closed if the client keeps the server waiting.

    uvicorn makes an object of this class for each connection. Of its two parsers of HTTP, this is the one that refuses a header of
    more than 16 KiB.

    Attributes:
        seconds: how long a connection may be idle, a client may take to send a request's header, or take nothing of a reply.
        most: largest number of connections that wait for a header. One more closes the one that has waited longest, so that
            connections that send nothing can't keep out others.
        waiting: the connections that wait for a header, the oldest first.
    """

    seconds: ClassVar[float]
    most: ClassVar[int]
    waiting: "ClassVar[dict[Connection, asyncio.TimerHandle]]"
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the header of the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all waiting."""
        self._wait_no_longer()
        self._stop_writing_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle bytes of the client, and stop waiting once they complete a header."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_no_longer()

    def on_response_complete(self) -> None:
        """Wait for the header of another request, unless it is there already or the connection is closed."""
        super().on_response_complete()
        if self.cycle.response_complete and self not in self.waiting and not self.transport.is_closing():
            self._wait()

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not take its reply."""
        super().pause_writing()
        self._stop_writing_timer()
        self._writing = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop waiting for a client that takes its reply again."""
        self._stop_writing_timer()
        super().resume_writing()

    def _wait(self) -> None:
        """Begin to wait for a header."""
        if len(self.waiting) >= self.most:
            oldest = next(iter(self.waiting))
            oldest._wait_no_longer()
            oldest.transport.abort()
        self.waiting[self] = self.loop.call_later(self.seconds, self.transport.abort)

    def _wait_no_longer(self) -> None:
        """Stop waiting for a header."""
        if timer := self.waiting.pop(self, None):
            timer.cancel()

    def _stop_writing_timer(self) -> None:
        """Stop the timer that runs while the client takes nothing of its reply."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None


@contextmanager
def listening(
    application: Any, host: str, port: int, *, seconds: float = 10.0, most_waiting: int = 256, grace_seconds: int = 60
) -> Iterator[int]:
    """Listen for HTTP requests as long as a `with` block runs, in a thread with an event loop of its own.

    At the end, no more requests are accepted, and those that have arrived are answered.

    Args:
        application: ASGI application that answers the requests.
        host: address to listen at.
        port: port to listen at. 0 for any free one.
        seconds: how long a connection may be idle, a client may take to send a request's header, or take nothing of a reply.
        most_waiting: largest number of connections that wait for a header.
        grace_seconds: how long the requests that are being answered may take at the end.

    Yields:
        The port.

    Raises:
        UserError: if this process can't listen at the address and port.
    """
    listener = listen_at(host, port)
    protocol = type("LimitedConnection", (Connection,), {"seconds": seconds, "most": most_waiting, "waiting": {}})
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it logs every request that is not HTTP
    server = uvicorn.Server(
        uvicorn.Config(
            application,
            http=cast(type[asyncio.Protocol], protocol),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=math.ceil(seconds) + 1,  # `Connection` closes idle connections earlier
            timeout_graceful_shutdown=grace_seconds,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http", daemon=True)
    thread.start()
    deadline = time.monotonic() + _START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise UserError(f"the HTTP server at {host}:{port} did not start")
        time.sleep(0.01)
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(grace_seconds + 10)


def listen_at(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address and port.

    Args:
        host: host name or IP address of this machine.
        port: port to listen at. 0 for any free one.

    Raises:
        UserError: if the address is not one of this machine, or the port is already in use.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"host {host} is not an address of this machine: {error.strerror}") from None
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore connections of a server that just stopped
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UserError(f"can't listen at {host}:{port}: {error.strerror}: name another --port or --host") from None
    return listener
