"""Training a structured forest by Ray: photographs with their segmentations in a table, then a tree a task.

Each tree reads the table by itself, a photograph at a time, so a node holds the patches of the trees it grows and nothing else.
"""

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from infra import storage
from infra.errors import BadInput, UserError
from infra.runtime.tasks import for_each, make_parts
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
    photographs: int,
    seed: int,
    nodes: Mapping[str, str] | None = None,
) -> tables.Commit:
    """Write what a forest learns from: photographs and their segmentations.

    images_uri: an `images` table; its train split's masks tell segments apart; about `photographs` of them are drawn by seed. bsds:
    folder of BSDS500, whose train split is taken. A photograph or mask that can't be read becomes a reject. nodes: Ray label selector.
    Raises UserError where `bsds` is no BSDS500, or there is nothing to learn from.
    """
    images = tables.require_commit(images_uri) if images_uri else None
    total = sum(group.splits.get("train", 0) for part in images.parts for group in part.row_groups) if images else 0
    units: list[tables.Part | list[tuple[Path, Path]]] = list(images.parts) if images else []
    files = bsds_files(bsds, _BSDS_SPLIT) if bsds else []
    units += [[files[i] for i in piece] for piece in tables.chunks(len(files), _PER_PART)]

    def rows(unit: tables.Part | list[tuple[Path, Path]]) -> Iterator[Mapping[str, Any] | tables.Reject]:
        if isinstance(unit, tables.Part):
            for row in tables.iter_rows(str(images_uri), ["image_id", "split", "image", "class_mask", "object_mask"], unit):
                if row["split"] == "train" and row["class_mask"] and _drawn(row["image_id"], seed) * total < photographs:
                    yield _from_masks(row)
        else:
            for photograph, annotations in unit:
                segmentations = read_bsds_image((photograph, annotations)).segmentations
                yield _row(f"bsds/{photograph.stem}", photograph.read_bytes(), segmentations)

    parts = make_parts(out_uri, fingerprint, SEGMENTATIONS, units, rows, title="segments", rows_per_group=8, nodes=nodes)
    if not any(part.rows for part in parts):
        tables.discard(out_uri, fingerprint)
        raise UserError(
            "there is no photograph with masks to learn edges from: name some in data.root, or BSDS500's folder in bsds"
        )
    return tables.commit(out_uri, fingerprint, parts)


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
    *,
    nodes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Grow the trees, a Ray task each, and write the forest's file to `out_uri`. The same seed gives the same file on any workers.

    trees_uri: folder of finished trees, so that a run that was killed goes on; it is deleted at the end. Returns figures of the
    forest. Raises UserError where there is too little to learn from.
    """
    samples = tables.require_commit(samples_uri)

    def grow(index: int, _: None) -> dict[str, int]:
        cv2.setNumThreads(1)  # Ray runs a task for each CPU
        place = storage.join(trees_uri, f"{index}.npz")
        if not storage.exists(place):
            order = np.random.default_rng([seed, index, 1]).permutation(len(samples.parts))
            photographs = _samples(samples_uri, [samples.parts[i] for i in order])
            _write_tree(train_tree(photographs, samples.rows, options, [seed, index]), place)
        return {"nodes": len(_read_tree(place).child)}

    sizes = dict(for_each(dict.fromkeys(range(options.trees)), grow, title="trees", kind="trees", nodes=nodes))
    content = encode_forest([_read_tree(storage.join(trees_uri, f"{index}.npz")) for index in range(options.trees)])
    storage.write_bytes(out_uri, content)
    storage.remove(trees_uri)
    return {
        "photographs": samples.rows,
        "trees": options.trees,
        "nodes": sum(each["nodes"] for each in sizes.values()),
        "bytes": len(content),
    }


def _samples(samples_uri: str, parts: list[tables.Part]) -> Iterator[Sample]:
    for part in parts:
        for row in tables.iter_rows(samples_uri, ["image", "segmentations"], part):
            yield decode_image(row["image"]), [decode_mask(each) for each in row["segmentations"]]


def _write_tree(tree: EdgeTree, uri: str) -> None:
    import io

    sink = io.BytesIO()
    np.savez_compressed(sink, **tree._asdict())
    storage.write_bytes(uri, sink.getvalue())


def _read_tree(uri: str) -> EdgeTree:
    with storage.local_copy(uri) as path, np.load(path, allow_pickle=False) as arrays:
        return EdgeTree(**{name: arrays[name] for name in EdgeTree._fields})
