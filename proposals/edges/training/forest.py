"""Train the trees of a structured forest that detects edges (Dollár, Zitnick, ICCV 2013).

A tree learns from images and their segmentations. Its features are those of `proposals.edges.channels`, in training and in
detection. The trained trees are written to a file by `proposals.edges.forest_file`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

from infra.errors import UserError
from proposals.edges.channels import FEATURES, INNER, SHRINK, feature_channels, feature_table
from proposals.edges.forest_file import EdgeTree
from proposals.edges.structured_forest import STRIDE
from proposals.edges.training.tree import grow

UNKNOWN = 0  # segment id of pixels whose segment is not known
_BIN_EDGES = 255  # thresholds at which a feature can be split
_QUANTILE_PATCHES = 16_384  # number of patches from which the thresholds are computed
_CHUNK = 8_192  # number of patches whose features are computed at once
Sample = tuple[np.ndarray, Sequence[np.ndarray]]
"""An image, uint8 (H, W, 3) RGB, and its segmentations: uint16 arrays (H, W) of segment ids from 1, or UNKNOWN."""


@dataclass(frozen=True)
class ForestOptions:
    """Options for training a structured forest. Defaults: as in Dollár, Zitnick (ICCV 2013), but `patches` is 1,000,000 there.

    Attributes:
        trees: number of trees.
        patches: largest number of image patches that a tree is trained on.
        positives: share of the patches that have a boundary near their centre.
        feature_share: share of the features that each tree may use, drawn at random per tree.
        pairs: number of random pixel pairs with which a node compares the segmentations of patches.
        min_child: smallest number of patches in a node.
        max_depth: greatest depth of a tree.
    """

    trees: int = 8
    patches: int = 400_000
    positives: float = 0.5
    feature_share: float = 0.25
    pairs: int = 256
    min_child: int = 8
    max_depth: int = 64


def train_tree(samples: Iterable[Sample], count: int, options: ForestOptions, seed: Sequence[int]) -> EdgeTree:
    """Train one tree of a structured forest. The same samples and seed give the same tree.

    All images contribute about the same number of patches. Half of the images, chosen at random, are mirrored.

    Args:
        samples: pairs of an image, uint8 (H, W, 3), and its segmentations, uint16 (H, W). They are iterated over once.
        count: number of samples.
        options: options for training.
        seed: numbers that seed the random choices; they should differ between trees.

    Returns:
        The tree, in the form of the file.

    Raises:
        UserError: if there are too few patches, or none of them contains a boundary.
    """
    rng = np.random.default_rng(seed)
    features = np.sort(rng.permutation(FEATURES)[: max(1, round(options.feature_share * FEATURES))]).astype(np.int32)
    patches = _Patches(options.patches, feature_table()[features])
    patches_per_image = -(-options.patches // max(1, count))
    for image, segmentations in samples:
        if rng.random() < 0.5:
            image, segmentations = image[:, ::-1], [s[:, ::-1] for s in segmentations]
        maps = feature_channels(np.ascontiguousarray(image))
        share = max(2, -(-patches_per_image // max(1, len(segmentations))))
        positives = min(max(1, round(options.positives * share)), share - 1)
        for segmentation in segmentations:
            segmentation = np.ascontiguousarray(segmentation)
            patches.add(maps, segmentation, sample_patches(segmentation, positives, share - positives, rng))
    if patches.count < 2 * options.min_child:
        raise UserError(
            f"only {patches.count} patches with known segments were found: too few to learn edges from; add images with masks"
        )
    bins, labels, thresholds = patches.finish()
    grow_seed = int(rng.integers(2**31))
    grown = grow(bins, labels, seed=grow_seed, pairs=options.pairs, min_child=options.min_child, max_depth=options.max_depth)
    inner = grown.child > 0
    threshold = np.where(inner, thresholds[grown.feature, np.minimum(grown.split, _BIN_EDGES - 1)], np.float32(0))
    starts, edge_bins = _leaf_boundaries(labels, grown.example, ~inner)
    if not len(edge_bins):
        raise UserError(f"no boundary was found in {len(labels):,} patches: no mask has more than one segment")
    return EdgeTree(grown.child, np.where(inner, features[grown.feature], 0).astype(np.int32), threshold, starts, edge_bins)


class _Patches:
    """A growing collection of training patches: their features, quantised to 8 bits, and their segmentations.

    A feature is quantised by 255 thresholds, which are quantiles of its values in the first patches. Until there are enough
    patches to compute the thresholds, features are kept as float32. The attribute `count` is the number of patches so far.
    """

    def __init__(self, capacity: int, table: np.ndarray) -> None:
        """Create an empty collection with room for a number of patches.

        Args:
            capacity: largest number of patches; further ones are dropped.
            table: int32 array (F, 6), the rows of `feature_table` that describe the features to compute.
        """
        self.count = 0
        self._table = table
        self._bins = np.empty((len(table), capacity), np.uint8)
        self._labels = np.empty((capacity, INNER * INNER), np.uint8)
        self._thresholds: np.ndarray | None = None
        self._unquantised: list[np.ndarray] = []

    def add(self, maps: np.ndarray, segmentation: np.ndarray, corners: np.ndarray) -> None:
        """Add patches of one image: compute their features, and cut out their segmentations.

        Args:
            maps: float32 array (MAPS, h, w), the channels of the image (see `feature_channels`).
            segmentation: uint16 array (H, W) of segment ids.
            corners: int64 array (n, 2), top left corners (row, column) of the patches' centres, as `sample_patches` returns them.
        """
        corners = corners[: len(self._labels) - self.count]
        for start in range(0, len(corners), _CHUNK):
            chunk = corners[start : start + _CHUNK]
            new = slice(self.count, self.count + len(chunk))
            self._labels[new] = _patch_labels(segmentation, chunk)
            values = _feature_values(maps, chunk, self._table)
            self.count += len(chunk)
            if self._thresholds is not None:
                _quantise(values, self._thresholds, self._bins[:, new])
            else:
                self._unquantised.append(values)
                if self.count >= _QUANTILE_PATCHES:
                    self._thresholds = self._find_thresholds()

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return three arrays of the collected patches: their features, their segmentations, and the thresholds of the features.

        The features are uint8 (F, count), quantised. The segmentations are uint8 (count, 256): the segments of the 16x16 pixels
        at the centre of each patch. The thresholds are float32 (F, 255).
        """
        if self._thresholds is None:
            self._thresholds = self._find_thresholds()
        return self._bins[:, : self.count], self._labels[: self.count], self._thresholds

    def _find_thresholds(self) -> np.ndarray:
        """Compute the thresholds, float32 (F, 255), from the features kept so far; replace these features by quantised ones."""
        values = np.concatenate(self._unquantised, axis=1)
        thresholds = _split_thresholds(values)
        _quantise(values, thresholds, self._bins[:, : values.shape[1]])
        self._unquantised = []
        return thresholds


