"""Gaussian filtering on the permutohedral lattice (Adams, Baek and Davis, 2010), in numba on one thread.

The lattice is a grid of simplices in a d-dimensional feature space. First the values of each point (several channels) are
distributed over the d+1 corners of its simplex ("splat"). Then the corners' values are blurred along the d+1 axes of the lattice.
Last, each point interpolates its result from its corners ("slice"). The lattice depends only on the features, so it can be reused
for other values. Values are stored as rows: the channels of a point or corner are adjacent.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from deconvnet.crf import simd

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Keys = NDArray[np.uint64]

_PREFETCH_DISTANCE = 12  # how many corners ahead of their use data are prefetched
_BATCH = 32  # number of points whose keys are computed before they are looked up
_CACHE_LINE = 64  # bytes


@dataclass(frozen=True)
class Lattice:
    """A permutohedral lattice, the grid in which a Gaussian filter is computed, for N points in d dimensions.

    Attributes:
        corners: int32 (N, d+1), the corners of the grid cell (simplex) that contains each point, as indices from 0 to M-1.
        weights: float32 (N, d+1), barycentric coordinates of each point in its simplex. Each row sums to 1.
        chains: int32 (K,), the order in which corners are blurred: for each axis, all runs of two or more neighbouring corners,
            each followed by M as an end mark. Corners without a neighbour on the axis are left out, as they do not change.
        size: the number M of corners that belong to at least one point.
    """

    corners: Ints
    weights: Floats
    chains: Ints
    size: int

    @property
    def gain(self) -> float:
        """Return the factor by which the results of `blur` are too large, compared with a normalised Gaussian filter."""
        return 1 + 2.0 ** -(self.corners.shape[1] - 1)


def build(features: Floats) -> Lattice:
    """Build the permutohedral lattice of N points, the grid in which their values can be filtered.

    Args:
        features: float32 (N, d), the coordinates of the points, divided by the Gaussian's standard deviation on each axis.
    """
    factors = multipliers(features.shape[1])
    corners, weights, keys, table = _embed(np.ascontiguousarray(features, np.float32), factors)
    return Lattice(corners, weights, _chains(keys, table, factors), len(keys))


def smooth(lattice: Lattice, values: Floats) -> Floats:
    """Filter values by a Gaussian: the result of point i is about Σ_j exp(-|f_i - f_j|² / 2) · values_j, times a constant.

    Args:
        lattice: the lattice of the points, built from their features f.
        values: float32 (N, C), the channels of each point.

    Returns:
        float32 (N, C), the filtered channels of each point.
    """
    padded = pad(values)
    rows = empty_rows(lattice.size + 1, padded.shape[1])
    rows[:] = 0
    splat(lattice.corners, lattice.weights, padded, rows)
    blur(lattice.chains, rows)
    slice_rows(lattice.corners, lattice.weights / np.float32(lattice.gain), rows, padded)
    return padded[:, : values.shape[1]]


def pad(values: Floats, fill: float = 0.0) -> Floats:
    """Return a copy of `values` (N, C) with columns of the number `fill` added, so that their count is a multiple of 8."""
    out = empty_rows(len(values), -(-values.shape[1] // simd.WIDTH) * simd.WIDTH)
    out[:, : values.shape[1]] = values
    out[:, values.shape[1] :] = fill
    return out


def empty_rows(count: int, columns: int) -> Floats:
    """Return an uninitialised float32 array (count, columns), aligned so that a block of 8 columns is in one cache line."""
    raw = np.empty(4 * count * columns + _CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + 4 * count * columns].view(np.float32).reshape(count, columns)


def multipliers(dimensions: int) -> Keys:
    """Return the factors of the hash function for lattice corners: `dimensions` odd 64-bit numbers, the same in every call.

    The hash key of a corner is the sum of its first d coordinates times these factors, modulo 2⁶⁴. (The last coordinate follows
    from the others.) Any two of a million corners have the same key with a probability of 3 in 10⁸.
    """
    draw = np.random.default_rng(0x5EED).integers(0, 2**64, dimensions, np.uint64, endpoint=False)
    return draw | np.uint64(1)


@njit(cache=True, nogil=True)
def _first_slot(table: Keys, key: np.uint64) -> np.uint64:
    """Return the slot (row) of the hash table of lattice corners at which the search for a hash key begins.

    The table is uint64 (2ⁿ, 2). Each slot holds the key of a corner, then the corner's index plus 1; this is 0 in an empty slot.
    """
    return ((key ^ (key >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20) & np.uint64(table.shape[0] - 1)


@njit(cache=True, nogil=True)
def _slot(table: Keys, key: np.uint64) -> np.uint64:
    """Return the slot of a hash table (see `_first_slot`) that holds `key`, or the empty slot at which to insert it."""
    mask = np.uint64(table.shape[0] - 1)
    slot = _first_slot(table, key)
    while table[slot, 1] != 0 and table[slot, 0] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@njit(cache=True, nogil=True)
def _enlarge(table: Keys) -> Keys:
    """Return a hash table (see `_first_slot`) of four times the size with the same entries."""
    new = np.zeros((4 * table.shape[0], 2), np.uint64)
    for old in range(table.shape[0]):
        if table[old, 1] != 0:
            slot = _slot(new, table[old, 0])
            new[slot, 0], new[slot, 1] = table[old, 0], table[old, 1]
    return new


@njit(cache=True, nogil=True)
def _embed(features: Floats, multipliers: Keys) -> tuple[Ints, Floats, Keys, Keys]:
    """Find the simplex of the lattice that contains each point, and number the corners in the order of their first use.

    The keys of a batch of points are computed first and looked up afterwards, so that the slots of the hash table can be
    prefetched meanwhile. Long because its inner loop shares a dozen scratch arrays, and calls would cost time.

    Args:
        features: float32 (N, d), the coordinates of the points.
        multipliers: uint64 (d,), the factors of the hash function (see `multipliers`).

    Returns:
        `Lattice.corners`, `Lattice.weights`, the hash keys of the M corners (uint64), and the hash table (see `_first_slot`).
    """
    points, d = features.shape
    scale = np.empty(d, np.float32)
    for i in range(d):
        scale[i] = np.sqrt(2.0 / 3.0) * (d + 1) / np.sqrt((i + 1.0) * (i + 2.0))
    corners = np.empty((points, d + 1), np.int32)
    weights = np.empty((points, d + 1), np.float32)
    total = np.uint64(0)
    for i in range(d):
        total += multipliers[i]
    elevated = np.empty(d + 1, np.float32)
    zero = np.empty(d + 1, np.int64)  # the nearest corner of remainder 0: its coordinates are divisible by d + 1
    rank = np.empty(d + 1, np.int64)
    of_rank = np.empty(d + 1, np.int64)
    bary = np.empty(d + 2, np.float32)
    batch_keys = np.empty((_BATCH, d + 1), np.uint64)
    keys = np.empty(max(1024, points // 8), np.uint64)
    used = 0
    table = np.zeros((1 << 14, 2), np.uint64)
    for start in range(0, points, _BATCH):
        stop = min(start + _BATCH, points)
        for p in range(start, stop):
            # Map the point to the hyperplane Σx = 0.
            below = np.float32(0)
            for j in range(d, 0, -1):
                f = features[p, j - 1] * scale[j - 1]
                elevated[j] = below - j * f
                below += f
            elevated[0] = below
            # Find the nearest corner of remainder 0, and rank the differences to it.
            excess = np.int64(0)
            for i in range(d + 1):
                nearest = np.int64(np.floor(elevated[i] / np.float32(d + 1) + np.float32(0.5)))
                zero[i] = nearest * (d + 1)
                excess += nearest
                rank[i] = 0
            for i in range(d):
                for j in range(i + 1, d + 1):
                    lower = elevated[i] - zero[i] < elevated[j] - zero[j]
                    rank[i] += lower
                    rank[j] += not lower
            for i in range(d + 1):
                rank[i] += excess
                if rank[i] < 0:
                    rank[i] += d + 1
                    zero[i] += d + 1
                elif rank[i] > d:
                    rank[i] -= d + 1
                    zero[i] -= d + 1
                of_rank[rank[i]] = i
            for i in range(d + 2):
                bary[i] = 0
            for i in range(d + 1):
                v = (elevated[i] - zero[i]) / np.float32(d + 1)
                bary[d - rank[i]] += v
                bary[d + 1 - rank[i]] -= v
            bary[0] += 1 + bary[d + 1]
            # Corner k is corner k - 1 plus 1 in every coordinate, minus d + 1 in the coordinate of rank d + 1 - k.
            key = np.uint64(0)
            for i in range(d):
                key += np.uint64(zero[i]) * multipliers[i]
            for k in range(d + 1):
                if k > 0:
                    key += total
                    if of_rank[d + 1 - k] < d:
                        key -= np.uint64(d + 1) * multipliers[of_rank[d + 1 - k]]
                batch_keys[p - start, k] = key
                weights[p, k] = bary[k]
                simd.prefetch(table, np.int64(_first_slot(table, key)), 0)
        for p in range(start, stop):
            for k in range(d + 1):
                slot = _slot(table, batch_keys[p - start, k])
                if table[slot, 1] == 0:
                    if used == keys.size:
                        more = np.empty(2 * used, np.uint64)
                        more[:used] = keys
                        keys = more
                    keys[used] = batch_keys[p - start, k]
                    used += 1
                    table[slot, 0], table[slot, 1] = batch_keys[p - start, k], used
                    corners[p, k] = used - 1
                    if 2 * used > table.shape[0]:
                        table = _enlarge(table)
                else:
                    corners[p, k] = np.int32(table[slot, 1]) - 1
    return corners, weights, keys[:used].copy(), table


@njit(cache=True, nogil=True)
def _chains(keys: Keys, table: Keys, multipliers: Keys) -> Ints:
    """Find the runs of neighbouring corners along each axis of the lattice, and return them as described in `Lattice.chains`.

    Args:
        keys: uint64 (M,), the hash keys of the corners.
        table: the hash table, which maps a key to the index of its corner (see `_first_slot`).
        multipliers: uint64 (d,), the factors of the hash function (see `multipliers`).
    """
    count, d = keys.size, multipliers.size
    total = np.uint64(0)
    for i in range(d):
        total += multipliers[i]
    following = np.empty(count, np.int32)
    has_previous = np.empty(count, np.bool_)
    chains = np.empty(count, np.int32)
    length = 0
    for axis in range(d + 1):
        step = -total  # to get a neighbour, subtract 1 from every coordinate and add d + 1 to that of the axis
        if axis < d:
            step += np.uint64(d + 1) * multipliers[axis]
        has_previous[:] = False
        for row in range(count):
            simd.prefetch(table, np.int64(_first_slot(table, keys[min(row + _PREFETCH_DISTANCE, count - 1)] + step)), 0)
            found = np.int32(table[_slot(table, keys[row] + step), 1]) - 1
            following[row] = found
            if found >= 0:
                has_previous[found] = True
        if length + 2 * count > chains.size:
            more = np.empty(chains.size + 2 * count, np.int32)
            more[:length] = chains[:length]
            chains = more
        for row in range(count):
            if not has_previous[row] and following[row] >= 0:
                member = np.int32(row)
                while member >= 0:
                    chains[length] = member
                    length += 1
                    member = following[member]
                chains[length] = count
                length += 1
    return chains[:length].copy()


@njit(cache=True, nogil=True)
def splat(corners: Ints, weights: Floats, values: Floats, rows: Floats) -> None:
    """Add the weighted values of each point to the corners of its simplex ("splat").

    Args:
        corners: int32 (N, d+1), the corners of each point's simplex, as indices into `rows`.
        weights: float32 (N, d+1), the weights of these corners.
        values: float32 (N, 8·B), the values of each point: B blocks of 8 channels.
        rows: float32 (M + 1, 8·B), the values of the M corners, which are changed in place. The last row is not used.
    """
    for p in range(corners.shape[0]):
        for k in range(corners.shape[1]):
            row, weight = corners[p, k], simd.broadcast(weights[p, k])
            for b in range(rows.shape[1] // simd.WIDTH):
                more = simd.multiply(weight, simd.load(values, p, b))
                simd.store(rows, row, b, simd.add(simd.load(rows, row, b), more))


@njit(cache=True, nogil=True)
def blur(chains: Ints, rows: Floats) -> None:
    """Blur the values of the lattice corners along every axis in turn: add half of both neighbours' values to each corner.

    `chains` is `Lattice.chains`. The corners' values, `rows` (M + 1, 8·B), are changed in place; the last row must be 0.
    """
    if rows.shape[1] == simd.WIDTH:
        _blur_narrow(chains, rows)
        return
    blocks = rows.shape[1] // simd.WIDTH
    end = rows.shape[0] - 1
    previous = np.zeros((1, rows.shape[1]), np.float32)
    for i in range(chains.size - 1):
        ahead = chains[min(i + _PREFETCH_DISTANCE, chains.size - 1)]
        for b in range(0, blocks, 2):
            simd.prefetch(rows, ahead, b)
        here, after = chains[i], chains[i + 1]
        # The row M at a chain's end is 0 and must stay 0. A factor of 0 avoids a branch that processors could not predict.
        half = simd.broadcast(np.float32(0.5) if here != end else np.float32(0))
        for b in range(blocks):
            old = simd.load(rows, here, b)
            around = simd.add(simd.load(previous, 0, b), simd.load(rows, after, b))
            simd.store(rows, here, b, simd.add(old, simd.multiply(half, around)))
            simd.store(previous, 0, b, old)


@njit(cache=True, nogil=True)
def _blur_narrow(chains: Ints, rows: Floats) -> None:
    """Blur as `blur` does, but only `rows` (M + 1, 8). This is faster, because the previous row stays in a vector register."""
    end = rows.shape[0] - 1
    previous = simd.broadcast(np.float32(0))
    for i in range(chains.size - 1):
        simd.prefetch(rows, chains[min(i + _PREFETCH_DISTANCE, chains.size - 1)], 0)
        here, after = chains[i], chains[i + 1]
        half = simd.broadcast(np.float32(0.5) if here != end else np.float32(0))
        old = simd.load(rows, here, 0)
        around = simd.add(previous, simd.load(rows, after, 0))
        simd.store(rows, here, 0, simd.add(old, simd.multiply(half, around)))
        previous = old


@njit(cache=True, nogil=True)
def slice_rows(corners: Ints, weights: Floats, rows: Floats, out: Floats) -> None:
    """Interpolate the result of each point from the values of its simplex's corners ("slice"), and write it to `out` (N, 8·B).

    `corners` (N, d+1) are the corners of each point, as indices into `rows`. `weights` (N, d+1) are the weights of these corners.
    `rows` (M + 1, 8·B) are the values of all corners. All arrays except `corners` (int32) are float32.
    """
    for p in range(corners.shape[0]):
        for b in range(rows.shape[1] // simd.WIDTH):
            found = simd.broadcast(np.float32(0))
            for k in range(corners.shape[1]):
                found = simd.add(found, simd.multiply(simd.broadcast(weights[p, k]), simd.load(rows, corners[p, k], b)))
            simd.store(out, p, b, found)
