"""Training a structured forest that finds edges (Dollár, Zitnick, ICCV 2013) from photographs and how people segmented them.

Features are OpenCV's own channels, so training sees what detection sees; `proposals.edges.forest_file` writes what OpenCV reads.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

from infra.errors import UserError
from proposals.edges.forest_file import (
    CHANNELS,
    GRADIENT_SMOOTHING,
    GRID,
    INNER,
    NORMALIZATION_RADIUS,
    ORIENTATIONS,
    PATCH,
    REGULAR_SMOOTHING,
    SHRINK,
    SIMILARITY_SMOOTHING,
    STRIDE,
    EdgeTree,
    require_opencv_contrib,
)
from proposals.edges.training.tree import grow

UNKNOWN = 0  # the segment of pixels that nothing is known of

_CELLS = PATCH // SHRINK
_PAD = (PATCH - INNER) // 2
_REGULAR_FEATURES = _CELLS * _CELLS * CHANNELS
FEATURES = _REGULAR_FEATURES + GRID**2 * (GRID**2 - 1) // 2 * CHANNELS
_EDGES = 255  # thresholds a feature can be split at
_SETTLE = 16_384  # patches that the thresholds are taken from
_AT_ONCE = 8_192  # patches whose features are held as numbers

Sample = tuple[np.ndarray, Sequence[np.ndarray]]
"""A photograph, uint8 H×W×3, RGB, and its segmentations, each uint16 H×W: ids of segments, UNKNOWN where there is none."""


@dataclass(frozen=True)
class ForestOptions:
    """What a forest is trained by; the defaults are the paper's, but for `patches` (its 1,000,000)."""

    trees: int = 8
    patches: int = 400_000  # a tree
    positives: float = 0.5  # share of the patches that have a boundary in their middle
    feature_share: float = 0.25  # share of the features that a tree may ask
    pairs: int = 256
    min_child: int = 8
    max_depth: int = 64


