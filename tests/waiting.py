"""Waiting for something that happens in another process or thread."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> float:
    """Wait for a condition, and return when it was found to hold."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return time.monotonic()
