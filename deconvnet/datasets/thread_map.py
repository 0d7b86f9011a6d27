"""A function applied to many items by several threads, with progress shown and results in order."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from infra.runtime.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 64  # items being worked on or waiting to be taken, at most


def thread_map(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int, title: str, unit: str
) -> Iterator[Result]:
    """Apply a function to each item.

    Args:
        function: called once an item, in any thread.
        items: what it is called with.
        threads: number of threads.
        title: what is being done, for the progress display: "checking".
        unit: what the items are, in the plural: "images".

    Yields:
        The results, in the order of the items. At most 64 are computed ahead of the one taken.
    """

    def results() -> Iterator[Result]:
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(items), _AHEAD):
                yield from pool.map(function, items[start : start + _AHEAD])

    return progress(results(), len(items), title, unit)
