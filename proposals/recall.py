"""How good boxes are for the objects they should find: recall at an IoU, and the average best overlap, of the first boxes.

An object is found at IoU t by the first k boxes where one of them overlaps its tight box by t at least (Hosang, Benenson, Dollár,
Schiele 2016). Figures are kept as histograms, so that those of many photographs add up in a fixed space.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from proposals.boxes import iou
from proposals.masks import void_id

COUNTS = (50, 100, 500, 1000, 2000)
"""Numbers of boxes that tables tell of."""
CURVE_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
"""Numbers of boxes that curves are drawn through."""
MIN_AREA = 2000
"""px²; objects whose box is smaller are left out, as EdgeBox isn't asked for them."""
_BINS = 100  # of IoU


def object_boxes(object_mask: np.ndarray, min_area: float = MIN_AREA) -> np.ndarray:
    """The tight boxes of an object mask's ids whose area is `min_area` px² at least: float32 (M,4), by id.

    object_mask: uint8 or uint16 H×W, 0 background, the type's largest value void.
    """
    ids = np.where(object_mask == void_id(object_mask), 0, object_mask).astype(np.int32)
    places = [place for place in ndimage.find_objects(ids) if place is not None]
    boxes = np.array([(x.start, y.start, x.stop, y.stop) for y, x in places], np.float32).reshape(-1, 4)
    return boxes[(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) >= min_area]


def best_overlaps(boxes: np.ndarray, objects: np.ndarray, counts: Sequence[int] = COUNTS) -> np.ndarray:
    """IoU of each object with the best of the first k boxes, for each k of `counts`: float32 (M, len(counts)).

    boxes (N,4), best first; objects (M,4). Where there are fewer than k boxes it is the best of all; 0 where there is none.
    """
    if not len(boxes):
        return np.zeros((len(objects), len(counts)), np.float32)
    so_far = np.maximum.accumulate(iou(boxes[: max(counts)], objects), axis=0)
    return so_far[[min(k, len(so_far)) - 1 for k in counts]].T.astype(np.float32)


def counts_up_to(most: int) -> tuple[int, ...]:
    """CURVE_COUNTS as far as `most` boxes go, and `most` itself."""
    return (*(k for k in CURVE_COUNTS if k < most), most)


@dataclass(frozen=True)
class Recall:
    """Figures of many objects, for each of `counts` boxes; `+` adds those of other objects.

    histogram: int64 (len(counts), 101), objects by best overlap in steps of 0.01; total: float64 (len(counts),), summed overlaps.
    Figures of no object are nan.
    """

    counts: tuple[int, ...]
    histogram: np.ndarray
    total: np.ndarray

    @classmethod
    def of(cls, overlaps: np.ndarray, counts: Sequence[int] = COUNTS) -> "Recall":
        """From `best_overlaps` (M, len(counts))."""
        edges = (np.arange(1, _BINS + 1) / _BINS).astype(np.float32)  # as exact as the overlaps: 0.7 counts as 0.7
        bins = np.searchsorted(edges, overlaps.astype(np.float32), side="right")
        histogram = np.stack([np.bincount(column, minlength=_BINS + 1) for column in bins.T]).astype(np.int64)
        return cls(tuple(counts), histogram, overlaps.sum(axis=0, dtype=np.float64))

    def __add__(self, other: "Recall") -> "Recall":
        if self.counts != other.counts:
            raise ValueError(f"recall of {self.counts} boxes and of {other.counts} does not add up")
        return Recall(self.counts, self.histogram + other.histogram, self.total + other.total)

    @property
    def objects(self) -> int:
        return int(self.histogram[0].sum())

    def over_iou(self) -> np.ndarray:
        """Recall at IoU 0, 0.01, …, 1: float64 (len(counts), 101)."""
        better = self.histogram[:, ::-1].cumsum(axis=1)[:, ::-1]
        return better / (self.objects or np.nan)

    def at(self, threshold: float) -> np.ndarray:
        """Recall at an IoU of whole hundredths: float64 (len(counts),)."""
        return self.over_iou()[:, round(threshold * _BINS)]

    @property
    def average_best_overlap(self) -> np.ndarray:
        """float64 (len(counts),)."""
        return self.total / (self.objects or np.nan)

    @property
    def average_recall(self) -> np.ndarray:
        """Mean recall at IoU 0.5, 0.55, …, 0.95: float64 (len(counts),)."""
        return self.over_iou()[:, 50:100:5].mean(axis=1)

    def figures(self) -> dict[str, np.ndarray]:
        """All of them by name, each float64 (len(counts),); {} in a name stands for the number of boxes."""
        return {
            "recall_{}_iou50": self.at(0.5),
            "recall_{}_iou70": self.at(0.7),
            "average_recall_{}": self.average_recall,
            "average_best_overlap_{}": self.average_best_overlap,
        }

    def shown(self) -> list[int]:
        """Which of `counts` tables and metrics tell of: those of COUNTS, and the largest."""
        return [i for i, k in enumerate(self.counts) if k in COUNTS or k == max(self.counts)]

    def metrics(self) -> dict[str, float]:
        """Figures by names such as `recall_50_iou70` and `average_best_overlap_50`."""
        return {name.format(self.counts[i]): float(values[i]) for name, values in self.figures().items() for i in self.shown()}

    def as_dict(self) -> dict[str, float]:
        """For JSON: the number of objects, and `metrics`."""
        return {"objects": self.objects, **self.metrics()}

    def sentence(self) -> str:
        """What the fewest boxes that tables tell of find, for a person."""
        i = self.shown()[0]
        found, tight = self.at(0.5)[i], self.at(0.7)[i]
        return f"{self.counts[i]} boxes find {found:.0%} of {self.objects:,} objects at IoU 0.5, {tight:.0%} at 0.7"


def table(recalls: Mapping[str, Recall]) -> str:
    """Markdown: a line for each name and number of boxes, and from the second name on differences to the first, in points."""
    lines = [
        "| | boxes | recall, IoU 0.5 | recall, IoU 0.7 | average recall | average best overlap |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    first = next(iter(recalls.values()))
    for name, recall in recalls.items():
        pairs = list(zip(recall.figures().values(), first.figures().values(), strict=True))
        for i in recall.shown():
            cells = [_cell(own[i], None if recall is first else baseline[i]) for own, baseline in pairs]
            lines.append(f"| {name} | {recall.counts[i]:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: float, baseline: float | None) -> str:
    """A figure, and how many points it is above the baseline's."""
    return f"{value:.3f}" if baseline is None else f"{value:.3f} ({100 * (value - baseline):+.1f})"


def add(recalls: Iterable[Recall], counts: Sequence[int] = COUNTS) -> Recall:
    """The sum of `recalls`; that of none is of no object."""
    return sum(recalls, Recall.of(np.zeros((0, len(counts)), np.float32), counts))
