"""Detect edges by a structured forest (Dollár, Zitnick, ICCV 2013 and PAMI 2015).

A patch is taken at every second pixel in x and y, and evaluated by half of the trees. The leaf that it reaches in a tree stores
the boundary map of a training patch, and votes for an edge at each boundary pixel of the central 16x16 px. The edge strength of a
pixel is its number of votes, divided by the average number on an image full of straight edges.

OpenCV's detector gives the same edges (tested in `tests/proposals/edges/test_structured_forest.py`) and takes about six times as
long. There are four reasons for the difference:

* The channels are stored one after the other, so that neighbouring patches read neighbouring numbers.
* Each tree is evaluated on the whole image before the next one, so that its nodes stay in the cache. All patches of a row descend
  one level together, so that the loads of their nodes overlap.
* A feature is always the difference of two numbers, whose positions are stored in the node.
* A leaf's votes are bits. One vector instruction adds 16 of them to a row of pixels.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic

from proposals.edges.channels import INNER, SHRINK, feature_channels, feature_table
from proposals.masks import check_image

STRIDE = 2  # px between neighbouring patches
NO_VOTES = -1  # in `Forest.votes`: an inner node, or a leaf without boundaries
_COLUMN_BITS = np.left_shift(np.uint16(1), np.arange(INNER, dtype=np.uint16))
_NODE_FIELDS = 4  # a node in the cache: two positions of numbers, threshold, right child


class Forest(NamedTuple):
    """A structured forest in memory: T trees, each padded to n nodes.

    Attributes:
        child: int32 array (T, n), index of a node's right child in its tree; the left child is just before it. It is 0 for
            leaves.
        feature: int32 array (T, n), index of the feature that an inner node compares with its threshold (row of `feature_table`).
        threshold: float32 array (T, n); a patch goes to the left child if its feature is smaller than this.
        votes: int32 array (T, n), the row of `boundaries` that a leaf votes for, or NO_VOTES.
        boundaries: uint16 array (L, 16), a row per leaf: bit x of number y is 1 if the leaf votes for an edge at (x, y) within
            the central 16x16 px of the patch.
        evaluated: number of trees that each patch goes through.
    """

    child: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    votes: np.ndarray
    boundaries: np.ndarray
    evaluated: int


def boundary_bits(starts: np.ndarray, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert the boundaries of leaves from lists of pixels to bits.

    Args:
        starts: int64 array (N + 1,); bins[starts[i]:starts[i + 1]] are the boundary pixels of node i.
        bins: integer array of boundary pixels, each given as 16 * column + row.

    Returns:
        votes: int32 array (N,), the row of `boundaries` of each node, or NO_VOTES if it has no boundary pixels.
        boundaries: uint16 array (L, 16), as described in `Forest`.
    """
    lengths = np.diff(starts)
    votes = np.where(lengths > 0, np.cumsum(lengths > 0) - 1, NO_VOTES).astype(np.int32)
    boundaries = np.zeros((int((lengths > 0).sum()), INNER), np.uint16)
    columns, rows = np.divmod(bins[starts[0] : starts[-1]], INNER)
    np.bitwise_or.at(boundaries, (np.repeat(votes, lengths), rows), _COLUMN_BITS[columns])
    return votes, boundaries


def evaluate_forest(forest: Forest, image: np.ndarray) -> np.ndarray:
    """Detect the edges in an image, in the same way as OpenCV's `StructuredEdgeDetection.detectEdges`.

    Edges are fainter in the outermost 16 px, which lie in fewer patches.

    Args:
        forest: the structured forest.
        image: uint8 array (H, W, 3), RGB. H and W are even and at least 16.

    Returns:
        float32 array (H, W) of edge strengths from 0 to about 1. They can be above 1 where many trees agree.

    Raises:
        ValueError: if the image has another dtype or shape.
    """
    check_image(image)
    height, width = image.shape[:2]
    if height % 2 or width % 2 or min(height, width) < INNER:
        raise ValueError(f"the image has {height} rows and {width} columns; expected even numbers of at least {INNER}")
    maps = feature_channels(image)
    _, map_height, map_width = maps.shape
    first, second = (
        ((table[:, 0] * map_height + table[:, 1]) * map_width + table[:, 2]).astype(np.int32)
        for table in np.split(feature_table(), 2, axis=1)
    )
    counts = np.zeros((height, width), np.uint16)
    for tree, due in enumerate(_patches_of_trees(len(forest.child), forest.evaluated)):
        nodes = _place_nodes(forest.child[tree], forest.feature[tree], forest.threshold[tree], forest.votes[tree], first, second)
        _vote(nodes, forest.boundaries, due, maps.reshape(-1), map_width, counts)
    strength = np.float32(2 * STRIDE**2 / INNER**2 / forest.evaluated)
    kernel = np.array([1, 2, 1], np.float32) / 4
    return cv2.sepFilter2D(counts.astype(np.float32) * strength, -1, kernel, kernel)


