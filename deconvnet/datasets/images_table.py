"""The first stage of the pipeline: a data set in VOC's layout, or a generated one, becomes the `images` table."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
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
from infra.storage import tables
from proposals import schemas

PREPARE_VERSION = 1  # increase it when a change makes the same input give another table
_PER_PART = 32
_PART_BYTES = 64_000_000


@dataclass(frozen=True)
class _Item:
    """A line of a split: an image to read, or the reason why there is none."""

    image_id: str
    split: str
    found: voc.VocImageFiles | tables.Reject

    @property
    def size(self) -> int:
        """Size of the image file in bytes."""
        return self.found.image.size if isinstance(self.found, voc.VocImageFiles) else 0


def class_names(settings: DataSettings) -> tuple[str, ...]:
    """Return the class names of the data.

    Args:
        settings: the data settings.

    Returns:
        Names by id, background first: those of the settings, or of the generated data set if `settings.root` is None.
    """
    return settings.classes if settings.root else GENERATED_CLASSES


def data_folder(settings: DataSettings, seed: int, generated_uri: str) -> str:
    """Return the data set's folder, after generating the data set if the settings name none.

    Args:
        settings: the data settings.
        seed: seed of the generated data set.
        generated_uri: folder to generate it in.

    Returns:
        Absolute path or s3:// address of a folder in VOC's layout.
    """
    if settings.root:
        return storage.absolute(settings.root)
    size = settings.generated
    synthetic.write_dataset(generated_uri, seed, size.train, size.val, size.height, size.width)
    return storage.absolute(generated_uri)


def data_fingerprint(settings: DataSettings, root: str) -> str:
    """Compute a fingerprint of the data without reading images.

    Args:
        settings: the data settings.
        root: folder of the data set; not used for generated data.

    Returns:
        Hex SHA-256 of the names, sizes and times of change of all files of both splits; for generated data, of its settings (the
        caller must add the seed).

    Raises:
        UserError: if the folder is not in VOC's layout.
    """
    if not settings.root:
        recipe: Any = [synthetic.GENERATOR_VERSION, settings.generated.model_dump()]
        return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
    dataset = voc.VocDataset(root)
    digest = hashlib.sha256()
    for split in (settings.train_split, settings.val_split):
        images, rejects = dataset.split(split)
        digest.update(json.dumps([split, [(reject.image_id, reject.reason) for reject in rejects]]).encode())
        for image in images:
            files = [file for file in (image.image, image.class_mask, image.object_mask) if file]
            digest.update(json.dumps([(file.name, file.size, file.mtime_ns) for file in files]).encode())
    return digest.hexdigest()


def prepare_images(
    settings: DataSettings, seed: int, out_uri: str, fingerprint: str, root: str, executor: Executor
) -> tables.Commit:
    """Read a data set in VOC's layout and write its `images` table.

    Args:
        settings: the data settings.
        seed: seed of the draw of the dev split, and of the images if `settings.limit` is set.
        out_uri: the table to write.
        fingerprint: fingerprint of the stage.
        root: folder of the data set.
        executor: runs the parts.

    Returns:
        The commit of the table. Its `extra` has `counts` (number of images by split), `classes` (names by id), and `digest` (hex
        SHA-256 of the table's content: the same for the same images, masks and splits).

    Raises:
        UserError: if the folder or a split can't be read, more images than `settings.max_rejects` are unusable, or a split has no
            usable image. Nothing is committed then.
    """
    root = storage.absolute(root)
    classes = class_names(settings)
    items = _items(settings, seed, root)
    units = _units(items)
    make_rows = partial(_rows, root=root, num_classes=len(classes), max_pixels=settings.max_pixels)
    parts = make_parts(out_uri, fingerprint, schemas.IMAGES, units, make_rows, executor, title="prepare", rows_per_group=16)
    counts: Counter[str] = sum((Counter(group.splits) for part in parts for group in part.row_groups), Counter())
    try:
        check_rejects(parts, len(items), settings.max_rejects)
        for split in ("train", "dev", "val"):
            if not counts[split]:
                raise _no_usable_image(split, settings, [reject for part in parts for reject in part.rejects])
    except UserError:
        tables.discard(out_uri, fingerprint)  # so that files are read again: a corrected file may look unchanged
        raise
    digest = hashlib.sha256("".join(part.digest for part in parts).encode()).hexdigest()
    extra = {"counts": {split: counts[split] for split in ("train", "dev", "val")}, "classes": list(classes), "digest": digest}
    return tables.commit(out_uri, fingerprint, parts, extra)


def listed_image_ids(settings: DataSettings, seed: int, root: str) -> set[str]:
    """List the images that `prepare_images` would read.

    Args:
        settings: the data settings.
        seed: seed of the draw of the images if `settings.limit` is set.
        root: folder of the data set.

    Returns:
        Their ids, with those that turn out to be unusable.

    Raises:
        UserError: if the folder or a split can't be read, or a split has no image.
    """
    return {item.image_id for item in _items(settings, seed, root)}


def _items(settings: DataSettings, seed: int, root: str) -> list[_Item]:
    """List the images and the rejected lines of both splits, sorted by id like the rows of the table."""
    dataset = voc.VocDataset(root)
    val, val_rejects = dataset.split(settings.val_split)
    taken = dict.fromkeys((each.image_id for each in val), settings.val_split)
    train, train_rejects = dataset.split(settings.train_split, taken)
    for split, usable, rejects in (("train", train, train_rejects), ("val", val, val_rejects)):
        if not usable:
            raise _no_usable_image(split, settings, rejects)
    splits = assign_splits(
        [each.image_id for each in train], [each.image_id for each in val], settings.dev_fraction, seed, settings.limit
    )
    items = [_Item(image.image_id, splits[image.image_id], image) for image in [*train, *val] if image.image_id in splits]
    if settings.limit is None:  # with a limit only the images drawn are considered
        for split, rejects in (("train", train_rejects), ("val", val_rejects)):
            items += [_Item(reject.image_id, split, reject) for reject in rejects]
    return sorted(items, key=lambda item: (item.image_id, item.split))


def _units(items: Sequence[_Item]) -> list[list[_Item]]:
    """Group consecutive items into parts of at most 32 images and about 64 MB."""
    units: list[list[_Item]] = [[]]
    size = 0
    for item in items:
        if units[-1] and (len(units[-1]) == _PER_PART or size + item.size > _PART_BYTES):
            units.append([])
            size = 0
        units[-1].append(item)
        size += item.size
    return units


def _rows(unit: Sequence[_Item], root: str, num_classes: int, max_pixels: int) -> Iterator[dict[str, Any] | tables.Reject]:
    """Read the images of one part; yields their rows in order, and a Reject for each that can't be used."""
    for item in unit:
        found = item.found
        yield found if isinstance(found, tables.Reject) else voc.read_row(root, found, item.split, num_classes, max_pixels)


def _no_usable_image(split: str, settings: DataSettings, rejects: Sequence[tables.Reject]) -> UserError:
    """Make the error for a split without a usable image, with the two most common reasons."""
    name = {"train": settings.train_split, "dev": f"dev (drawn from {settings.train_split})", "val": settings.val_split}[split]
    reasons = Counter(reject.reason for reject in rejects).most_common(2)
    why = "; ".join(f"{n}× {reason}" for reason, n in reasons)
    return UserError(f"no usable image in the split {name}{f' ({why})' if why else ''}: correct the files, or the split's list")
