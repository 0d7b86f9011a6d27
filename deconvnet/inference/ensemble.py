"""Joining DeconvNet's and FCN-8s' opinions of a photograph (§4.4)."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ensemble = Literal["mean", "product"]
Floats = NDArray[np.float32]


def softmax(scores: Floats) -> Floats:
    """Probabilities of `scores` (C, H, W) over the classes: float32, the same shape."""
    out = np.exp(scores - scores.max(axis=0, keepdims=True), dtype=np.float32)
    out /= out.sum(axis=0, keepdims=True)
    return out


def combine(deconvnet: Floats, fcn: Floats, how: Ensemble = "mean", fcn_weight: float = 0.5) -> Floats:
    """Class probabilities (C, H, W) of the ensemble from both networks' scores before softmax.

    "mean": the mean of both networks' probabilities, FCN-8s' weighted by `fcn_weight` (paper: a half). "product": softmax of DeconvNet's scores times FCN's scores, the
    latter clipped at 0 (released code). Raises ValueError for other names or unequal shapes.
    """
    if deconvnet.shape != fcn.shape:
        raise ValueError(f"scores of unequal shape: {deconvnet.shape} and {fcn.shape}")
    if how == "mean":
        return np.float32(1 - fcn_weight) * softmax(deconvnet) + np.float32(fcn_weight) * softmax(fcn)
    if how == "product":
        return softmax(deconvnet * np.maximum(fcn, 0))
    raise ValueError(f"ensemble must be mean or product, not {how!r}")
