"""Soft-NMS: reorder boxes so that near-duplicates of better boxes come later.

EdgeBox's own non-maximum suppression keeps near-duplicates with an IoU of up to 0.75. They are useful as training crops, but
segmentation uses only the first few boxes, and most of these would show the same objects. Because both uses share one list of
boxes, the list is reordered and nothing is removed: training can use the whole list, and its first k boxes are a good choice for
any k.

As in the paper (Bodla, Singh, Chellappa, Davis, ICCV 2017), boxes are taken greedily by score, and each box that is taken lowers
the scores of the remaining boxes according to their overlap with it. There are three differences:

* A score is multiplied by 1 - strength * IoU^power. The paper uses 1 - IoU above a threshold, or exp(-IoU² / sigma).
* No box is dropped, however low its score becomes. Only the order and the scores change.
* Only the first boxes that are taken (argument `first`) lower the scores of others. This limits the time for lists of thousands
  of boxes.
"""

import numpy as np

from proposals.boxes import as_boxes


def soft_nms(boxes: np.ndarray, scores: np.ndarray, strength: float, power: float, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower the scores of boxes that overlap better ones, and sort the boxes by the new scores.

    Args:
        boxes: float32 array (N, 4) of x1, y1, x2, y2.
        scores: float32 array (N,), highest first.
        strength: share by which a box lowers the score of an identical one (IoU 1), from 0 (not at all) to 1 (to zero).
        power: exponent of the IoU. A high exponent spares boxes that overlap little; with 5.5 those with an IoU below about 0.5.
        first: number of top-ranked boxes that lower the scores of others.

    Returns:
        order: int64 array (N,), the indices of the boxes in their new order. Among equal scores the earlier box comes first.
        scores: float32 array (N,), the lowered scores in the new order, highest first.

    Raises:
        ValueError: if these are not boxes (see `boxes.as_boxes`), or `scores` does not have one finite number for each box.
    """
    as_boxes(boxes)
    if scores.shape != boxes.shape[:1] or not np.isfinite(scores).all():
        raise ValueError(f"expected a finite score for each of {len(boxes)} boxes; got scores of shape {scores.shape}")
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)
    areas = (x2 - x1) * (y2 - y1)
    lowered = scores.astype(np.float32)
    order, final = np.empty(len(boxes), np.int64), np.empty(len(boxes), np.float32)
    taken = min(first, len(boxes))
    for rank in range(taken):
        best = order[rank] = int(lowered.argmax())
        final[rank] = lowered[best]
        lowered[best] = -np.inf  # taken boxes
        # Only boxes that overlap the best one are changed (empty boxes overlap nothing). Most of the time is spent on powers.
        near = (x1 < x2[best]) & (x2 > x1[best]) & (y1 < y2[best]) & (y2 > y1[best])
        others = np.flatnonzero(near & (lowered > -np.inf))
        width = np.minimum(x2[others], x2[best]) - np.maximum(x1[others], x1[best])
        height = np.minimum(y2[others], y2[best]) - np.maximum(y1[others], y1[best])
        intersection = width * height
        iou = intersection / (areas[others] + areas[best] - intersection)
        lowered[others] *= (1 - strength * iou**power).astype(np.float32)
    rest = np.flatnonzero(lowered > -np.inf)
    rest = rest[np.argsort(-lowered[rest], kind="stable")]
    order[taken:], final[taken:] = rest, lowered[rest]
    return order, final
