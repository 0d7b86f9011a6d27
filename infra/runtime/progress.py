"""A progress display for long work: a bar on a terminal, otherwise a line every ten seconds for a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")
LOG_SECONDS = 10.0


def progress(items: Iterable[Item], total: int, title: str, unit: str) -> Iterator[Item]:
    """Yield items unchanged, and show on stderr how many there have been so far.

    Args:
        items: the items, for example results of work. They may come slowly.
        total: number of items to expect.
        title: name of the work, shown with the progress.
        unit: plural noun for the items, shown with the progress, such as "images".

    Yields:
        The same items.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=f"  {title}", unit=f" {unit}", leave=False)
        return
    started = last = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= LOG_SECONDS:
            last = now
            with suppress(OSError):  # the log's pipe was closed; the work continues
                print(f"  {title}: {count:,} of {total:,} {unit}, {now - started:,.0f} s", file=sys.stderr, flush=True)
