"""Find each pixel's class and uncertainty, in one pass over the class probabilities.

numba compiles the functions to loops that LLVM can vectorise. One pass over four arrays takes about as long as numpy's `argmax`
and `max` of a single array.
"""

from dataclasses import dataclass
from math import log2

import numpy as np
from numba import njit
from numpy.typing import NDArray

from deconvnet.inference.uncertainty import DOUBT, Measures, Uncertainty

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Mask = NDArray[np.uint8]
Bools = NDArray[np.bool_]

# log2(m) for 1 ≤ m ≤ 2 as a polynomial through seven Chebyshev nodes, from the constant on; the error is below 5·10⁻⁶.
_LOG2 = np.polynomial.Chebyshev.interpolate(np.log2, 6, [1, 2]).convert(kind=np.polynomial.Polynomial)
_L0, _L1, _L2, _L3, _L4, _L5, _L6 = _LOG2.coef.astype(np.float32)


@dataclass(frozen=True)
class PixelMeasures:
    """The predicted classes of an image's pixels, and how sure these are.

    Attributes:
        mask: class ids after the CRF, uint8 (H, W).
        confidence: probability of this class after the CRF, float32 (H, W).
        before_crf: probability of the same class before the CRF, float32 (H, W).
        entropy: entropy of the class probabilities before the CRF, float32 (H, W), as a share of the largest possible entropy:
            from 0 (one class is certain) to 1 (all classes are equally probable). 0 if there is one class.
        disagrees: whether DeconvNet and FCN-8s predict different classes, bool (H, W).
    """

    mask: Mask
    confidence: Floats
    before_crf: Floats
    entropy: Floats
    disagrees: Bools


def scan_pixels(refined: Floats, ensemble: Floats, deconvnet: Floats, fcn8s: Floats) -> PixelMeasures:
    """Find the class of each pixel and its uncertainty measures. Ties go to the class with the lowest id.

    Args:
        refined: class probabilities after the CRF, float32 (C, H, W).
        ensemble: class probabilities before the CRF, float32 (C, H, W).
        deconvnet: DeconvNet's scores or probabilities, float32 (C, H, W).
        fcn8s: FCN-8s' scores or probabilities, float32 (C, H, W).

    Returns:
        The measures of the pixels.
    """
    refined, ensemble, deconvnet, fcn8s = map(np.ascontiguousarray, (refined, ensemble, deconvnet, fcn8s))
    size = refined.shape[1:]
    confidence, before_crf, entropy = np.empty((3, *size), np.float32)
    found = PixelMeasures(np.empty(size, np.uint8), confidence, before_crf, entropy, np.empty(size, np.bool_))
    _scan(refined, ensemble, ensemble.view(np.int32), found.mask, found.confidence, found.before_crf, found.entropy)
    _compare(deconvnet, fcn8s, found.disagrees)
    found.entropy[:] = np.clip(found.entropy / np.float32(log2(max(len(refined), 2))), 0, 1)
    return found


def average_measures(pixels: PixelMeasures) -> Uncertainty:
    """Average the measures of pixels over an image and over the pixels of each predicted class.

    Args:
        pixels: the measures of the pixels.

    Returns:
        The averages.
    """
    sums = np.zeros((256, 7))
    _add_up(pixels.mask, pixels.confidence, pixels.before_crf, pixels.entropy, pixels.disagrees, np.float32(DOUBT), sums)
    return Uncertainty(_means(sums.sum(axis=0)), {int(i): _means(sums[i]) for i in np.flatnonzero(sums[:, 0])})


def _means(sums: NDArray[np.float64]) -> Measures:
    """Turn the sums of `_add_up`, float64 (7,), into measures."""
    pixels, confidence, before_crf, entropy, disagreeing, boundary, doubtful = sums.tolist()
    doubt = doubtful / boundary if boundary else None
    return Measures(confidence / pixels, before_crf / pixels, entropy / pixels, disagreeing / pixels, doubt)


