"""Grow a decision tree whose labels are small segmentations (Dollár, Zitnick, ICCV 2013, §3). numba compiles the code.

Features are quantised to 256 bins (uint8). Therefore the best split of a node can be found from histograms, in one pass over its
patches per feature. A million patches with two thousand features take 2 GB.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

_BINS = 256
_MAX_CENTRED = 2048  # the principal direction of a node is computed from about this many of its patches, at most twice as many
_POWER_ITERATIONS = 12
_LARGE_NODE = 8192  # nodes with fewer patches try only a quarter of the features, in bins four times as wide
_MIN_FEATURES = 64  # smallest number of features that a node tries


class GrownTree(NamedTuple):
    """A decision tree of n nodes over training patches. Parents come before their children.

    Attributes:
        child: int32 array (n,), index of a node's right child; the left child is just before it. It is 0 for leaves.
        feature: int32 array (n,), index of the feature that a node compares with its threshold.
        split: uint8 array (n,); a patch goes to the left child if the bin of its feature is at most this.
        example: int32 array (n,), index of the training patch whose segmentation represents the node.
    """

    child: np.ndarray
    feature: np.ndarray
    split: np.ndarray
    example: np.ndarray


def grow(
    features: np.ndarray, labels: np.ndarray, *, seed: int, pairs: int = 256, min_child: int = 8, max_depth: int = 64
) -> GrownTree:
    """Grow a decision tree from patches and their segmentations.

    At each node, the segmentations are first mapped to two classes (Dollár, Zitnick, ICCV 2013, §3.2): `pairs` random pairs of
    pixels are drawn, and each segmentation becomes a binary vector that says for each pair whether its pixels lie in the same
    segment. After the mean is subtracted, the class is the sign of the projection on the first principal component. Then the
    split with the lowest Gini impurity of the two classes is chosen. The patch whose vector is nearest to the mean represents the
    node (§3.3).

    Args:
        features: uint8 array (F, N), the quantised features of N patches.
        labels: uint8 array (N, P), the segment of each of the P pixels of a patch.
        seed: seed of the random choices; the same seed gives the same tree.
        pairs: number of pairs of pixels.
        min_child: smallest number of patches in a node.
        max_depth: greatest depth of the tree.

    Returns:
        The grown tree.
    """
    return GrownTree(*_grow(features, labels, seed, pairs, min_child, max_depth))


@njit(cache=True, nogil=True)
def _grow(
    features: np.ndarray, labels: np.ndarray, seed: int, pairs: int, min_child: int, max_depth: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Grow a decision tree breadth first, from the root down. This is `grow` as compiled by numba.

    Args:
        features: uint8 array (F, N), the quantised features of N patches.
        labels: uint8 array (N, P), the segment of each of the P pixels of a patch.
        seed: seed of the random choices.
        pairs: number of random pixel pairs with which a node compares segmentations.
        min_child: smallest number of patches in a node.
        max_depth: greatest depth of the tree.

    Returns:
        The four arrays of a `GrownTree`, in the order of its fields.
    """
    np.random.seed(seed)
    count = labels.shape[0]
    max_nodes = 2 * (count // min_child) + 3
    child = np.zeros(max_nodes, np.int32)
    feature = np.zeros(max_nodes, np.int32)
    split = np.zeros(max_nodes, np.uint8)
    example = np.zeros(max_nodes, np.int32)
    first = np.zeros(max_nodes, np.int64)
    last = np.zeros(max_nodes, np.int64)
    depth = np.zeros(max_nodes, np.int32)
    order = np.arange(count).astype(np.int32)
    feature_order = np.arange(features.shape[0])
    spare = np.empty(count, np.int32)
    classes = np.empty(count, np.uint8)
    last[0] = count
    nodes = 1
    node = 0
    while node < nodes:
        members = order[first[node] : last[node]]
        example[node] = _discretize(labels, members, pairs, classes)
        if members.size >= 2 * min_child and depth[node] < max_depth:
            found, at = _best_split(features, members, classes, min_child, feature_order)
            if found >= 0:
                lefts = _partition(features[found], at, members, spare)
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
def _discretize(labels: np.ndarray, members: np.ndarray, pairs: int, classes: np.ndarray) -> int:
    """Map the segmentations of a node's patches to two classes, and choose a representative patch.

    Each segmentation becomes a vector, which says for each of `pairs` random pairs of pixels whether both are in one segment.
    Minus the mean, it is projected on the first principal direction of all vectors. The sign of the projection is the class.

    Args:
        labels: uint8 array (N, P), the segmentations of all patches.
        members: int32 array (m,), indices of the node's patches.
        pairs: number of random pairs of pixels.
        classes: uint8 array of at least m elements; the class (0 or 1) of each member is written to its first m elements.

    Returns:
        Index of the patch whose vector is nearest to the mean.
    """
    pixels = labels.shape[1]
    first = np.empty(pairs, np.int64)
    second = np.empty(pairs, np.int64)
    for k in range(pairs):
        first[k] = np.random.randint(pixels)
        second[k] = (first[k] + 1 + np.random.randint(pixels - 1)) % pixels
    step = max(1, members.size // _MAX_CENTRED)
    sampled = members[::step]
    same = np.empty((sampled.size, pairs), np.float32)
    mean = np.zeros(pairs, np.float32)
    for i in range(sampled.size):
        label = labels[sampled[i]]
        for k in range(pairs):
            same[i, k] = np.float32(label[first[k]] == label[second[k]])
        mean += same[i]
    mean /= np.float32(sampled.size)
    nearest, medoid, farthest, start = np.float32(np.inf), 0, np.float32(-1), 0
    for i in range(sampled.size):
        same[i] -= mean
        distance = np.float32(0)
        for k in range(pairs):
            distance += same[i, k] * same[i, k]
        if distance < nearest:
            nearest, medoid = distance, i
        if distance > farthest:
            farthest, start = distance, i
    direction = same[start].copy()  # the power iteration starts at the patch farthest from the mean
    for _ in range(_POWER_ITERATIONS):
        norm = np.sqrt((direction * direction).sum())
        if norm < 1e-6:
            break
        direction /= norm
        direction = np.dot(np.dot(same, direction), same)
    mean_along = np.float32(0)
    for k in range(pairs):
        mean_along += mean[k] * direction[k]
    for i in range(members.size):
        label = labels[members[i]]
        along = -mean_along
        for k in range(pairs):
            if label[first[k]] == label[second[k]]:
                along += direction[k]
        classes[i] = along > 0
    return sampled[medoid]


@njit(cache=True, nogil=True)
def _best_split(
    features: np.ndarray, members: np.ndarray, classes: np.ndarray, min_child: int, feature_order: np.ndarray
) -> tuple[int, int]:
    """Find the feature and threshold that best separate the two classes of a node's patches, by Gini impurity.

    Nodes of fewer than 8192 patches try only a random quarter of the features (at least 64), with bins four times as wide.

    Args:
        features: uint8 array (F, N), the quantised features of all patches.
        members: int32 array (m,), indices of the node's patches.
        classes: uint8 array; its first m elements are the classes of the members, 0 or 1.
        min_child: smallest number of patches in a child.
        feature_order: int64 array (F,) of all feature indices in any order; it is shuffled in place when only some features are
            tried.

    Returns:
        Index of the feature, and the last bin that goes to the left child; (-1, 0) if no split reduces the impurity.
    """
    ones = 0
    for i in range(members.size):
        ones += classes[i]
    whole = members.size
    if ones == 0 or ones == whole:
        return -1, 0
    # There are very many small nodes. In them, going through all bins would take longer than counting the patches.
    shift, tried = 0, feature_order.size
    if whole < _LARGE_NODE:
        shift, tried = 2, min(feature_order.size, max(feature_order.size // 4, _MIN_FEATURES))
        for i in range(tried):
            j = i + np.random.randint(feature_order.size - i)
            feature_order[i], feature_order[j] = feature_order[j], feature_order[i]
    # Each patch adds 1 to its bin, and also 2³² if it is of class 1, so one sum counts both.
    weights = np.empty(whole, np.int64)
    for i in range(whole):
        weights[i] = 1 + (np.int64(classes[i]) << 32)
    counts = np.empty(_BINS >> shift, np.int64)
    # The least impurity is the largest sum, over the two children, of (a² + b²) / n, where a and b are the counts of the classes.
    best = (float(ones) * ones + float(whole - ones) * (whole - ones)) / whole + 1e-9
    found, found_at = -1, 0
    for f in feature_order[:tried]:
        counts[:] = 0
        column = features[f]
        for i in range(whole):
            counts[column[members[i]] >> shift] += weights[i]
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
def _partition(column: np.ndarray, at: int, members: np.ndarray, spare: np.ndarray) -> int:
    """Reorder a node's patches in place so that those of the left child come first.

    The order within each child does not change.

    Args:
        column: uint8 array (N,), the bins of all patches for the feature that is split.
        at: the last bin that goes to the left child.
        members: int32 array (m,), indices of the node's patches; it is reordered.
        spare: int32 scratch array of at least m elements.

    Returns:
        The number of patches in the left child.
    """
    lefts, rights = 0, 0
    for i in range(members.size):
        if column[members[i]] <= at:
            members[lefts] = members[i]
            lefts += 1
        else:
            spare[rights] = members[i]
            rights += 1
    members[lefts:] = spare[:rights]
    return lefts
