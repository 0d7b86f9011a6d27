"""Find the images that have changed since the previous run, and reuse the results of the others.

Retraining compares its `images` table with that of the previous run, image by image and byte by byte. The proposals and training
crops of unchanged images are then copied from the previous run's tables instead of being computed again. Both `images` tables are
sorted by image_id, so each part (Parquet file) of the current table needs to be compared only with the few parts of the previous
table whose ids overlap its own.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from infra.runtime.executor import Executor
from infra.runtime.parts import make_parts
from infra.storage import tables
from proposals.schemas import CHANGES

Change = Literal["new", "changed", "relabelled", "same"]
"""How an image differs from the previous table. "changed": its file differs; "relabelled": only its masks or its split differ."""
SAME_IMAGE: frozenset[Change] = frozenset(("same", "relabelled"))
"""Changes after which the image's file is still the same."""
SAME_LABELS: frozenset[Change] = frozenset(("same",))
"""Changes after which the image's file, masks and split are all still the same."""


@dataclass(frozen=True)
class PreviousTable:
    """A table of the previous run whose rows may be copied. It was made with the same settings as the new table.

    Attributes:
        table: URI of the previous table, for example of proposals.
        changes: URI of the `changes` table, which says how each image differs from the previous run.
        fingerprint: fingerprint of the previous table, a hash of all its inputs. If the table at `table` has another fingerprint
            by now, nothing is copied.
    """

    table: str
    changes: str
    fingerprint: str


@dataclass(frozen=True)
class PreviousPart:
    """The location of the rows of a previous table that may be copied for one part of the current `images` table.

    A table consists of several parts, each of which is a Parquet file.

    Attributes:
        table: URI of the previous table.
        parts: the parts of the previous table that may contain rows of these images.
        changes: URI of the `changes` table, which says how each image differs from the previous run.
        part: the part of the `changes` table that covers these images.
    """

    table: str
    parts: tuple[tables.Part, ...]
    changes: str
    part: tables.Part

    def rows(self, reusable: frozenset[Change], columns: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
        """Read the rows of the previous table that are still valid. These are the rows of images whose change does not matter.

        Args:
            reusable: the kinds of change that do not matter: values of `Change`, such as "same".
            columns: the columns to read, which must include image_id; None for all.

        Returns:
            A list of rows for each image_id; an image without valid rows has no entry.
        """
        changes = tables.iter_rows(self.changes, part=self.part)
        wanted = {row["image_id"] for row in changes if row["change"] in reusable}
        found: dict[str, list[dict[str, Any]]] = {}
        for row in tables.rows_between(self.table, self.parts, self.part.first, self.part.last, columns):
            if row["image_id"] in wanted:
                found.setdefault(row["image_id"], []).append(row)
        return found


def previous_parts(previous: PreviousTable | None, images: tables.Commit) -> list[PreviousPart | None]:
    """Find out which rows of a previous table may be copied for each part (Parquet file) of an `images` table.

    Args:
        previous: the previous table; None to copy nothing.
        images: commit record of the current `images` table, which lists its parts.

    Returns:
        One item per part of `images`, in order. An item is None if there is nothing to copy for its part. All items are None if
        the previous table does not exist, or has another fingerprint than `previous.fingerprint`.

    Raises:
        FileNotFoundError: if the previous table exists but the `changes` table does not.
    """
    before = tables.read_commit(previous.table) if previous else None
    if previous is None or before is None or before.fingerprint != previous.fingerprint:
        return [None] * len(images.parts)
    changes = tables.require_commit(previous.changes)
    return [
        PreviousPart(previous.table, overlapping, previous.changes, part) if part.rows else None
        for part, overlapping in zip(changes.parts, _overlapping(before.parts, changes.parts), strict=True)
    ]


def find_changes(images_uri: str, before_uri: str | None, out_uri: str, fingerprint: str, executor: Executor) -> tables.Commit:
    """Compare an `images` table with the previous one and write the result as a `changes` table.

    Args:
        images_uri: URI of the current `images` table.
        before_uri: URI of the previous `images` table; if it is None or there is no such table, every image is new.
        out_uri: URI of the `changes` table to write. It gets one part for each part of the current `images` table.
        fingerprint: digest of the code version, settings and inputs of this pipeline stage. Parts that an interrupted run wrote
            with the same fingerprint are kept.
        executor: runs the comparisons, one unit of work per part, locally or on Ray.

    Returns:
        The commit record of the `changes` table, which lists its parts. Its `extra` has the number of images that are `new`,
        `changed`, `relabelled` or `same`, and of those that are `gone` from the previous table.

    Raises:
        FileNotFoundError: if there is no complete table at `images_uri`.
    """
    images = tables.require_commit(images_uri)
    before = tables.read_commit(before_uri) if before_uri else None
    units = list(zip(images.parts, _overlapping(before.parts if before else (), images.parts), strict=True))
    make_rows = partial(_part_rows, images_uri, before_uri)
    parts = make_parts(out_uri, fingerprint, CHANGES, units, make_rows, executor, title="comparing")
    with ThreadPoolExecutor(16) as pool:  # because many small files are read, each with some latency on S3
        counted = pool.map(lambda part: Counter(row["change"] for row in tables.iter_rows(out_uri, ["change"], part)), parts)
        counts = sum(counted, Counter[str]())
    gone = (before.rows if before else 0) - (images.rows - counts["new"])
    extra = {name: counts[name] for name in ("new", "changed", "relabelled", "same")} | {"gone": gone}
    return tables.commit(out_uri, fingerprint, parts, extra)


def _part_rows(
    images_uri: str, before_uri: str | None, unit: tuple[tables.Part, tuple[tables.Part, ...]]
) -> Iterator[dict[str, Any]]:
    """Make the rows of one part of the `changes` table.

    Args:
        images_uri: URI of the current `images` table.
        before_uri: URI of the previous one; None if there is none.
        unit: the unit of work: a part of the current table, and the parts of the previous table whose ids overlap it.

    Yields:
        Rows with the keys `image_id` and `change` ("new", "changed", "relabelled" or "same"), sorted by image_id.
    """
    part, overlapping = unit
    before = tables.rows_between(before_uri, overlapping, part.first, part.last) if before_uri else iter(())
    for image_id, change in compare(tables.iter_rows(images_uri, part=part), before):
        yield {"image_id": image_id, "change": change}


def compare(rows: Iterator[Mapping[str, Any]], before: Iterator[Mapping[str, Any]]) -> Iterator[tuple[str, Change]]:
    """Compare two `images` tables row by row, with only one row of each in memory.

    Args:
        rows: rows of the current table, sorted by image_id.
        before: rows of the previous table, sorted by image_id.

    Yields:
        For each row of the current table, in order, its image_id and how the image differs: "new", "changed" (another file),
        "relabelled" (other masks or another split) or "same".
    """
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
    """Find the parts (Parquet files) of a previous table that may contain the same images as each part of the current table.

    Args:
        before: summaries of the parts of the previous table, in order.
        parts: summaries of the parts of the current table, in order.

    Returns:
        For each item of `parts`, the items of `before` whose range of image ids overlaps its own.
    """
    filled = [each for each in before if each.rows]
    firsts, lasts = [each.first for each in filled], [each.last for each in filled]
    return [
        tuple(filled[bisect_left(lasts, part.first) : bisect_right(firsts, part.last)]) if part.rows else () for part in parts
    ]
