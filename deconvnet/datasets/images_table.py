"""The `images` table, which the first stage of the pipeline writes.

The stage reads a data set in VOC's layout, or generates one first (`deconvnet.datasets.synthetic`). Each row of the table holds
an image with its class mask and its object mask (columns: `proposals.schemas.IMAGES`).

A new table is sorted by image_id. If it is made again after the data set has changed, each image stays in its part. Only parts
with a changed or removed image are rewritten, and new images are appended as new parts. No other file is read or written. So a
table that grew has the same rows as a table made at once, in another order.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from deconvnet.datasets import synthetic, voc
from deconvnet.datasets.palette import GENERATED_CLASSES
from deconvnet.datasets.splits import assign_splits
from deconvnet.settings import DataSettings
from infra import storage
from infra.errors import UserError
from infra.runtime.executor import Executor
from infra.runtime.parts import check_rejects, make_parts
from infra.runtime.stages import digest
from infra.storage import tables
from proposals import schemas
from proposals.image_notes import note_of_reject, note_of_row, read_notes, usable_notes

PREPARE_VERSION = 1  # increase it when a change makes the same input give another table
_PER_PART = 32  # most images in a part of the table
_PART_BYTES = 64_000_000  # about the most bytes of image files in a part


@dataclass(frozen=True, slots=True)
class _ListedImage:
    """An image id that is listed in a split, with the files of the image, or with the reason why the image can't be used.

    Attributes:
        image_id: the id, which is the name of the image file without suffix.
        split: "train", "dev" (drawn from train for validation during training), "val" or "test".
        found: the files of the image (image, class mask, object mask), or a Reject with the reason why it can't be used.
    """

    image_id: str
    split: str
    found: voc.VocImageFiles | tables.Reject

    @property
    def size(self) -> int:
        """Return the size of the image file in bytes, or 0 if there is no usable file."""
        return self.found.image.size if isinstance(self.found, voc.VocImageFiles) else 0

    @property
    def stamp(self) -> str:
        """Return a digest of the names, sizes and times of the image's files, or of the reason why it can't be used."""
        return digest([self.found.reason] if isinstance(self.found, tables.Reject) else _file_stamps(self.found))[:16]


def class_names(settings: DataSettings) -> tuple[str, ...]:
    """Return the names of the classes in the data.

    Args:
        settings: the `data` section of the settings.

    Returns:
        Class names by id, background first. They are `settings.classes`, or those of the generated data set if `settings.root` is
        empty.
    """
    return settings.classes if settings.root else GENERATED_CLASSES


def data_folder(settings: DataSettings, seed: int, generated_uri: str) -> str:
    """Return the folder of the data set. If `settings.root` is empty, generate a data set first.

    Args:
        settings: the `data` section of the settings.
        seed: seed of the generated images.
        generated_uri: folder to write a generated data set to. Nothing is written if it already holds a data set that was
            generated with the same settings and seed.

    Returns:
        Absolute path or URI of a folder in VOC's layout.
    """
    if settings.root:
        return storage.absolute(settings.root)
    size = settings.generated
    synthetic.write_dataset(generated_uri, seed, size.train, size.val, size.height, size.width)
    return storage.absolute(generated_uri)


def data_fingerprint(settings: DataSettings, root: str) -> str:
    """Compute a fingerprint of the data set, a hash that changes when the data set does, without reading its images.

    Args:
        settings: the `data` section of the settings. If its `root` is empty, the data set is a generated one.
        root: folder of the data set in VOC's layout; ignored for a generated data set.

    Returns:
        SHA-256 in hex digits. It covers the names, sizes and modification times of all image and mask files of the splits train,
        val and test, and the listed ids without usable files, with the reasons. For a generated data set it covers the
        generator's settings instead, but not the seed, which the caller must add.

    Raises:
        UserError: if the folder is not in VOC's layout, or the list of a split can't be read.
    """
    if not settings.root:
        recipe: Any = [synthetic.GENERATOR_VERSION, settings.generated.model_dump()]
        return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
    dataset = voc.VocDataset(root)
    hashed = hashlib.sha256()
    for split in filter(None, (settings.train_split, settings.val_split, settings.test_split)):
        images, rejects = dataset.split(split)
        hashed.update(json.dumps([split, [(reject.image_id, reject.reason) for reject in rejects]]).encode())
        for image in images:
            hashed.update(json.dumps(_file_stamps(image)).encode())
    return hashed.hexdigest()


def _file_stamps(image: voc.VocImageFiles) -> list[tuple[str, int, int]]:
    """Return the names, sizes and times of an image's files. They change when the files do."""
    files = [file for file in (image.image, image.class_mask, image.object_mask) if file]
    return [(file.name, file.size, file.mtime_ns) for file in files]


