"""How many objects the proposals of a split find: a job over the parts of the tables, reading boxes and object masks alone."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from infra.errors import BadInput
from infra.runtime.executor import Executor
from infra.storage import tables
from proposals.image_codec import decode_mask
from proposals.job import iter_proposals
from proposals.recall import COUNTS, MIN_AREA, Recall, best_overlaps, object_boxes, sum_recalls

Unit = tuple[tables.Part, tables.Part]  # of the images, and of the proposals made from them


def measure_recall(
    images_uri: str,
    proposals_uri: str,
    split: str,
    executor: Executor,
    counts: Sequence[int] = COUNTS,
    min_area: float = MIN_AREA,
) -> Recall:
    """Measure which share of the annotated objects of a split the proposals find.

    An image without proposals finds none of its objects; one whose object mask is missing or damaged is left out.

    Args:
        images_uri: the `images` table.
        proposals_uri: the `proposals` table made from it.
        split: whose images are measured.
        executor: runs the parts.
        counts: numbers of best boxes for which recall is measured.
        min_area: objects count whose bounding box has this area at least, px².

    Returns:
        the recall; of 0 objects where the split has none.
    """
    images, proposals = (tables.require_commit(uri).parts for uri in (images_uri, proposals_uri))
    pairs = zip(images, proposals, strict=True)
    units = [(part, found) for part, found in pairs if any(group.splits.get(split) for group in part.row_groups)]

    work = partial(_work, images_uri, proposals_uri, split, counts, min_area)
    done = executor.map(dict(enumerate(units)), work, title=f"recall of proposals, {split}")
    return sum_recalls((recall for _, recall in done), counts)


def _work(
    images_uri: str, proposals_uri: str, split: str, counts: Sequence[int], min_area: float, index: int, unit: Unit
) -> Recall:
    """`part_recall` as an executor calls it."""
    return part_recall(images_uri, proposals_uri, unit, split, counts, min_area)


def part_recall(images_uri: str, proposals_uri: str, unit: Unit, split: str, counts: Sequence[int], min_area: float) -> Recall:
    """The recall of one part's images; see `measure_recall`."""
    part, found = unit
    boxes = {image_id: each for image_id, each, _ in iter_proposals(proposals_uri, found)}
    nothing = np.zeros((0, 4), np.float32)
    recalls = []
    for row in tables.iter_rows(images_uri, ["image_id", "split", "object_mask"], part):
        if row["split"] != split or row["object_mask"] is None:
            continue
        try:
            objects = object_boxes(decode_mask(row["object_mask"]), min_area)
        except BadInput:
            continue
        recalls.append(Recall.from_overlaps(best_overlaps(boxes.get(row["image_id"], nothing), objects, counts), counts))
    return sum_recalls(recalls, counts)