def boundary_map(segmentation: np.ndarray) -> np.ndarray:
    """Find the pixels that touch another segment (above, below, left or right), and return them as a bool array (H, W)."""
    edges = np.zeros(segmentation.shape, bool)
    down = segmentation[1:] != segmentation[:-1]
    right = segmentation[:, 1:] != segmentation[:, :-1]
    edges[1:] |= down
    edges[:-1] |= down
    edges[:, 1:] |= right
    edges[:, :-1] |= right
    return edges


def sample_patches(segmentation: np.ndarray, positives: int, negatives: int, rng: np.random.Generator) -> np.ndarray:
    """Draw patches of an image at random: some with a boundary within 8 px of their centre, some without.

    A patch is 32x32 px. It may reach beyond the image, but its central 16x16 px lie inside, and their segments are all known. The
    corners have even coordinates, as in detection.

    Args:
        segmentation: uint16 array (H, W) of segment ids.
        positives: largest number of patches with a boundary.
        negatives: largest number of patches without one.
        rng: source of the random choice.

    Returns:
        int64 array (n, 2), row and column of the top left corner of each patch's centre; patches with a boundary come first.
    """
    height, width = segmentation.shape
    if min(height, width) < INNER:
        return np.zeros((0, 2), np.int64)
    rows, columns = np.arange(0, height - INNER + 1, STRIDE), np.arange(0, width - INNER + 1, STRIDE)
    unknown = cv2.integral((segmentation == UNKNOWN).astype(np.uint8))
    top, left = np.ix_(rows, columns)
    known = unknown[top, left] + unknown[top + INNER, left + INNER] == unknown[top + INNER, left] + unknown[top, left + INNER]
    boundary = boundary_map(segmentation) & (cv2.dilate((segmentation == UNKNOWN).astype(np.uint8), np.ones((3, 3))) == 0)
    distance = cv2.distanceTransform((~boundary).astype(np.uint8), cv2.DIST_L2, 3)
    near = distance[top + INNER // 2, left + INNER // 2] <= INNER // 2
    chosen = []
    for candidates, count in ((known & near, positives), (known & ~near, negatives)):
        chosen.append(np.sort(rng.permutation(np.flatnonzero(candidates))[:count]))
    flat = np.concatenate(chosen)
    return np.stack([rows[flat // len(columns)], columns[flat % len(columns)]], axis=1)


@njit(cache=True, nogil=True)
def _feature_values(maps: np.ndarray, corners: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Compute the features of patches from the channels of their image, `maps` (MAPS, h, w).

    `corners` (n, 2) is the result of `sample_patches`. `table` (F, 6) has the rows of `feature_table` that describe the features.
    The result is float32 (F, n).
    """
    out = np.empty((table.shape[0], corners.shape[0]), np.float32)
    for f in range(table.shape[0]):
        first, row, column, second, other_row, other_column = table[f]
        for i in range(corners.shape[0]):
            y, x = corners[i, 0] // SHRINK, corners[i, 1] // SHRINK
            out[f, i] = maps[first, y + row, x + column] - maps[second, y + other_row, x + other_column]
    return out


@njit(cache=True, nogil=True)
def _quantise(values: np.ndarray, thresholds: np.ndarray, out: np.ndarray) -> None:
    """Quantise features to 8 bits: replace each value by how many of the thresholds of its feature it reaches.

    `values` (F, n) are the features, and `thresholds` (F, 255) ascend. The result is written to `out`, uint8 (F, n).
    """
    for f in range(values.shape[0]):
        edges = thresholds[f]
        for i in range(values.shape[1]):
            out[f, i] = np.searchsorted(edges, values[f, i], side="right")


@njit(cache=True, nogil=True)
def _patch_labels(segmentation: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Cut the central 16x16 px of patches out of the segmentation of an image, and renumber the segments of each patch from 0.

    `corners` (n, 2) is the result of `sample_patches`. The result is uint8 (n, 256), one row for each patch.
    """
    out = np.empty((corners.shape[0], INNER * INNER), np.uint8)
    seen = np.empty(INNER * INNER, segmentation.dtype)
    for i in range(corners.shape[0]):
        segments = 0
        for j in range(INNER * INNER):
            value = segmentation[corners[i, 0] + j // INNER, corners[i, 1] + j % INNER]
            k = 0
            while k < segments and seen[k] != value:
                k += 1
            if k == segments:
                seen[segments] = value
                segments += 1
            out[i, j] = min(k, 255)
    return out


def _split_thresholds(values: np.ndarray) -> np.ndarray:
    """Compute the thresholds at which features can be split: quantiles of `values` (F, n), ascending, as float32 (F, 255).

    They are rounded to four digits, as in the forest's file, so that training and detection use equal thresholds.
    """
    quantiles = np.quantile(values, np.linspace(0, 1, _BIN_EDGES + 2)[1:-1], axis=1).T
    return np.ascontiguousarray(np.vectorize(lambda v: float(f"{v:.4g}"), otypes=[np.float32])(quantiles))


def _leaf_boundaries(labels: np.ndarray, example: np.ndarray, leaf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the boundary pixels that the leaves of a tree predict: the arrays `starts` and `bins` of an `EdgeTree`.

    A leaf predicts the boundaries in the segmentation of its representative patch. `labels` (N, 256) has the segmentations of all
    patches, `example` (n,) the index of each node's representative, and `leaf` (n,) is true for leaves.
    """
    starts = np.zeros(len(example) + 1, np.int64)
    bins = []
    for node in range(len(example)):
        if leaf[node]:
            edges = boundary_map(labels[example[node]].reshape(INNER, INNER))
            bins.append(np.flatnonzero(edges.T).astype(np.uint8))
            starts[node + 1] = len(bins[-1])
    return np.cumsum(starts), np.concatenate(bins) if bins else np.zeros(0, np.uint8)