def prepare_images(
    settings: DataSettings,
    seed: int,
    out_uri: str,
    fingerprint: str,
    root: str,
    executor: Executor,
    previous: tables.Commit | None = None,
) -> tables.Commit:
    """Read a data set in VOC's layout and write its `images` table.

    Args:
        settings: the `data` section of the settings.
        seed: seed for drawing the split dev (validation during training) from train. If `settings.limit`, a number of images, is
            set, the seed also determines which images are used at all.
        out_uri: path or URI of the table's folder.
        fingerprint: hash of everything that this stage of the pipeline depends on, stored with the table.
        root: folder of the data set.
        executor: runs the units of work. Each unit reads up to 32 images and writes one part that does not exist yet.
        previous: commit record of an earlier version of the table, whose images stay in their parts. None sorts all by their ids.

    Returns:
        The commit record of the table, which lists its parts (Parquet files). Its `extra` has five entries: `counts` (number of
        images by split), `classes` (class names by id), `background` (the setting), `drawn` (digest of the settings by which dev
        was drawn) and `digest` (SHA-256 of the table's content in hex digits, the same for the same images, masks and splits in
        the same order).

    Raises:
        UserError: if the folder or the list of a split can't be read, the share of unusable images is larger than
            `settings.max_rejects`, or a split has no usable image. In each case the table is not committed.
    """
    root = storage.absolute(root)
    classes = class_names(settings)
    drawn = digest([seed, settings.dev_fraction, settings.limit])
    keeps_splits = previous is not None and previous.extra.get("drawn") == drawn
    earlier_splits = {note.image_id: note.split for note in usable_notes(previous)} if previous and keeps_splits else {}
    items = _items(settings, seed, root, earlier_splits)
    units = divide(items, previous.parts if previous else ())
    make_rows = partial(
        _rows, root=root, num_classes=len(classes), max_pixels=settings.max_pixels, background=settings.has_background
    )
    recipe = digest([PREPARE_VERSION, tables.SCHEMA_VERSION, len(classes), settings.max_pixels, settings.has_background])
    keys = [digest([[item.image_id, item.split, item.stamp] for item in unit]) for unit in units]
    parts = make_parts(out_uri, recipe, schemas.IMAGES, units, make_rows, executor, title="prepare", rows_per_group=16, keys=keys)
    counts: Counter[str] = sum((Counter(group.splits) for part in parts for group in part.row_groups), Counter())
    splits = ("train", "dev", "val", *(["test"] if settings.test_split else []))
    try:
        check_rejects(parts, len(items), settings.max_rejects)
        for split in splits:
            if not counts[split]:
                raise _no_usable_image(split, settings, [reject for part in parts for reject in part.rejects])
    except UserError:
        # Without these parts, the next run reads their files again: a corrected file may have the same size and time.
        kept = _kept_parts(out_uri)
        tables.discard(out_uri, [part for part in parts if part.rejects and part.name not in kept])
        raise
    content = digest([part.digest for part in parts])
    found = {split: counts[split] for split in splits}
    extra = {"counts": found, "classes": list(classes), "background": settings.background, "drawn": drawn, "digest": content}
    return tables.commit(out_uri, fingerprint, parts, extra, keep_earlier=True)


def _kept_parts(table: str) -> set[str]:
    """Return the names of the parts of all versions of a table that are kept."""
    commits = (tables.read_commit(tables.at_version(table, number)) for number in tables.kept_versions(table))
    return {part.name for commit in commits if commit for part in commit.parts}


def listed_image_ids(settings: DataSettings, seed: int, root: str) -> set[str]:
    """List the ids of the images that `prepare_images` would read.

    Args:
        settings: the `data` section of the settings.
        seed: seed for choosing the images if `settings.limit`, a number of images, is set.
        root: folder of the data set.

    Returns:
        The ids. They include images that turn out to be unusable when they are read.

    Raises:
        UserError: if the folder or the list of a split can't be read, or a split has no image.
    """
    return {item.image_id for item in _items(settings, seed, root)}


