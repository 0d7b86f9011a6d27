"""The job that makes the `images` table of a VOC-layout folder, and what tells one input from another."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from deconvnet.datasets import synthetic, voc
from deconvnet.datasets.splits import assign_splits
from deconvnet.settings import DataSettings
from infra import storage
from infra.errors import UserError
from infra.runtime.executor import Executor
from infra.runtime.parts import check_rejects, make_parts
from infra.storage import tables
from proposals import schemas

PREPARE_VERSION = 1  # raise it when the same input comes to give another table
_PER_PART = 32
_PART_BYTES = 64_000_000


@dataclass(frozen=True)
class _Item:
    """A photograph to read, or one already known to be unusable."""

    image_id: str
    split: str
    found: voc.VocImageFiles | tables.Reject

    @property
    def size(self) -> int:
        return self.found.image.size if isinstance(self.found, voc.VocImageFiles) else 0


def class_names(settings: DataSettings) -> tuple[str, ...]:
    """The classes of the data that `settings` name: the generated data set has its own."""
    return settings.classes if settings.root else synthetic.GENERATED_CLASSES


def data_folder(settings: DataSettings, seed: int, place: str) -> str:
    """The VOC-layout folder that `settings` name; where they name none, the data set generated at `place`."""
    if settings.root:
        return storage.absolute(settings.root)
    made = settings.generated
    synthetic.write_dataset(place, seed, made.train, made.val, made.height, made.width)
    return storage.absolute(place)


def data_fingerprint(settings: DataSettings, root: str) -> str:
    """A cheap fingerprint of the input: hex SHA-256 of the used files' names, sizes and times of change, without reading them.

    Of generated data, of what it is generated from (with the pipeline's seed, which the caller must add in either case). Raises
    UserError where `root` is no folder in VOC's layout.
    """
    if not settings.root:
        made: Any = [synthetic.GENERATOR_VERSION, settings.generated.model_dump()]
        return hashlib.sha256(json.dumps(made).encode()).hexdigest()
    folder = voc.VocDataset(root)
    digest = hashlib.sha256()
    for split in (settings.train_split, settings.val_split):
        photographs, rejects = folder.split(split)
        digest.update(json.dumps([split, [(r.image_id, r.reason) for r in rejects]]).encode())
        for each in photographs:
            files = [f for f in (each.image, each.class_mask, each.object_mask) if f]
            digest.update(json.dumps([(f.name, f.size, f.mtime_ns) for f in files]).encode())
    return digest.hexdigest()


def prepare_images(
    settings: DataSettings, seed: int, out_uri: str, fingerprint: str, root: str, executor: Executor
) -> tables.Commit:
    """Read a data set in VOC's layout and write its `images` table.

    Args:
        settings: of the data.
        seed: of the dev split and of `settings.limit`.
        out_uri: the table to write.
        fingerprint: of the stage.
        root: folder of the data set.
        executor: runs the parts.

    Returns:
        the commit of the table. Its `extra` has `counts` (images by split), `classes`, and `digest` (of the table's content: the
        same for the same images, masks and splits).

    Raises:
        UserError: for a folder or split that can't be read, where more than `settings.max_rejects` of the images are unusable, or
            where a split has no usable one. Nothing is committed then.
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
                raise _no_photograph(split, settings, [reject for part in parts for reject in part.rejects])
    except UserError:
        tables.discard(out_uri, fingerprint)  # a file that is mended need not look newer
        raise
    digest = hashlib.sha256("".join(part.digest for part in parts).encode()).hexdigest()
    extra = {"counts": {split: counts[split] for split in ("train", "dev", "val")}, "classes": list(classes), "digest": digest}
    return tables.commit(out_uri, fingerprint, parts, extra)


def listed(settings: DataSettings, seed: int, root: str) -> set[str]:
    """Ids of the photographs that would be read. Raises UserError as `prepare_images` does of the folder."""
    return {item.image_id for item in _items(settings, seed, root)}


def _items(settings: DataSettings, seed: int, root: str) -> list[_Item]:
    """Every line of the two splits, sorted by id: the order of the table, and of its rejects."""
    folder = voc.VocDataset(root)
    val, val_rejects = folder.split(settings.val_split)
    taken = dict.fromkeys((each.image_id for each in val), settings.val_split)
    train, train_rejects = folder.split(settings.train_split, taken)
    for split, usable, rejects in (("train", train, train_rejects), ("val", val, val_rejects)):
        if not usable:
            raise _no_photograph(split, settings, rejects)
    splits = assign_splits(
        [each.image_id for each in train], [each.image_id for each in val], settings.dev_fraction, seed, settings.limit
    )
    items = [_Item(p.image_id, splits[p.image_id], p) for p in [*train, *val] if p.image_id in splits]
    if settings.limit is None:  # else the photographs drawn are all that is looked at
        items += [_Item(r.image_id, "train", r) for r in train_rejects] + [_Item(r.image_id, "val", r) for r in val_rejects]
    return sorted(items, key=lambda item: (item.image_id, item.split))


def _units(items: Sequence[_Item]) -> list[list[_Item]]:
    """Consecutive items in parts of bounded count and bytes."""
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
    """Rows of one part, and what had to be set aside."""
    for item in unit:
        if isinstance(item.found, tables.Reject):
            yield item.found
        else:
            yield voc.read_row(root, item.found, item.split, num_classes, max_pixels)


def _no_photograph(split: str, settings: DataSettings, rejects: Sequence[tables.Reject]) -> UserError:
    """What refuses a split without a usable photograph, with the commonest reasons."""
    name = {"train": settings.train_split, "dev": f"dev (drawn from {settings.train_split})", "val": settings.val_split}[split]
    reasons = Counter(reject.reason for reject in rejects).most_common(2)
    why = "; ".join(f"{n}× {reason}" for reason, n in reasons)
    return UserError(f"no usable photograph in the split {name}{f' ({why})' if why else ''}: mend the files, or the split's list")
