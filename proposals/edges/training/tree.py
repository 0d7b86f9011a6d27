"""A random-forest tree whose labels are small segmentations (Dollár, Zitnick, ICCV 2013, §3), grown by numba.

Features come as bins (uint8), so that a node's best split is found from histograms, in one pass over its examples for each
feature, and a million examples of two thousand features fit in 2 GB.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

_BINS = 256
_CENTRED_ON = 2048  # examples that a node's principal direction is found from
_POWER_STEPS = 12
_LARGE = 8192  # examples; smaller nodes ask a quarter of the features, in bins four times as wide
_FEWEST = 64  # features


class GrownTree(NamedTuple):
    """A tree of n nodes, parents before children.

    child: int32 (n,), 0 for a leaf, else the index of the right child; the left one is right before it.
    feature: int32 (n,), row of the features that the node asks. split: uint8 (n,): bins up to this one go left.
    example: int32 (n,), the example whose label stands for the node.
    """

    child: np.ndarray
    feature: np.ndarray
    split: np.ndarray
    example: np.ndarray


def grow(
    features: np.ndarray, labels: np.ndarray, *, seed: int, pairs: int = 256, min_child: int = 8, max_depth: int = 64
) -> GrownTree:
    """Grow a tree from `features`, uint8 (F, N), and `labels`, uint8 (N, P): the segment that each of P pixels belongs to.

    At each node labels are mapped to two classes: which of `pairs` random pairs of pixels lie in one segment, and then the sign
    along the first principal direction of that (§3.2). The split is the one with the least Gini impurity of those classes.
    A node's label is the one nearest to the mean (§3.3).
    """
    return GrownTree(*_grow(features, labels, seed, pairs, min_child, max_depth))


@njit(cache=True, nogil=True)
def _grow(
    features: np.ndarray, labels: np.ndarray, seed: int, pairs: int, min_child: int, max_depth: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    np.random.seed(seed)
    count = labels.shape[0]
    most = 2 * (count // min_child) + 3
    child = np.zeros(most, np.int32)
    feature = np.zeros(most, np.int32)
    split = np.zeros(most, np.uint8)
    example = np.zeros(most, np.int32)
    first = np.zeros(most, np.int64)
    last = np.zeros(most, np.int64)
    depth = np.zeros(most, np.int32)
    order = np.arange(count).astype(np.int32)
    asked = np.arange(features.shape[0])
    spare = np.empty(count, np.int32)
    classes = np.empty(count, np.uint8)
    last[0] = count
    nodes = 1
    node = 0
    while node < nodes:
        mine = order[first[node] : last[node]]
        example[node] = _discretize(labels, mine, pairs, classes)
        if mine.size >= 2 * min_child and depth[node] < max_depth:
            found, at = _best_split(features, mine, classes, min_child, asked)
            if found >= 0:
                lefts = _partition(features[found], at, mine, spare)
                feature[node] = found
                split[node] = at
                child[node] = nodes + 1
                first[nodes] = first[node]
                last[nodes] = first[nodes + 1] = first[node] + lefts
                last[nodes + 1] = last[node]
                depth[nodes] = depth[nodes + 1] = depth[node] + 1
                nodes += 2
        node += 1
    return child[:nodes], feature[:nodes], split[:nodes], example[:nodes]


@njit(cache=True, nogil=True)
def _discretize(labels: np.ndarray, mine: np.ndarray, pairs: int, classes: np.ndarray) -> int:
    """Write the two-class labels of the examples `mine` to the first places of `classes`; return the one nearest to their mean."""
    pixels = labels.shape[1]
    one = np.empty(pairs, np.int64)
    other = np.empty(pairs, np.int64)
    for k in range(pairs):
        one[k] = np.random.randint(pixels)
        other[k] = (one[k] + 1 + np.random.randint(pixels - 1)) % pixels
    step = max(1, mine.size // _CENTRED_ON)
    some = mine[::step]
    same = np.empty((some.size, pairs), np.float32)
    mean = np.zeros(pairs, np.float32)
    for i in range(some.size):
        label = labels[some[i]]
        for k in range(pairs):
            same[i, k] = np.float32(label[one[k]] == label[other[k]])
        mean += same[i]
    mean /= np.float32(some.size)
    nearest, medoid, farthest, start = np.float32(np.inf), 0, np.float32(-1), 0
    for i in range(some.size):
        same[i] -= mean
        distance = np.float32(0)
        for k in range(pairs):
            distance += same[i, k] * same[i, k]
        if distance < nearest:
            nearest, medoid = distance, i
        if distance > farthest:
            farthest, start = distance, i
    direction = same[start].copy()  # the power iteration starts at the example farthest from the mean
    for _ in range(_POWER_STEPS):
        norm = np.sqrt((direction * direction).sum())
        if norm < 1e-6:
            break
        direction /= norm
        direction = np.dot(np.dot(same, direction), same)
    middle = np.float32(0)
    for k in range(pairs):
        middle += mean[k] * direction[k]
    for i in range(mine.size):
        label = labels[mine[i]]
        along = -middle
        for k in range(pairs):
            if label[one[k]] == label[other[k]]:
                along += direction[k]
        classes[i] = along > 0
    return some[medoid]


@njit(cache=True, nogil=True)
def _best_split(
    features: np.ndarray, mine: np.ndarray, classes: np.ndarray, min_child: int, asked: np.ndarray
) -> tuple[int, int]:
    """The feature and bin that part the two classes best: least Gini impurity. (-1, 0) where nothing is gained.

    asked: all features in any order, which is changed.
    """
    ones = 0
    for i in range(mine.size):
        ones += classes[i]
    whole = mine.size
    if ones == 0 or ones == whole:
        return -1, 0
    # In small nodes going through all bins would take longer than counting their examples, and there are very many such nodes.
    shift, questions = 0, asked.size
    if whole < _LARGE:
        shift, questions = 2, min(asked.size, max(asked.size // 4, _FEWEST))
        for i in range(questions):
            j = i + np.random.randint(asked.size - i)
            asked[i], asked[j] = asked[j], asked[i]
    # A bin's number of examples, and 2³² times that of class 1.
    weights = np.empty(whole, np.int64)
    for i in range(whole):
        weights[i] = 1 + (np.int64(classes[i]) << 32)
    counts = np.empty(_BINS >> shift, np.int64)
    # Least impurity is most Σ over sides of (a² + b²) / n, a and b being the classes' counts.
    best = (float(ones) * ones + float(whole - ones) * (whole - ones)) / whole + 1e-9
    found, found_at = -1, 0
    for f in asked[:questions]:
        counts[:] = 0
        column = features[f]
        for i in range(whole):
            counts[column[mine[i]] >> shift] += weights[i]
        so_far = np.int64(0)
        for at in range(counts.size - 1):
            if counts[at] == 0:
                continue
            so_far += counts[at]
            left, ones_left = so_far & 0xFFFFFFFF, so_far >> 32
            right = whole - left
            if left < min_child:
                continue
            if right < min_child:
                break
            a, b, c, d = float(left - ones_left), float(ones_left), float(right - (ones - ones_left)), float(ones - ones_left)
            score = ((a * a + b * b) * right + (c * c + d * d) * left) / (float(left) * right)
            if score > best:
                best, found, found_at = score, f, ((at + 1) << shift) - 1
    return found, found_at


@njit(cache=True, nogil=True)
def _partition(column: np.ndarray, at: int, mine: np.ndarray, spare: np.ndarray) -> int:
    """Put the examples up to bin `at` first, each side in its order; return how many they are."""
    lefts, rights = 0, 0
    for i in range(mine.size):
        if column[mine[i]] <= at:
            mine[lefts] = mine[i]
            lefts += 1
        else:
            spare[rights] = mine[i]
            rights += 1
    mine[lefts:] = spare[:rights]
    return lefts