def _items(settings: DataSettings, seed: int, root: str, earlier_splits: Mapping[str, str] = {}) -> list[_ListedImage]:
    """List the images of the splits train, val and test, including those whose files are missing or can't be used.

    Some train images are assigned to the split dev (validation during training). If `settings.limit`, a number of images, is set,
    only the images chosen are listed, and unusable ones are left out.

    Args:
        settings: the `data` section of the settings.
        seed: seed for drawing dev and, if `settings.limit` is set, for choosing the images.
        root: folder of the data set.
        earlier_splits: splits of images in an earlier table, which they keep, see `splits.assign_splits`.

    Returns:
        The items, sorted by image id.

    Raises:
        UserError: if the folder or the list of a split can't be read, or a split has no image.
    """
    dataset = voc.VocDataset(root)
    val, val_rejects = dataset.split(settings.val_split)
    taken = dict.fromkeys((each.image_id for each in val), settings.val_split)
    test, test_rejects = dataset.split(settings.test_split, taken) if settings.test_split else ([], [])
    taken |= dict.fromkeys((each.image_id for each in test), settings.test_split or "")
    train, train_rejects = dataset.split(settings.train_split, taken)
    listed = {"train": (train, train_rejects), "val": (val, val_rejects), "test": (test, test_rejects)}
    for split, (usable, rejects) in listed.items():
        if not usable and (split != "test" or settings.test_split):
            raise _no_usable_image(split, settings, rejects)
    ids = {split: [each.image_id for each in usable] for split, (usable, _) in listed.items()}
    splits = assign_splits(ids["train"], ids["val"], settings.dev_fraction, seed, settings.limit, ids["test"], earlier_splits)
    items = [
        _ListedImage(image.image_id, splits[image.image_id], image) for image in [*train, *val, *test] if image.image_id in splits
    ]
    if settings.limit is None:  # if there is a limit, only the drawn images are considered
        for split, (_, rejects) in listed.items():
            items += [_ListedImage(reject.image_id, split, reject) for reject in rejects]
    return sorted(items, key=lambda item: (item.image_id, item.split))


def divide(items: Sequence[_ListedImage], earlier_parts: Sequence[tables.Part] = ()) -> list[list[_ListedImage]]:
    """Divide the images into units of work. Each becomes one part (Parquet file) of the table.

    Args:
        items: all images, sorted by image id.
        earlier_parts: parts of an earlier version of the table. Images that one of them has stay together.

    Returns:
        The units in the order of the parts: first the earlier parts, without images that are gone, then units of at most 32 new
        images and about 64 MB each. In each unit, images are sorted by their ids.
    """
    part_of = {note.image_id: number for number, part in enumerate(earlier_parts) for note in read_notes(part)}
    kept: list[list[_ListedImage]] = [[] for _ in earlier_parts]
    new: list[list[_ListedImage]] = [[]]
    size = 0
    for item in items:
        if item.image_id in part_of:
            kept[part_of[item.image_id]].append(item)
            continue
        if new[-1] and (len(new[-1]) == _PER_PART or size + item.size > _PART_BYTES):
            new.append([])
            size = 0
        new[-1].append(item)
        size += item.size
    return [unit for unit in (*kept, *new) if unit]


def _rows(
    unit: Sequence[_ListedImage], root: str, num_classes: int, max_pixels: int, background: bool
) -> Iterator[dict[str, Any] | tables.Reject | tables.Note]:
    """Read the images of one unit of work as rows of the `images` table.

    Args:
        unit: the images of the unit.
        root: folder of the data set.
        num_classes: number of classes, background included. A mask with a higher id (other than 255, void) is rejected.
        max_pixels: an image with more pixels is rejected.
        background: whether class 0 is the background.

    Yields:
        For each image, in order, a row as a dict, or a Reject with the reason if the image can't be used; and its note.
    """
    for item in unit:
        found = item.found
        row = (
            found
            if isinstance(found, tables.Reject)
            else voc.read_row(root, found, item.split, num_classes, max_pixels, background)
        )
        yield row
        if isinstance(row, tables.Reject):
            yield note_of_reject(item.image_id, item.split, item.stamp)
        else:
            yield note_of_row(row, item.stamp)


def _no_usable_image(split: str, settings: DataSettings, rejects: Sequence[tables.Reject]) -> UserError:
    """Make the error for a split that has no usable image.

    Args:
        split: "train", "dev", "val" or "test".
        settings: the `data` section of the settings, which has the user's name of the split.
        rejects: the images that can't be used; the message gives the two most common reasons.

    Returns:
        The error, for the caller to raise.
    """
    names = {"train": settings.train_split, "dev": f"dev (drawn from {settings.train_split})", "val": settings.val_split}
    name = names.get(split, settings.test_split)
    reasons = Counter(reject.reason for reject in rejects).most_common(2)
    why = "; ".join(f"{n}× {reason}" for reason, n in reasons)
    return UserError(f"no usable image in the split {name}{f' ({why})' if why else ''}: correct the files, or the split's list")
