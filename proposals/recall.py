"""Measure how well proposals cover the objects of a data set, using only the first k boxes of each image.

An object is found at IoU t by the first k boxes if the IoU of one of them with the object's tight box is at least t. Recall is
the share of objects that are found. (See Hosang, Benenson, Dollár, Schiele, "What makes for effective detection proposals?", PAMI
2016.)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from proposals.boxes import as_boxes, iou
from proposals.masks import void_id

COUNTS = (50, 100, 500, 1000, 2000)
"""Numbers of boxes at which tables and metrics report recall."""
CURVE_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
"""Numbers of boxes at which recall curves have a point."""
MIN_AREA = 2000
"""Smallest area in px² of an object's box that counts. EdgeBox does not search for much smaller ones."""
_BINS = 100  # steps of the IoU in the histograms


def object_boxes(object_mask: np.ndarray, min_area: float = MIN_AREA) -> np.ndarray:
    """Find the tight boxes of the objects in a mask: the smallest boxes that contain all pixels of an object.

    Args:
        object_mask: uint8 or uint16 array (H, W) of object ids; 0 is background, and the largest value of the dtype is void.
        min_area: objects whose box has a smaller area than this are left out, px².

    Returns:
        float32 array (M, 4) of x1, y1, x2, y2 in pixels, ordered by object id.
    """
    ids = np.where(object_mask == void_id(object_mask), 0, object_mask).astype(np.int32)
    slices = [each for each in ndimage.find_objects(ids) if each is not None]
    boxes = np.array([(x.start, y.start, x.stop, y.stop) for y, x in slices], np.float32).reshape(-1, 4)
    return boxes[(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) >= min_area]


def best_overlaps(boxes: np.ndarray, objects: np.ndarray, counts: Sequence[int] = COUNTS) -> np.ndarray:
    """Compute the highest IoU of each object with any of the first k boxes.

    Args:
        boxes: array (N, 4) of x1, y1, x2, y2: the proposals of an image, best first.
        objects: array (M, 4) of x1, y1, x2, y2: the tight boxes of the image's objects.
        counts: the K values of k; where there are fewer than k boxes, all of them are used.

    Returns:
        float32 array (M, K) of IoUs from 0 to 1; all are 0 if there are no boxes.

    Raises:
        ValueError: if these are not boxes (see `boxes.as_boxes`), or a count is below 1.
    """
    if min(counts) < 1:
        raise ValueError(f"counts are {tuple(counts)}, and must be numbers of boxes, at least 1")
    boxes, objects = as_boxes(boxes), as_boxes(objects, "objects")
    if not len(boxes):
        return np.zeros((len(objects), len(counts)), np.float32)
    best_so_far = np.maximum.accumulate(iou(boxes[: max(counts)], objects), axis=0)
    return best_so_far[[min(k, len(best_so_far)) - 1 for k in counts]].T.astype(np.float32)


def counts_up_to(max_boxes: int) -> tuple[int, ...]:
    """Choose the numbers of boxes at which to measure recall.

    Args:
        max_boxes: largest number of boxes per image.

    Returns:
        The numbers of `CURVE_COUNTS` (1, 2, 5, 10, … 2000) that are below `max_boxes`, followed by `max_boxes`.
    """
    return (*(k for k in CURVE_COUNTS if k < max_boxes), max_boxes)


