"""Trains a structured forest: images with their segmentations in a table, then one unit of work for each tree.

Each tree reads the table by itself, an image at a time, so a node holds the patches of the trees it grows and nothing else.
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
from proposals.edges.training.segmentations import SEGMENTATIONS, segments_from_masks
from proposals.image_codec import decode_image, decode_mask, encode_mask

_PER_PART = 32
_BSDS_SPLIT = "train"


def collect_samples(
    images_uri: str | None,
    bsds: str | None,
    out_uri: str,
    fingerprint: str,
    *,
    executor: Executor,
    photographs: int,
    seed: int,
) -> tables.Commit:
    """Write the table that a forest learns from: images and their segmentations.

    Args:
        images_uri: an `images` table, of whose train split the masks are used; None for none.
        bsds: folder of BSDS500, whose train split is used; None for none.
        out_uri: the table to write.
        fingerprint: of the stage.
        executor: runs the parts.
        photographs: about how many images of `images_uri` are drawn.
        seed: of the drawing.

    Returns:
        the commit of the table. An image or mask that can't be read is among its rejects.

    Raises:
        UserError: if `bsds` is not BSDS500, or there is nothing to learn from.
    """
    images = tables.require_commit(images_uri) if images_uri else None
    total = sum(group.splits.get("train", 0) for part in images.parts for group in part.row_groups) if images else 0
    units: list[tables.Part | list[tuple[Path, Path]]] = list(images.parts) if images else []
    files = bsds_files(bsds, _BSDS_SPLIT) if bsds else []
    units += [[files[i] for i in piece] for piece in tables.chunks(len(files), _PER_PART)]
    rows = partial(_rows, images_uri, seed, photographs / total if total else 0.0)
    parts = make_parts(out_uri, fingerprint, SEGMENTATIONS, units, rows, executor, title="segments", rows_per_group=8)
    if not any(part.rows for part in parts):
        tables.discard(out_uri, fingerprint)
        raise UserError(
            "there is no photograph with masks to learn edges from: name some in data.root, or BSDS500's folder in bsds"
        )
    return tables.commit(out_uri, fingerprint, parts)


def _rows(
    images_uri: str | None, seed: int, share: float, unit: tables.Part | list[tuple[Path, Path]]
) -> Iterator[Mapping[str, Any] | tables.Reject]:
    """The rows of one part: a `share` of an images table's part, or some of BSDS500's images with their annotations."""
    if isinstance(unit, tables.Part):
        for row in tables.iter_rows(str(images_uri), ["image_id", "split", "image", "class_mask", "object_mask"], unit):
            if row["split"] == "train" and row["class_mask"] and _drawn(row["image_id"], seed) < share:
                yield _from_masks(row)
    else:
        for image, annotations in unit:
            segmentations = read_bsds_image((image, annotations)).segmentations
            yield _row(f"bsds/{image.stem}", image.read_bytes(), segmentations)


def _drawn(image_id: str, seed: int) -> float:
    """A number in 0–1 that is the photograph's own, however many others there are."""
    return zlib.crc32(f"{seed}/{image_id}".encode()) / 2**32


def _from_masks(row: Mapping[str, Any]) -> Mapping[str, Any] | tables.Reject:
    try:
        classes = decode_mask(row["class_mask"])
        objects = decode_mask(row["object_mask"]) if row["object_mask"] else None
        return _row(row["image_id"], row["image"], [segments_from_masks(classes, objects)])
    except BadInput as error:
        return tables.Reject(row["image_id"], "", "segments", str(error))


def _row(image_id: str, image: bytes, segmentations: list[np.ndarray]) -> Mapping[str, Any]:
    return {"image_id": image_id, "image": image, "segmentations": [encode_mask(each) for each in segmentations]}


def train_forest(
    samples_uri: str,
    out_uri: str,
    options: ForestOptions,
    seed: int,
    trees_uri: str,
    executor: Executor,
) -> dict[str, Any]:
    """Grow the trees, one unit of work each, and write the forest's file. The same seed gives the same file on any workers.

    Args:
        samples_uri: the table of `collect_samples`.
        out_uri: file to write.
        options: of the forest.
        seed: of the patches and the trees.
        trees_uri: folder of finished trees, from which a killed run continues; deleted at the end.
        executor: runs the units.

    Returns:
        numbers of the forest: photographs, trees, nodes, bytes.

    Raises:
        UserError: if there is too little to learn from.
    """
    samples = tables.require_commit(samples_uri)
    grow = partial(_grow, samples_uri, options, seed, trees_uri)
    nodes = dict(executor.map(dict.fromkeys(range(options.trees)), grow, title="trees", unit="trees"))
    content = encode_forest([_read_tree(storage.join(trees_uri, f"{index}.npz")) for index in range(options.trees)])
    storage.write_bytes(out_uri, content)
    storage.remove(trees_uri)
    return {
        "photographs": samples.rows,
        "trees": options.trees,
        "nodes": sum(nodes.values()),
        "bytes": len(content),
    }


def _grow(samples_uri: str, options: ForestOptions, seed: int, trees_uri: str, index: int, _: None) -> int:
    """Grow the tree `index` and write it, unless it is there; returns its number of nodes."""
    cv2.setNumThreads(1)  # each CPU has a unit of its own
    uri = storage.join(trees_uri, f"{index}.npz")
    if not storage.exists(uri):
        samples = tables.require_commit(samples_uri)
        order = np.random.default_rng([seed, index, 1]).permutation(len(samples.parts))
        images = _samples(samples_uri, [samples.parts[i] for i in order])
        _write_tree(train_tree(images, samples.rows, options, [seed, index]), uri)
    return len(_read_tree(uri).child)


def _samples(samples_uri: str, parts: list[tables.Part]) -> Iterator[Sample]:
    for part in parts:
        for row in tables.iter_rows(samples_uri, ["image", "segmentations"], part):
            yield decode_image(row["image"]), [decode_mask(each) for each in row["segmentations"]]


def _write_tree(tree: EdgeTree, uri: str) -> None:
    sink = io.BytesIO()
    np.savez_compressed(sink, **tree._asdict())
    storage.write_bytes(uri, sink.getvalue())


def _read_tree(uri: str) -> EdgeTree:
    with storage.local_copy(uri) as path, np.load(path, allow_pickle=False) as arrays:
        return EdgeTree(**{name: arrays[name] for name in EdgeTree._fields})
