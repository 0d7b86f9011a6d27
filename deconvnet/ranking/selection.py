"""Choose the images to label next (active learning): images whose predictions are least sure, without near-duplicates.

The functions are pure: their results depend only on their arguments.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
MEASURES = ("entropy", "disagreement", "boundary_doubt")
"""The columns of the table `predictions` from which the score of an image is computed. A higher value means less sure."""


@dataclass(frozen=True)
class Selection:
    """Images that were chosen, and why others were not.

    Attributes:
        chosen: indices of the chosen images, best first.
        near_duplicates: number of images that were passed over because they are near-duplicates of a labelled or chosen image.
        above_quota: number of images that were chosen above the quota of their class, because no other images were left.
    """

    chosen: list[int]
    near_duplicates: int
    above_quota: int


def uncertainty_scores(measures: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Score images by how unsure their predictions are, compared with the predictions of the other images.

    The measures have different scales, so each value is replaced by its percentile rank: the share of the images with a lower
    value (ties count half). The score of an image is the mean of its percentile ranks.

    Args:
        measures: the columns `MEASURES` of N images, (N, 3).

    Returns:
        float64 (N,), from 0 (most sure) to 1.
    """
    total = np.zeros(len(measures))
    for values in measures.T:
        in_order = np.sort(values)
        total += np.searchsorted(in_order, values, "left") + np.searchsorted(in_order, values, "right")
    return total / max(2 * measures.size, 1)


def most_uncertain_class(row: Mapping[str, Any], background: str | None) -> str:
    """Return the class to which the most uncertainty in an image belongs, for which the image counts in the quotas of classes.

    Args:
        row: a row of the table `predictions`, with the columns `classes`, `shares` and `class_confidence_before_crf`.
        background: name of the background. None if no class is the background.

    Returns:
        The class with the largest sum, over its predicted pixels, of 1 − (probability of the class before the CRF). The
        background is returned only if the prediction has no other class.
    """
    doubts = {
        name: share * (1 - confidence)
        for name, share, confidence in zip(row["classes"], row["shares"], row["class_confidence_before_crf"], strict=True)
    }
    objects = {name: doubt for name, doubt in doubts.items() if name != background}
    found = objects or doubts
    return max(found, key=lambda name: found[name])


def class_quota(classes: Sequence[str], number: int, share: float | None) -> int:
    """Return how many of the chosen images may be of one class.

    Args:
        classes: the class of each image that can be chosen.
        number: number of images to choose.
        share: largest share of the chosen images that may be of one class, 0 to 1. None for twice an equal share.

    Returns:
        The number, at least 1.
    """
    if share is None:
        share = 2 / max(len(set(classes)), 1)
    return max(1, ceil(min(share, 1.0) * number))


def select(
    scores: NDArray[np.float64],
    classes: Sequence[str],
    bits: Bits,
    number: int,
    *,
    quota: int,
    min_distance: int,
    labelled: Bits,
) -> Selection:
    """Choose images, one after the other: each time the one with the highest score among those that are allowed.

    An image is allowed if its perceptual hash differs in at least `min_distance` bits from that of every labelled image and every
    image chosen before, and if fewer than `quota` images of its class were chosen. When no image is allowed, the quota is lifted.
    Of images with equal scores, the first one is chosen.

    Args:
        scores: the images' scores, float64 (N,); higher scores are chosen first.
        classes: the class of each image.
        bits: the images' perceptual hashes, uint8 (N, B), each 0 or 1.
        number: number of images to choose. Fewer are chosen if no others are allowed.
        quota: number of images of one class.
        min_distance: smallest number of bits in which two images must differ; 0 to choose near-duplicates, too.
        labelled: perceptual hashes of the images that are labelled already, uint8 (M, B).

    Returns:
        The chosen images.
    """
    order = np.argsort(-scores, kind="stable").tolist()
    near = _NearDuplicates(labelled, min(number, len(order)), min_distance)
    chosen: list[int] = []
    of_class: Counter[str] = Counter()
    full: list[int] = []
    above_quota = 0
    for lifted, images in ((False, order), (True, full)):
        for i in images:
            if len(chosen) == number:
                break
            if not lifted and of_class[classes[i]] >= quota:
                full.append(i)
            elif near.add(bits[i]):
                chosen.append(i)
                of_class[classes[i]] += 1
                above_quota += lifted
    return Selection(chosen, near.refused, above_quota)


class _NearDuplicates:
    """The perceptual hashes of labelled and chosen images, with which further images are compared.

    Attributes:
        refused: number of images that were refused.
    """

    def __init__(self, labelled: Bits, room: int, min_distance: int) -> None:
        """Create the collection.

        Args:
            labelled: perceptual hashes to begin with, uint8 (M, B).
            room: number of perceptual hashes that will be added.
            min_distance: smallest number of bits in which an added hash must differ from all others.
        """
        self._bits = np.concatenate([labelled, np.zeros((room, labelled.shape[1]), np.uint8)])
        self._used = len(labelled)
        self._min_distance = min_distance
        self.refused = 0

    def add(self, bits: Bits) -> bool:
        """Add an image by its perceptual hash, (B,), unless it is a near-duplicate. Return whether it was added."""
        distances = np.count_nonzero(self._bits[: self._used] != bits, axis=1)
        if distances.min(initial=self._min_distance) < self._min_distance:
            self.refused += 1
            return False
        self._bits[self._used] = bits
        self._used += 1
        return True
