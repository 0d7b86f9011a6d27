"""Break the evaluation down: confusion between classes, mean IoU by number of proposals, and IoU by object size.

A result is one of the five ways of predicting a mask, such as "deconvnet" (`deconvnet.inference.predictor.RESULTS`). A proposal
is a box that may contain an object. All figures are computed from sums over images. So several processes can count different
images, and their sums can be added.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from deconvnet.evaluation.metrics import ConfusionMatrix, none_if_nan
from proposals.masks import VOID_ID, check_masks
from proposals.mining.rules import find_objects

SIZE_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Limits of the size bins of objects, as shares of the image's area. A bin includes its upper limit."""
SMALLEST_SIDE = 4
"""Lower limit of both sides of an object's bounding box, in pixels. Smaller objects are not counted.

Such objects are usually fragments where the class mask and the object mask disagree. By default the network is not trained on
them either.
"""


def object_ious(
    class_mask: np.ndarray, object_mask: np.ndarray, predictions: Mapping[str, np.ndarray], background: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the IoU (intersection over union) of each annotated object in each of R predicted masks.

    A predicted mask does not separate the objects of a class. So the prediction of an object is put together from the mask: it
    consists of all 8-connected regions of the object's class that overlap the object. Pixels that the annotation marks as void or
    as another object of the class are removed from the prediction.

    Args:
        class_mask: annotated class ids, uint8 (H, W); 255 is void.
        object_mask: annotated object ids, uint8 or uint16 (H, W). 0 is background, and the largest value of the dtype is void.
        predictions: the R masks of predicted class ids, uint8 (H, W), by result name.
        background: whether class 0 is the background, of which there are no objects.

    Returns:
        Two arrays about the M objects whose bounding box is at least `SMALLEST_SIDE` (4) pixels wide and high. The first has the
        share of the image's pixels that each object covers, float64 (M,). The second has the IoU of each object in each of the R
        masks, float64 (R, M).

    Raises:
        ValueError: if a mask has another dtype or shape, or their sizes differ.
    """
    for prediction in predictions.values():
        check_masks(class_mask, prediction)
    objects = find_objects(class_mask, object_mask, SMALLEST_SIDE, background)
    ious = np.zeros((len(predictions), len(objects)))
    boxes = [(slice(o.box[1], o.box[3]), slice(o.box[0], o.box[2])) for o in objects]
    own = [(class_mask[box] == o.class_id) & (object_mask[box] == o.object_id) for o, box in zip(objects, boxes, strict=True)]
    areas = np.array([mask.sum() for mask in own], np.int64)
    for row, prediction in enumerate(predictions.values()):
        for class_id in {o.class_id for o in objects}:
            count, components = cv2.connectedComponents((prediction == class_id).astype(np.uint8), connectivity=8)
            wrong = (class_mask != class_id) & (class_mask != VOID_ID)
            false_positives = np.bincount(components[wrong], minlength=count)  # pixels of other classes in each component
            for i, each in enumerate(objects):
                if each.class_id == class_id:
                    inside = np.bincount(components[boxes[i]][own[i]], minlength=count)
                    inside[0] = 0
                    ious[row, i] = inside.sum() / (areas[i] + false_positives[inside > 0].sum())
    return areas / class_mask.size, ious


class Breakdowns:
    """Sums over the evaluated images: confused pixels by class, and the IoU of objects by their size.

    `add` counts one image, and `merge` adds the sums of other images.

    Attributes:
        results: names of the R results that are measured, such as "deconvnet".
        counts: the K numbers of proposals (boxes) from which DeconvNet's mask is predicted and measured.
        confusion: numbers of pixels by result, true class and predicted class, int64 (R, C, C), for C classes.
        confusion_by_count: numbers of pixels by entry of `counts`, true class and DeconvNet's predicted class, int64 (K, C, C).
        objects: numbers of annotated objects in each of the B size bins, int64 (B,). The size of an object is its share of the
            image's area, and `SIZE_EDGES` has the limits of the bins.
        ious: sums of the objects' IoU by result and size bin, float64 (R, B).
    """

    def __init__(self, results: Sequence[str], counts: Sequence[int], num_classes: int) -> None:
        """Create breakdowns of no images, with all sums 0.

        Args:
            results: names of the results that are measured, such as "deconvnet".
            counts: numbers of proposals (boxes). For each number k, the mask that DeconvNet predicts from k boxes is measured.
            num_classes: number of classes, including the background if there is one.
        """
        self.results, self.counts = tuple(results), tuple(counts)
        self.confusion = np.zeros((len(results), num_classes, num_classes), np.int64)
        self.confusion_by_count = np.zeros((len(counts), num_classes, num_classes), np.int64)
        self.objects = np.zeros(len(SIZE_EDGES) - 1, np.int64)
        self.ious = np.zeros((len(results), len(SIZE_EDGES) - 1))

    def add(
        self,
        class_mask: np.ndarray,
        object_mask: np.ndarray,
        predictions: Mapping[str, np.ndarray],
        by_count: Mapping[int, np.ndarray],
        background: bool = True,
    ) -> list[ConfusionMatrix]:
        """Add one image to the sums.

        Args:
            class_mask: annotated class ids, uint8 (H, W); 255 is void.
            object_mask: annotated object ids, uint8 or uint16 (H, W). 0 is background, and the largest value of the dtype is
                void.
            predictions: predicted class ids, uint8 (H, W), by result name; one for each of `results`.
            by_count: DeconvNet's predicted class ids, uint8 (H, W), by number of proposals; one for each of `counts`.
            background: whether class 0 is the background, of which there are no objects.

        Returns:
            The confusion matrix of this image alone for each result, in the order of `results`.
        """
        classes = self.confusion.shape[-1]
        single = [ConfusionMatrix(classes).update(class_mask, predictions[name]) for name in self.results]
        self.confusion += np.stack([each.matrix for each in single])
        for i, count in enumerate(self.counts):
            self.confusion_by_count[i] += ConfusionMatrix(classes).update(class_mask, by_count[count]).matrix
        shares, ious = object_ious(class_mask, object_mask, {name: predictions[name] for name in self.results}, background)
        sizes = np.searchsorted(SIZE_EDGES[1:-1], shares)
        self.objects += np.bincount(sizes, minlength=len(self.objects))
        for total, each in zip(self.ious, ious, strict=True):
            total += np.bincount(sizes, each, minlength=len(self.objects))
        return single

    def arrays(self) -> dict[str, np.ndarray]:
        """Return a dict of the four arrays of sums by attribute name, for sending to another process. They are not copied."""
        return {name: getattr(self, name) for name in ("confusion", "confusion_by_count", "objects", "ious")}

    def merge(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add the sums of other images to these sums, in place.

        Args:
            arrays: the arrays of another `Breakdowns` with the same shapes, as its method `arrays` returns them.
        """
        for name, own in self.arrays().items():
            own += arrays[name]

    def as_dict(self) -> dict[str, Any]:
        """Compute the breakdowns as JSON values, which are stored in `report/analysis.json`.

        Returns:
            A dict with three entries. The mean IoU of no classes or no objects is None.

            * `confusion` is a dict from result name to a nested list: numbers of pixels by true class, then by predicted class.
            * `proposals` is a dict with two lists: `counts`, the numbers of proposals, and `mean_iou`, the mean IoU of DeconvNet
              with each of these numbers. Both are empty if DeconvNet is run on windows.
            * `sizes` is a dict with the list `edges` (limits of the size bins, as shares of the image's area), the list `objects`
              (numbers of objects in the bins) and the dict `mean_iou` (from result name to a list, with the mean IoU of the
              objects in each bin).
        """
        by_size = np.divide(self.ious, self.objects, out=np.full_like(self.ious, np.nan), where=self.objects > 0)
        by_count = [ConfusionMatrix(matrix.shape[0], matrix).mean_iou for matrix in self.confusion_by_count]
        return {
            "confusion": {name: matrix.tolist() for name, matrix in zip(self.results, self.confusion, strict=True)},
            "proposals": {"counts": list(self.counts), "mean_iou": [none_if_nan(value) for value in by_count]},
            "sizes": {
                "edges": list(SIZE_EDGES),
                "objects": self.objects.tolist(),
                "mean_iou": {name: [none_if_nan(v) for v in row] for name, row in zip(self.results, by_size, strict=True)},
            },
        }
