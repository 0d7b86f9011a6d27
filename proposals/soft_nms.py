"""The order of boxes: the best first, but those that say the same as a better one later.

EdgeBox's own suppression keeps near-duplicates (β 0.75), which are what training crops are mined from, and they would waste most of the
few places that segmentation has. Its boxes are therefore ranked anew, so that any number of first ones is a good choice.
"""

import numpy as np


def spread(boxes: np.ndarray, scores: np.ndarray, strength: float, power: float, first: int) -> tuple[np.ndarray, np.ndarray]:
    """`boxes` float32 (N,4), best first, and `scores` float32 (N,), in a new order: (order int64 (N,), lowered scores float32 (N,)).

    Soft suppression (Bodla, Singh, Chellappa, Davis 2017): one box after another is taken, the highest score first, and then the
    scores of those left are multiplied by 1 − strength · IoU^power with it; so until `first` are taken, the rest follow by the scores
    they have then. A high power leaves boxes alone that overlap by less than about half. Equal scores: the earlier box first.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    lowered = scores.astype(np.float32)
    order = np.empty(len(boxes), np.int64)
    waiting = np.ones(len(boxes), bool)
    taken = min(first, len(boxes))
    for k in range(taken):
        best = order[k] = int(np.where(waiting, lowered, -np.inf).argmax())
        waiting[best] = False
        sides = np.minimum(boxes[:, 2:], boxes[best, 2:]) - np.maximum(boxes[:, :2], boxes[best, :2])
        shared = sides.clip(0).prod(axis=1)
        iou = shared / (areas + areas[best] - shared)
        lowered[waiting] *= (1 - strength * iou[waiting] ** power).astype(np.float32)
    left = np.flatnonzero(waiting)
    order[taken:] = left[np.argsort(-lowered[left], kind="stable")]
    return order, lowered[order]
