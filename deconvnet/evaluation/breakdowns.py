"""What evaluation counts beside the paper's table: which classes are taken for which, how many proposals are worth it, which sizes fail.

All are counts that add up over photographs, so nothing is labelled twice and any number of processes may count.
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
"""Shares of a photograph between which objects count as of one size; the upper edge belongs to it."""
SMALLEST_SIDE = 4
"""Objects whose box is shorter (px) are crumbs, left where class and object masks disagree; by default they are not learned from either."""


def object_overlaps(
    class_mask: np.ndarray, object_mask: np.ndarray, labels: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The share of the photograph's pixels (M,), and the IoU by each of `labels` (len(labels), M), of its annotated objects; float64.

    Objects are those of SMALLEST_SIDE or more. class_mask, labels: uint8 H×W class ids (255 void in the mask); object_mask: as in
    `proposals.examples`. Labels don't tell objects apart: an object's prediction is the 8-connected pieces of its class that touch
    it, less what lies on other objects of the class and on void.
    """
    objects = find_objects(class_mask, object_mask, SMALLEST_SIDE)
    shares, overlaps = np.zeros(len(objects)), np.zeros((len(labels), len(objects)))
    own = [(class_mask[place] == o.class_id) & (object_mask[place] == o.object_id) for o in objects for place in (_place(o.box),)]
    areas = np.array([mask.sum() for mask in own], np.int64)
    shares[:] = areas / class_mask.size
    for row, given in enumerate(labels.values()):
        for class_id in {o.class_id for o in objects}:
            count, pieces = cv2.connectedComponents((given == class_id).astype(np.uint8), connectivity=8)
            wrong = (class_mask != class_id) & (class_mask != VOID_ID)
            beside = np.bincount(pieces[wrong], minlength=count)  # each piece's pixels that are no object's of this class
            for i, each in enumerate(objects):
                if each.class_id == class_id:
                    inside = np.bincount(pieces[_place(each.box)][own[i]], minlength=count)
                    inside[0] = 0
                    overlaps[row, i] = inside.sum() / (areas[i] + beside[inside > 0].sum())
    return shares, overlaps


def _place(box: tuple[int, int, int, int]) -> tuple[slice, slice]:
    return slice(box[1], box[3]), slice(box[0], box[2])


@dataclass
class Analysis:
    """Counts of any number of photographs, which `add` and `merge` grow.

    names: R results; counts: K numbers of proposals. confusion int64 (R, C, C); steps int64 (K, C, C), DeconvNet's after each of
    `counts`; objects int64 (B,), annotated objects by size; overlaps float64 (R, B), their summed IoU.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    confusion: np.ndarray
    steps: np.ndarray
    objects: np.ndarray
    overlaps: np.ndarray

    @classmethod
    def empty(cls, names: Sequence[str], counts: Sequence[int], num_classes: int) -> Self:
        sizes = len(SIZE_EDGES) - 1
        square = (num_classes, num_classes)
        return cls(
            tuple(names),
            tuple(counts),
            np.zeros((len(names), *square), np.int64),
            np.zeros((len(counts), *square), np.int64),
            np.zeros(sizes, np.int64),
            np.zeros((len(names), sizes)),
        )

    def add(
        self, truth: np.ndarray, objects: np.ndarray, labels: Mapping[str, np.ndarray], after: Mapping[int, np.ndarray]
    ) -> list[float]:
        """Count a photograph: its class and object mask, its labels by result, DeconvNet's by number of proposals; all uint8 H×W.

        Returns its mean IoU by result, nan where the truth is all void.
        """
        classes = self.confusion.shape[-1]
        single = [ConfusionMatrix(classes).update(truth, labels[name]) for name in self.names]
        self.confusion += np.stack([each.matrix for each in single])
        for i, count in enumerate(self.counts):
            self.steps[i] += ConfusionMatrix(classes).update(truth, after[count]).matrix
        shares, overlaps = object_overlaps(truth, objects, {name: labels[name] for name in self.names})
        sizes = np.searchsorted(SIZE_EDGES[1:-1], shares)
        self.objects += np.bincount(sizes, minlength=len(self.objects))
        for total, each in zip(self.overlaps, overlaps, strict=True):
            total += np.bincount(sizes, each, minlength=len(self.objects))
        return [each.mean_iou for each in single]

    def arrays(self) -> dict[str, np.ndarray]:
        """The counts by name, as a process sends them to another."""
        return {name: getattr(self, name) for name in ("confusion", "steps", "objects", "overlaps")}

    def merge(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add the `arrays` of another."""
        for name, own in self.arrays().items():
            own += arrays[name]

    def as_dict(self) -> dict[str, Any]:
        """For JSON (`analysis.json`): `confusion` pixels by result, then true and given class; `proposals` counts and DeconvNet's
        mean IoU after as many; `sizes` edges (shares of the photograph), objects, and their mean IoU by result, null for no object."""
        by_size = np.divide(self.overlaps, self.objects, out=np.full_like(self.overlaps, np.nan), where=self.objects > 0)
        steps = [ConfusionMatrix(matrix.shape[0], matrix).mean_iou for matrix in self.steps]
        return {
            "confusion": {name: matrix.tolist() for name, matrix in zip(self.names, self.confusion, strict=True)},
            "proposals": {"counts": list(self.counts), "mean_iou": _numbers(steps)},
            "sizes": {
                "edges": list(SIZE_EDGES),
                "objects": self.objects.tolist(),
                "mean_iou": {name: _numbers(row.tolist()) for name, row in zip(self.names, by_size, strict=True)},
            },
        }


def _numbers(values: Sequence[float]) -> list[float | None]:
    return [None if isnan(value) else float(value) for value in values]