@njit(cache=True, nogil=True)
def _scan(
    refined: Floats, ensemble: Floats, bits: Ints, mask: Mask, confidence: Floats, before_crf: Floats, entropy: Floats
) -> None:
    """Find the class of each pixel, its probabilities after and before the CRF, and the entropy before it.

    log2(p) is computed as the exponent in p's bits plus log2 of the mantissa. For p = 0 it gives -127, so p · log2(p) is 0.

    Args:
        refined: class probabilities after the CRF, float32 (C, H, W).
        ensemble: class probabilities before the CRF, float32 (C, H, W).
        bits: `ensemble` as int32, (C, H, W).
        mask: the class ids are written here, (H, W).
        confidence: the probabilities after the CRF are written here, (H, W).
        before_crf: the probabilities before the CRF are written here, (H, W).
        entropy: the entropies in bits are written here, (H, W).
    """
    classes, height, width = refined.shape
    ids, mantissa_bits, exponents = np.empty(width, np.int32), np.empty(width, np.int32), np.empty(width, np.int32)
    mantissas = mantissa_bits.view(np.float32)
    for y in range(height):
        top, chosen, sums = confidence[y], before_crf[y], entropy[y]
        ids[:], top[:], chosen[:], sums[:] = 0, -np.inf, 0, 0
        for c in range(classes):
            class_id, after, before, of_before = np.int32(c), refined[c, y], ensemble[c, y], bits[c, y]
            for x in range(width):
                # All is read before a choice is made, or else the loop has branches and is not vectorised.
                p, q, best, best_id, best_q = after[x], before[x], top[x], ids[x], chosen[x]
                ids[x] = class_id if p > best else best_id
                chosen[x] = q if p > best else best_q
                top[x] = p if p > best else best
            for x in range(width):
                exponents[x] = (of_before[x] >> np.int32(23)) - np.int32(127)
                mantissa_bits[x] = (of_before[x] & np.int32(0x7FFFFF)) | np.int32(0x3F800000)
            for x in range(width):
                m = mantissas[x]
                log_m = _L0 + m * (_L1 + m * (_L2 + m * (_L3 + m * (_L4 + m * (_L5 + m * _L6)))))
                sums[x] -= before[x] * (np.float32(exponents[x]) + log_m)
        for x in range(width):
            mask[y, x] = ids[x]


@njit(cache=True, nogil=True)
def _compare(one: Floats, other: Floats, differ: Bools) -> None:
    """Write to `differ`, (H, W), whether two arrays of scores, float32 (C, H, W), have different best classes at a pixel."""
    classes, height, width = one.shape
    ids, other_ids = np.empty(width, np.int32), np.empty(width, np.int32)
    top, other_top = np.empty(width, np.float32), np.empty(width, np.float32)
    for y in range(height):
        ids[:], other_ids[:], top[:], other_top[:] = 0, 0, -np.inf, -np.inf
        for c in range(classes):
            class_id, scores, other_scores = np.int32(c), one[c, y], other[c, y]
            for x in range(width):
                score, best, best_id = scores[x], top[x], ids[x]
                ids[x] = class_id if score > best else best_id
                top[x] = score if score > best else best
            for x in range(width):
                score, best, best_id = other_scores[x], other_top[x], other_ids[x]
                other_ids[x] = class_id if score > best else best_id
                other_top[x] = score if score > best else best
        for x in range(width):
            differ[y, x] = ids[x] != other_ids[x]


@njit(cache=True, nogil=True)
def _add_up(
    mask: Mask,
    confidence: Floats,
    before_crf: Floats,
    entropy: Floats,
    disagrees: Bools,
    doubt: np.float32,
    sums: NDArray[np.float64],
) -> None:
    """Add up the measures of the pixels of each class.

    Args:
        mask: class ids, (H, W).
        confidence: probabilities after the CRF, (H, W).
        before_crf: probabilities before the CRF, (H, W).
        entropy: entropies, (H, W).
        disagrees: whether the networks predict different classes, (H, W).
        doubt: a pixel is in doubt if its probability before the CRF is below this.
        sums: zeros, (256, 7). By class, they become the number of its pixels, the sums of the three measures, and the number of
            pixels for which the networks disagree, that are at a boundary, and that are at a boundary and in doubt.
    """
    height, width = mask.shape
    for y in range(height):
        x = 0
        while x < width:
            # Pixels of one class beside each other are added up in registers.
            start, class_id = x, mask[y, x]
            total, total_before, total_entropy, disagreeing, boundary, doubtful = 0.0, 0.0, 0.0, 0, 0, 0
            while x < width and mask[y, x] == class_id:
                total += confidence[y, x]
                total_before += before_crf[y, x]
                total_entropy += entropy[y, x]
                disagreeing += disagrees[y, x]
                at_side = (x > 0 and mask[y, x - 1] != class_id) or (x + 1 < width and mask[y, x + 1] != class_id)
                below = y + 1 < height and mask[y + 1, x] != class_id
                if at_side or below or (y > 0 and mask[y - 1, x] != class_id):
                    boundary += 1
                    doubtful += before_crf[y, x] < doubt
                x += 1
            row = sums[class_id]
            row[0] += x - start
            row[1] += total
            row[2] += total_before
            row[3] += total_entropy
            row[4] += disagreeing
            row[5] += boundary
            row[6] += doubtful
