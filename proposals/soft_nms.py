"""Soft-NMS: reorder boxes so that near-duplicates of better boxes come later.

EdgeBox's own non-maximum suppression keeps near-duplicates (IoU up to 0.75). Training crops are mined from them, but they would
waste most of the few boxes that segmentation uses. Both take their boxes from one list, so the list is reordered and nothing is
removed: any number of first boxes is then a good choice.

How this relates to Soft-NMS (Bodla, Singh, Chellappa, Davis, ICCV 2017): as there, boxes are taken greedily by score, and each
box that is taken lowers the scores of the others by how much they overlap it. What differs:

* The factor is 1 - strength * IoU^power, where the paper has 1 - IoU above a threshold, or exp(-IoU² / sigma).
* No box is dropped, however low its score becomes; only the order and the scores change.
* Only the first boxes taken (`first`) lower the scores of others, which bounds the time for lists of thousands of boxes.
"""

import numpy as np


def soft_nms(boxes: np.ndarray, scores: np.ndarray, strength: float, power: float, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Rank boxes anew, lowering the scores of those that overlap better ones.

    Args:
        boxes: float32 array (N, 4).
        scores: float32 array (N,), highest first.
        strength: how much a full overlap lowers a score, from 0 (not at all) to 1 (to zero).
        power: exponent of the IoU. A high one spares boxes that overlap little; with 5.5 those below an IoU of about 0.5.
        first: how many boxes lower the scores of those that follow.

    Returns:
        order: int64 array (N,), indices of the boxes in their new order. Of equal scores the earlier box comes first.
        scores: float32 array (N,), the lowered scores in the new order, highest first.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    lowered = scores.astype(np.float32)
    order = np.empty(len(boxes), np.int64)
    remaining = np.ones(len(boxes), bool)
    taken = min(first, len(boxes))
    for rank in range(taken):
        best = order[rank] = int(np.where(remaining, lowered, -np.inf).argmax())
        remaining[best] = False
        sides = np.minimum(boxes[:, 2:], boxes[best, 2:]) - np.maximum(boxes[:, :2], boxes[best, :2])
        intersection = sides.clip(0).prod(axis=1)
        iou = intersection / (areas + areas[best] - intersection)
        lowered[remaining] *= (1 - strength * iou[remaining] ** power).astype(np.float32)
    rest = np.flatnonzero(remaining)
    order[taken:] = rest[np.argsort(-lowered[rest], kind="stable")]
    return order, lowered[order]
