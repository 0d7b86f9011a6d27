"""The tables of a pack: the photographs and masks as they are, and the boxes that are used of all that were proposed."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from infra import storage, tables
from infra.images import decode_mask
from infra.stages import digest
from proposals.boxes import iou
from proposals.examples import find_objects

if TYPE_CHECKING:
    from deconvnet.settings import SegmentSettings
    from proposals.settings import ExampleSettings

FIRST_BOXES = 200
"""Best boxes that are kept of every photograph, so that more than `segment.proposals` can be tried on the bare machine."""


def write_tables(
    images_uri: str, proposals_uri: str, folder: str, examples: "ExampleSettings", segment: "SegmentSettings"
) -> None:
    """The tables `images` and `proposals` below the local `folder`, with the parts and the order of rows of those they come from.

    So crops mined from them, and the batches made of these, are the same ones.
    """
    storage.copy_tree(images_uri, f"{folder}/images")
    photographs, boxes = (tables.require_commit(uri) for uri in (images_uri, proposals_uri))
    fingerprint = digest([[part.digest for part in source.parts] for source in (photographs, boxes)])

    def kept(of: tables.Part, part: tables.Part) -> Iterator[dict[str, Any]]:
        columns = ["image_id", "split", "class_mask", "object_mask"]
        masks = {row["image_id"]: row for row in tables.iter_rows(images_uri, columns, of)}
        for row in tables.iter_rows(proposals_uri, part=part):
            found = np.array(row["boxes"], np.float32).reshape(-1, 4)
            used = used_boxes(found, masks[row["image_id"]], examples, segment)
            yield {**row, "boxes": found[used].tolist(), "scores": np.array(row["scores"], np.float32)[used].tolist()}

    target = f"{folder}/proposals"
    parts = [
        tables.write_part(target, fingerprint, index, kept(of, part), tables.PROPOSALS)
        for index, (of, part) in enumerate(zip(photographs.parts, boxes.parts, strict=True))
    ]
    tables.commit(target, fingerprint, parts, boxes.extra)


def used_boxes(boxes: np.ndarray, row: Mapping[str, Any], examples: "ExampleSettings", segment: "SegmentSettings") -> np.ndarray:
    """Which of a photograph's boxes (N, 4), best first, mining or segmentation can use: bool (N,). row: of the images table."""
    used = np.arange(len(boxes)) < (len(boxes) if segment.min_side else max(FIRST_BOXES, segment.proposals))
    if row["split"] == "val" or row["class_mask"] is None or row["object_mask"] is None:
        return used
    objects = find_objects(decode_mask(row["class_mask"]), decode_mask(row["object_mask"]), examples.min_object_side)
    if objects and len(boxes):
        used |= iou(boxes, np.array([o.box for o in objects], np.float64)).max(axis=1) >= examples.min_iou
    return used
