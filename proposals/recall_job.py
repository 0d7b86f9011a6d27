"""Measure the recall of a `proposals` table: the share of annotated objects that its boxes find."""

from collections.abc import Collection, Sequence
from functools import partial

import numpy as np

from infra.errors import BadInput
from infra.runtime.executor import Executor
from infra.storage import tables
from proposals.image_codec import decode_mask
from proposals.job import iter_proposals
from proposals.recall import COUNTS, MIN_AREA, Recall, best_overlaps, object_boxes, sum_recalls

Unit = tuple[tables.Part, tables.Part]
"""The unit of work: a part of an `images` table, and the part of the `proposals` table with the same images."""


def measure_recall(
    images_uri: str,
    proposals_uri: str,
    split: str,
    executor: Executor,
    counts: Sequence[int] = COUNTS,
    min_area: float = MIN_AREA,
    skip_parts: Collection[str] = (),
) -> Recall:
    """Measure the share of a split's annotated objects that the proposals find.

    If an image has no proposals, its objects are counted as not found. Images whose object mask is missing or damaged are left
    out.

    Args:
        images_uri: URI of the `images` table.
        proposals_uri: URI of the `proposals` table that was made from it.
        split: the split to measure, such as "dev".
        executor: runs the units of work, one per part of the tables, locally or on Ray.
        counts: the values of k for which the recall of the first k boxes is measured.
        min_area: objects whose box has a smaller area than this are left out, px².
        skip_parts: names of parts of the `proposals` table that are left out.

    Returns:
        The recall. It has 0 objects if the split has none.

    Raises:
        FileNotFoundError: if one of the tables is not complete.
    """
    images, proposals = (tables.require_commit(uri).parts for uri in (images_uri, proposals_uri))
    units = [
        (part, boxes)
        for part, boxes in zip(images, proposals, strict=True)
        if boxes.name not in skip_parts and any(group.splits.get(split) for group in part.row_groups)
    ]
    work = partial(_part_recall, images_uri, proposals_uri, split, counts, min_area)
    done = executor.map(dict(enumerate(units)), work, title=f"recall of proposals, {split}")
    return sum_recalls((recall for _, recall in done), counts)


def _part_recall(
    images_uri: str, proposals_uri: str, split: str, counts: Sequence[int], min_area: float, _: int, unit: Unit
) -> Recall:
    """Measure recall on the images of one unit of work, a part of the `images` table.

    Images whose object mask is missing or damaged are left out.

    Args:
        images_uri: URI of the `images` table.
        proposals_uri: URI of the `proposals` table that was made from it.
        split: the split to measure; images of other splits are left out.
        counts: the values of k for which the recall of the first k boxes is measured.
        min_area: objects whose box has a smaller area than this are left out, px².
        _: index of the unit; not used.
        unit: a part of the `images` table, and the part of the `proposals` table with the same images.

    Returns:
        The recall of the objects in these images.
    """
    image_part, proposal_part = unit
    boxes = {image_id: each for image_id, each, _ in iter_proposals(proposals_uri, proposal_part)}
    no_boxes = np.zeros((0, 4), np.float32)
    recalls = []
    for row in tables.iter_rows(images_uri, ["image_id", "split", "object_mask"], image_part):
        if row["split"] != split or row["object_mask"] is None:
            continue
        try:
            objects = object_boxes(decode_mask(row["object_mask"]), min_area)
        except BadInput:
            continue
        recalls.append(Recall.from_overlaps(best_overlaps(boxes.get(row["image_id"], no_boxes), objects, counts), counts))
    return sum_recalls(recalls, counts)
