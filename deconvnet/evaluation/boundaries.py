"""Compare the boundaries of predicted masks with those of annotated masks, by the boundary F-measure and the Boundary IoU.

Mean IoU changes little when outlines are wrong; both measures show this. As for mean IoU, the pixels of all images are counted
together, and there is one value for each class.

The boundary F-measure (Csurka, Larlus, Perronnin, BMVC 2013) compares contours. The contour of a class consists of its pixels
that have a pixel of another class directly beside, above or below. A contour pixel is "near" a contour if its distance is up to
0.0075 of the image's diagonal. Precision is the share of the predicted contour that is near the annotated contour of the same
class, recall is the share of the annotated contour that is near the predicted one, and F is their harmonic mean. Unlike in the
benchmark of edges (`proposals.edges.boundary_metrics`), pixels are not matched one to one.

The Boundary IoU (Cheng, Girshick, Dollár, Berg, Kirillov, CVPR 2021) compares bands. The band of a class consists of its pixels
that are at most 0.02 of the image's diagonal from another class, along rows and columns; here the outside of the image is another
class, too. The measure is the IoU of the annotated and the predicted band of the class. For large objects it is stricter than the
IoU of whole masks, because most pixels of a whole mask are far from its outline.

Void (255) marks pixels whose class the annotators were not sure of; in PASCAL VOC it is a line around each object. Before masks
are compared, each void pixel is filled from the nearest annotated pixel: in the annotation with the class annotated there, in the
prediction with the class predicted there. So if the classes on both sides of a void line are right, both contours run along its
middle, and what is predicted on void changes nothing. Void pixels are not counted in bands. Contours inside a large void area are
not counted either, where they are farther than a band's width from all annotated pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
from numba import njit

from deconvnet.evaluation.metrics import iou_of_counts
from proposals.edges.boundary_metrics import TOLERANCE, disk_offsets, f_measure, precision_recall
from proposals.masks import VOID_ID, check_masks

BAND = 0.02
"""Width of the bands of the Boundary IoU, as a share of the image's diagonal. It is at least one pixel."""


@dataclass(frozen=True)
class BoundaryCounts:
    """Numbers of pixels from which the boundary measures of R predicted masks and C classes are computed. Counts can be added.

    Attributes:
        contours: int64 (R, C, 4). The last axis has the pixels of the predicted contour that are near the annotated one, all of
            the predicted contour, those of the annotated contour near the predicted one, and all of the annotated contour.
        bands: int64 (R, 3, C): pixels that are in the annotated band and in the predicted band of a class, all in its annotated
            band, and all in its predicted band.
    """

    contours: np.ndarray
    bands: np.ndarray

    @classmethod
    def zeros(cls, results: int, num_classes: int) -> Self:
        """Return the counts of no images, for R `results` and C classes."""
        return cls(np.zeros((results, num_classes, 4), np.int64), np.zeros((results, 3, num_classes), np.int64))

    def __add__(self, other: "BoundaryCounts") -> "BoundaryCounts":
        """Return the counts of the images of both."""
        return BoundaryCounts(self.contours + other.contours, self.bands + other.bands)

    @property
    def f_measure(self) -> np.ndarray:
        """Compute the boundary F-measure of each class, float64 (R, C), 0 to 1; nan where a class has neither contour."""
        present = self.contours[..., 1] + self.contours[..., 3] > 0
        return np.where(present, f_measure(*precision_recall(self.contours)), np.nan)

    @property
    def iou(self) -> np.ndarray:
        """Compute the Boundary IoU of each class, float64 (R, C), 0 to 1; nan where a class has neither band."""
        return iou_of_counts(*np.moveaxis(self.bands, 1, 0))


def boundary_counts(truth: np.ndarray, predictions: Sequence[np.ndarray], num_classes: int) -> BoundaryCounts:
    """Count the pixels of an image for the boundary measures of R predicted masks.

    Args:
        truth: annotated class ids, uint8 (H, W); 255 is void.
        predictions: the R masks of predicted class ids, uint8 (H, W), without void.
        num_classes: number of classes C.

    Returns:
        The counts. They are 0 if the whole annotation is void.

    Raises:
        ValueError: if a mask has another dtype or shape, their sizes differ, or an id is out of range.
    """
    counts = BoundaryCounts.zeros(len(predictions), num_classes)
    void = truth == VOID_ID
    for prediction in predictions:
        check_masks(truth, prediction)
    if void.all():
        return counts
    diagonal = math.hypot(*truth.shape)
    steps = disk_offsets(TOLERANCE * diagonal)
    margin = int(np.abs(steps).max())  # padding, so that no step leaves the array
    flat_steps = steps[:, 0] * (truth.shape[1] + 2 * margin) + steps[:, 1]
    width = max(1, round(BAND * diagonal))
    sources, deep = _nearest_annotated(void, width)
    filled = _filled(truth, void, sources, num_classes)
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    own, own_contour, own_range = filled, _contour(filled, margin), _range_around(filled, window)
    deep = np.pad(deep, margin).ravel()
    for i, prediction in enumerate(predictions):
        filled = _filled(prediction, void, sources, num_classes)
        contour = _contour(filled, margin)
        _count_near(contour, own_contour, deep, flat_steps, counts.contours[i, :, :2])
        _count_near(own_contour, contour, deep, flat_steps, counts.contours[i, :, 2:])
        _count_bands(own, *own_range, filled, *_range_around(filled, window), void, counts.bands[i])
    return counts


