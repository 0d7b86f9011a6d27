"""Measure whether predicted probabilities can be believed: the reliability diagram and the expected calibration error (ECE).

Pixels are put into bins by the probability of their predicted class. In each bin, the share of pixels that are predicted
correctly is compared with their mean probability. The ECE is the mean of the differences, weighted by the number of pixels in
each bin (Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, ICML 2017). Void pixels are left out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from deconvnet.evaluation.metrics import none_if_nan
from proposals.masks import VOID_ID

BINS = 15
"""Number of bins, as in Guo et al. All are equally wide."""


def calibration_counts(truth: np.ndarray, prediction: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Count the pixels of one or more images by the probability of their predicted class. The counts of images can be added.

    Args:
        truth: annotated class ids, integers of any shape; 255 is void.
        prediction: predicted class ids, integers of the same shape.
        confidence: probabilities of the predicted classes, floats of the same shape. Rounding may put them a little above 1.

    Returns:
        float64 (3, `BINS`). For each bin: the number of its pixels, of those that are predicted correctly, and the sum of their
        probabilities. A bin includes its lower limit, the last one also 1.

    Raises:
        ValueError: if the shapes differ, or a probability is below 0, far above 1 or nan.
    """
    if not truth.shape == prediction.shape == confidence.shape:
        raise ValueError(f"truth is {truth.shape}, prediction {prediction.shape}, confidence {confidence.shape}")
    counted = truth != VOID_ID
    probability = confidence[counted]
    if not ((probability >= 0) & (probability <= 1.001)).all():
        raise ValueError(f"confidence is from {probability.min()} to {probability.max()}; expected probabilities, 0 to 1")
    bins = np.minimum((probability * BINS).astype(np.intp), BINS - 1)
    right = truth[counted] == prediction[counted]
    return np.stack([np.bincount(bins, weights, BINS) for weights in (None, right, probability)]).astype(np.float64)


def expected_calibration_error(counts: np.ndarray) -> float:
    """Compute the ECE from counts that `calibration_counts` returned, 0 to 1; nan if no pixel was counted."""
    pixels, right, probability = counts
    return float(np.abs(right - probability).sum() / pixels.sum()) if pixels.sum() else float("nan")


def calibration_as_dict(counts: np.ndarray) -> dict[str, Any]:
    """Compute the reliability diagram as JSON values, which are stored in `report/analysis.json`.

    Args:
        counts: the result of `calibration_counts`, summed over images.

    Returns:
        A dict with the list `edges` (limits of the bins), and three lists with a value for each bin: `pixels` (their number),
        `confidence` (mean probability of the predicted class) and `accuracy` (share of the pixels that are predicted correctly).
        The latter are None for bins without pixels.
    """
    pixels = counts[0]
    means: Sequence[np.ndarray] = [
        np.divide(sums, pixels, out=np.full(BINS, np.nan), where=pixels > 0) for sums in (counts[2], counts[1])
    ]
    confidence, accuracy = ([none_if_nan(value) for value in each.tolist()] for each in means)
    edges = (np.arange(BINS + 1) / BINS).tolist()
    return {"edges": edges, "pixels": pixels.astype(np.int64).tolist(), "confidence": confidence, "accuracy": accuracy}
