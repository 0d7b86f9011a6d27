"""Make the `proposals` table by running EdgeBox on every image of an `images` table.

Windows, which cover an image, are not stored. Whoever needs them makes them from the size of the image (`proposals.boxes.make_windows`).
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from infra import storage
from infra.errors import BadInput
from infra.runtime.executor import Executor
from infra.runtime.parts import make_parts
from infra.storage import tables
from proposals import schemas
from proposals.changes import SAME_IMAGE, PreviousPart, PreviousTable, previous_parts
from proposals.edgebox import EdgeBoxOptions, find_boxes
from proposals.edges.detector import PRETRAINED_FOREST, forest_uri
from proposals.edges.forest_file import load_forest
from proposals.image_codec import decode_image

if TYPE_CHECKING:
    from proposals.settings import ProposalSettings


def make_proposals(
    images_uri: str,
    out_uri: str,
    settings: "ProposalSettings",
    fingerprint: str,
    executor: Executor,
    *,
    previous: PreviousTable | None = None,
) -> tables.Commit:
    """Find the proposals of all images and write them to a table.

    If `settings.kind` is "windows", EdgeBox is not run, and no image has boxes.

    Args:
        images_uri: URI of the `images` table.
        out_uri: URI of the `proposals` table to write. It gets one part for each part of the `images` table, in the same order.
        settings: options of EdgeBox and of its edge detector.
        fingerprint: digest of the code version, settings and inputs of this pipeline stage. Parts that an interrupted run wrote
            with the same fingerprint are kept.
        executor: runs the units of work, one per part of the table, locally or on Ray.
        previous: an earlier table of proposals made with the same settings. Its rows are copied for images that have not changed
            since. None to compute all.

    Returns:
        The commit record of the table, which lists its parts. Its `rejects` name the images that EdgeBox could not use, with the
        reasons.

    Raises:
        UserError: if `settings.edge_model` cannot be used.
        FileNotFoundError: if there is no complete table at `images_uri`.
    """
    search = settings.kind != "windows"
    if search and (forest := forest_uri(settings.edges, settings.edge_model)):
        load_forest(forest)  # a wrong file gives an error here, before any work starts
    images = tables.require_commit(images_uri)
    units = list(zip(images.parts, previous_parts(previous, images), strict=True))
    make_rows = (
        partial(_part_rows, images_uri, EdgeBoxOptions(**settings.edge_box)) if search else partial(_empty_rows, images_uri)
    )
    parts = make_parts(out_uri, fingerprint, schemas.PROPOSALS, units, make_rows, executor, title="proposals")
    return tables.commit(out_uri, fingerprint, parts)


def _part_rows(
    images_uri: str, options: EdgeBoxOptions, unit: tuple[tables.Part, PreviousPart | None]
) -> Iterator[Mapping[str, Any] | tables.Reject]:
    """Make the rows of one part (Parquet file) of the `proposals` table.

    Rows of unchanged images are copied from the previous table. OpenCV is limited to one thread in this process.

    Args:
        images_uri: URI of the `images` table.
        options: options of EdgeBox.
        unit: a part of the `images` table, and the rows of a previous table that may be copied for it (None if there are none).

    Yields:
        For each image of the part a row as a dict, or a `Reject` with the reason if the image cannot be used.
    """
    cv2.setNumThreads(1)  # every CPU already has a unit of work
    part, previous = unit
    copied = previous.rows(SAME_IMAGE) if previous else {}
    for row in tables.iter_rows(images_uri, ["image_id", "image"], part):
        yield copied[row["image_id"]][0] if row["image_id"] in copied else proposals_row(row, options)


def _empty_rows(images_uri: str, unit: tuple[tables.Part, PreviousPart | None]) -> Iterator[Mapping[str, Any]]:
    """Make the rows of one part (Parquet file) of a `proposals` table without boxes.

    Args:
        images_uri: URI of the `images` table.
        unit: a part of the `images` table, and the rows of a previous table, which are not used.

    Yields:
        For each image of the part a row as a dict.
    """
    for row in tables.iter_rows(images_uri, ["image_id", "width", "height"], unit[0]):
        yield {**row, "boxes": [], "scores": []}


def proposals_row(row: Mapping[str, Any], options: EdgeBoxOptions) -> Mapping[str, Any] | tables.Reject:
    """Find the proposals of one image.

    Args:
        row: a row of the `images` table, with at least `image_id` and `image` (the encoded file).
        options: options of EdgeBox.

    Returns:
        A row of the `proposals` table as a dict, or a `Reject` with the reason if the image cannot be used.
    """
    try:
        image = decode_image(row["image"])
        boxes, scores = find_boxes(image, options)
    except BadInput as error:
        return tables.Reject(row["image_id"], "", "proposals", str(error))
    except cv2.error as error:
        return tables.Reject(row["image_id"], "", "proposals", f"EdgeBox can't use it: {' '.join(str(error).split())}")
    height, width = image.shape[:2]
    return {
        "image_id": row["image_id"],
        "width": width,
        "height": height,
        "boxes": boxes.tolist(),
        "scores": scores.tolist(),
    }


def iter_proposals(proposals_uri: str, part: tables.Part) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Iterate over the proposals in one part (Parquet file) of a `proposals` table.

    Args:
        proposals_uri: URI of the table.
        part: the part to read.

    Yields:
        For each image in order: its id; its boxes, a float32 array (N, 4) of x1, y1, x2, y2 in pixels, the best first; and their
        scores, a float32 array (N,).
    """
    for group in range(len(part.row_groups)):
        rows = tables.read_row_group(proposals_uri, part.name, group, ["image_id", "boxes", "scores"])
        for image_id, boxes, scores in zip(*rows.columns, strict=True):
            flat = boxes.values.flatten().to_numpy(zero_copy_only=False)
            yield image_id.as_py(), flat.reshape(-1, 4), scores.values.to_numpy(zero_copy_only=False)


def edge_model_digest(settings: "ProposalSettings") -> str:
    """Return a text that identifies the model of the edge detector by its content.

    The text becomes part of the fingerprint (hash of all inputs) of the proposals, so they are computed again if the model changes.

    Args:
        settings: options of EdgeBox.

    Returns:
        A digest of the forest's file (see `storage.content_digest`); "" if the detector is the gradient, which has no model.

    Raises:
        UserError: if there is no such file.
    """
    return "" if settings.edges == "gradient" else storage.content_digest(settings.edge_model or str(PRETRAINED_FOREST))
