"""Time the parts of a computation through a context variable, so that no timer object has to be passed around."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_seconds: ContextVar[dict[str, float] | None] = ContextVar("seconds", default=None)


@contextmanager
def collect_timings() -> Iterator[dict[str, float]]:
    """Measure the parts that are marked by `timed`, in this thread, as long as a `with` block runs.

    Yields:
        A dict that gets the seconds of each part, by its name, in the order in which the parts end. It is filled while the block
        runs. The seconds of a part that runs more than once are added up.
    """
    seconds: dict[str, float] = {}
    token = _seconds.set(seconds)
    try:
        yield seconds
    finally:
        _seconds.reset(token)


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Mark a part of a computation, as a `with` block or as the decorator of a function. It costs next to nothing.

    Args:
        name: name of the part. The time of a nested part is included in that of the outer part.
    """
    if (seconds := _seconds.get()) is None:
        yield
        return
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
