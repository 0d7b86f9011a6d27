"""Train a structured forest in two steps: write a table of images with their segmentations, then train the trees.

Each tree is one unit of work, which reads the table one image at a time. So a machine needs memory only for the patches of the
trees that it trains.
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
from proposals.edges.forest_file import EdgeTree, encode_forest
from proposals.edges.training.forest import ForestOptions, Sample, train_tree
from proposals.edges.training.segmentations import segments_from_masks
from proposals.image_codec import decode_image, decode_mask, encode_mask
from proposals.schemas import SEGMENTATIONS

_IMAGES_PER_PART = 32  # images of BSDS500 in one part of the table
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
    """Write the table from which a forest is trained: images and their segmentations.

    Args:
        images_uri: URI of an `images` table, whose train split is used; None for none.
        bsds: folder of BSDS500, whose train split is used; None for none.
        out_uri: URI of the table to write.
        fingerprint: digest of the code version, settings and inputs of this pipeline stage. Parts that an interrupted run wrote
            with the same fingerprint are kept.
        executor: runs the units of work, one per part of the table, locally or on Ray.
        num_images: approximate number of images to draw at random from the `images` table.
        seed: seed of the random choice.

    Returns:
        The commit record of the table, which lists its parts. Its `rejects` name the images and masks that could not be read.

    Raises:
        UserError: if `bsds` is not the folder of BSDS500, or there are no images with masks.
        FileNotFoundError: if there is no complete table at `images_uri`.
    """
    images = tables.require_commit(images_uri) if images_uri else None
    total = sum(group.splits.get("train", 0) for part in images.parts for group in part.row_groups) if images else 0
    units: list[tables.Part | list[tuple[Path, Path]]] = list(images.parts) if images else []
    files = bsds_files(bsds, _BSDS_SPLIT) if bsds else []
    units += [[files[i] for i in piece] for piece in tables.chunks(len(files), _IMAGES_PER_PART)]
    rows = partial(_rows, images_uri, seed, num_images / total if total else 0.0)
    parts = make_parts(out_uri, fingerprint, SEGMENTATIONS, units, rows, executor, title="segments", rows_per_group=8)
    if not any(part.rows for part in parts):
        tables.discard(out_uri, parts)
        raise UserError(
            "there is no image with masks to learn edges from: name a data set in data.root, or BSDS500's folder in bsds"
        )
    return tables.commit(out_uri, fingerprint, parts)


def _rows(
    images_uri: str | None, seed: int, share: float, unit: tables.Part | list[tuple[Path, Path]]
) -> Iterator[Mapping[str, Any] | tables.Reject]:
    """Make the rows of one part of the table of images and segmentations.

    Args:
        images_uri: URI of the `images` table; None if only BSDS500 is used.
        seed: seed of the random choice of images.
        share: probability with which an image of the `images` table is used; 1 or more to use all.
        unit: a part of the `images` table, or a list of BSDS500's files as (image, annotations).

    Yields:
        For each image used, a row as a dict, or a `Reject` with the reason if its masks cannot be decoded.

    Raises:
        UserError: if a file of BSDS500 cannot be read.
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
    """Compute a pseudo-random number for an image, which does not depend on the other images.

    Args:
        image_id: id of the image.
        seed: seed of the random numbers.

    Returns:
        A number in [0, 1), always the same for the same id and seed.
    """
    return zlib.crc32(f"{seed}/{image_id}".encode()) / 2**32


def _from_masks(row: Mapping[str, Any]) -> Mapping[str, Any] | tables.Reject:
    """Make a row of the table of images and segmentations from the masks of an annotated image.

    Args:
        row: a row of the `images` table with the image's id, file, class mask and object mask (None if it has none).

    Returns:
        The row as a dict, or a `Reject` with the reason if a mask cannot be decoded.
    """
    try:
        classes = decode_mask(row["class_mask"])
        objects = decode_mask(row["object_mask"]) if row["object_mask"] else None
        return _row(row["image_id"], row["image"], [segments_from_masks(classes, objects)])
    except BadInput as error:
        return tables.Reject(row["image_id"], "", "segments", str(error))


def _row(image_id: str, image: bytes, segmentations: list[np.ndarray]) -> Mapping[str, Any]:
    """Make a row of the table of images and segmentations.

    Args:
        image_id: id of the image.
        image: content of the image file.
        segmentations: uint16 arrays (H, W) of segment ids, one per annotator; they are stored as PNG.

    Returns:
        A dictionary with the keys "image_id", "image" and "segmentations".
    """
    return {"image_id": image_id, "image": image, "segmentations": [encode_mask(each) for each in segmentations]}


def train_forest(
    samples_uri: str,
    out_uri: str,
    options: ForestOptions,
    seed: int,
    trees_uri: str,
    executor: Executor,
) -> dict[str, Any]:
    """Train the trees of a forest and write its file.

    The same seed gives the same file, however many workers there are.

    Args:
        samples_uri: URI of the table written by `collect_samples`.
        out_uri: URI of the file to write (.yml.gz).
        options: options for training.
        seed: seed of the random choices.
        trees_uri: folder in which finished trees are kept, so that a killed run can be resumed. It is deleted at the end.
        executor: runs the units of work, one per tree, locally or on Ray.

    Returns:
        A dictionary of integers: the number of `images` and of `trees`, the number of `nodes` of all trees, and the size of the
        file in `bytes`.

    Raises:
        UserError: if there are too few patches, or no boundaries to learn from.
        FileNotFoundError: if there is no complete table at `samples_uri`.
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
    """Train one tree and write it to a file in the folder of trees, unless the file already exists.

    Args:
        samples_uri: URI of the table of images and segmentations.
        options: options for training.
        seed: seed of the random choices, which also depend on `index`.
        trees_uri: folder of the finished trees.
        index: number of the tree, from 0.
        _: not used; the executor passes the unit of work here.

    Returns:
        The number of nodes of the tree.
    """
    cv2.setNumThreads(1)  # every CPU already has a unit of work
    uri = storage.join(trees_uri, f"{index}.npz")
    if not storage.exists(uri):
        samples = tables.require_commit(samples_uri)
        order = np.random.default_rng([seed, index, 1]).permutation(len(samples.parts))
        images = _read_samples(samples_uri, [samples.parts[i] for i in order])
        _write_tree(train_tree(images, samples.rows, options, [seed, index]), uri)
    return len(_read_tree(uri).child)


def _read_samples(samples_uri: str, parts: list[tables.Part]) -> Iterator[Sample]:
    """Decode the images and segmentations in some parts (Parquet files) of the table, one image at a time.

    Args:
        samples_uri: URI of the table.
        parts: the parts to read, in this order.

    Yields:
        An image, uint8 (H, W, 3), and the list of its segmentations, each uint16 (H, W).
    """
    for part in parts:
        for row in tables.iter_rows(samples_uri, ["image", "segmentations"], part):
            yield decode_image(row["image"]), [decode_mask(each) for each in row["segmentations"]]


def _write_tree(tree: EdgeTree, uri: str) -> None:
    """Write a tree to an .npz file, with one array for each field of `EdgeTree`.

    Args:
        tree: the tree to write.
        uri: path or URI of the file.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **tree._asdict())
    storage.write_bytes(uri, buffer.getvalue())


def _read_tree(uri: str) -> EdgeTree:
    """Read a tree from an .npz file written by `_write_tree`.

    Args:
        uri: path or URI of the file.

    Returns:
        The tree.
    """
    with storage.local_copy(uri) as path, np.load(path, allow_pickle=False) as arrays:
        return EdgeTree(**{name: arrays[name] for name in EdgeTree._fields})
