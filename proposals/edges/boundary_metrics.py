"""How good edges are: F-measure against boundaries drawn by people, by the protocol of BSDS500 (Martin, Fowlkes, Malik 2004;
Arbeláez, Maire, Fowlkes, Malik 2011).

At each threshold the edge map is thinned and its pixels are matched one to one with each annotator's, within 0.0075 of the image's
diagonal. Precision counts detected pixels that match any annotator; recall sums over annotators. The standard code matches by
least-cost assignment where a pixel left over costs a hundred times the tolerance: so it matches as many as can be, nearest
first. Ours matches as many as can be, beginning with the nearest: the numbers of pairs are the same, which pixels they are may differ
(parts of five photographs, against that assignment: recall the same, precision within 0.5 points, either way).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numba import njit

THRESHOLDS = tuple((k / 26) ** 2 for k in range(1, 26))
"""Closer together where edges are faint: a forest's best threshold is about 0.1."""
BSDS_THINNING: dict[str, Any] = {"radius": 1, "border": 5}
"""Keywords of `edge_map`: how edges are thinned to be measured, as Dollár's toolbox does for BSDS500."""
TOLERANCE = 0.0075
"""Of the image's diagonal."""


@dataclass(frozen=True)
class EdgeQuality:
    """ods: best F at one threshold for all images, `threshold`, with its `precision` and `recall`. ois: F where each image has its
    own best threshold. average_precision: the area under precision over recall."""

    ods: float
    threshold: float
    precision: float
    recall: float
    ois: float
    average_precision: float


def edge_counts(
    edges: np.ndarray,
    boundaries: Sequence[np.ndarray],
    thresholds: Sequence[float] = THRESHOLDS,
    tolerance: float = TOLERANCE,
) -> np.ndarray:
    """One image's pixels at each threshold, int64 (len(thresholds), 4): detected and matched to any annotator, detected, drawn
    and matched, drawn (the last two summed over annotators).

    edges: float H×W, 0–1, non-maximum suppressed; boundaries: bool H×W, one for each annotator.
    """
    offsets = _offsets(tolerance * math.hypot(*edges.shape))
    drawn = sum(int(b.sum()) for b in boundaries)
    counts = np.zeros((len(thresholds), 4), np.int64)
    for row, threshold in zip(counts, thresholds, strict=True):
        detected = thin(edges >= threshold)
        matched = np.zeros(edges.shape, bool)
        found = 0
        for boundary in boundaries:
            pairs = matched_pixels(detected, boundary, offsets)
            matched |= pairs
            found += int(pairs.sum())
        row[:] = int(matched.sum()), int(detected.sum()), found, drawn
    return counts


def edge_quality(counts: Sequence[np.ndarray], thresholds: Sequence[float] = THRESHOLDS) -> EdgeQuality:
    """ODS, OIS and average precision from the `edge_counts` of all images.

    Between thresholds ODS goes along precision and recall interpolated linearly in 100 steps, as in the standard code. OIS is the F
    of the counts summed at each image's best threshold. Raises ValueError for no images.
    """
    stacked = np.stack(counts)
    precision, recall = _precision_recall(stacked.sum(axis=0))
    fine = np.linspace(0, len(thresholds) - 1, 100 * (len(thresholds) - 1) + 1)
    t, p, r = (np.interp(fine, np.arange(len(thresholds)), values) for values in (thresholds, precision, recall))
    f = _f(p, r)
    best = int(f.argmax())
    own = _f(*_precision_recall(stacked)).argmax(axis=1)
    ois = _f(*_precision_recall(stacked[np.arange(len(stacked)), own].sum(axis=0)))
    points, first = np.unique(recall, return_index=True)
    area = np.interp(np.linspace(0, 1, 101), points, precision[first], left=0, right=0).sum() * 0.01
    return EdgeQuality(float(f[best]), float(t[best]), float(p[best]), float(r[best]), float(ois), float(area))


def thin(mask: np.ndarray) -> np.ndarray:
    """`mask`, bool H×W, with lines thinned to one pixel, by Guo and Hall 1989 (MATLAB's `bwmorph` is a variant of it)."""
    return cv2.ximgproc.thinning(mask.astype(np.uint8) * 255, thinningType=cv2.ximgproc.THINNING_GUOHALL) > 0


def matched_pixels(detected: np.ndarray, drawn: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The detected pixels, bool H×W, of a largest one-to-one matching with the drawn ones; both bool H×W.

    offsets: int64 (K,2), rows and columns by which a pair may differ, nearest first.
    """
    margin = int(np.abs(offsets).max())  # so that no neighbour lies outside
    first, second = (np.pad(mask, margin) for mask in (detected, drawn))
    steps = offsets[:, 0] * first.shape[1] + offsets[:, 1]
    matched = _largest_matching(first.ravel(), second.ravel(), steps).reshape(first.shape)
    return matched[margin : first.shape[0] - margin, margin : first.shape[1] - margin]


def _offsets(radius: float) -> np.ndarray:
    """All whole (row, column) steps no longer than `radius` px, the nearest first: int64 (K,2)."""
    reach = np.arange(-math.floor(radius), math.floor(radius) + 1)
    steps = np.stack(np.meshgrid(reach, reach, indexing="ij"), axis=-1).reshape(-1, 2)
    squares = (steps**2).sum(axis=1)
    order = np.argsort(squares, kind="stable")
    return steps[order][squares[order] <= radius**2]


@njit(cache=True)
def _largest_matching(first: np.ndarray, second: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Which pixels of `first` a largest matching with those of `second` takes; flat bool maps, a pair differs by one of `steps`.

    Greedy, then augmenting paths, breadth first (Kuhn 1955). What a search that failed has seen can be on no augmenting path
    any more, so it stays marked: all failed searches together look at each pair once.
    """
    nothing = -1
    of_first = np.full(first.size, nothing, np.int32)
    of_second = np.full(first.size, nothing, np.int32)
    pixels = np.flatnonzero(first)
    for step in steps:
        for p in pixels:
            q = p + step
            if second[q] and of_first[p] == nothing and of_second[q] == nothing:
                of_first[p], of_second[q] = q, p
    came_from = np.empty(first.size, np.int32)
    seen = np.zeros(first.size, np.bool_)
    queue = np.empty(pixels.size + 1, np.int32)  # of `first`
    visited = np.empty(first.size, np.int32)  # of `second`, in this search
    for start in pixels:
        if of_first[start] != nothing:
            continue
        queue[0] = start
        head, tail, count, end = 0, 1, 0, nothing
        while head < tail and end == nothing:
            p = queue[head]
            head += 1
            for step in steps:
                q = p + step
                if not second[q] or seen[q]:
                    continue
                seen[q] = True
                visited[count] = q
                count += 1
                came_from[q] = p
                if of_second[q] == nothing:
                    end = q
                    break
                queue[tail] = of_second[q]
                tail += 1
        if end == nothing:
            continue
        for q in visited[:count]:
            seen[q] = False
        while end != nothing:  # turn the path's pairs over, back to `start`
            p = came_from[end]
            of_second[end] = p
            of_first[p], end = end, of_first[p]
    return of_first != nothing


def _precision_recall(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From counts (…,4); 0 where there is nothing."""
    matched, detected, found, drawn = np.moveaxis(counts.astype(np.float64), -1, 0)
    return matched / np.maximum(detected, 1), found / np.maximum(drawn, 1)


def _f(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    return 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