@dataclass(frozen=True)
class Recall:
    """The recall of a set of objects: the share of them that the first k boxes of each image find, for K values of k.

    The operator `+` combines it with the recall of other objects. The numbers are kept as histograms, so their size does not
    depend on the number of objects. If there are no objects, all rates are nan.

    Attributes:
        counts: the K values of k, ascending.
        histogram: int64 array (K, 101), the number of objects by their best IoU, in steps of 0.01.
        total: float64 array (K,), the sum of the objects' best IoUs.
    """

    counts: tuple[int, ...]
    histogram: np.ndarray
    total: np.ndarray

    @classmethod
    def from_overlaps(cls, overlaps: np.ndarray, counts: Sequence[int] = COUNTS) -> "Recall":
        """Compute the recall of M objects from their best IoUs.

        Args:
            overlaps: array (M, K): the highest IoU of each object with any of the first k boxes, as `best_overlaps` returns it.
            counts: the K numbers of boxes that were passed to `best_overlaps`.

        Returns:
            The recall.

        Raises:
            ValueError: if an IoU is not from 0 to 1.
        """
        if not ((overlaps >= 0) & (overlaps <= 1)).all():
            raise ValueError(f"overlaps are from {overlaps.min()} to {overlaps.max()}; expected IoUs from 0 to 1")
        edges = (np.arange(1, _BINS + 1) / _BINS).astype(np.float32)  # float32 like the overlaps, so that 0.7 reaches 0.7
        bins = np.searchsorted(edges, overlaps.astype(np.float32), side="right")
        histogram = np.stack([np.bincount(column, minlength=_BINS + 1) for column in bins.T]).astype(np.int64)
        return cls(tuple(counts), histogram, overlaps.sum(axis=0, dtype=np.float64))

    def __add__(self, other: "Recall") -> "Recall":
        """Combine this recall with that of other objects.

        Args:
            other: recall of other objects, measured at the same numbers of boxes.

        Returns:
            The recall of all objects.

        Raises:
            ValueError: if the two were measured at different numbers of boxes.
        """
        if self.counts != other.counts:
            raise ValueError(f"recalls at {self.counts} boxes and at {other.counts} boxes cannot be added")
        return Recall(self.counts, self.histogram + other.histogram, self.total + other.total)

    @property
    def num_objects(self) -> int:
        """Return the number of objects on which the recall was measured."""
        return int(self.histogram[0].sum())

    def by_iou(self) -> np.ndarray:
        """Compute recall at each of the 101 IoU thresholds 0, 0.01, ..., 1.

        Returns:
            float64 array (K, 101), the share of objects found, from 0 to 1. Rows are numbers of boxes, columns are thresholds.
        """
        at_least = self.histogram[:, ::-1].cumsum(axis=1)[:, ::-1]
        return at_least / (self.num_objects or np.nan)

    def at_iou(self, threshold: float) -> np.ndarray:
        """Compute recall at one IoU threshold.

        Args:
            threshold: the IoU, a multiple of 0.01.

        Returns:
            float64 array (K,), the share of objects found, from 0 to 1, for each number of boxes.

        Raises:
            ValueError: if the threshold is not from 0 to 1.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}; expected an IoU from 0 to 1")
        return self.by_iou()[:, round(threshold * _BINS)]

    @property
    def average_best_overlap(self) -> np.ndarray:
        """Return the average best overlap, the mean of the objects' best IoUs.

        Returns:
            float64 array (K,), from 0 to 1, for each number of boxes.
        """
        return self.total / (self.num_objects or np.nan)

    @property
    def average_recall(self) -> np.ndarray:
        """Return the average recall, the mean of the recall at the IoU thresholds 0.5, 0.55, ..., 0.95.

        Returns:
            float64 array (K,), from 0 to 1, for each number of boxes.
        """
        return self.by_iou()[:, 50:100:5].mean(axis=1)

    def _rates(self) -> dict[str, np.ndarray]:
        """Return all reported rates for every number of boxes.

        Returns:
            float64 arrays (K,) by name. A name such as "recall_{}_iou50" contains {} where the number of boxes is to be inserted.
        """
        return {
            "recall_{}_iou50": self.at_iou(0.5),
            "recall_{}_iou70": self.at_iou(0.7),
            "average_recall_{}": self.average_recall,
            "average_best_overlap_{}": self.average_best_overlap,
        }

    def _reported(self) -> list[int]:
        """Choose the numbers of boxes to report: those in `COUNTS` (50, 100, 500, 1000, 2000), and the largest.

        Returns:
            Their indices in `counts`, ascending.
        """
        return [i for i, k in enumerate(self.counts) if k in COUNTS or k == max(self.counts)]

    def metrics(self) -> dict[str, float]:
        """Return the rates to report, ready for a metrics logger.

        Returns:
            Rates by metric name, such as "recall_50_iou70" and "average_best_overlap_50", where 50 is the number of boxes.
        """
        return {name.format(self.counts[i]): float(values[i]) for name, values in self._rates().items() for i in self._reported()}

    def as_dict(self) -> dict[str, float]:
        """Return the rates to report and the number of objects, ready for JSON.

        Returns:
            The result of `metrics`, and the number of objects under the key "objects".
        """
        return {"objects": self.num_objects, **self.metrics()}

    def summary(self) -> str:
        """Write the main rates as a sentence: recall at IoU 0.5 and 0.7 for the smallest reported number of boxes.

        Returns:
            The text, such as "50 boxes find 71% of 1,234 objects at IoU 0.5, 52% at 0.7".
        """
        i = self._reported()[0]
        loose, tight = self.at_iou(0.5)[i], self.at_iou(0.7)[i]
        return f"{self.counts[i]} boxes find {loose:.0%} of {self.num_objects:,} objects at IoU 0.5, {tight:.0%} at 0.7"


def recall_table(recalls: Mapping[str, Recall]) -> str:
    """Format several recalls as a Markdown table.

    Args:
        recalls: the recalls to compare, by name. The first is the baseline. All must have the same numbers of boxes.

    Returns:
        Markdown with one row for each name and reported number of boxes. Every rate except the baseline's is followed by its
        difference from the baseline in percentage points.

    Raises:
        ValueError: if the recalls were measured at different numbers of boxes.
    """
    lines = [
        "| | boxes | recall, IoU 0.5 | recall, IoU 0.7 | average recall | average best overlap |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    first = next(iter(recalls.values()))
    for name, recall in recalls.items():
        if recall.counts != first.counts:
            raise ValueError(f"{name} was measured at {recall.counts} boxes, and the baseline at {first.counts}")
        pairs = list(zip(recall._rates().values(), first._rates().values(), strict=True))
        for i in recall._reported():
            cells = [_cell(own[i], None if recall is first else baseline[i]) for own, baseline in pairs]
            lines.append(f"| {name} | {recall.counts[i]:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: float, baseline: float | None) -> str:
    """Format one rate as a cell of the Markdown table.

    Args:
        value: the rate, from 0 to 1.
        baseline: the baseline's rate, to append the difference from it in percentage points; None to append nothing.

    Returns:
        The text, such as "0.712 (+1.5)".
    """
    return f"{value:.3f}" if baseline is None else f"{value:.3f} ({100 * (value - baseline):+.1f})"


def sum_recalls(recalls: Iterable[Recall], counts: Sequence[int] = COUNTS) -> Recall:
    """Combine the recalls of different objects.

    Args:
        recalls: any number of recalls, even none.
        counts: the numbers of boxes at which they were measured.

    Returns:
        The recall of all objects. If there are no recalls, it has 0 objects.
    """
    return sum(recalls, Recall.from_overlaps(np.zeros((0, len(counts)), np.float32), counts))
