"""Measure drift: how far the predictions that a server answers with differ from those on the val images.

Confidence and predicted classes are compared.

The population stability index (PSI) compares two distributions over the same bins. With shares e (expected) and a (actual) of the
bins it is the sum of (a - e) ln(a / e), which is 0 if they are equal. By a common rule of thumb, up to 0.1 nothing has changed,
and from 0.25 on much has (N. Siddiqi, Credit Risk Scorecards, 2006). Chance alone makes it about (B - 1) (1 / N + 1 / M) on
average, if B bins are filled by N and M independent values (B. Yurdakul, J. Naranjo, Statistical properties of the population
stability index, Journal of Risk Model Validation 14(4), 2020). So fewer bins are used if there are few val images, and drift is
measured only after enough answers.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from infra import storage

STATISTICS_FILE = "prediction_statistics.json"
"""Name of the file with the statistics of the predictions on val, in the folders of a report and of a registered ensemble."""
MIN_ANSWERS = 300
"""Number of answers from which on drift is measured."""
_WINDOW = 1000  # the newest answers, which are compared
_MAX_BINS, _IMAGES_PER_BIN = 10, 15
_MIN_SHARE = 1e-4  # replaces lower shares, because the logarithm of 0 is infinite


@dataclass(frozen=True)
class PredictionStatistics:
    """Statistics of a model's predictions on the val images.

    Attributes:
        images: number of images.
        class_shares: share of the pixels that were predicted to be of a class, averaged over the images, by class name.
        confidence_bounds: bounds between the bins of the images' confidence, ascending. Empty if there are too few images.
        confidence_shares: share of the images in each bin, one more than the bounds.
    """

    images: int
    class_shares: Mapping[str, float]
    confidence_bounds: Sequence[float]
    confidence_shares: Sequence[float]

    @classmethod
    def of(cls, confidence: Sequence[float], shares: np.ndarray, classes: Sequence[str]) -> Self:
        """Compute the statistics.

        Args:
            confidence: mean probability of the predicted class, 0 to 1, of each image.
            shares: share of each class in the mask of each image, float (N, C).
            classes: class names, ordered by id.
        """
        bins = min(_MAX_BINS, len(confidence) // _IMAGES_PER_BIN)
        bounds = np.quantile(confidence, np.arange(1, bins) / bins) if bins > 1 else np.zeros(0)
        mean = shares.mean(axis=0).tolist()
        return cls(len(confidence), dict(zip(classes, mean, strict=True)), bounds.tolist(), _binned(confidence, bounds).tolist())

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON values by name."""
        return asdict(self)


def read_statistics(folder: str) -> PredictionStatistics | None:
    """Read the statistics that belong to a report or a registered ensemble.

    Args:
        folder: folder of the report or of the ensemble.

    Returns:
        The statistics. None if the folder has none, because an earlier version of this program wrote it.
    """
    uri = storage.join(folder, STATISTICS_FILE)
    return PredictionStatistics(**storage.read_json(uri)) if storage.exists(uri) else None


def population_stability_index(expected: Sequence[float] | np.ndarray, actual: Sequence[float] | np.ndarray) -> float:
    """Compute the population stability index of two distributions over the same bins, see the top of this module.

    Args:
        expected: share of each bin in the distribution that is compared with, 0 to 1.
        actual: share of each bin in the other distribution.

    Returns:
        The index, 0 or more. Shares below 0.0001 count as 0.0001.
    """
    e, a = (np.maximum(np.asarray(shares, np.float64), _MIN_SHARE) for shares in (expected, actual))
    return float(((a - e) * np.log(a / e)).sum())


class Drift:
    """The newest answers of a model, and how far they drift from its predictions on the val images."""

    def __init__(self, statistics: PredictionStatistics) -> None:
        """Start without answers. `statistics` are those of the val images."""
        self._statistics = statistics
        self._answers: deque[tuple[float, list[float]]] = deque(maxlen=_WINDOW)

    def add(self, confidence: float, shares: Mapping[str, float]) -> None:
        """Add an answer. The oldest one is forgotten if there are 1,000.

        Args:
            confidence: mean probability of the predicted class, 0 to 1.
            shares: share of the pixels of each class in the mask, by name. Classes that do not occur may be left out.
        """
        self._answers.append((confidence, [shares.get(name, 0.0) for name in self._statistics.class_shares]))

    def indices(self) -> dict[str, float]:
        """Return the population stability indices by name ("classes", "confidence"), without those that can't be measured yet."""
        if len(self._answers) < MIN_ANSWERS:
            return {}
        known = self._statistics
        mean = np.mean([shares for _, shares in self._answers], axis=0)
        found = {"classes": population_stability_index(list(known.class_shares.values()), mean)}
        if known.confidence_bounds:
            binned = _binned([confidence for confidence, _ in self._answers], known.confidence_bounds)
            found["confidence"] = population_stability_index(known.confidence_shares, binned)
        return found


def _binned(values: Sequence[float], bounds: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the share of the values in each bin, float (B,). A value that equals a bound is in the bin above it."""
    counts = np.bincount(np.searchsorted(bounds, values, side="right"), minlength=len(bounds) + 1)
    return counts / max(1, len(values))
