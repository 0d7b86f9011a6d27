"""Notes on the images of an `images` table, which make it possible to compare versions of the table without reading rows.

The summary of each part has a note for each image: a digest of the image file, a digest of the masks and split, and a stamp of
the source files. Comparing notes shows which images are new or have changed since an earlier version. The keys of parts of
derived tables are computed from them (`pixels_key`, `labels_key`).
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from infra.runtime.stages import digest
from infra.storage import tables

CHANGES = ("new", "changed", "relabelled", "same", "gone")
"""How an image differs from an earlier table. "changed": its file differs; "relabelled": only its masks or its split differ."""
_LENGTH = 16  # hexadecimal digits of a digest
_NONE = "-"  # in place of the digests of an image that can't be used


@dataclass(frozen=True, slots=True)
class ImageNote:
    """What is known about an image without reading its row.

    Attributes:
        image_id: id of the image. Ids of inputs that can't be used may occur several times.
        split: train, dev, val or test.
        stamp: digest of the names, sizes and times of the image's files, or of the reason why it can't be used.
        pixels: digest of the image's file. "-" if the image can't be used.
        labels: digest of its masks and its split. "-" if the image can't be used.
    """

    image_id: str
    split: str
    stamp: str
    pixels: str = _NONE
    labels: str = _NONE

    @property
    def usable(self) -> bool:
        """Return whether the table has a row of the image."""
        return self.pixels != _NONE


def note_of_row(row: Mapping[str, Any], stamp: str = _NONE) -> tables.Note:
    """Make the note of an image.

    Args:
        row: its row of the `images` table.
        stamp: digest of the names, sizes and times of its files.
    """
    labels = _digest(row["split"].encode(), row["class_mask"], row["object_mask"])
    return _note(ImageNote(row["image_id"], row["split"], stamp, _digest(row["image"]), labels))


def note_of_reject(image_id: str, split: str, stamp: str) -> tables.Note:
    """Make the note of an image that can't be used, so that it is tried again only when its files have changed."""
    return _note(ImageNote(image_id, split, stamp))


def _note(of: ImageNote) -> tables.Note:
    """Write a note as text, the id last because it may contain spaces."""
    return tables.Note(" ".join((of.stamp, of.pixels, of.labels, of.split, of.image_id)))


def read_notes(part: tables.Part) -> list[ImageNote]:
    """Return the notes of a part of an `images` table, in the order of its images."""
    lines = part.notes.split("\n") if part.notes else []
    fields = [line.split(" ", 4) for line in lines]
    return [ImageNote(image_id, split, stamp, pixels, labels) for stamp, pixels, labels, split, image_id in fields]


def usable_notes(images: tables.Commit) -> Iterator[ImageNote]:
    """Iterate over the notes of the images in an `images` table, given its commit record. Inputs without a row are left out."""
    for part in images.parts:
        yield from (note for note in read_notes(part) if note.usable)


def pixels_key(part: tables.Part) -> str:
    """Return a digest of a part's images, without masks and splits: the key of parts that depend on the images alone."""
    return digest([[note.image_id, note.pixels] for note in _rows_or_rejects(part)] or [part.first, part.last, part.digest])


def labels_key(part: tables.Part) -> str:
    """Return a digest of the images of a part with their masks and splits."""
    notes = [[note.image_id, note.pixels, note.labels] for note in _rows_or_rejects(part)]
    return digest(notes or [part.first, part.last, part.digest])


def _rows_or_rejects(part: tables.Part) -> list[ImageNote]:
    """Return the notes of the usable images of a part. If there are none, return the notes of its rejects."""
    notes = read_notes(part)
    return [note for note in notes if note.usable] or notes


def count_changes(images: tables.Commit, before: tables.Commit | None) -> dict[str, int]:
    """Compare an `images` table with an earlier one, using only their commit records.

    Args:
        images: commit record of the table.
        before: commit record of the earlier one. None if there is none: then every image is new.

    Returns:
        The number of images by kind of change (`CHANGES`).
    """
    # Parts that both tables have hold the same images, so their notes need not be parsed.
    common = {part.name for part in images.parts} & {part.name for part in (before.parts if before else ())}
    same = sum(part.rows for part in images.parts if part.name in common)
    old = {note.image_id: note for note in _notes_of(before.parts if before else (), common)}
    counts = Counter(dict.fromkeys(CHANGES, 0))
    for note in _notes_of(images.parts, common):
        counts[_change(note, old.pop(note.image_id, None))] += 1
    return dict(counts) | {"same": counts["same"] + same, "gone": len(old)}


def _notes_of(parts: Iterable[tables.Part], without: set[str]) -> Iterator[ImageNote]:
    """Iterate over the notes of the usable images of some parts, without those of the parts named in `without`."""
    for part in parts:
        if part.name not in without:
            yield from (note for note in read_notes(part) if note.usable)


def _change(now: ImageNote, before: ImageNote | None) -> str:
    """Return how an image differs from an earlier table, one of `CHANGES`. `before` is its note there, or None."""
    if before is None:
        return "new"
    if before.pixels != now.pixels:
        return "changed"
    return "same" if before.labels == now.labels else "relabelled"


def _digest(*contents: bytes | None) -> str:
    """Return the first digits of the SHA-256 of contents; None differs from every content."""
    hashed = hashlib.sha256()
    for content in contents:
        hashed.update(b"-" if content is None else b"+%d:" % len(content))
        hashed.update(content or b"")
    return hashed.hexdigest()[:_LENGTH]
