"""Combine the scores of DeconvNet and FCN-8s into one prediction.

Source: Noh, Hong, Han (ICCV 2015), §5.2, "Ensemble with FCN". DeconvNet is good at details and FCN at overall shape, so the mean of
their class probabilities is better than either.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ensemble = Literal["mean", "product"]
Floats = NDArray[np.float32]


def softmax(scores: Floats) -> Floats:
    """Turn scores into probabilities over the classes.

    Args:
        scores: float array (C, H, W).

    Returns:
        float32 array (C, H, W) that sums to 1 over the first axis.
    """
    out = np.exp(scores - scores.max(axis=0, keepdims=True), dtype=np.float32)
    out /= out.sum(axis=0, keepdims=True)
    return out


def combine(deconvnet: Floats, fcn: Floats, how: Ensemble = "mean", fcn_weight: float = 0.5) -> Floats:
    """Compute the class probabilities of the ensemble EDeconvNet.

    Args:
        deconvnet: DeconvNet's scores before softmax, (C, H, W).
        fcn: FCN-8s' scores before softmax, (C, H, W).
        how: "mean" (the paper): (1 - w) * softmax(deconvnet) + w * softmax(fcn).
            "product" (the authors' released code): softmax(deconvnet * max(fcn, 0)).
        fcn_weight: w of "mean", 0 to 1; the paper's is 0.5. Ignored by "product".

    Returns:
        Class probabilities, float32 (C, H, W).

    Raises:
        ValueError: if `how` is unknown or the shapes differ.
    """
    if deconvnet.shape != fcn.shape:
        raise ValueError(f"scores of unequal shape: {deconvnet.shape} and {fcn.shape}")
    if how == "mean":
        return np.float32(1 - fcn_weight) * softmax(deconvnet) + np.float32(fcn_weight) * softmax(fcn)
    if how == "product":
        return softmax(deconvnet * np.maximum(fcn, 0))
    raise ValueError(f"ensemble must be mean or product, not {how!r}")
