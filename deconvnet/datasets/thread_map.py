"""Applying a function to many items in several threads, with a progress display."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from infra.runtime.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 64  # items in a batch, so at most this many results are in memory


def thread_map(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int, title: str, unit: str
) -> Iterator[Result]:
    """Apply a function to each item in several threads, and show the progress on stderr.

    Args:
        function: function to apply; it is called once for each item, in any of the threads.
        items: items to call the function with.
        threads: number of threads.
        title: name of the work for the progress display, such as "checking".
        unit: name of the items for the progress display, in the plural, such as "images".

    Yields:
        The results, in the order of the items. Items are processed in batches of 64. The next batch starts when the caller
        has iterated over all results of the previous one.

    Raises:
        Exception: whatever `function` raises. It is raised here when its result is due.
    """

    def results() -> Iterator[Result]:
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(items), _AHEAD):
                yield from pool.map(function, items[start : start + _AHEAD])

    return progress(results(), len(items), title, unit)
