"""Compute metrics of semantic segmentation from a confusion matrix of pixels, as PASCAL VOC's development kit does."""

from math import isnan
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proposals.masks import VOID_ID


class ConfusionMatrix:
    """Numbers of pixels by true class and predicted class, from which the metrics are computed.

    As in PASCAL VOC, the pixels of all images are counted together before the metrics are computed. The metrics are not averaged
    over images. Pixels that are annotated as void (255) are not counted.

    Attributes:
        num_classes: number of classes C.
        matrix: number of pixels of each true class (row) and predicted class (column), int64 (C, C).
    """

    def __init__(self, num_classes: int, matrix: ArrayLike | None = None) -> None:
        """Create a confusion matrix.

        Args:
            num_classes: number of classes C, including the background, 1 to 255.
            matrix: initial counts (C, C), which are copied; None for zeros.

        Raises:
            ValueError: if `num_classes` is out of range, `matrix` has another shape, or a count is negative or fractional.
        """
        if not 1 <= num_classes <= VOID_ID:
            raise ValueError(f"num_classes must be between 1 and {VOID_ID}, not {num_classes}")
        self.num_classes = num_classes
        self.matrix: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)
        if matrix is not None:
            given = np.asarray(matrix)
            if given.dtype.kind not in "iub" and not np.array_equal(given, np.rint(given)):
                raise ValueError("matrix has counts that are not whole numbers, such as shares; expected numbers of pixels")
            counts = given.astype(np.int64)
            if counts.shape != self.matrix.shape or counts.min() < 0:
                raise ValueError(f"expected {self.matrix.shape} counts, got {counts.shape} from {counts.min()}")
            self.matrix = counts

    def update(self, truth: NDArray[np.integer], prediction: NDArray[np.integer]) -> Self:
        """Count the pixels of one or more images and add them to the matrix.

        Args:
            truth: annotated class ids, integers of any shape; 255 is void.
            prediction: predicted class ids, integers of the same shape, without void.

        Returns:
            This matrix, so that calls can be chained.

        Raises:
            ValueError: if the shapes differ, the ids are not integers, or an id is out of range. Then nothing is counted.
        """
        for name, ids in {"truth": truth, "prediction": prediction}.items():
            if ids.dtype.kind not in "iub":
                advice = ": pass the arg max of the scores" if name == "prediction" else ""
                raise ValueError(f"{name} is {ids.dtype} {ids.shape}; expected class ids, integers{advice}")
        if truth.shape != prediction.shape:
            raise ValueError(f"truth is {truth.shape}, prediction {prediction.shape}")
        n = self.num_classes
        if prediction.size and not 0 <= prediction.min() <= prediction.max() < n:
            raise ValueError(f"prediction has ids {prediction.min()}–{prediction.max()}, the classes are 0–{n - 1}")
        counted = truth != VOID_ID
        rows = truth[counted].astype(np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < n:
            raise ValueError(f"truth has ids {rows.min()}–{rows.max()}, the classes are 0–{n - 1} and {VOID_ID} (void)")
        self.matrix += np.bincount(rows * n + prediction[counted].astype(np.int64), minlength=n * n).reshape(n, n)
        return self

    @property
    def iou(self) -> NDArray[np.float64]:
        """Compute the intersection over union (IoU) of each class from its true and false positives and its false negatives.

        The IoU is TP / (TP + FP + FN).

        Returns:
            float64 (C,), 0 to 1; nan for a class that occurs neither in the truth nor in the prediction.
        """
        return iou_of_counts(np.diag(self.matrix), self.matrix.sum(1), self.matrix.sum(0))

    @property
    def mean_iou(self) -> float:
        """Compute the mean IoU over the classes that occur in the truth or the prediction, 0 to 1; nan if no class occurs."""
        return mean_of_defined(self.iou)

    @property
    def pixel_accuracy(self) -> float:
        """Compute the share of the counted pixels whose class is predicted correctly, 0 to 1; nan if no pixel is counted."""
        total = int(self.matrix.sum())
        return float(np.trace(self.matrix)) / total if total else float("nan")


def iou_of_counts(hits: NDArray[Any], true: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.float64]:
    """Compute the intersection over union (IoU) from numbers of pixels.

    Args:
        hits: numbers of correctly predicted pixels, whole numbers in an array of any shape.
        true: numbers of annotated pixels, of the same shape.
        predicted: numbers of predicted pixels, of the same shape.

    Returns:
        float64 array of the same shape, 0 to 1; nan where there is neither an annotated nor a predicted pixel.
    """
    union = true + predicted - hits
    return np.divide(hits.astype(np.float64), union, out=np.full(union.shape, np.nan), where=union > 0)


def mean_of_defined(values: NDArray[np.float64]) -> float:
    """Return the mean of the values of an array that are not nan; nan if all are."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def none_if_nan(value: float) -> float | None:
    """Return a number as it is, but None instead of nan, because JSON has no nan."""
    return None if isnan(value) else float(value)
