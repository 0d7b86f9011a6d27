"""Progress of long work: a bar on a terminal, a line now and then in a log."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
LOG_SECONDS = 10.0


def progress(items: Iterable[Item], total: int, title: str, unit: str = "it") -> Iterator[Item]:
    """`items`, counted on stderr against `total`."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    form = "  {desc}: {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}]"
    yield from tqdm(
        items,
        total=total,
        desc=f"  {title}" if terminal else title,
        unit=unit,
        leave=False,
        mininterval=0.2 if terminal else LOG_SECONDS,
        bar_format=None if terminal else form + "\n",
        file=sys.stderr,
    )
