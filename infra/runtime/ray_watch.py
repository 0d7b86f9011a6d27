"""Watch the Ray that this process is connected to, and end the process with a message if that Ray is lost.

If Ray's processes on this machine die, or the head of the cluster does not answer for a minute, Ray's C++ code ends the process
with exit code 1 and without a message. Python can't prevent that. So background threads watch the connections, notice the loss
earlier, and end the process with a message and exit code 75.
"""

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 5.0
"""Seconds between two checks of the head."""
_RAY_GIVES_UP = "RAY_gcs_rpc_server_reconnect_timeout_s"  # variable with the seconds after which Ray ends processes; default 60


@contextmanager
def watched(store: str | None, head: str | None, check_head: Callable[[str], None], check_seconds: float) -> Iterator[None]:
    """Watch Ray for the duration of a `with` statement. If it is lost, the process ends at once with exit code 75.

    Args:
        store: path of the Unix socket of the object store on this machine, which is part of Ray's main process (the raylet).
            None if it shall not be watched.
        head: address of the head of the cluster. None if it shall not be watched.
        check_head: function that is called with the head's address, and raises ConnectionError if the head does not answer.
        check_seconds: seconds that `check_head` waits for an answer.
    """
    stopped = threading.Event()
    connection = _connect(store) if store else None
    # Two checks in a row must fail by default. Ray itself gives up later than that.
    failures = max(1, int(0.7 * float(os.environ.get(_RAY_GIVES_UP, 60)) / check_seconds))

    def watch_store(connection: socket.socket) -> None:
        """End the process when the connection ends."""
        with suppress(OSError):
            connection.recv(1)  # the store sends nothing unless it is asked
        if not stopped.is_set():
            _end("its processes on this machine have ended")

    def watch_head(address: str) -> None:
        """End the process when the head does not answer several times in a row."""
        failed = 0
        while not stopped.wait(PAUSE_SECONDS):
            try:
                check_head(address)
                failed = 0
            except ConnectionError:
                failed += 1
            if failed >= failures and not stopped.is_set():
                _end(f"its head at {address} has not answered for {failures * check_seconds:g} s")

    if connection:
        threading.Thread(target=watch_store, args=(connection,), name="watch Ray's store", daemon=True).start()
    if head:
        threading.Thread(target=watch_head, args=(head,), name="watch Ray's head", daemon=True).start()
    try:
        yield
    finally:
        stopped.set()
        if connection:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes the thread
            connection.close()


def _connect(store: str) -> socket.socket | None:
    """Connect to the Unix socket of an object store. Returns None if that is impossible, as with a store on another machine."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(store)
    except OSError:
        connection.close()
        return None
    return connection


def _end(what: str) -> None:
    """Log that Ray was lost, and end the process with exit code 75 without any clean-up. Ray would do that, too.

    Args:
        what: what happened, for the message.
    """
    logger.error(f"\nRay was lost: {what}. What is complete is kept: the same command resumes as soon as there is a Ray again")
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(os.EX_TEMPFAIL)
