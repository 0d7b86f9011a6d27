"""Measure the recall of a `proposals` table on the annotated objects of a split."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from infra.errors import BadInput
from infra.runtime.executor import Executor
from infra.storage import tables
from proposals.image_codec import decode_mask
from proposals.job import iter_proposals
from proposals.recall import COUNTS, MIN_AREA, Recall, best_overlaps, object_boxes, sum_recalls

Unit = tuple[tables.Part, tables.Part]
"""A part of an `images` table and the part of the `proposals` table made from it."""


def measure_recall(
    images_uri: str,
    proposals_uri: str,
    split: str,
    executor: Executor,
    counts: Sequence[int] = COUNTS,
    min_area: float = MIN_AREA,
) -> Recall:
    """Measure which share of the annotated objects of a split the proposals find.

    None of an image's objects is found if it has no proposals. Images whose object mask is missing or damaged are left out.

    Args:
        images_uri: the `images` table.
        proposals_uri: the `proposals` table made from it.
        split: the split to measure, such as "dev".
        executor: runs the parts.
        counts: numbers of first boxes at which recall is measured.
        min_area: objects whose box has a smaller area (px²) are left out.

    Returns:
        The recall; of 0 objects if the split has none.
    """
    images, proposals = (tables.require_commit(uri).parts for uri in (images_uri, proposals_uri))
    units = [unit for unit in zip(images, proposals, strict=True) if any(group.splits.get(split) for group in unit[0].row_groups)]
    work = partial(_work, images_uri, proposals_uri, split, counts, min_area)
    done = executor.map(dict(enumerate(units)), work, title=f"recall of proposals, {split}")
    return sum_recalls((recall for _, recall in done), counts)


def _work(images_uri: str, proposals_uri: str, split: str, counts: Sequence[int], min_area: float, _: int, unit: Unit) -> Recall:
    """`part_recall` with its arguments in the order in which an executor passes them."""
    return part_recall(images_uri, proposals_uri, unit, split, counts, min_area)


def part_recall(images_uri: str, proposals_uri: str, unit: Unit, split: str, counts: Sequence[int], min_area: float) -> Recall:
    """Measure the recall on the images of one part.

    Args:
        images_uri: the `images` table.
        proposals_uri: the `proposals` table made from it.
        unit: the same part of both.
        split: the split to measure.
        counts: numbers of first boxes at which recall is measured.
        min_area: objects whose box has a smaller area (px²) are left out.
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