def _nearest_annotated(void: np.ndarray, depth: float) -> tuple[np.ndarray, np.ndarray]:
    """Find the annotated pixel that is nearest to each void pixel.

    Args:
        void: bool (H, W), true where the annotation is void, but not everywhere.
        depth: distance in pixels beyond which a void pixel is "deep".

    Returns:
        The flat indices of the annotated pixels for the M void pixels in order, integers (M,), and a bool array (H, W) that is
        true where a void pixel is deep. OpenCV's distances, by which pixels are chosen, are up to 3 % off.
    """
    if not void.any():
        return np.zeros(0, np.int64), np.zeros(void.shape, bool)
    distances, labels = cv2.distanceTransformWithLabels(
        void.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    annotated = np.flatnonzero(~void)
    index_of_label = np.zeros(int(labels.max()) + 1, np.int64)
    index_of_label[labels.ravel()[annotated]] = annotated
    return index_of_label[labels[void]], distances > depth


def _filled(mask: np.ndarray, void: np.ndarray, sources: np.ndarray, num_classes: int) -> np.ndarray:
    """Return a copy of a mask whose void pixels have the classes at other pixels, uint8 (H, W), see `_nearest_annotated`.

    Raises:
        ValueError: if it then has an id that is not a class.
    """
    filled = mask.copy()
    filled[void] = mask.ravel()[sources]
    if (highest := int(filled.max())) >= num_classes:
        raise ValueError(f"a mask has ids up to {highest}, the classes are 0–{num_classes - 1}")
    return filled


def _contour(mask: np.ndarray, margin: int) -> np.ndarray:
    """Find the contours of all classes.

    Args:
        mask: class ids, uint8 (H, W).
        margin: width in pixels of an edge that is added on all sides.

    Returns:
        Flat uint8 array of the enlarged size. It has the class id on contours, and 255 elsewhere.
    """
    on = np.zeros(mask.shape, bool)
    beside, below = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    for side, differs in ((on[:, 1:], beside), (on[:, :-1], beside), (on[1:], below), (on[:-1], below)):
        np.logical_or(side, differs, out=side)
    height, width = mask.shape
    contour = np.full((height + 2 * margin, width + 2 * margin), VOID_ID, np.uint8)
    np.copyto(contour[margin : margin + height, margin : margin + width], mask, where=on)
    return contour.ravel()


def _range_around(mask: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest and the lowest id in a window around each pixel, both uint8 (H, W). Outside of the image is 255."""
    return cv2.dilate(mask, window, borderType=cv2.BORDER_CONSTANT, borderValue=VOID_ID), cv2.erode(mask, window)


@njit(cache=True)
def _count_near(contour: np.ndarray, other: np.ndarray, deep: np.ndarray, steps: np.ndarray, counts: np.ndarray) -> None:
    """Count the pixels of each class's contour, and those among them that are near the other contour of the class.

    Args:
        contour: flat uint8 array, padded so that no step leaves it, with the class id on contours and 255 elsewhere.
        other: the same array for the contours of the other mask.
        deep: flat bool array, true on pixels that are not counted.
        steps: int64 (K,), the differences between the flat indices of pixels that are near each other, nearest first.
        counts: int64 (C, 2), to which the near pixels and all pixels of each class are added.
    """
    for p in range(contour.size):
        class_id = contour[p]
        if class_id == VOID_ID or deep[p]:
            continue
        counts[class_id, 1] += 1
        for step in steps:
            if other[p + step] == class_id:
                counts[class_id, 0] += 1
                break


@njit(cache=True)
def _count_bands(
    truth: np.ndarray,
    truth_highest: np.ndarray,
    truth_lowest: np.ndarray,
    prediction: np.ndarray,
    highest: np.ndarray,
    lowest: np.ndarray,
    void: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Count the pixels of each class's bands. A pixel is in the band of its class if another id is in the window around it.

    Args:
        truth: annotated class ids, uint8 (H, W), with void filled.
        truth_highest: the highest id in the window around each pixel, uint8 (H, W).
        truth_lowest: the lowest id there, uint8 (H, W).
        prediction: predicted class ids, uint8 (H, W), with void filled.
        highest: the highest id of the prediction in the window around each pixel.
        lowest: the lowest id there.
        void: bool (H, W), true on pixels that are not counted.
        counts: int64 (3, C), to which the pixels in both bands of a class are added, all in its annotated band, and all in its
            predicted band.
    """
    for y in range(truth.shape[0]):
        for x in range(truth.shape[1]):
            if void[y, x]:
                continue
            own, other = truth[y, x], prediction[y, x]
            in_own, in_other = truth_highest[y, x] != truth_lowest[y, x], highest[y, x] != lowest[y, x]
            if in_own:
                counts[1, own] += 1
            if in_other:
                counts[2, other] += 1
            if in_own and in_other and own == other:
                counts[0, own] += 1
