"""The measure of segmentation: a confusion matrix over pixels, and the figures of VOC that come from it."""

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proposals.masks import VOID_ID


class ConfusionMatrix:
    """Pixels by true class (row) and predicted class (column), over any number of photographs.

    Void pixels (255 in the truth) are not counted. Sums over photographs, as VOC's devkit does, and not a mean of photographs.
    """

    def __init__(self, num_classes: int, matrix: ArrayLike | None = None) -> None:
        """Empty, or with the counts `matrix` (C, C). Raises ValueError where its shape is another or it counts below zero."""
        if not 1 <= num_classes <= VOID_ID:
            raise ValueError(f"num_classes must be between 1 and {VOID_ID}, not {num_classes}")
        self.num_classes = num_classes
        self.matrix: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)
        if matrix is not None:
            counts = np.array(matrix, np.int64)
            if counts.shape != self.matrix.shape or counts.min() < 0:
                raise ValueError(f"expected {self.matrix.shape} counts, got {counts.shape} from {counts.min()}")
            self.matrix = counts

    def update(self, truth: NDArray[np.integer], prediction: NDArray[np.integer]) -> Self:
        """Count the pixels of `prediction` (ids below num_classes) against `truth` (the same, or 255 = void) of equal shape.

        Raises ValueError where the shapes differ or an id is out of range; nothing is counted then.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth is {truth.shape}, prediction {prediction.shape}")
        n = self.num_classes
        if prediction.size and not 0 <= prediction.min() <= prediction.max() < n:
            raise ValueError(f"prediction has ids {prediction.min()}–{prediction.max()}, the classes are 0–{n - 1}")
        counted = truth != VOID_ID
        rows = truth[counted].astype(np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < n:
            raise ValueError(f"truth has ids {rows.min()}–{rows.max()}, the classes are 0–{n - 1} and {VOID_ID} (void)")
        self.matrix += np.bincount(rows * n + prediction[counted], minlength=n * n).reshape(n, n)
        return self

    def merge(self, other: "ConfusionMatrix") -> Self:
        """Add the pixels of `other`. Raises ValueError where its classes are another number."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"can't merge {other.num_classes} classes into {self.num_classes}")
        self.matrix += other.matrix
        return self

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        return ConfusionMatrix(self.num_classes, self.matrix).merge(other)

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union by class (C,), 0–1; nan where a class is in neither truth nor prediction."""
        hits = np.diag(self.matrix).astype(np.float64)
        union = self.matrix.sum(0) + self.matrix.sum(1) - np.diag(self.matrix)
        return np.divide(hits, union, out=np.full(self.num_classes, np.nan), where=union > 0)

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over the classes that have one; nan where none has."""
        iou = self.iou
        return float(iou[~np.isnan(iou)].mean()) if not np.isnan(iou).all() else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Share of the counted pixels that are right, 0–1; nan where none is counted."""
        total = int(self.matrix.sum())
        return float(np.trace(self.matrix)) / total if total else float("nan")
