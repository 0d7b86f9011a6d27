"""Listen for HTTP requests in a thread of this process, with limits on the time and number of connections.

The web server is uvicorn. It reads a body only as fast as the application does, so a large body does not fill the memory. It has
no limit on the time in which a client must send a request's header or read a reply. These limits are added here.
"""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from infra.errors import UserError

_START_SECONDS = 30.0
_BACKLOG = 1024  # connections that the system accepts before uvicorn does
_UNSENT = 2**14
"""Unsent bytes that the system buffers for a connection. With its default (MiB), slow clients would seem to read nothing."""


class Connection(H11Protocol):
    """A connection with a client, which is closed if the client keeps the server waiting.

    uvicorn makes an object of this class for each connection. Of its two parsers of HTTP, this is the one that refuses a header
    of more than 16 KiB.

    Attributes:
        seconds: how long the server waits for a client: on an idle connection, for a request's header, or while the client reads
            nothing of its reply. (A slow client may take longer for the whole reply.) After a reply, a connection may be idle for
            up to twice as long.
        max_connections: largest number of connections that wait for a header, or for the client to read its reply. One connection
            more closes the one that has waited longest, so that silent clients can't keep out others or fill the memory with
            unread replies. Connections on which a reply is still being sent are closed last.
        waiting: these connections, the oldest first.
    """

    seconds: ClassVar[float]
    max_connections: ClassVar[int]
    waiting: "ClassVar[dict[Connection, None]]"
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the header of the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all waiting."""
        self.waiting.pop(self, None)
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle bytes of the client, and stop waiting once they complete a header."""
        super().data_received(data)
        if self in self.waiting and self.cycle is not None and not self.cycle.response_complete:
            del self.waiting[self]
            self._restart_timer()

    def on_response_complete(self) -> None:
        """Wait for the header of another request, unless it has arrived already, or for the client to read the last reply."""
        super().on_response_complete()
        ended = self.transport.is_closing() and not self.transport.get_write_buffer_size()
        if self.cycle.response_complete and self not in self.waiting and not ended:
            self._wait()
        self._restart_timer()

    def timeout_keep_alive_handler(self) -> None:
        """Do nothing, because uvicorn would also close a connection on which a slow client is still reading its reply."""

    def pause_writing(self) -> None:
        """Begin to wait for a client that reads its reply more slowly than it is sent."""
        super().pause_writing()
        self._restart_timer()

    def resume_writing(self) -> None:
        """Stop waiting for a client that has read its reply, or begin to wait for its next request."""
        super().resume_writing()
        self._restart_timer()

    def _wait(self) -> None:
        """Begin to wait for a header, or for the client to read the last reply."""
        if len(self.waiting) >= self.max_connections:
            idle = (each for each in self.waiting if not each.transport.get_write_buffer_size())
            next(idle, next(iter(self.waiting)))._abort()
        self.waiting[self] = None
        self._restart_timer()

    def _restart_timer(self) -> None:
        """Start the timer anew if the server waits for a header, or for the client to read a reply. If not, stop it."""
        self._stop_timer()
        unsent = self.transport.get_write_buffer_size()
        if unsent or self in self.waiting:
            self._timer = self.loop.call_later(self.seconds, self._expire, unsent)

    def _stop_timer(self) -> None:
        """Stop the timer, if it runs."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self, unsent: int) -> None:
        """Close the connection, unless fewer bytes are unsent than the `unsent` when the timer was started."""
        if self.transport.get_write_buffer_size() < unsent:
            self._restart_timer()
        else:
            self._abort()

    def _abort(self) -> None:
        """Close the connection at once. What is unsent is lost."""
        self.waiting.pop(self, None)
        self._stop_timer()
        self.transport.abort()


@contextmanager
def run_http_server(
    application: Any, host: str, port: int, *, seconds: float = 10.0, max_connections: int = 256, grace_seconds: int = 60
) -> Iterator[int]:
    """Listen for HTTP requests as long as a `with` block runs, in a thread with an event loop of its own.

    At the end, no more requests are accepted, and those that have arrived are answered.

    Args:
        application: ASGI application that answers the requests.
        host: address to listen at.
        port: port to listen at. 0 for any free one.
        seconds: how long the server waits for a client: on an idle connection, for a request's header, or while the client
            reads nothing of its reply.
        max_connections: largest number of connections that wait for a header, or for the client to read its reply.
        grace_seconds: how long the requests that are being answered may take at the end.

    Yields:
        The port.

    Raises:
        UserError: if this process can't listen at the address and port.
    """
    listener = listen_at(host, port)
    protocol = type("LimitedConnection", (Connection,), {"seconds": seconds, "max_connections": max_connections, "waiting": {}})
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
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux; the sockets of connections inherit it
            with suppress(OSError):  # some sandboxes have no such option
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UserError(f"can't listen at {host}:{port}: {error.strerror}: name another --port or --host") from None
    return listener
