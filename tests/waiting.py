"""Waiting for something that happens in another process or thread."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], seconds: float = 300, *, description: str = "the condition holds") -> float:
    """Wait for a condition, and return when it was found to hold. Fails with the description if it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {description}"
        time.sleep(0.05)
    return time.monotonic()
