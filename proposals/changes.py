"""What is new in an images table since an earlier one, by content, and what may be taken over from tables made of the earlier one.

The `changes` table has a row for each photograph; its parts go with those of the images one to one. Both images tables are sorted,
so a task compares one part with the few that overlap it.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from infra.runtime.executor import Executor
from infra.runtime.parts import make_parts
from infra.storage import tables

Change = Literal["new", "changed", "relabelled", "same"]
CHANGES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        # changed: other pixels; relabelled: the same photograph with other masks, or in another split
        pa.field("change", pa.string(), nullable=False),
    ]
)
SAME_IMAGE: frozenset[Change] = frozenset(("same", "relabelled"))
SAME_LABELS: frozenset[Change] = frozenset(("same",))


@dataclass(frozen=True)
class Earlier:
    """A table made by the same recipe from earlier photographs, and what has changed since."""

    table: str
    changes: str


@dataclass(frozen=True)
class Known:
    """What an earlier table may know of the photographs in one part: its `parts` that overlap, and the part's changes."""

    table: str
    parts: tuple[tables.Part, ...]
    changes: str
    part: tables.Part

    def rows(self, still: frozenset[Change], columns: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
        """The earlier table's rows by image_id, of photographs whose change is one of `still`. `columns` must have image_id."""
        rows = tables.iter_rows(self.changes, part=self.part)
        unchanged = {row["image_id"] for row in rows if row["change"] in still}
        found: dict[str, list[dict[str, Any]]] = {}
        for row in tables.rows_between(self.table, self.parts, self.part.first, self.part.last, columns):
            if row["image_id"] in unchanged:
                found.setdefault(row["image_id"], []).append(row)
        return found


def known(earlier: Earlier | None, images: tables.Commit) -> list[Known | None]:
    """For each part of `images`, what `earlier` may know of it: None where that is nothing."""
    if earlier is None or (before := tables.read_commit(earlier.table)) is None:
        return [None] * len(images.parts)
    changes = tables.require_commit(earlier.changes)
    return [
        Known(earlier.table, near, earlier.changes, part) if part.rows else None
        for part, near in zip(changes.parts, _overlapping(before.parts, changes.parts), strict=True)
    ]


def find_changes(images_uri: str, before_uri: str | None, out_uri: str, fingerprint: str, executor: Executor) -> tables.Commit:
    """Compare an images table with an earlier one and write a table of the changes.

    Args:
        images_uri: the `images` table.
        before_uri: the earlier one; where None, or where there is no table, every image is new.
        out_uri: the `changes` table to write: a part for each part of `images_uri`.
        fingerprint: of the stage.
        executor: runs the parts.

    Returns:
        the commit of the table. Its `extra` counts `new`, `changed`, `relabelled`, `same` and `gone`.
    """
    images = tables.require_commit(images_uri)
    before = tables.read_commit(before_uri) if before_uri else None
    units = list(zip(images.parts, _overlapping(before.parts if before else (), images.parts), strict=True))
    make_rows = partial(_rows, images_uri, before_uri)
    parts = make_parts(out_uri, fingerprint, CHANGES, units, make_rows, executor, title="comparing")
    with ThreadPoolExecutor(16) as pool:  # small files, and on S3 each takes a while
        found = pool.map(lambda part: Counter(row["change"] for row in tables.iter_rows(out_uri, ["change"], part)), parts)
        counts = sum(found, Counter[str]())
    gone = (before.rows if before else 0) - (images.rows - counts["new"])
    extra = {name: counts[name] for name in ("new", "changed", "relabelled", "same")} | {"gone": gone}
    return tables.commit(out_uri, fingerprint, parts, extra)


def _rows(images_uri: str, before_uri: str | None, unit: tuple[tables.Part, tuple[tables.Part, ...]]) -> Iterator[dict[str, Any]]:
    """The rows of one part: its images, compared with the earlier parts that overlap it."""
    part, overlapping = unit
    old = tables.rows_between(before_uri, overlapping, part.first, part.last) if before_uri else iter(())
    for image_id, change in compare(tables.iter_rows(images_uri, part=part), old):
        yield {"image_id": image_id, "change": change}


def compare(rows: Iterator[Mapping[str, Any]], before: Iterator[Mapping[str, Any]]) -> Iterator[tuple[str, Change]]:
    """What became of each of `rows` (of an images table), against rows from before; both sorted by image_id, one of each in memory."""
    old = next(before, None)
    for row in rows:
        while old is not None and old["image_id"] < row["image_id"]:
            old = next(before, None)
        if old is None or old["image_id"] != row["image_id"]:
            yield row["image_id"], "new"
        elif old["image"] != row["image"]:
            yield row["image_id"], "changed"
        elif any(old[name] != row[name] for name in ("split", "class_mask", "object_mask")):
            yield row["image_id"], "relabelled"
        else:
            yield row["image_id"], "same"


def _overlapping(before: Sequence[tables.Part], parts: Sequence[tables.Part]) -> list[tuple[tables.Part, ...]]:
    """For each of `parts` those of `before` that may have its photographs. Both are of sorted tables."""
    filled = [each for each in before if each.rows]
    firsts, lasts = [each.first for each in filled], [each.last for each in filled]
    return [
        tuple(filled[bisect_left(lasts, part.first) : bisect_right(firsts, part.last)]) if part.rows else () for part in parts
    ]
