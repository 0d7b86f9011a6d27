"""Fully connected CRF over a photograph's pixels: the mean field of Krähenbühl and Koltun (NIPS 2011).

Pixels pull each other to the same label (Potts) by two Gaussian kernels: one of position, one of position and colour. Kernels
are normalised symmetrically, as in the authors' code. All of it in float32, on one thread, without the interpreter's lock.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from deconvnet.crf import permutohedral, simd
from deconvnet.crf.permutohedral import Floats, Ints, Lattice

SMALLEST_PROBABILITY = 1e-5
"""Probabilities are raised to this before their logarithm: log p of an impossible class stays finite (-11.5)."""
FAINT = 0.15
"""A class that leads nowhere wins nowhere if its probability stays under this: so in all but a few pixels of ten thousand (RESULTS.md)."""


def dense_crf(
    image: NDArray[np.uint8],
    probabilities: Floats,
    *,
    iterations: int = 10,
    xy_sigma: float = 3.0,
    xy_weight: float = 3.0,
    bilateral_xy_sigma: float = 20.0,
    bilateral_rgb_sigma: float = 3.0,
    bilateral_weight: float = 5.0,
) -> Floats:
    """Probabilities after mean-field inference: float32 (C, H, W), summing to 1 over the classes.

    image: uint8 (H, W, 3), RGB. probabilities: float (C, H, W), 0–1; its unary is -log p, p at least 1e-5. xy_sigma, xy_weight:
    the smoothness kernel (px). bilateral_*: the appearance kernel (px; grey levels of 255). The defaults are those released
    with DeconvNet. Weights of 0 leave a kernel out.

    A class that can't well win anywhere (it leads in no pixel to begin with and nowhere reaches FAINT, or has lost after an iteration,
    see `_lost`) is left out from there on and comes back as 0. Raises ValueError for shapes that don't fit, non-finite probabilities and sigmas that aren't positive.
    """
    _check(image, probabilities, iterations, (xy_sigma, bilateral_xy_sigma, bilateral_rgb_sigma), (xy_weight, bilateral_weight))
    classes, height, width = probabilities.shape
    out = np.zeros((classes, height, width), np.float32)
    weight = xy_weight + bilateral_weight
    alive = _begins(probabilities)
    if not out.size or len(alive) == 1:
        out[alive] = 1
        return out

    y, x = (axis.astype(np.float32).ravel() for axis in np.mgrid[:height, :width])
    place = np.stack([x, y], axis=1)
    colour = image.reshape(-1, 3).astype(np.float32)
    smoothness = _kernel(place / xy_sigma, xy_weight)
    appearance = _kernel(np.hstack([place / bilateral_xy_sigma, colour / bilateral_rgb_sigma]), bilateral_weight)
    p = np.maximum(probabilities[alive].reshape(len(alive), -1).T, SMALLEST_PROBABILITY)
    log_p = permutohedral.pad(np.log(p), fill=-np.inf)
    q, left = _mean_field(log_p, len(alive), smoothness, appearance, iterations, weight)
    out[alive[left]] = q[:, : len(left)].T.reshape(len(left), height, width)
    return out


def _check(
    image: NDArray[np.uint8], probabilities: Floats, iterations: int, sigmas: tuple[float, ...], weights: tuple[float, ...]
) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
    if probabilities.ndim != 3 or probabilities.shape[1:] != image.shape[:2] or not len(probabilities):
        raise ValueError(f"probabilities are {probabilities.shape}, the photograph is {image.shape}")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities must be finite")
    if iterations < 1 or min(sigmas) <= 0 or min(weights) < 0:
        raise ValueError(f"iterations {iterations} and sigmas {sigmas} must be positive, weights {weights} not negative")


def _begins(probabilities: Floats) -> NDArray[np.intp]:
    """The classes that may win somewhere: those that lead in a pixel to begin with, or reach FAINT in one."""
    peaks = probabilities.reshape(len(probabilities), -1).max(axis=1, initial=0)
    return np.flatnonzero(_leaders(probabilities) | (peaks > FAINT))


@njit(cache=True, nogil=True)
def _leaders(probabilities: Floats) -> NDArray[np.bool_]:
    """Whether each class of (C, H, W) has the highest probability of a pixel; of equals the first has."""
    classes, height, width = probabilities.shape
    found = np.zeros(classes, np.bool_)
    for y in range(height):
        best, leader = probabilities[0, y].copy(), np.zeros(width, np.int32)
        for c in range(1, classes):  # row by row, as they lie in memory
            for x in range(width):
                if probabilities[c, y, x] > best[x]:
                    best[x], leader[x] = probabilities[c, y, x], c
        for x in range(width):
            found[leader[x]] = True
    return found


def _lost(classes: int, weight: float) -> float:
    """A class whose probability is nowhere above this after an iteration has lost.

    The probability is a·exp(m), m the class's own message, at most `weight` times its highest probability, and a what the others
    leave it. Where a ≤ 1 / (e·weight), x = a·exp(weight·x) has a solution, and the class can't come to more than the least one,
    at most 1 / weight, while the others don't give way. And it is under half of what a winner of `classes` has at least.
    """
    return min(1 / (np.e * max(weight, 1e-9)), 0.5 / classes)


def _above(peaks: Floats, floor: float) -> NDArray[np.intp]:
    """The classes whose highest probability is above `floor`; all where none is."""
    return np.flatnonzero(peaks > floor) if (peaks > floor).any() else np.arange(len(peaks))


def _kernel(features: NDArray[np.floating], weight: float) -> tuple[Lattice, Floats]:
    """The lattice and the weights (N, d+1) for splat and slice both.

    The square roots of the kernel's weight, of the symmetric normalisation 1/sqrt(Σ_j k_ij · Σ_i k_ij) and of the lattice's gain
    are taken into the barycentric weights.
    """
    lattice = permutohedral.build(features.astype(np.float32))
    norm = permutohedral.smooth(lattice, np.ones((len(features), 1), np.float32))
    factor = np.sqrt(np.float32(weight / lattice.gain) / (norm + np.float32(1e-20)))
    return lattice, lattice.weights * factor


def _mean_field(
    log_p: Floats, classes: int, first: tuple[Lattice, Floats], second: tuple[Lattice, Floats], iterations: int, weight: float
) -> tuple[Floats, NDArray[np.intp]]:
    """Q after `iterations` parallel updates Q ∝ p · exp(Σ_kernels K Q), from Q = p, and the classes that its first columns are of.

    log_p: (N, columns), the first `classes` of them classes; weight: both kernels'. Classes that have lost are dropped where that
    saves a vector register.
    """
    left = np.arange(classes)
    q = np.exp(log_p)
    q /= q.sum(axis=1, keepdims=True)
    rows: list[Floats] = []
    for iteration in range(iterations):
        if iteration and q.shape[1] > simd.WIDTH:
            winning = _above(q[:, : len(left)].max(axis=0), _lost(len(left), weight))
            if -(-len(winning) // simd.WIDTH) < q.shape[1] // simd.WIDTH:
                left = left[winning]
                q, log_p = permutohedral.pad(q[:, winning]), permutohedral.pad(log_p[:, winning], fill=-np.inf)
        if not rows or rows[0].shape[1] != q.shape[1]:
            rows = [permutohedral.empty_rows(lattice.size + 1, q.shape[1]) for lattice, _ in (first, second)]
        for (lattice, weights), values in zip((first, second), rows, strict=True):
            values[:] = 0
            permutohedral.splat(lattice.corners, weights, q, values)
            permutohedral.blur(lattice.chains, values)
        (a, wa), (b, wb) = first, second
        _update(log_p, a.corners, wa, rows[0], b.corners, wb, rows[1], q)
    return q, left


@njit(cache=True, nogil=True)
def _update(
    log_p: Floats,
    corners_a: Ints,
    weights_a: Floats,
    rows_a: Floats,
    corners_b: Ints,
    weights_b: Floats,
    rows_b: Floats,
    q: Floats,
) -> None:
    """q (N, C) = softmax of log_p and both kernels' messages, read from their lattices' rows."""
    blocks = log_p.shape[1] // simd.WIDTH
    for p in range(log_p.shape[0]):
        top = simd.fill(np.float32(-np.inf))
        for b in range(blocks):
            z = simd.load(log_p, p, b)
            for k in range(corners_a.shape[1]):
                z = simd.add(z, simd.multiply(simd.fill(weights_a[p, k]), simd.load(rows_a, corners_a[p, k], b)))
            for k in range(corners_b.shape[1]):
                z = simd.add(z, simd.multiply(simd.fill(weights_b[p, k]), simd.load(rows_b, corners_b[p, k], b)))
            simd.store(q, p, b, z)
            top = simd.maximum(top, z)
        top = simd.fill(simd.highest(top))
        sums = simd.fill(np.float32(0))
        for b in range(blocks):
            z = simd.exp(simd.subtract(simd.load(q, p, b), top))
            simd.store(q, p, b, z)
            sums = simd.add(sums, z)
        share = simd.fill(np.float32(1) / simd.total(sums))
        for b in range(blocks):
            simd.store(q, p, b, simd.multiply(simd.load(q, p, b), share))
