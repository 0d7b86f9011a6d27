"""The `proposals` table: EdgeBox over every photograph of the `images` table, by an executor."""

import hashlib
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
from proposals.changes import SAME_IMAGE, Earlier, Known, known
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
    earlier: Earlier | None = None,
) -> tables.Commit:
    """Find the proposals of all images and write their table: a part for each part of `images_uri`, in the same order.

    Args:
        images_uri: the `images` table.
        out_uri: the `proposals` table to write.
        settings: of EdgeBox.
        fingerprint: of the stage.
        executor: runs the parts.
        earlier: proposals made with the same settings; rows of images that are unchanged since are copied.

    Returns:
        the commit of the table. An image that EdgeBox can't use is among its rejects.

    Raises:
        UserError: if `settings.edge_model` can't be used.
    """
    if forest := forest_uri(settings.edges, settings.edge_model):
        load_forest(forest)  # here, so that a wrong file is one sentence and not a failed task
    images = tables.require_commit(images_uri)
    units = list(zip(images.parts, known(earlier, images), strict=True))
    make_rows = partial(_rows, images_uri, EdgeBoxOptions(**settings.model_dump()))
    parts = make_parts(out_uri, fingerprint, schemas.PROPOSALS, units, make_rows, executor, title="proposals")
    return tables.commit(out_uri, fingerprint, parts)


def _rows(
    images_uri: str, options: EdgeBoxOptions, unit: tuple[tables.Part, Known | None]
) -> Iterator[Mapping[str, Any] | tables.Reject]:
    """The rows of one part, and its rejects."""
    cv2.setNumThreads(1)  # each CPU has a unit of its own
    part, known_part = unit
    before = known_part.rows(SAME_IMAGE) if known_part else {}
    for row in tables.iter_rows(images_uri, ["image_id", "image"], part):
        yield before[row["image_id"]][0] if row["image_id"] in before else propose(row, options)


def edges_stamp(settings: "ProposalSettings") -> str:
    """What tells the file that edges are found by from another; "" for the gradient. Raises UserError where there is no such file."""
    if settings.edges == "gradient":
        return ""
    # The shipped one is told by its content: its times are those of its installation.
    return (
        storage.version_token(settings.edge_model)
        if settings.edge_model
        else hashlib.sha256(PRETRAINED_FOREST.read_bytes()).hexdigest()
    )


def propose(row: Mapping[str, Any], options: EdgeBoxOptions) -> Mapping[str, Any] | tables.Reject:
    """A row of the proposals table from one of the images table."""
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
    """One part's photographs in order: image_id, boxes float32 (N,4), scores float32 (N,), best first."""
    for group in range(len(part.row_groups)):
        rows = tables.read_row_group(proposals_uri, part.name, group, ["image_id", "boxes", "scores"])
        for image_id, boxes, scores in zip(*rows.columns, strict=True):
            flat = boxes.values.flatten().to_numpy(zero_copy_only=False)
            yield image_id.as_py(), flat.reshape(-1, 4), scores.values.to_numpy(zero_copy_only=False)
