"""Gaussian filtering of many channels at once on the permutohedral lattice (Adams, Baek, Davis 2010), in numba, one thread.

A point in feature space is spread over the d + 1 corners of the simplex it lies in ("splat"), the corners are blurred along the
lattice's d + 1 axes, and the points read the result back ("slice"). The lattice depends on the features alone, so it is built
once and serves any number of filterings. Rows of values are contiguous: all channels of a corner lie side by side.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from deconvnet.crf import simd

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Keys = NDArray[np.uint64]

_AHEAD = 12  # corners that are on their way from memory
_TOGETHER = 32  # points that are looked up together
_LINE = 64  # bytes of memory that come together


@dataclass(frozen=True)
class Lattice:
    """The lattice of N points in d dimensions; M corners are in use.

    corners: int32 (N, d+1), the corners of each point's simplex, 0 to M-1.
    weights: float32 (N, d+1), barycentric coordinates of the point; a row sums to 1.
    chains: int32, for each axis the lines of two or more neighbouring corners, each ended by M. A corner without neighbours
        on an axis is not changed by the blur along it (most aren't: colours are sparse), so it stands in no chain.
    size: M.
    """

    corners: Ints
    weights: Floats
    chains: Ints
    size: int

    @property
    def gain(self) -> float:
        """What `blur` multiplies by beyond a Gaussian of about unit sum: slices are to be divided by it."""
        return 1 + 2.0 ** -(self.corners.shape[1] - 1)


def build(features: Floats) -> Lattice:
    """The lattice of `features` float32 (N, d), in units of the Gaussian's standard deviation on each axis."""
    multipliers = _multipliers(features.shape[1])
    corners, weights, keys, table = _embed(np.ascontiguousarray(features, np.float32), multipliers)
    return Lattice(corners, weights, _chains(keys, table, multipliers), len(keys))


def smooth(lattice: Lattice, values: Floats) -> Floats:
    """`values` (N, C) filtered: about Σ_j exp(-|f_i - f_j|² / 2) values_j, but for a factor that is the same everywhere."""
    padded = pad(values)
    rows = empty_rows(lattice.size + 1, padded.shape[1])
    rows[:] = 0
    splat(lattice.corners, lattice.weights, padded, rows)
    blur(lattice.chains, rows)
    read(lattice.corners, lattice.weights / np.float32(lattice.gain), rows, padded)
    return padded[:, : values.shape[1]]


def pad(values: Floats, fill: float = 0.0) -> Floats:
    """A copy of `values` (N, C) with columns of `fill` up to a whole number of vector registers: (N, 8·B)."""
    out = empty_rows(len(values), -(-values.shape[1] // simd.WIDTH) * simd.WIDTH)
    out[:, : values.shape[1]] = values
    out[:, values.shape[1] :] = fill
    return out


def empty_rows(count: int, columns: int) -> Floats:
    """An uninitialised array (count, columns) that starts with a cache line: a row of 8 never lies in two."""
    raw = np.empty(4 * count * columns + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + 4 * count * columns].view(np.float32).reshape(count, columns)


def _multipliers(dimensions: int) -> Keys:
    """Odd 64-bit multipliers, one a coordinate (the last coordinate follows from the others).

    A corner's key is the sum of its coordinates times these, modulo 2⁶⁴, so a neighbour's key is one addition away. Two of a
    million corners share a key with a chance of 3 in 10⁸.
    """
    draw = np.random.default_rng(0x5EED).integers(0, 2**64, dimensions, np.uint64, endpoint=False)
    return draw | np.uint64(1)


@njit(cache=True, nogil=True)
def _home(table: Keys, key: np.uint64) -> np.uint64:
    """The slot where the search for `key` begins, in an open-addressing table of (key, row + 1 or 0 where empty), 2ⁿ slots."""
    return ((key ^ (key >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20) & np.uint64(table.shape[0] - 1)


@njit(cache=True, nogil=True)
def _slot(table: Keys, key: np.uint64) -> np.uint64:
    """Where `key` is in the table, or the empty slot where it would go."""
    mask = np.uint64(table.shape[0] - 1)
    slot = _home(table, key)
    while table[slot, 1] != 0 and table[slot, 0] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@njit(cache=True, nogil=True)
def _larger(table: Keys) -> Keys:
    """The same in a table four times as large."""
    new = np.zeros((4 * table.shape[0], 2), np.uint64)
    for old in range(table.shape[0]):
        if table[old, 1] != 0:
            slot = _slot(new, table[old, 0])
            new[slot, 0], new[slot, 1] = table[old, 0], table[old, 1]
    return new


@njit(cache=True, nogil=True)
def _embed(features: Floats, multipliers: Keys) -> tuple[Ints, Floats, Keys, Keys]:
    """Corners (N, d+1), weights (N, d+1), the corners' keys (M,), numbered as the points meet them, and the table of them.

    Some points' keys are worked out first and looked up then: their slots are on the way from memory meanwhile.
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
    zero = np.empty(d + 1, np.int64)  # the nearest corner of remainder 0
    rank = np.empty(d + 1, np.int64)
    of_rank = np.empty(d + 1, np.int64)
    bary = np.empty(d + 2, np.float32)
    wanted = np.empty((_TOGETHER, d + 1), np.uint64)
    keys = np.empty(max(1024, points // 8), np.uint64)
    used = 0
    table = np.zeros((1 << 14, 2), np.uint64)

    for start in range(0, points, _TOGETHER):
        stop = min(start + _TOGETHER, points)
        for p in range(start, stop):
            # Onto the hyperplane Σx = 0.
            below = np.float32(0)
            for j in range(d, 0, -1):
                f = features[p, j - 1] * scale[j - 1]
                elevated[j] = below - j * f
                below += f
            elevated[0] = below
            # The nearest corner of remainder 0, and the order of the differences to it.
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
            # Corner k is corner k - 1, plus 1 everywhere, less d + 1 on the coordinate of rank d + 1 - k.
            key = np.uint64(0)
            for i in range(d):
                key += np.uint64(zero[i]) * multipliers[i]
            for k in range(d + 1):
                if k > 0:
                    key += total
                    if of_rank[d + 1 - k] < d:
                        key -= np.uint64(d + 1) * multipliers[of_rank[d + 1 - k]]
                wanted[p - start, k] = key
                weights[p, k] = bary[k]
                simd.prefetch(table, np.int64(_home(table, key)), 0)
        for p in range(start, stop):
            for k in range(d + 1):
                slot = _slot(table, wanted[p - start, k])
                if table[slot, 1] == 0:
                    if used == keys.size:
                        more = np.empty(2 * used, np.uint64)
                        more[:used] = keys
                        keys = more
                    keys[used] = wanted[p - start, k]
                    used += 1
                    table[slot, 0], table[slot, 1] = wanted[p - start, k], used
                    corners[p, k] = used - 1
                    if 2 * used > table.shape[0]:
                        table = _larger(table)
                else:
                    corners[p, k] = np.int32(table[slot, 1]) - 1
    return corners, weights, keys[:used].copy(), table


@njit(cache=True, nogil=True)
def _chains(keys: Keys, table: Keys, multipliers: Keys) -> Ints:
    """`Lattice.chains` of the corners with these keys, and the table of them."""
    count, d = keys.size, multipliers.size
    total = np.uint64(0)
    for i in range(d):
        total += multipliers[i]
    following = np.empty(count, np.int32)
    has_previous = np.empty(count, np.bool_)
    chains = np.empty(count, np.int32)
    length = 0
    for axis in range(d + 1):
        step = -total  # one down on every coordinate, and d up on the axis
        if axis < d:
            step += np.uint64(d + 1) * multipliers[axis]
        has_previous[:] = False
        for row in range(count):
            simd.prefetch(table, np.int64(_home(table, keys[min(row + _AHEAD, count - 1)] + step)), 0)
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
    """Add `values` (N, 8·B) to the corners' `rows` (M + 1, 8·B)."""
    for p in range(corners.shape[0]):
        for k in range(corners.shape[1]):
            row, weight = corners[p, k], simd.fill(weights[p, k])
            for b in range(rows.shape[1] // simd.WIDTH):
                more = simd.multiply(weight, simd.load(values, p, b))
                simd.store(rows, row, b, simd.add(simd.load(rows, row, b), more))


@njit(cache=True, nogil=True)
def blur(chains: Ints, rows: Floats) -> None:
    """Blur `rows` (M + 1, 8·B), the last one 0, in place along every axis: a corner plus half of either neighbour."""
    if rows.shape[1] == simd.WIDTH:
        _blur_narrow(chains, rows)
        return
    blocks = rows.shape[1] // simd.WIDTH
    end = rows.shape[0] - 1
    previous = np.zeros((1, rows.shape[1]), np.float32)
    for i in range(chains.size - 1):
        ahead = chains[min(i + _AHEAD, chains.size - 1)]
        for b in range(0, blocks, 2):
            simd.prefetch(rows, ahead, b)
        here, after = chains[i], chains[i + 1]
        # The end row is 0 and stays so: no branch that depends on where chains end, which no processor foresees.
        half = simd.fill(np.float32(0.5) if here != end else np.float32(0))
        for b in range(blocks):
            old = simd.load(rows, here, b)
            around = simd.add(simd.load(previous, 0, b), simd.load(rows, after, b))
            simd.store(rows, here, b, simd.add(old, simd.multiply(half, around)))
            simd.store(previous, 0, b, old)


@njit(cache=True, nogil=True)
def _blur_narrow(chains: Ints, rows: Floats) -> None:
    """`blur` where a row is one register: the previous one never goes to memory."""
    end = rows.shape[0] - 1
    previous = simd.fill(np.float32(0))
    for i in range(chains.size - 1):
        simd.prefetch(rows, chains[min(i + _AHEAD, chains.size - 1)], 0)
        here, after = chains[i], chains[i + 1]
        half = simd.fill(np.float32(0.5) if here != end else np.float32(0))
        old = simd.load(rows, here, 0)
        around = simd.add(previous, simd.load(rows, after, 0))
        simd.store(rows, here, 0, simd.add(old, simd.multiply(half, around)))
        previous = old


@njit(cache=True, nogil=True)
def read(corners: Ints, weights: Floats, rows: Floats, out: Floats) -> None:
    """Slice: `out` (N, 8·B) from the corners' `rows` (M + 1, 8·B)."""
    for p in range(corners.shape[0]):
        for b in range(rows.shape[1] // simd.WIDTH):
            found = simd.fill(np.float32(0))
            for k in range(corners.shape[1]):
                found = simd.add(found, simd.multiply(simd.fill(weights[p, k]), simd.load(rows, corners[p, k], b)))
            simd.store(out, p, b, found)
