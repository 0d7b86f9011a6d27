"""Measure how sure a prediction is: confidence, entropy, the disagreement of the two networks, and doubt at the boundaries.

DeconvNet and FCN-8s see an image in different ways, so where they predict different classes, one of them is wrong. Their scores
are computed for the ensemble anyway.

The CRF makes most probabilities nearly 0 or 1, whether the class is right or not. So all measures but `confidence` are of the
ensemble's probabilities before the CRF.

All measures are of pixels, and are averaged over an image and over the pixels of each predicted class.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import log

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.uint8]
Bools = NDArray[np.bool_]

DOUBT = 0.5
"""A pixel is in doubt if the probability of its class, before the CRF, is below this: then other classes are more probable together."""
_ROWS = 8  # rows of an image whose logarithms are computed at a time, so that they stay in the processor's cache
_SMALLEST = np.float32(1e-12)  # in place of the probability 0, whose logarithm is infinite


@dataclass(frozen=True)
class Measures:
    """How sure a prediction is of some pixels: of those of an image, or of those that were given one class.

    Attributes:
        confidence: mean probability of the predicted class after the CRF, 0 to 1.
        confidence_before_crf: mean probability of the same class before the CRF, 0 to 1.
        entropy: mean entropy of the class probabilities before the CRF, as a share of the largest possible entropy, 0 to 1.
        disagreement: share of the pixels for which DeconvNet and FCN-8s predict different classes, 0 to 1.
        boundary_doubt: share of the boundary pixels that are in doubt, 0 to 1. A boundary pixel has a neighbour, above, below, left or
            right, with another class. A pixel in doubt has a probability below `DOUBT`. None if there is no boundary pixel.
    """

    confidence: float
    confidence_before_crf: float
    entropy: float
    disagreement: float
    boundary_doubt: float | None


@dataclass(frozen=True)
class Uncertainty:
    """How sure the prediction of an image is.

    Attributes:
        image: the measures of all pixels.
        classes: the measures of the pixels of each predicted class, by class id, in ascending order. Other classes are absent.
    """

    image: Measures
    classes: Mapping[int, Measures]

    def columns(self) -> dict[str, object]:
        """Return the measures as columns of a table: those of the image, and lists `class_…` in the order of the class ids."""
        by_class = [asdict(measures) for measures in self.classes.values()]
        whole = asdict(self.image)
        return whole | {f"class_{name}": [each[name] for each in by_class] for name in whole}


def most_probable(probabilities: Floats) -> tuple[Mask, Floats]:
    """Find the most probable class of each pixel.

    If several classes are equally probable, the lowest id is chosen. So the background (0), if the data has one, wins a tie.

    Args:
        probabilities: class probabilities, or scores, float32 (C, H, W).

    Returns:
        The class ids, uint8 (H, W), and their probabilities (scores), float32 (H, W).
    """
    # torch's `max` finds both in one pass, several times as fast as numpy's `argmax` and `max`. It returns the first of equals.
    largest = torch.from_numpy(np.ascontiguousarray(probabilities)).max(dim=0)
    return largest.indices.byte().numpy(), largest.values.numpy()


def entropy(probabilities: Floats) -> Floats:
    """Compute the entropy of each pixel's class probabilities, as a share of the largest possible entropy.

    Args:
        probabilities: class probabilities, float32 (C, H, W).

    Returns:
        float32 (H, W), from 0 (one class is certain) to 1 (all classes are equally probable). It is 0 if there is one class.
    """
    classes, height, width = probabilities.shape
    out = np.empty((height, width), np.float32)
    for y in range(0, height, _ROWS):
        rows = probabilities[:, y : y + _ROWS]
        terms = np.log(np.maximum(rows, _SMALLEST))
        terms *= rows
        np.sum(terms, axis=0, out=out[y : y + _ROWS])
    out *= -1 / log(max(classes, 2))
    return np.clip(out, 0, 1, out=out)


def boundary_pixels(mask: Mask) -> Bools:
    """Find the pixels of a mask that have a neighbour, above, below, left or right, with another class.

    Args:
        mask: class ids, uint8 (H, W).

    Returns:
        bool (H, W). The pixels at the edge of the image are not boundary pixels for that reason.
    """
    out = np.zeros(mask.shape, bool)
    below, right = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    out[1:] |= below
    out[:-1] |= below
    out[:, 1:] |= right
    out[:, :-1] |= right
    return out


def chosen_probability(probabilities: Floats, mask: Mask) -> Floats:
    """Look up the probability of each pixel's class in a mask.

    Args:
        probabilities: class probabilities, float32 (C, H, W).
        mask: class ids, uint8 (H, W).

    Returns:
        float32 (H, W).
    """
    return np.take_along_axis(probabilities, mask[None].astype(np.intp), axis=0)[0]


def measure(mask: Mask, confidence: Floats, before_crf: Floats, entropies: Floats, disagrees: Bools) -> Uncertainty:
    """Average the measures of pixels over an image and over the pixels of each predicted class.

    Args:
        mask: predicted class ids, uint8 (H, W).
        confidence: probability of the predicted class after the CRF, float32 (H, W).
        before_crf: probability of the same class before the CRF, float32 (H, W).
        entropies: entropy of the class probabilities, float32 (H, W), see `entropy`.
        disagrees: whether the two networks predict different classes, bool (H, W).

    Returns:
        The measures.
    """
    boundary = boundary_pixels(mask)
    doubtful = boundary & (before_crf < DOUBT)
    weights = (None, confidence, before_crf, entropies, disagrees, boundary, doubtful)
    ids = mask.ravel()
    # One row a class: the number of its pixels, and the sums over them.
    sums = np.stack([np.bincount(ids, None if each is None else each.ravel()) for each in weights], axis=1)
    return Uncertainty(_means(sums.sum(axis=0)), {int(i): _means(sums[i]) for i in np.flatnonzero(sums[:, 0])})


def _means(sums: NDArray[np.float64]) -> Measures:
    """Turn sums over pixels into measures.

    Args:
        sums: the number of pixels, the sums of their two confidences and entropies, and the numbers of those for which the networks
            disagree, at a boundary, and at a boundary and in doubt.

    Returns:
        The measures.
    """
    pixels, confidence, before_crf, entropies, disagreeing, boundary, doubtful = sums.tolist()
    doubt = doubtful / boundary if boundary else None
    return Measures(confidence / pixels, before_crf / pixels, entropies / pixels, disagreeing / pixels, doubt)
