"""A progress display for long work: a bar on a terminal, otherwise a line every ten seconds for a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
LOG_SECONDS = 10.0


def progress(items: Iterable[Item], total: int, title: str, unit: str) -> Iterator[Item]:
    """Pass on items, and show on stderr how many there have been.

    Args:
        items: the items.
        total: number of items.
        title: name of the work in the display.
        unit: plural noun for the items in the display.

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
            print(f"  {title}: {count:,} of {total:,} {unit}, {now - started:,.0f} s", file=sys.stderr, flush=True)
