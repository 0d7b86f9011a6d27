"""Stopping long work in an orderly way: signals that are noted instead of obeyed, and a time limit."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Note the first SIGINT or SIGTERM in a block instead of stopping at once, so that work can be saved; a second one interrupts.

    Yields:
        a list that receives the numbers of the signals. Outside the main thread, where Python can't handle signals, it stays empty.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: object) -> None:
        """Handle a signal."""
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
    """Return a function that is False at first and True once so many minutes have passed; None: always False."""
    if minutes is None:
        return lambda: False
    deadline = time.monotonic() + 60 * minutes
    return lambda: time.monotonic() >= deadline
