"""Stop long work in an orderly manner: after a signal such as Ctrl-C, or at a time limit."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Catch SIGINT (Ctrl-C) and SIGTERM for the duration of a `with` statement, so that work can be saved first.

    The first signal is only recorded. The block must check the yielded list, and stop by raising an exception. A second signal
    raises KeyboardInterrupt. If a signal comes after the last check, so that the block ends without an exception, the signal is
    raised again for the previous handler.

    Yields:
        A list to which the number of each signal is appended. It stays empty outside the main thread, because Python can't
        handle signals there.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(signum: int, frame: object) -> None:
        """Handle a signal: append its number to the list `caught`, and raise KeyboardInterrupt if it is not the first.

        Args:
            signum: number of the signal.
            frame: the stack frame that was interrupted; unused.
        """
        caught.append(signum)
        if len(caught) > 1:
            raise KeyboardInterrupt

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if caught:
        signal.raise_signal(caught[0])


def time_limit(minutes: float | None) -> Callable[[], bool]:
    """Start a time limit, and return a function that returns whether it has been reached.

    Args:
        minutes: time from now to the limit, in minutes; None for no limit.

    Returns:
        A function without arguments. It returns False before the limit and True after it; without a limit always False.
    """
    if minutes is None:
        return lambda: False
    deadline = time.monotonic() + 60 * minutes
    return lambda: time.monotonic() >= deadline
