"""What a connection does while its client takes its reply slowly or not at all, by a clock that the tests move."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from deconvnet.serving.listener import Connection

MIB = 2**20


@dataclass
class Clock:
    """An event loop whose timers go off when the time is moved."""

    now: float = 0
    timers: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = field(default_factory=list)

    def call_later(self, seconds: float, callback: Callable[..., None], *given: Any) -> SimpleNamespace:
        timer = (self.now + seconds, callback, given)
        self.timers.append(timer)
        return SimpleNamespace(cancel=lambda: timer in self.timers and self.timers.remove(timer))

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            timer = min(due, key=lambda each: each[0])
            self.timers.remove(timer)
            self.now, callback, given = timer
            callback(*given)
        self.now = end


class Client(asyncio.Transport):
    """The transport of a connection whose client takes as much of a reply as a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.unsent, self.closed, self.ended = 0, False, False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.closed = True

    close = abort

    def is_closing(self) -> bool:
        return self.closed or self.ended


@pytest.fixture
def connect_client() -> Callable[[], tuple[Connection, Client]]:
    """Opens connections with a limit of 10 s, of which two may wait for a header. Their `loop` is one clock."""
    config, clock = uvicorn.Config(lambda: None, lifespan="off", ws="none", log_config=None), Clock()
    limited = type("Limited", (Connection,), {"seconds": 10.0, "max_connections": 2, "waiting": {}})

    def connect() -> tuple[Connection, Client]:
        connection, client = limited(config, ServerState(), {}, clock), Client()  # type: ignore[arg-type]
        connection.connection_made(client)
        return connection, client

    return connect


def answer(connection: Connection, client: Client, size: int, closing: bool = False) -> None:
    """Send a whole reply, of which the client has taken nothing yet, maybe the last one on this connection."""
    connection.cycle = SimpleNamespace(response_complete=False)  # type: ignore[assignment]
    connection.data_received(b"G")  # by which the header is complete
    client.unsent = size
    if size > 65536:
        connection.pause_writing()
    client.ended = closing
    connection.cycle.response_complete = True
    connection.on_response_complete()


@pytest.mark.parametrize("size", [100, 8 * MIB])
def test_a_client_that_takes_its_reply_slowly_gets_the_whole_of_it(connect_client: Any, size: int) -> None:
    """As long as something is taken in each ten seconds. uvloop calls `resume_writing` when everything is sent, not before."""
    connection, client = connect_client()
    answer(connection, client, size)
    for _ in range(5):
        connection.loop.advance(9)
        client.unsent -= size // 5
    assert client.unsent <= 5 and not client.closed
    client.unsent = 0
    if size > 65536:
        connection.resume_writing()
    connection.loop.advance(9)
    assert not client.closed, "it may send another request"
    connection.loop.advance(11)
    assert client.closed


@pytest.mark.parametrize("size", [100, 8 * MIB])
def test_a_client_that_stops_taking_its_reply_is_cut_off(connect_client: Any, size: int) -> None:
    connection, client = connect_client()
    answer(connection, client, size)
    connection.loop.advance(9)
    client.unsent -= 50
    connection.loop.advance(9)
    assert not client.closed
    connection.loop.advance(3)
    assert client.closed


@pytest.mark.parametrize("closing", [False, True])
def test_connections_with_a_reply_on_its_way_are_closed_last_if_too_many_wait(connect_client: Any, closing: bool) -> None:
    """Also connections that end with this reply (`Connection: close`), as each holds what is unsent in memory."""
    first, downloading = connect_client()
    answer(first, downloading, 8 * MIB, closing)
    _, silent = connect_client()
    second, other = connect_client()
    assert (downloading.closed, silent.closed) == (False, True)
    answer(second, other, 8 * MIB, closing)
    _, newest = connect_client()
    assert (downloading.closed, other.closed, newest.closed) == (True, False, False), "there must be an end"


def test_connections_that_end_with_a_reply_that_was_taken_do_not_count(connect_client: Any) -> None:
    _, silent = connect_client()
    for _ in range(3):
        connection, client = connect_client()
        answer(connection, client, 0, closing=True)
    assert not silent.closed
