"""Combine the scores of DeconvNet and FCN-8s into one prediction.

Source: Noh et al. (ICCV 2015), the paper on DeconvNet, §5.2, "Ensemble with FCN". DeconvNet is good at details and FCN at overall
shapes, so the mean of their class probabilities is better than the probabilities of either.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ensemble = Literal["mean", "product"]
Floats = NDArray[np.float32]


def softmax(scores: Floats) -> Floats:
    """Turn the scores of each pixel into probabilities of the classes.

    Args:
        scores: float array (C, H, W), where C is the number of classes.

    Returns:
        Probabilities, float32 (C, H, W), whose sum over the first axis is 1.
    """
    out = np.subtract(scores, scores.max(axis=0, keepdims=True), dtype=np.float32)
    np.exp(out, out=out)  # in place, as large images have large arrays
    out /= out.sum(axis=0, keepdims=True)
    return out


def combine(deconvnet: Floats, fcn: Floats, how: Ensemble = "mean", fcn_weight: float = 0.5) -> Floats:
    """Compute the class probabilities of the ensemble of both networks, which Noh et al. (ICCV 2015) call EDeconvNet.

    Args:
        deconvnet: DeconvNet's scores before the softmax, float32 (C, H, W).
        fcn: FCN-8s' scores before the softmax, float32 (C, H, W).
        how: formula of the ensemble. "mean", as in the paper, is the weighted mean
            (1 - fcn_weight) * softmax(deconvnet) + fcn_weight * softmax(fcn).
            "product", as in the authors' released code, is softmax(deconvnet * max(fcn, 0)).
        fcn_weight: weight of FCN-8s in "mean", 0 to 1. The paper uses 0.5. "product" ignores it.

    Returns:
        Class probabilities, float32 (C, H, W).

    Raises:
        ValueError: if `how` is unknown, the shapes differ or are not (C, H, W), or `fcn_weight` is not from 0 to 1.
    """
    if deconvnet.shape != fcn.shape:
        raise ValueError(f"scores of unequal shape: {deconvnet.shape} and {fcn.shape}")
    if deconvnet.ndim != 3 or not 0 <= fcn_weight <= 1:
        raise ValueError(f"scores are {deconvnet.shape}, fcn_weight {fcn_weight}; expected (C, H, W), and a weight from 0 to 1")
    if how == "mean":
        out, other = softmax(deconvnet), softmax(fcn)
        out *= np.float32(1 - fcn_weight)
        other *= np.float32(fcn_weight)
        out += other
        return out
    if how == "product":
        return softmax(deconvnet * np.maximum(fcn, 0))
    raise ValueError(f"ensemble must be mean or product, not {how!r}")
