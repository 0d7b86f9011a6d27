"""Two ways to stop long work in an orderly manner: catching signals, and a time limit."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Catch SIGINT and SIGTERM while the `with` block runs, so that work can be saved before stopping.

    The first signal is only recorded. A second one raises KeyboardInterrupt.

    Yields:
        A list to which the number of each signal is appended. It stays empty outside the main thread, because Python can't
        handle signals there.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: object) -> None:
        """Record a signal; raise KeyboardInterrupt if it is not the first."""
        caught.append(number)
        if len(caught) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def time_limit(minutes: float | None) -> Callable[[], bool]:
    """Return a function that tells whether a time limit has been reached.

    Args:
        minutes: the limit in minutes from now; None for no limit.

    Returns:
        A function that returns False before the limit and True after it.
    """
    if minutes is None:
        return lambda: False
    deadline = time.monotonic() + 60 * minutes
    return lambda: time.monotonic() >= deadline
