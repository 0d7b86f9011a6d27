"""Find which images changed since a previous `images` table, and reuse rows of tables made from that one.

Retraining compares its images with those of the previous run by content. Rows of proposals and of training crops are copied for
images that have not changed. Both `images` tables are sorted by image_id, so each part is compared with the few parts of the
previous table that overlap it.
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
"""How an image differs from the previous table: "changed" is another file, "relabelled" other masks or another split."""
SAME_IMAGE: frozenset[Change] = frozenset(("same", "relabelled"))
"""Changes that leave the image's file as it was."""
SAME_LABELS: frozenset[Change] = frozenset(("same",))
"""Changes that leave the image, its masks and its split as they were: none."""


@dataclass(frozen=True)
class PreviousTable:
    """A table whose rows may be copied: made with the same settings from a previous `images` table.

    Attributes:
        table: its URI.
        changes: URI of the `changes` table that says what changed since.
    """

    table: str
    changes: str


@dataclass(frozen=True)
class PreviousPart:
    """What one part of an `images` table may copy from a previous table.

    Attributes:
        table: URI of the previous table.
        parts: its parts that may hold images of this part.
        changes: URI of the `changes` table.
        part: this part, in the `changes` table.
    """

    table: str
    parts: tuple[tables.Part, ...]
    changes: str
    part: tables.Part

    def rows(self, reusable: frozenset[Change], columns: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
        """Read the previous rows of this part's images.

        Args:
            reusable: only images with one of these changes.
            columns: columns to read, with image_id among them; None for all.

        Returns:
            Rows by image_id; an image may have several.
        """
        changes = tables.iter_rows(self.changes, part=self.part)
        wanted = {row["image_id"] for row in changes if row["change"] in reusable}
        found: dict[str, list[dict[str, Any]]] = {}
        for row in tables.rows_between(self.table, self.parts, self.part.first, self.part.last, columns):
            if row["image_id"] in wanted:
                found.setdefault(row["image_id"], []).append(row)
        return found


def previous_parts(previous: PreviousTable | None, images: tables.Commit) -> list[PreviousPart | None]:
    """Find what each part of an `images` table may copy from a previous table.

    Args:
        previous: the previous table; None to copy nothing.
        images: commit of the `images` table.

    Returns:
        One item per part of `images`; None for a part that can copy nothing.
    """
    if previous is None or (before := tables.read_commit(previous.table)) is None:
        return [None] * len(images.parts)
    changes = tables.require_commit(previous.changes)
    return [
        PreviousPart(previous.table, overlapping, previous.changes, part) if part.rows else None
        for part, overlapping in zip(changes.parts, _overlapping(before.parts, changes.parts), strict=True)
    ]


def find_changes(images_uri: str, before_uri: str | None, out_uri: str, fingerprint: str, executor: Executor) -> tables.Commit:
    """Compare an `images` table with a previous one and write a `changes` table.

    Args:
        images_uri: the `images` table.
        before_uri: the previous one; if it is None or does not exist, every image is new.
        out_uri: the `changes` table to write, with a part for each part of `images_uri`.
        fingerprint: fingerprint of the stage.
        executor: runs the parts.

    Returns:
        The commit of the table. Its `extra` counts `new`, `changed`, `relabelled`, `same` and `gone` images.
    """
    images = tables.require_commit(images_uri)
    before = tables.read_commit(before_uri) if before_uri else None
    units = list(zip(images.parts, _overlapping(before.parts if before else (), images.parts), strict=True))
    make_rows = partial(_part_rows, images_uri, before_uri)
    parts = make_parts(out_uri, fingerprint, CHANGES, units, make_rows, executor, title="comparing")
    with ThreadPoolExecutor(16) as pool:  # many small files, each with some latency on S3
        counted = pool.map(lambda part: Counter(row["change"] for row in tables.iter_rows(out_uri, ["change"], part)), parts)
        counts = sum(counted, Counter[str]())
    gone = (before.rows if before else 0) - (images.rows - counts["new"])
    extra = {name: counts[name] for name in ("new", "changed", "relabelled", "same")} | {"gone": gone}
    return tables.commit(out_uri, fingerprint, parts, extra)


def _part_rows(
    images_uri: str, before_uri: str | None, unit: tuple[tables.Part, tuple[tables.Part, ...]]
) -> Iterator[dict[str, Any]]:
    """The rows of one part, from its images and the previous parts that overlap it."""
    part, overlapping = unit
    before = tables.rows_between(before_uri, overlapping, part.first, part.last) if before_uri else iter(())
    for image_id, change in compare(tables.iter_rows(images_uri, part=part), before):
        yield {"image_id": image_id, "change": change}


def compare(rows: Iterator[Mapping[str, Any]], before: Iterator[Mapping[str, Any]]) -> Iterator[tuple[str, Change]]:
    """Compare rows of two `images` tables, holding one row of each in memory.

    Args:
        rows: rows of the current table, sorted by image_id.
        before: rows of the previous table, sorted by image_id.

    Yields:
        For each of `rows`, its image_id and its change.
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
    """For each of `parts`, those of `before` whose range of image ids overlaps its own; both are of sorted tables."""
    filled = [each for each in before if each.rows]
    firsts, lasts = [each.first for each in filled], [each.last for each in filled]
    return [
        tuple(filled[bisect_left(lasts, part.first) : bisect_right(firsts, part.last)]) if part.rows else () for part in parts
    ]