def _patches_of_trees(trees: int, evaluated: int) -> np.ndarray:
    """Distribute the trees over the patches, so that neighbouring patches go through different trees.

    Args:
        trees: number of trees.
        evaluated: number of trees that each patch goes through.

    Returns:
        bool array (trees, 2 * evaluated). Element (t, (i + j) % (2 * evaluated)) says whether tree t is evaluated on the patch in
        row i and column j of the grid of patches.
    """
    due = np.zeros((trees, 2 * evaluated), bool)
    for remainder in range(2 * evaluated):
        due[(remainder + np.arange(evaluated)) % trees, remainder] = True
    return due


@njit(cache=True, nogil=True)
def _place_nodes(
    child: np.ndarray,
    feature: np.ndarray,
    threshold: np.ndarray,
    votes: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
) -> np.ndarray:
    """Copy the nodes of a tree to one array, with positions in the maps of an image instead of features.

    Args:
        child: int32 array (n,), as in `Forest`.
        feature: int32 array (n,), as in `Forest`.
        threshold: float32 array (n,), as in `Forest`.
        votes: int32 array (n,), as in `Forest`.
        first: int32 array (FEATURES,), the index of each feature's first value in the flattened maps, for the patch whose
            corner is at index 0.
        second: int32 array (FEATURES,), the same for the second value.

    Returns:
        int32 array (n, 4), 16 bytes per node. An inner node has the indices of two values, the threshold (the bits of a float32),
        and the right child. A leaf has the row of its boundaries (or NO_VOTES), twice 0, and 0 for its child.
    """
    nodes = np.zeros((child.size, _NODE_FIELDS), np.int32)
    thresholds = nodes.view(np.float32)
    for i in range(child.size):
        nodes[i, 3] = child[i]
        if child[i] == 0:
            nodes[i, 0] = votes[i]
        else:
            nodes[i, 0], nodes[i, 1] = first[feature[i]], second[feature[i]]
            thresholds[i, 2] = threshold[i]
    return nodes


@intrinsic
def _add_bits(typing: Any, counts: Any, row: Any, column: Any, bits: Any) -> Any:
    """Add a bit to each of 16 adjacent numbers. Call it as `_add_bits(counts, row, column, bits)` in `@njit` functions.

    numba compiles a loop over the bits to code that takes six times as long.

    Args:
        typing: numba's typing context, which numba adds to a call.
        counts: C-contiguous uint16 array (H, W), which is changed in place.
        row: index of the row.
        column: index of the first column.
        bits: uint16; bit x is added to column `column` + x.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        y, x = (context.cast(builder, v, t, types.intp) for v, t in zip(args[1:3], signature.args[1:3], strict=True))
        offset = builder.add(builder.mul(y, builder.extract_value(array.shape, 1)), x)
        vector = ir.VectorType(ir.IntType(16), INNER)
        address = builder.bitcast(builder.gep(array.data, [offset]), vector.as_pointer())
        added = builder.zext(builder.bitcast(args[3], ir.VectorType(ir.IntType(1), INNER)), vector)
        builder.store(builder.add(builder.load(address, align=2), added), address, align=2)
        return context.get_dummy_value()

    return types.void(counts, row, column, types.uint16), code


@njit(cache=True, nogil=True)
def _vote(nodes: np.ndarray, boundaries: np.ndarray, due: np.ndarray, values: np.ndarray, width: int, counts: np.ndarray) -> None:
    """Send patches through a tree, and count the votes of the leaves that they reach.

    Args:
        nodes: int32 array (n, 4), the result of `_place_nodes`.
        boundaries: uint16 array (L, 16), as in `Forest`.
        due: bool array, the tree's row of `_patches_of_trees`.
        values: float32 array, the flattened maps of the image.
        width: width of the maps.
        counts: uint16 array (H, W), the number of votes for each pixel; votes are added to it.
    """
    thresholds = nodes.view(np.float32)
    patch_rows, patch_columns = (counts.shape[0] - INNER) // STRIDE, (counts.shape[1] - INNER) // STRIDE
    # The patches that have not reached a leaf yet: their columns and current nodes.
    columns, at = np.empty(patch_columns, np.uint32), np.empty(patch_columns, np.uint32)
    reached = np.empty(patch_columns, np.int32)
    for i in range(patch_rows):
        corner, remaining = np.uint32(i * (STRIDE // SHRINK) * width), 0
        for j in range(patch_columns):
            reached[j] = NO_VOTES
            if due[(i + j) % due.size]:
                columns[remaining], at[remaining] = j, 0
                remaining += 1
        while remaining > 0:
            still = 0
            for k in range(remaining):
                node, column = at[k], columns[k]
                child = np.uint32(nodes[node, 3])
                if child == 0:
                    reached[column] = nodes[node, 0]
                else:
                    position = corner + column
                    feature = values[np.uint32(nodes[node, 0]) + position] - values[np.uint32(nodes[node, 1]) + position]
                    at[still], columns[still] = child - np.uint32(feature < thresholds[node, 2]), column
                    still += 1
            remaining = still
        for j in range(patch_columns):
            if reached[j] != NO_VOTES:
                for y in range(INNER):
                    _add_bits(counts, STRIDE * i + y, STRIDE * j, boundaries[np.uint32(reached[j]), y])
