"""The row groups of a table's Parquet files: their size, and what the commit record says about them.

A row group is the smallest piece of a Parquet file that a reader loads.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

GROUP_BYTES = 2**20
"""Largest size in bytes of a row group of several rows. A training worker holds one row group per example of a batch."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A summary of one row group of a Parquet file.

    Attributes:
        rows: number of rows.
        nbytes: number of bytes in the binary columns (encoded images and masks).
        splits: number of rows for each value of the column `split`; empty if there is no such column.
        classes: number of rows for each value of the column `class_ids`, a list, which is written as text with commas ("1,15");
            empty if there is no such column.
    """

    rows: int
    nbytes: int
    splits: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)


def divide_rows(rows: Iterable[Mapping[str, Any]], max_rows: int) -> Iterator[list[Mapping[str, Any]]]:
    """Divide rows into row groups of at most `max_rows` rows and GROUP_BYTES bytes. A row that is larger forms its own group."""
    group: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        if group and (len(group) == max_rows or size + _nbytes(row) > GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(row)
        size += _nbytes(row)
    if group:
        yield group


def _nbytes(row: Mapping[str, Any]) -> int:
    """Return the number of bytes in the binary columns of a row (encoded images and masks)."""
    return sum(len(value) for value in row.values() if isinstance(value, bytes))


def summarize(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> RowGroup:
    """Return the summary of a row group of a Parquet file, whose rows are given as dicts with the columns of `schema`."""
    splits = Counter(row["split"] for row in rows) if "split" in schema.names else {}
    classes = Counter(",".join(map(str, row["class_ids"])) for row in rows) if "class_ids" in schema.names else {}
    return RowGroup(len(rows), sum(map(_nbytes, rows)), dict(splits), dict(classes))
