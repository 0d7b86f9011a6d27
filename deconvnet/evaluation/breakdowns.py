"""Breakdowns of the evaluation: confusion between classes, mean IoU by number of proposals, IoU by size of the object.

All are sums over images, so any number of processes can count and their counts can be added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, Self

import cv2
import numpy as np

from deconvnet.evaluation.metrics import ConfusionMatrix
from proposals.masks import VOID_ID
from proposals.mining.rules import find_objects

SIZE_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Shares of the image's area that separate the sizes of objects; a size includes its upper edge."""
SMALLEST_SIDE = 4
"""Objects whose box has a side shorter than this (px) are not counted. They are usually left-overs where the class mask and the
object mask disagree; by default the network is not trained on them either."""


def object_ious(
    class_mask: np.ndarray, object_mask: np.ndarray, predictions: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the IoU of each annotated object.

    A predicted mask does not tell objects apart. The prediction of an object is taken to be the 8-connected components of its
    class that touch it, without their pixels on other objects of the class and on void.

    Args:
        class_mask: true class ids, uint8 (H, W), 255 void.
        object_mask: object ids from 1, uint8 or uint16 (H, W); see `proposals.schemas.IMAGES`.
        predictions: predicted class ids, uint8 (H, W), by result.

    Returns:
        For the M objects whose box has sides of at least SMALLEST_SIDE: their share of the image's pixels, float64 (M,), and
        their IoU, float64 (len(predictions), M).
    """
    objects = find_objects(class_mask, object_mask, SMALLEST_SIDE)
    ious = np.zeros((len(predictions), len(objects)))
    boxes = [(slice(o.box[1], o.box[3]), slice(o.box[0], o.box[2])) for o in objects]
    own = [(class_mask[box] == o.class_id) & (object_mask[box] == o.object_id) for o, box in zip(objects, boxes, strict=True)]
    areas = np.array([mask.sum() for mask in own], np.int64)
    for row, prediction in enumerate(predictions.values()):
        for class_id in {o.class_id for o in objects}:
            count, components = cv2.connectedComponents((prediction == class_id).astype(np.uint8), connectivity=8)
            wrong = (class_mask != class_id) & (class_mask != VOID_ID)
            false_positives = np.bincount(components[wrong], minlength=count)  # by component: pixels of other classes
            for i, each in enumerate(objects):
                if each.class_id == class_id:
                    inside = np.bincount(components[boxes[i]][own[i]], minlength=count)
                    inside[0] = 0
                    ious[row, i] = inside.sum() / (areas[i] + false_positives[inside > 0].sum())
    return areas / class_mask.size, ious


@dataclass
class Breakdowns:
    """Sums over images; `add` counts an image, `merge` adds the sums of other images.

    Attributes:
        results: the R results that are measured.
        counts: the K numbers of proposals after which DeconvNet is measured.
        confusion: int64 (R, C, C), pixels by result, true class and predicted class.
        confusion_by_count: int64 (K, C, C), the same of DeconvNet after each of `counts` proposals.
        objects: int64 (B,), annotated objects by size (`SIZE_EDGES`).
        ious: float64 (R, B), sum of the objects' IoU by result and size.
    """

    results: tuple[str, ...]
    counts: tuple[int, ...]
    confusion: np.ndarray
    confusion_by_count: np.ndarray
    objects: np.ndarray
    ious: np.ndarray

    @classmethod
    def empty(cls, results: Sequence[str], counts: Sequence[int], num_classes: int) -> Self:
        """Start with no images.

        Args:
            results: names of the results that are measured.
            counts: numbers of proposals after which DeconvNet is measured.
            num_classes: number of classes C.
        """
        sizes = len(SIZE_EDGES) - 1
        square = (num_classes, num_classes)
        return cls(
            tuple(results),
            tuple(counts),
            np.zeros((len(results), *square), np.int64),
            np.zeros((len(counts), *square), np.int64),
            np.zeros(sizes, np.int64),
            np.zeros((len(results), sizes)),
        )

    def add(
        self,
        class_mask: np.ndarray,
        object_mask: np.ndarray,
        predictions: Mapping[str, np.ndarray],
        by_count: Mapping[int, np.ndarray],
    ) -> list[float]:
        """Count one image.

        Args:
            class_mask: true class ids, uint8 (H, W), 255 void.
            object_mask: object ids from 1, uint8 or uint16 (H, W).
            predictions: predicted class ids, uint8 (H, W), by result.
            by_count: DeconvNet's predicted class ids, uint8 (H, W), by number of proposals.

        Returns:
            The image's own mean IoU by result, in the order of `results`; nan if the truth is all void.
        """
        classes = self.confusion.shape[-1]
        single = [ConfusionMatrix(classes).update(class_mask, predictions[name]) for name in self.results]
        self.confusion += np.stack([each.matrix for each in single])
        for i, count in enumerate(self.counts):
            self.confusion_by_count[i] += ConfusionMatrix(classes).update(class_mask, by_count[count]).matrix
        shares, ious = object_ious(class_mask, object_mask, {name: predictions[name] for name in self.results})
        sizes = np.searchsorted(SIZE_EDGES[1:-1], shares)
        self.objects += np.bincount(sizes, minlength=len(self.objects))
        for total, each in zip(self.ious, ious, strict=True):
            total += np.bincount(sizes, each, minlength=len(self.objects))
        return [each.mean_iou for each in single]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the sums by attribute name, for sending to another process."""
        return {name: getattr(self, name) for name in ("confusion", "confusion_by_count", "objects", "ious")}

    def merge(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add the sums of other images.

        Args:
            arrays: what `arrays` returned for them.
        """
        for name, own in self.arrays().items():
            own += arrays[name]

    def as_dict(self) -> dict[str, Any]:
        """The content of `report/analysis.json`.

        Returns:
            `confusion`: pixels by result, true class and predicted class. `proposals`: `counts`, and DeconvNet's `mean_iou`
            after as many. `sizes`: `edges` (shares of the image), number of `objects`, and their `mean_iou` by result. None
            stands for a mean of nothing.
        """
        by_size = np.divide(self.ious, self.objects, out=np.full_like(self.ious, np.nan), where=self.objects > 0)
        by_count = [ConfusionMatrix(matrix.shape[0], matrix).mean_iou for matrix in self.confusion_by_count]
        return {
            "confusion": {name: matrix.tolist() for name, matrix in zip(self.results, self.confusion, strict=True)},
            "proposals": {"counts": list(self.counts), "mean_iou": _with_none(by_count)},
            "sizes": {
                "edges": list(SIZE_EDGES),
                "objects": self.objects.tolist(),
                "mean_iou": {name: _with_none(row.tolist()) for name, row in zip(self.results, by_size, strict=True)},
            },
        }


def _with_none(values: Sequence[float]) -> list[float | None]:
    """The values with None in place of nan, for JSON."""
    return [None if isnan(value) else float(value) for value in values]
