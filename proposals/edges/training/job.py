"""Train a structured forest: write a table of images with their segmentations, then train the trees, one unit of work each.

Each tree reads the table by itself, one image at a time, so a machine holds only the patches of the trees that it is training.
"""

import io
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from infra import storage
from infra.errors import BadInput, UserError
from infra.runtime.executor import Executor
from infra.runtime.parts import make_parts
from infra.storage import tables
from proposals.edges.bsds import bsds_files, read_bsds_image
from proposals.edges.forest_file import encode_forest
from proposals.edges.training.forest import EdgeTree, ForestOptions, Sample, train_tree
from proposals.edges.training.segmentations import segments_from_masks
from proposals.image_codec import decode_image, decode_mask, encode_mask
from proposals.schemas import SEGMENTATIONS

_IMAGES_PER_PART = 32  # of BSDS500
_BSDS_SPLIT = "train"


def collect_samples(
    images_uri: str | None,
    bsds: str | None,
    out_uri: str,
    fingerprint: str,
    *,
    executor: Executor,
    num_images: int,
    seed: int,
) -> tables.Commit:
    """Write the table that a forest learns from: images and their segmentations.

    Args:
        images_uri: an `images` table, whose train split is used; None for none.
        bsds: folder of BSDS500, whose train split is used; None for none.
        out_uri: the table to write.
        fingerprint: fingerprint of the stage.
        executor: runs the parts.
        num_images: about how many images are drawn at random from `images_uri`.
        seed: seed of the random choice.

    Returns:
        The commit of the table. Images and masks that cannot be read are among its rejects.

    Raises:
        UserError: if `bsds` is not BSDS500, or there are no images with masks.
    """
    images = tables.require_commit(images_uri) if images_uri else None
    total = sum(group.splits.get("train", 0) for part in images.parts for group in part.row_groups) if images else 0
    units: list[tables.Part | list[tuple[Path, Path]]] = list(images.parts) if images else []
    files = bsds_files(bsds, _BSDS_SPLIT) if bsds else []
    units += [[files[i] for i in piece] for piece in tables.chunks(len(files), _IMAGES_PER_PART)]
    rows = partial(_rows, images_uri, seed, num_images / total if total else 0.0)
    parts = make_parts(out_uri, fingerprint, SEGMENTATIONS, units, rows, executor, title="segments", rows_per_group=8)
    if not any(part.rows for part in parts):
        tables.discard(out_uri, fingerprint)
        raise UserError(
            "there is no image with masks to learn edges from: name a data set in data.root, or BSDS500's folder in bsds"
        )
    return tables.commit(out_uri, fingerprint, parts)


def _rows(
    images_uri: str | None, seed: int, share: float, unit: tables.Part | list[tuple[Path, Path]]
) -> Iterator[Mapping[str, Any] | tables.Reject]:
    """The rows and rejects of one part.

    Args:
        images_uri: the `images` table.
        seed: seed of the random choice.
        share: share of the images that are drawn from the `images` table.
        unit: a part of the `images` table, or files of BSDS500 (image, annotations).
    """
    if isinstance(unit, tables.Part):
        for row in tables.iter_rows(str(images_uri), ["image_id", "split", "image", "class_mask", "object_mask"], unit):
            if row["split"] == "train" and row["class_mask"] and _random_number(row["image_id"], seed) < share:
                yield _from_masks(row)
    else:
        for image, annotations in unit:
            segmentations = read_bsds_image((image, annotations)).segmentations
            yield _row(f"bsds/{image.stem}", image.read_bytes(), segmentations)


def _random_number(image_id: str, seed: int) -> float:
    """A number from 0 to 1 that depends only on the image's id and the seed, not on which other images there are."""
    return zlib.crc32(f"{seed}/{image_id}".encode()) / 2**32


def _from_masks(row: Mapping[str, Any]) -> Mapping[str, Any] | tables.Reject:
    """Make a row from a row of the `images` table."""
    try:
        classes = decode_mask(row["class_mask"])
        objects = decode_mask(row["object_mask"]) if row["object_mask"] else None
        return _row(row["image_id"], row["image"], [segments_from_masks(classes, objects)])
    except BadInput as error:
        return tables.Reject(row["image_id"], "", "segments", str(error))


def _row(image_id: str, image: bytes, segmentations: list[np.ndarray]) -> Mapping[str, Any]:
    """A row of the table."""
    return {"image_id": image_id, "image": image, "segmentations": [encode_mask(each) for each in segmentations]}


def train_forest(
    samples_uri: str,
    out_uri: str,
    options: ForestOptions,
    seed: int,
    trees_uri: str,
    executor: Executor,
) -> dict[str, Any]:
    """Train the trees and write the forest's file. The same seed gives the same file, however many workers there are.

    Args:
        samples_uri: the table written by `collect_samples`.
        out_uri: the file to write.
        options: see `ForestOptions`.
        seed: seed of the random choices.
        trees_uri: folder for finished trees, so that a killed run is resumed; deleted at the end.
        executor: trains the trees, one unit of work each.

    Returns:
        The numbers of `images`, `trees`, `nodes`, and `bytes` of the file.

    Raises:
        UserError: if there are too few patches or no boundaries to learn from.
    """
    samples = tables.require_commit(samples_uri)
    work = partial(_train_and_write, samples_uri, options, seed, trees_uri)
    nodes = dict(executor.map(dict.fromkeys(range(options.trees)), work, title="trees", unit="trees"))
    content = encode_forest([_read_tree(storage.join(trees_uri, f"{index}.npz")) for index in range(options.trees)])
    storage.write_bytes(out_uri, content)
    storage.remove(trees_uri)
    return {
        "images": samples.rows,
        "trees": options.trees,
        "nodes": sum(nodes.values()),
        "bytes": len(content),
    }


def _train_and_write(samples_uri: str, options: ForestOptions, seed: int, trees_uri: str, index: int, _: None) -> int:
    """Train tree `index` and write it to a file, unless the file exists; returns its number of nodes."""
    cv2.setNumThreads(1)  # each CPU has a unit of its own
    uri = storage.join(trees_uri, f"{index}.npz")
    if not storage.exists(uri):
        samples = tables.require_commit(samples_uri)
        order = np.random.default_rng([seed, index, 1]).permutation(len(samples.parts))
        images = _read_samples(samples_uri, [samples.parts[i] for i in order])
        _write_tree(train_tree(images, samples.rows, options, [seed, index]), uri)
    return len(_read_tree(uri).child)


def _read_samples(samples_uri: str, parts: list[tables.Part]) -> Iterator[Sample]:
    """Decode the images and segmentations of some parts of the table, one at a time."""
    for part in parts:
        for row in tables.iter_rows(samples_uri, ["image", "segmentations"], part):
            yield decode_image(row["image"]), [decode_mask(each) for each in row["segmentations"]]


def _write_tree(tree: EdgeTree, uri: str) -> None:
    """Write a tree as an .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **tree._asdict())
    storage.write_bytes(uri, buffer.getvalue())


def _read_tree(uri: str) -> EdgeTree:
    """Read a tree written by `_write_tree`."""
    with storage.local_copy(uri) as path, np.load(path, allow_pickle=False) as arrays:
        return EdgeTree(**{name: arrays[name] for name in EdgeTree._fields})