def channels(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Channels for regular and for self-similarity features: float32 (h, w, 13) each, of `image`, uint8 H×W×3, RGB.

    They reach 8 px over the image (reflected), as in detection, and have half its resolution.
    """
    require_opencv_contrib()
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, _PAD, _PAD + height % 2, _PAD, _PAD + width % 2, cv2.BORDER_REFLECT)
    raw = np.empty((padded.shape[0] // SHRINK, padded.shape[1] // SHRINK, CHANNELS), np.float32)
    getter = cv2.ximgproc.createRFFeatureGetter()
    scaled = padded.astype(np.float32) / 255
    getter.getFeatures(scaled, raw, NORMALIZATION_RADIUS, GRADIENT_SMOOTHING, SHRINK, CHANNELS, ORIENTATIONS)
    return _smooth(raw, round(REGULAR_SMOOTHING / SHRINK)), _smooth(raw, round(SIMILARITY_SMOOTHING / SHRINK))


def _smooth(raw: np.ndarray, radius: int) -> np.ndarray:
    """The triangle filter of OpenCV's detector."""
    ramp = np.arange(1, radius + 2, dtype=np.float32)
    kernel = np.concatenate([ramp, ramp[-2::-1]]) / np.float32((radius + 1) ** 2)
    return np.dstack([cv2.sepFilter2D(np.ascontiguousarray(raw[..., c]), -1, kernel, kernel) for c in range(raw.shape[2])])


def boundary_map(segmentation: np.ndarray) -> np.ndarray:
    """Where a pixel's neighbour above, below, left or right belongs to another segment: bool H×W, two pixels wide."""
    edges = np.zeros(segmentation.shape, bool)
    down = segmentation[1:] != segmentation[:-1]
    right = segmentation[:, 1:] != segmentation[:, :-1]
    edges[1:] |= down
    edges[:-1] |= down
    edges[:, 1:] |= right
    edges[:, :-1] |= right
    return edges


def sample_patches(segmentation: np.ndarray, positives: int, negatives: int, rng: np.random.Generator) -> np.ndarray:
    """Corners (row, column), int64 (n, 2), of 16×16 patches: at most so many with a boundary within 8 px of their middle, and without.

    Corners are even, as in detection; patches with unknown pixels are left out.
    """
    height, width = segmentation.shape
    if min(height, width) < INNER:
        return np.zeros((0, 2), np.int64)
    rows, columns = np.arange(0, height - INNER + 1, STRIDE), np.arange(0, width - INNER + 1, STRIDE)
    unknown = cv2.integral((segmentation == UNKNOWN).astype(np.uint8))
    top, left = np.ix_(rows, columns)
    known = unknown[top, left] + unknown[top + INNER, left + INNER] == unknown[top + INNER, left] + unknown[top, left + INNER]
    drawn = boundary_map(segmentation) & (cv2.dilate((segmentation == UNKNOWN).astype(np.uint8), np.ones((3, 3))) == 0)
    away = cv2.distanceTransform((~drawn).astype(np.uint8), cv2.DIST_L2, 3)
    near = away[top + INNER // 2, left + INNER // 2] <= INNER // 2
    chosen = []
    for where, count in ((known & near, positives), (known & ~near, negatives)):
        places = np.flatnonzero(where)
        chosen.append(np.sort(rng.permutation(places)[:count]))
    flat = np.concatenate(chosen)
    return np.stack([rows[flat // len(columns)], columns[flat % len(columns)]], axis=1)


def feature_table() -> np.ndarray:
    """What each feature reads, in OpenCV's order: int32 (FEATURES, 5), row, column, channel, and the row and column to subtract.

    The last two are -1 for regular features, which come first.
    """
    half = round(_CELLS / (2 * GRID))
    grid = [int((i + 1) * (_CELLS + 2 * half - 1) / (GRID + 1) - half + 0.5) for i in range(GRID)]
    ids = np.arange(_REGULAR_FEATURES)
    within = ids % _CELLS**2
    none = np.full(len(ids), -1)
    regular = np.stack([within % _CELLS, within // _CELLS, ids // _CELLS**2, none, none], axis=1)
    cells = [(grid[i % GRID], grid[i // GRID]) for i in range(GRID**2)]
    pairs = [(*cells[i], c, *cells[j]) for c in range(CHANNELS) for i in range(GRID**2) for j in range(i + 1, GRID**2)]
    return np.concatenate([regular, np.array(pairs)]).astype(np.int32)


@njit(cache=True, nogil=True)
def _values(regular: np.ndarray, similarity: np.ndarray, places: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Features of the patches whose inner corners are `places`: float32 (features, patches)."""
    out = np.empty((table.shape[0], places.shape[0]), np.float32)
    for f in range(table.shape[0]):
        row, column, channel, less_row, less_column = table[f]
        for i in range(places.shape[0]):
            y, x = places[i, 0] // SHRINK, places[i, 1] // SHRINK
            if less_row < 0:
                out[f, i] = regular[y + row, x + column, channel]
            else:
                out[f, i] = similarity[y + row, x + column, channel] - similarity[y + less_row, x + less_column, channel]
    return out


@njit(cache=True, nogil=True)
def _bin(values: np.ndarray, thresholds: np.ndarray, out: np.ndarray) -> None:
    """How many thresholds of its feature each value reaches: `out` uint8, same shape."""
    for f in range(values.shape[0]):
        edges = thresholds[f]
        for i in range(values.shape[1]):
            out[f, i] = np.searchsorted(edges, values[f, i], side="right")


@njit(cache=True, nogil=True)
def _labels(segmentation: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The inner patches as segments numbered anew from 0: uint8 (patches, 256), row by row."""
    out = np.empty((places.shape[0], INNER * INNER), np.uint8)
    seen = np.empty(INNER * INNER, segmentation.dtype)
    for i in range(places.shape[0]):
        kinds = 0
        for j in range(INNER * INNER):
            value = segmentation[places[i, 0] + j // INNER, places[i, 1] + j % INNER]
            k = 0
            while k < kinds and seen[k] != value:
                k += 1
            if k == kinds:
                seen[kinds] = value
                kinds += 1
            out[i, j] = min(k, 255)
    return out


def _thresholds(values: np.ndarray) -> np.ndarray:
    """Where features may be split: float32 (features, 255), their quantiles in `values`, with four digits, ascending.

    Four digits keep the file small; trees are grown with the very numbers that the file will hold.
    """
    quantiles = np.quantile(values, np.linspace(0, 1, _EDGES + 2)[1:-1], axis=1).T
    return np.ascontiguousarray(np.vectorize(lambda v: float(f"{v:.4g}"), otypes=[np.float32])(quantiles))


def train_tree(samples: Iterable[Sample], count: int, options: ForestOptions, seed: Sequence[int]) -> EdgeTree:
    """A tree grown from patches of `samples`, `count` in all, each seen once. The same samples and seed give the same tree.

    Raises UserError where there are too few boundaries to learn from.
    """
    rng = np.random.default_rng(seed)
    asked = np.sort(rng.permutation(FEATURES)[: max(1, round(options.feature_share * FEATURES))]).astype(np.int32)
    table = feature_table()[asked]
    bins = np.empty((len(asked), options.patches), np.uint8)
    labels = np.empty((options.patches, INNER * INNER), np.uint8)
    thresholds: np.ndarray | None = None
    waiting: list[np.ndarray] = []
    filled = waiting_count = 0

    def settle() -> np.ndarray:
        """Thresholds from the patches that wait for them, which are then binned."""
        nonlocal waiting
        values = np.concatenate(waiting, axis=1)
        found = _thresholds(values)
        _bin(values, found, bins[:, : values.shape[1]])
        waiting = []
        return found

    each = -(-options.patches // max(1, count))
    for image, segmentations in samples:
        if rng.random() < 0.5:
            image, segmentations = image[:, ::-1], [s[:, ::-1] for s in segmentations]
        regular, similarity = channels(np.ascontiguousarray(image))
        share = max(2, -(-each // max(1, len(segmentations))))
        positives = min(max(1, round(options.positives * share)), share - 1)
        for segmentation in segmentations:
            segmentation = np.ascontiguousarray(segmentation)
            chosen = sample_patches(segmentation, positives, share - positives, rng)[: options.patches - filled]
            for start in range(0, len(chosen), _AT_ONCE):
                places = chosen[start : start + _AT_ONCE]
                here = slice(filled, filled + len(places))
                labels[here] = _labels(segmentation, places)
                values = _values(regular, similarity, places, table)
                if thresholds is None:
                    waiting.append(values)
                    waiting_count += len(places)
                    if waiting_count >= _SETTLE:
                        thresholds = settle()
                else:
                    _bin(values, thresholds, bins[:, here])
                filled += len(places)
    if filled < 2 * options.min_child:
        raise UserError(
            f"{filled} patches with known segments were found: too few to learn edges from; add photographs with masks"
        )
    if thresholds is None:
        thresholds = settle()
    grown = grow(
        bins[:, :filled],
        labels[:filled],
        seed=int(rng.integers(2**31)),
        pairs=options.pairs,
        min_child=options.min_child,
        max_depth=options.max_depth,
    )
    inner = grown.child > 0
    threshold = np.where(inner, thresholds[grown.feature, np.minimum(grown.split, _EDGES - 1)], np.float32(0))
    starts, edge_bins = _leaf_boundaries(labels, grown.example, ~inner)
    if not len(edge_bins):
        raise UserError(f"no boundary was found in {filled:,} patches: the masks tell nothing apart")
    return EdgeTree(grown.child, np.where(inner, asked[grown.feature], 0).astype(np.int32), threshold, starts, edge_bins)


def _leaf_boundaries(labels: np.ndarray, example: np.ndarray, leaf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = np.zeros(len(example) + 1, np.int64)
    bins = []
    for node in range(len(example)):
        if leaf[node]:
            edges = boundary_map(labels[example[node]].reshape(INNER, INNER))
            bins.append(np.flatnonzero(edges.T).astype(np.uint8))
            starts[node + 1] = len(bins[-1])
    return np.cumsum(starts), np.concatenate(bins) if bins else np.zeros(0, np.uint8)
