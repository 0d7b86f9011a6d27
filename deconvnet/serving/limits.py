"""Limit how much of a server clients can use: the size and duration of their uploads, and the number of waiting requests.

Nothing here needs Ray or a web server. A body is read through `receive`, the function with which a server that speaks ASGI
gives a request's body to the application, chunk by chunk.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Receive = Callable[[], Awaitable[Any]]
"""An ASGI function that waits for the next message about a request: a chunk of its body, or that the client has disconnected."""
IDLE_SECONDS = 10.0
"""How long an upload may pause."""
_LINGER_SECONDS = 2.0
_MAX_RETRY_SECONDS = 60
_MIB = 2**20


class Refused(Exception):
    """An exception that ends a request with an error.

    Attributes:
        status: HTTP status code, 400 or above.
        message: description of the error for the user.
        retry_after: seconds after which the client should try again. None if that would not help.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        """Create the exception. The class describes the arguments."""
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after


class Disconnected(Exception):
    """An exception that ends a request whose client has disconnected, so that nobody waits for the reply."""


@dataclass(frozen=True)
class Limits:
    """How much of a server its clients may use.

    Attributes:
        max_bytes: largest request body that is accepted, in bytes.
        max_total_bytes: largest sum of the bodies that are in memory, in bytes.
        max_waiting: largest number of requests whose body has arrived and that are not answered yet.
        read_timeout: seconds in which a body must arrive.
        request_timeout: seconds from the arrival of the body within which the image must be predicted.
    """

    max_bytes: int = 32 * _MIB
    max_total_bytes: int = 256 * _MIB
    max_waiting: int = 64
    read_timeout: float = 60.0
    request_timeout: float = 300.0


@dataclass(eq=False)
class Upload:
    """A request body that is in memory, or as much of it as has arrived.

    Attributes:
        chunks: the bytes that have arrived, and have not been handed over yet.
        size: number of bytes that have arrived.
        complete: whether the whole body has arrived.
        dropped: whether the bytes were dropped, to make room for smaller bodies.
    """

    chunks: list[bytes] = field(default_factory=list)
    size: int = 0
    complete: bool = False
    dropped: bool = False


class Uploads:
    """The request bodies that are in memory. They are limited one by one, and all together.

    If all together become too large, the largest of those that are still arriving is dropped. So clients that send huge bodies
    don't keep out others, who send images of ordinary size.

    Attributes:
        total: sum of the bodies' sizes in bytes.
    """

    def __init__(self, limits: Limits) -> None:
        """Create an empty collection.

        Args:
            limits: the limits of the server.
        """
        self.limits = limits
        self.total = 0
        self._uploads: list[Upload] = []

    @contextmanager
    def open(self) -> Iterator[Upload]:
        """Provide a new, empty upload. It counts until the `with` block ends."""
        upload = Upload()
        self._uploads.append(upload)
        try:
            yield upload
        finally:
            self._uploads.remove(upload)
            self.total -= upload.size

    async def read(self, upload: Upload, receive: Receive, declared: int | None = None) -> bytes:
        """Read a request body.

        Args:
            upload: the upload that gets the bytes, from `open`.
            receive: ASGI function that gives the chunks of the body.
            declared: value of the header Content-Length, or None. A body that is too large by this value is not read at all.

        Returns:
            The body.

        Raises:
            Refused: if the body is too large (status 413), too slow (408), or dropped to make room for others (429).
            Disconnected: if the client disconnects before the body is complete.
        """
        limit = self.limits.max_bytes
        if declared is not None and declared > limit:
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self.limits.read_timeout):
                while not upload.complete:
                    async with asyncio.timeout(IDLE_SECONDS):
                        message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    self.add(upload, message.get("body", b""))
                    upload.complete = not message.get("more_body", False)
        except TimeoutError:
            raise Refused(
                408, f"the body did not arrive within {self.limits.read_timeout:g} s, or paused for {IDLE_SECONDS:g} s"
            ) from None
        data = b"".join(upload.chunks)
        upload.chunks.clear()
        return data

    def add(self, upload: Upload, chunk: bytes) -> None:
        """Add a chunk to an upload that is still arriving, and drop the largest of these uploads while there are too many bytes.

        Args:
            upload: the upload, from `open`.
            chunk: the bytes that have arrived.

        Raises:
            Refused: if the upload is too large (status 413), or was dropped (429).
        """
        if upload.size + len(chunk) > self.limits.max_bytes:
            raise _too_large(self.limits.max_bytes)
        if not upload.dropped:
            upload.chunks.append(chunk)
            upload.size += len(chunk)
            self.total += len(chunk)
        while self.total > self.limits.max_total_bytes:
            largest = max((each for each in self._uploads if not each.complete), key=lambda each: each.size)
            self.total -= largest.size
            largest.chunks.clear()
            largest.size, largest.dropped = 0, True
        if upload.dropped:
            raise Refused(429, "the server receives too many large bodies at once: try again", retry_after=1)


def _too_large(limit: int) -> Refused:
    """Make the exception for a body that is larger than `limit` bytes."""
    return Refused(413, f"the body is larger than {limit / _MIB:g} MiB: send a smaller image")


async def discard_rest(receive: Receive, max_bytes: int) -> None:
    """Read and discard the rest of a refused request's body.

    Many clients read the reply only after they have sent their body. If the connection were closed while they send, they would
    see a broken connection in place of the reply. No more than two seconds are spent on this.

    Args:
        receive: ASGI function that gives the chunks of the body.
        max_bytes: number of bytes after which to stop.
    """
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while max_bytes > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                max_bytes -= len(message.get("body", b""))
    except TimeoutError:
        return


def retry_seconds(waiting: int, seconds: float, replicas: int) -> int:
    """Estimate after how many seconds a server that is full has room again, for the header Retry-After.

    Args:
        waiting: number of requests that wait for their reply.
        seconds: how long a recent prediction took.
        replicas: number of processes that predict.

    Returns:
        The time until half of the waiting requests are answered, in whole seconds from 1 to 60.
    """
    return min(max(math.ceil(waiting * seconds / replicas / 2), 1), _MAX_RETRY_SECONDS)
