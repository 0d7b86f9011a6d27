"""Make the `proposals` table by running EdgeBox on every image of an `images` table.

The key of a part is a digest of the image files in the corresponding part of `images`. A part whose images have not changed since
an earlier version of the table is reused, and in other parts the rows of unchanged images are copied.

Windows are not stored. They are computed from the size of the image where they are needed (`proposals.boxes.make_windows`).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from infra import storage
from infra.errors import BadInput
from infra.runtime.executor import Executor
from infra.runtime.parts import make_parts
from infra.runtime.stages import digest
from infra.storage import tables
from proposals import schemas
from proposals.edgebox import EdgeBoxOptions, find_boxes
from proposals.edges.detector import PRETRAINED_FOREST, forest_uri
from proposals.edges.forest_file import load_forest
from proposals.image_codec import decode_image
from proposals.image_notes import pixels_key, read_notes

if TYPE_CHECKING:
    from proposals.settings import ProposalSettings

PROPOSALS_VERSION = 1  # increase it when a change makes the same images give other boxes

Unit = tuple[tables.Part, Mapping[str, list[str]]]
"""A part of `images`, and, for each earlier part of `proposals` by name, the ids of the images whose rows are copied from it."""


def make_proposals(
    images_uri: str,
    out_uri: str,
    settings: "ProposalSettings",
    fingerprint: str,
    executor: Executor,
    *,
    previous: str | None = None,
) -> tables.Commit:
    """Find the proposals of all images and write them to a table.

    If `settings.kind` is "windows", EdgeBox is not run, and no image has boxes.

    Args:
        images_uri: URI of the `images` table.
        out_uri: URI of the `proposals` table to write. It gets one part for each part of the `images` table, in the same order.
        settings: options of EdgeBox and of its edge detector.
        fingerprint: digest of the code version, settings and inputs of this pipeline stage, stored with the table.
        executor: runs the units of work, one per part of the table that does not exist yet, locally or on Ray.
        previous: URI of an earlier version of the `images` table. Rows of images that have not changed since are copied from the
            parts of `proposals` that were made of it. None to compute all rows of new parts.

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
    options = {**settings.edge_box, "edge_model": edge_model_digest(settings)} if search else {}
    recipe = digest([PROPOSALS_VERSION, tables.SCHEMA_VERSION, settings.kind if not search else "", options])
    keys = [pixels_key(part) for part in images.parts]
    before = tables.read_commit(previous) if previous and search else None
    copies = _rows_to_copy(images.parts, before.parts if before else (), out_uri, recipe)
    units: list[Unit] = list(zip(images.parts, copies, strict=True))
    make_rows = (
        partial(_part_rows, images_uri, out_uri, EdgeBoxOptions(**settings.edge_box))
        if search
        else partial(_empty_rows, images_uri)
    )
    parts = make_parts(out_uri, recipe, schemas.PROPOSALS, units, make_rows, executor, title="proposals", keys=keys)
    return tables.commit(out_uri, fingerprint, parts, keep_earlier=True)


def _rows_to_copy(
    images: Sequence[tables.Part], before: Sequence[tables.Part], out_uri: str, recipe: str
) -> list[dict[str, list[str]]]:
    """Find the rows that can be copied from earlier parts of the `proposals` table, for each part of the `images` table.

    Args:
        images: parts of the `images` table.
        before: parts of an earlier version of it.
        out_uri: URI of the `proposals` table's folder.
        recipe: digest in the names of its parts.

    Returns:
        For each part of `images`, a dict from the names of parts of `proposals` to the ids of the images whose rows they have.
        The dict is empty for a part that `before` also has.
    """
    common = {part.name for part in images} & {part.name for part in before}
    wanted = {note.image_id: note.pixels for part in images if part.name not in common for note in read_notes(part)}
    existing = set(tables.part_files(out_uri)) if wanted and before else set()
    found: dict[str, str] = {}
    for part in before:
        name = tables.part_name(recipe, pixels_key(part))
        if part.name not in common and name in existing:
            found |= {
                note.image_id: name for note in read_notes(part) if note.usable and wanted.get(note.image_id) == note.pixels
            }
    copies: list[dict[str, list[str]]] = []
    for part in images:
        copies.append({})
        for note in read_notes(part) if part.name not in common and found else ():
            if name := found.get(note.image_id, ""):
                copies[-1].setdefault(name, []).append(note.image_id)
    return copies


def _part_rows(images_uri: str, out_uri: str, options: EdgeBoxOptions, unit: Unit) -> Iterator[Mapping[str, Any] | tables.Reject]:
    """Make the rows of one part of the `proposals` table.

    Rows of unchanged images are copied from earlier parts. OpenCV is limited to one thread in this process.

    Args:
        images_uri: URI of the `images` table.
        out_uri: URI of the `proposals` table's folder.
        options: options of EdgeBox.
        unit: a part of the `images` table, and where rows are that can be copied.

    Yields:
        For each image of the part a row as a dict, or a `Reject` with the reason if the image cannot be used.
    """
    cv2.setNumThreads(1)  # every CPU already has a unit of work
    part, copies = unit
    copied: dict[str, Mapping[str, Any]] = {}
    for name, image_ids in copies.items():
        rows = {row["image_id"]: row for row in tables.iter_rows(out_uri, part=tables.Part(name, []))}
        copied |= {image_id: rows[image_id] for image_id in image_ids if image_id in rows}  # rejected images have no row
    for row in tables.iter_rows(images_uri, ["image_id", "image"], part):
        yield copied.get(row["image_id"]) or proposals_row(row, options)


def _empty_rows(images_uri: str, unit: Unit) -> Iterator[Mapping[str, Any]]:
    """Make the rows of one part of a `proposals` table without boxes.

    Args:
        images_uri: URI of the `images` table.
        unit: a part of the `images` table; the rest is not used.

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
    """Iterate over the proposals in one part of a `proposals` table.

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

    The text becomes part of the fingerprint (hash of all inputs) of the proposals, so they are computed again if the model
    changes.

    Args:
        settings: options of EdgeBox.

    Returns:
        A digest of the forest's file (see `storage.content_digest`); "" if the detector is the gradient, which has no model.

    Raises:
        UserError: if there is no such file.
    """
    return "" if settings.edges == "gradient" else storage.content_digest(settings.edge_model or str(PRETRAINED_FOREST))
