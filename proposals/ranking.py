"""The order of boxes: the best first, but those that say the same as a better one later.

EdgeBox's own suppression keeps near-duplicates (β 0.75), which are what training crops are mined from, and they would waste most of the
few places that segmentation has. Its boxes are therefore ranked anew, so that any number of first ones is a good choice.
"""

import numpy as np
from numba import njit


def spread(boxes: np.ndarray, scores: np.ndarray, strength: float, power: float, first: int) -> tuple[np.ndarray, np.ndarray]:
    """`boxes` float32 (N,4), best first, and `scores` float32 (N,), in a new order: (order int64 (N,), lowered scores float32 (N,)).

    Soft suppression (Bodla, Singh, Chellappa, Davis 2017): one box after another is taken, the highest score first, and then the
    scores of those left are multiplied by 1 − strength · IoU^power with it; so until `first` are taken, the rest follow by the scores
    they have then. A high power leaves boxes alone that overlap by less than about half. Equal scores: the earlier box first.
    """
    return _spread(boxes, scores.astype(np.float32), strength, power, first)


@njit(cache=True, nogil=True)
def _spread(boxes: np.ndarray, scores: np.ndarray, strength: float, power: float, first: int) -> tuple[np.ndarray, np.ndarray]:
    lowered = scores.copy()
    left = np.arange(len(boxes))  # in the order they came
    order = np.empty(len(boxes), np.int64)
    taken = min(first, len(boxes))
    for k in range(taken):
        best = np.argmax(lowered[left])
        a = boxes[left[best]]
        order[k] = left[best]
        left[best:-1] = left[best + 1 :]
        left = left[:-1]
        for i in left:
            b = boxes[i]
            width = min(a[2], b[2]) - max(a[0], b[0])
            height = min(a[3], b[3]) - max(a[1], b[1])
            if width > 0 and height > 0:
                shared = width * height
                iou = shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
                lowered[i] *= np.float32(1 - strength * iou**power)
    order[taken:] = left[np.argsort(-lowered[left], kind="mergesort")]
    return order, lowered[order]
